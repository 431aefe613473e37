"""What a user may hear of a graph's run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

from dask.callbacks import Callback


class RayCallbacks(NamedTuple):
    """The functions of several callbacks, by event."""

    ray_presubmit_cbs: list[Any]
    ray_postsubmit_cbs: list[Any]
    ray_pretask_cbs: list[Any]
    ray_posttask_cbs: list[Any]
    ray_postsubmit_all_cbs: list[Any]
    ray_finish_cbs: list[Any]


EVENTS = tuple(name.removesuffix("_cbs") for name in RayCallbacks._fields)


class RayDaskCallback(Callback):  # type: ignore[misc]
    """Hears of a graph's run: a context manager, or `register()` and `unregister()`.

    Give functions by name, or write methods of the name with a leading underscore in a subclass:

    - `ray_presubmit(task, key, deps)` before a task is submitted. A value other than None is its result, and no task is started.
    - `ray_postsubmit(task, key, deps, object_ref)` after.
    - `ray_pretask(key, object_refs)` in the worker, before the task runs; what it returns goes to `ray_posttask(key, result, pre_state)` after it.
    - `ray_postsubmit_all(object_refs, dsk)` when all are submitted: the references of what was asked for.
    - `ray_finish(result)` with the values.
    """

    ray_active: ClassVar[list[RayDaskCallback]] = []

    def __init__(self, **kwargs: Any) -> None:
        for name in EVENTS:
            function = kwargs.pop(name, None)
            if function is not None:
                setattr(self, f"_{name}", function)
        super().__init__(**kwargs)

    def __enter__(self) -> RayDaskCallback:
        self.register()
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()

    def register(self) -> None:
        self.ray_active.append(self)
        super().register()

    def unregister(self) -> None:
        self.ray_active.remove(self)
        super().unregister()


def unpack_ray_callbacks(cbs: Iterable[RayDaskCallback]) -> RayCallbacks:
    """The functions of several callbacks, by event."""
    return RayCallbacks(*([function for cb in cbs if (function := getattr(cb, f"_{name}", None)) is not None] for name in EVENTS))


@contextlib.contextmanager
def local_ray_callbacks(callbacks: Iterable[RayDaskCallback] | None = None) -> Iterator[list[RayDaskCallback]]:
    """Those that are active, or these instead; none is active inside, so that a graph run within a callback does not call it again."""
    active = RayDaskCallback.ray_active
    given = list(callbacks) if callbacks is not None else list(active)
    hidden, active[:] = active[:], []
    try:
        yield given
    finally:
        active[:] = hidden
