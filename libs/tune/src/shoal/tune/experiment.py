"""`Trial`, under the name at which Ray's users look for it."""

from .trial import Trial

__all__ = ["Trial"]
