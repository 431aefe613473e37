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
        kwargs: of each `wait()`: `timeout` after which it looks again, `fetch_local`.

    Raises:
        ValueError: a chunk_size below 1; num_returns is given.
    """
    _check(chunk_size, kwargs)
    left = list(refs)
    while left:
        ready, left = _first(left, chunk_size, kwargs)
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
        ValueError: backpressure_size or chunk_size is below 1; num_returns is given.
    """
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError("backpressure_size must be positive.")
    _check(chunk_size, kwargs)
    limit = float("inf") if backpressure_size is None else backpressure_size
    start: Callable[[Any], Any] = fn.remote
    running: list[Any] = []
    for item in items:
        running.append(start(item))
        if len(running) >= limit:
            ready, running = _first(running, chunk_size, kwargs)
            yield from ready if yield_obj_refs else _api.get(ready)
    yield from as_completed(running, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs, **kwargs)


def _check(chunk_size: int, kwargs: dict[str, Any]) -> None:
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    if "num_returns" in kwargs:
        raise ValueError("Use the `chunk_size` argument instead of `num_returns`.")


def _first(refs: list[Any], chunk_size: int, kwargs: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What is ready, at most chunk_size, as soon as anything is; and the rest."""
    ready, left = _api.wait(refs, **{"num_returns": 1, **kwargs})
    if ready and left and chunk_size > 1:
        more, left = _api.wait(left, **{**kwargs, "num_returns": min(chunk_size - 1, len(left)), "timeout": 0})
        ready += more
    return ready, left
