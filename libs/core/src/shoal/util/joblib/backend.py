"""The back end: joblib's batches are calls of a pool of actors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from joblib._parallel_backends import MultiprocessingBackend

import shoal
from shoal.util.multiprocessing import Pool


class ShoalBackend(MultiprocessingBackend):
    """Everything but the pool is joblib's: batching by measured time, callbacks, abort.

    Args:
        ray_remote_args: options of the workers, as `.options(…)`; those given to `joblib.Parallel` come before those of `parallel_backend`.
    """

    supports_sharedmem = False

    def __init__(self, *args: Any, ray_remote_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._remote_args = ray_remote_args
        self._pool: Pool | None = None

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
        return self._pool.apply_async(_Call(func), callback=callback, error_callback=callback)

    apply_async = submit

    def terminate(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


class _Call:
    """In a worker, joblib inside of joblib runs one after the other."""

    def __init__(self, batch: Callable[..., Any]) -> None:
        self.batch = batch

    def __call__(self) -> Any:
        from joblib import parallel_config

        with parallel_config(backend="sequential"):
            return self.batch()
