"""What a run ended with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint
from .errors import StorageError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Result"]


class Result:
    """Of one run.

    Attributes:
        metrics: the last reported ones; None if nothing was reported.
        checkpoint: the last one that all ranks reported; None if there is none.
        error: what ended the run, if it did not end well.
        path: the run's folder.
        best_checkpoints: the checkpoints that are kept, each with its metrics, oldest first.
        return_value: what the training function of rank 0 returned.
    """

    def __init__(
        self, metrics: dict[str, Any] | None, checkpoint: Checkpoint | None, error: Exception | None, path: str, metrics_dataframe: pd.DataFrame | None = None,
        best_checkpoints: list[tuple[Checkpoint, dict[str, Any]]] | None = None, _storage_filesystem: Any = None, return_value: Any = None, *,
        history: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """`history`: the rows of `metrics_dataframe`, which is made from them when somebody asks (importing pandas takes longer than many a run)."""
        self.metrics = metrics
        self.checkpoint = checkpoint
        self.error = error
        self.path = path
        self.best_checkpoints = best_checkpoints
        self.return_value = return_value
        self._filesystem = _storage_filesystem
        self._dataframe = metrics_dataframe
        self._history = history

    @property
    def metrics_dataframe(self) -> pd.DataFrame | None:
        """All reported metrics, a row each; nested dicts have columns `a/b`. None if nothing was reported. Needs pandas."""
        if self._dataframe is None and self._history:
            import pandas as pd

            self._dataframe = pd.json_normalize([dict(row) for row in self._history], sep="/")
        return self._dataframe

    @property
    def history(self) -> list[dict[str, Any]]:
        """All reported metrics, oldest first."""
        if self._history is None and self._dataframe is not None:
            return [{str(key): value for key, value in row.items()} for row in self._dataframe.to_dict("records")]
        return [dict(row) for row in self._history or ()]

    @property
    def config(self) -> dict[str, Any] | None:
        """The `config` among the metrics, as tune reports it."""
        return (self.metrics or {}).get("config")

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` that `path` is a path of."""
        if self._filesystem is not None:
            return self._filesystem
        from pyarrow import fs

        return fs.LocalFileSystem()

    def get_best_checkpoint(self, metric: str, mode: str) -> Checkpoint | None:
        """Of the checkpoints that are kept, the one with the best value of a metric; `mode`: "max" or "min". `a/b` is key b of the dict at key a.

        Raises:
            ValueError: mode is neither.
            KeyError: no checkpoint has the metric; names those that there are.
        """
        from ._run.checkpoints import metric_of

        if mode not in ("max", "min"):
            raise ValueError(f"mode={mode!r}: 'max' or 'min' is wanted")
        kept = self.best_checkpoints or []
        if not kept:
            return None
        scored = [(value, checkpoint) for checkpoint, metrics in kept if (value := metric_of(metrics, metric)) is not None]
        if not scored:
            known = sorted({str(name) for _, metrics in kept for name in metrics})
            raise KeyError(f"no checkpoint was reported with a metric {metric!r}; there are: {', '.join(known)}")
        best = (max if mode == "max" else min)(scored, key=lambda pair: pair[0])
        return best[1]

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], storage_filesystem: Any = None) -> Result:
        """Of an earlier run, from its folder: a local path, a URI, or a path of `storage_filesystem`.

        Raises:
            StorageError: no run has left its record there.
        """
        from ._run.manifest import Manifest
        from .storage import open_folder

        folder = open_folder(path, storage_filesystem)
        manifest = Manifest.load(folder)
        if manifest is None:
            raise StorageError(f"{folder.path} is not the folder of a run: there is no {Manifest.FILE} in it")
        return manifest.result(folder)

    def __repr__(self) -> str:
        shown = {"metrics": self.metrics, "path": self.path, "checkpoint": self.checkpoint, "error": self.error}
        return f"Result({', '.join(f'{name}={value!r}' for name, value in shown.items() if value is not None)})"
