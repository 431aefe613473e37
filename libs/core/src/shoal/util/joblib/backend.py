"""The back end: joblib's batches are calls of a pool of actors."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from joblib._parallel_backends import MultiprocessingBackend

import shoal
from shoal.util.multiprocessing import Pool

# Arguments as large as that are in the object store once, however many calls take them: from this size on, joblib's own back ends map memory.
_SHARED_BYTES = 1 << 20


class ShoalBackend(MultiprocessingBackend):
    """Everything but the pool is joblib's: batching by measured time, callbacks, abort. Large arguments are shared, and read-only.

    Args:
        ray_remote_args: options of the workers, as `.options(…)`; those given to `joblib.Parallel` come before those of `parallel_backend`.
    """

    supports_sharedmem = False

    def __init__(self, *args: Any, ray_remote_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._remote_args = ray_remote_args
        self._pool: Pool | None = None
        self._shared = _Shared()

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, ray_remote_args: dict[str, Any] | None = None, **_: Any
    ) -> int:
        n_jobs = self.effective_n_jobs(n_jobs)
        if ray_remote_args is not None:
            self._remote_args = ray_remote_args
        self._pool = Pool(processes=n_jobs, ray_remote_args=self._remote_args)
        self.parallel = parallel
        return n_jobs

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """-1: all CPUs of the cluster; -2: all but one; and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if not shoal.is_initialized():
            shoal.init()
        cpus = max(1, int(shoal.cluster_resources().get("CPU", 1)))
        # Without a number the whole cluster is meant: whoever chose this back end did not want one process.
        wanted = cpus if n_jobs is None else n_jobs if n_jobs > 0 else max(1, cpus + 1 + n_jobs)
        return min(wanted, cpus)

    def submit(self, func: Callable[..., Any], callback: Callable[[Any], Any] | None = None) -> Any:
        if self._pool is None:
            raise RuntimeError("this back end was terminated")
        if hasattr(func, "items"):  # a batch; it is made for this one dispatch
            func.items = [
                (f, tuple(map(self._shared.of, args)), {name: self._shared.of(value) for name, value in kwargs.items()}) for f, args, kwargs in func.items
            ]
        return self._pool.apply_async(_Call(func), callback=callback, error_callback=callback)

    apply_async = submit

    def terminate(self) -> None:
        pool, self._pool = self._pool, None
        self._shared.clear()
        if pool is not None:
            pool.terminate()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


@dataclass(frozen=True, slots=True)
class _Put:
    """In an argument's place; a reference that the user gives stays one."""

    ref: shoal.ObjectRef[Any]


class _Shared:
    """Large arguments by what they are, each for as long as somebody has it. Who changes one between two calls is not heard, as with joblib's own back ends."""

    def __init__(self) -> None:
        self._put: dict[int, tuple[weakref.ref[Any], _Put]] = {}

    def of(self, value: Any) -> Any:
        key = id(value)
        found = self._put.get(key)
        if found is not None:
            return found[1]
        if (getattr(value, "nbytes", 0) or sys.getsizeof(value)) < _SHARED_BYTES:
            return value
        try:
            kept = weakref.ref(value, lambda _: self._put.pop(key, None))
        except TypeError:  # a list, a text: nobody tells when it is gone
            return value
        made = _Put(shoal.put(value))
        self._put[key] = (kept, made)
        return made

    def clear(self) -> None:
        self._put.clear()


def _value(argument: Any) -> Any:
    return shoal.get(argument.ref) if type(argument) is _Put else argument


class _Call:
    """In a worker, joblib inside of joblib runs one after the other."""

    def __init__(self, batch: Callable[..., Any]) -> None:
        self.batch: Any = batch

    def __call__(self) -> Any:
        from joblib import parallel_config

        if hasattr(self.batch, "items"):
            items = self.batch.items
            self.batch.items = [(f, tuple(map(_value, args)), {name: _value(value) for name, value in kwargs.items()}) for f, args, kwargs in items]
        with parallel_config(backend="sequential"):
            return self.batch()
