"""`ray._private.worker`: what `init()` returns, for those who annotate it."""

from shoal._init import Context as BaseContext

RayContext = BaseContext

__all__ = ["BaseContext", "RayContext"]
