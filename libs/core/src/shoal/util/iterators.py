"""Results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .. import _api


def as_completed(refs: Sequence[Any], *, chunk_size: int = 10, yield_obj_refs: bool = False, **kwargs: Any) -> Iterator[Any]:
    """The values of references, each as it becomes ready.

    Args:
        chunk_size: how many are fetched at once.
        yield_obj_refs: yield the references and not their values.

    Raises:
        ValueError: a chunk_size below 1.
    """
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    left = list(refs)
    while left:
        ready, left = _api.wait(left, num_returns=1, timeout=None, **kwargs)
        if left and chunk_size > 1:
            more, left = _api.wait(left, num_returns=min(chunk_size - 1, len(left)), timeout=0, **kwargs)
            ready += more
        if yield_obj_refs:
            yield from ready
        else:
            yield from _api.get(ready)


def map_unordered(fn: Any, items: Iterable[Any], *, backpressure_size: int | None = 100, chunk_size: int = 10, yield_obj_refs: bool = False,
                  **kwargs: Any) -> Iterator[Any]:  # fmt: skip
    """fn.remote(item) for each item; results as they come.

    Args:
        fn: a remote function or an actor's method.
        backpressure_size: how many run at once at most; None: no limit.

    Raises:
        ValueError: backpressure_size is below chunk_size, or chunk_size below 1.
    """
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    limit = float("inf") if backpressure_size is None else backpressure_size
    if limit < chunk_size:
        raise ValueError("backpressure_size must be larger equal than chunk_size")
    start: Callable[[Any], Any] = fn.remote
    running: list[Any] = []
    for item in items:
        running.append(start(item))
        if len(running) >= limit:
            done, running = _api.wait(running, num_returns=1)
            more = min(chunk_size - 1, len(running))
            if more:
                also, running = _api.wait(running, num_returns=more, timeout=0)
                done += also
            yield from as_completed(done, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs, **kwargs)
    yield from as_completed(running, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs, **kwargs)
