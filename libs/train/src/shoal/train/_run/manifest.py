"""The record of a run in its folder: what is committed, and nothing else counts.

`run.json` names the committed checkpoints and is replaced as a whole, so a process killed at any moment leaves the last good state.
`progress.jsonl` has the reported metrics, a line each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from ..checkpoint import Checkpoint
from ..errors import StorageError, TrainingFailedError
from ..result import Result
from ..storage import Folder
from .checkpoints import Entry

FORMAT = 1
RUNNING, FINISHED, FAILED = "RUNNING", "FINISHED", "FAILED"


@dataclass(frozen=True)
class Manifest:
    """What `run.json` says. `next_number`: of the next checkpoint. `reports`: how many lines of `progress.jsonl` count."""

    FILE: ClassVar[str] = "run.json"
    PROGRESS: ClassVar[str] = "progress.jsonl"

    name: str
    state: str = RUNNING
    next_number: int = 0
    reports: int = 0
    checkpoints: tuple[Entry, ...] = ()
    error: str = ""

    @property
    def latest(self) -> Entry | None:
        return self.checkpoints[-1] if self.checkpoints else None

    def committed(self, entry: Entry, deleted: Sequence[Entry]) -> Manifest:
        gone = {old.number for old in deleted}
        kept = tuple(old for old in (*self.checkpoints, entry) if old.number not in gone)
        return replace(self, checkpoints=kept, next_number=entry.number + 1, reports=entry.reports)

    def save(self, folder: Folder) -> None:
        said = {"format": FORMAT, **asdict(self)}
        folder.write(self.FILE, dumps(said).encode())

    @classmethod
    def load(cls, folder: Folder) -> Manifest | None:
        """None if there is none. Raises StorageError for one that cannot be read."""
        data = folder.read(cls.FILE)
        if data is None:
            return None
        try:
            said = json.loads(data)
            if said.pop("format") != FORMAT:
                raise ValueError("it is of another version of this library")
            said["checkpoints"] = tuple(Entry(**entry) for entry in said["checkpoints"])
            return cls(**said)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{folder.path}/{cls.FILE} cannot be read: {error}. Delete it to begin the run anew.") from error

    def result(self, folder: Folder) -> Result:
        """Of a run that may have been carried out by another process."""
        history = read_progress(folder)
        latest = self.latest
        return Result(
            metrics=history[-1] if history else None,
            checkpoint=Checkpoint.from_folder(folder.child(latest.name)) if latest is not None else None,
            error=TrainingFailedError(self.error) if self.error else None,
            path=folder.path,
            best_checkpoints=[(Checkpoint.from_folder(folder.child(entry.name)), dict(entry.metrics)) for entry in self.checkpoints],
            _storage_filesystem=folder.filesystem,
            history=history,
        )


def read_progress(folder: Folder, limit: int | None = None) -> list[dict[str, Any]]:
    """The reported metrics; a last line that was cut by a kill does not count."""
    data = folder.read(Manifest.PROGRESS) or b""
    lines = data.split(b"\n")[:-1]
    return [json.loads(line) for line in (lines if limit is None else lines[:limit])]


def dumps(value: Any) -> str:
    return json.dumps(value, default=_plain, separators=(",", ":"))


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON says it: numbers of NumPy become Python's, arrays become lists, what JSON has no word for becomes its text."""
    said: dict[str, Any] = json.loads(dumps(dict(metrics)))
    return said


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)
