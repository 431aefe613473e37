"""What happens to trials (past tense), and what is to be done (imperative)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..trial import SavedCheckpoint, Trial

# -- events. `now`: monotonic seconds ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrialReported:
    """A result; the trial waits for an answer. `checkpoint`: the path of the one that came with it."""

    trial_id: str
    result: dict[str, Any]
    now: float
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class TrialSaved:
    """The answer to SaveTrial; the trial waits again. None: it saved nothing."""

    trial_id: str
    checkpoint: str | None
    now: float


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """The function returned. Its runner is gone."""

    trial_id: str
    now: float


@dataclass(frozen=True, slots=True)
class TrialFailed:
    """It raised, or its process died. Its runner is gone."""

    trial_id: str
    error: BaseException
    text: str
    now: float


@dataclass(frozen=True, slots=True)
class TrialClosed:
    """The answer to StopTrial: its runner is gone. `checkpoint`: what was saved last, when that was asked for."""

    trial_id: str
    now: float
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterChanged:
    """What all nodes have together."""

    total: Mapping[str, float]
    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    now: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The user wants to leave. Trials that have not ended can be resumed."""

    now: float


Event = TrialReported | TrialSaved | TrialEnded | TrialFailed | TrialClosed | ClusterChanged | Tick | Interrupted

# -- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartTrial:
    """A runner for it. `restore`: what it goes on from, first copied to `copy_to` when that is given."""

    trial: Trial
    restore: SavedCheckpoint | None
    copy_to: str | None
    next_checkpoint: int


@dataclass(frozen=True, slots=True)
class ContinueTrial:
    trial_id: str


@dataclass(frozen=True, slots=True)
class SaveTrial:
    trial_id: str


@dataclass(frozen=True, slots=True)
class StopTrial:
    """To be answered by TrialClosed. `save`: after a last checkpoint."""

    trial_id: str
    save: bool


@dataclass(frozen=True, slots=True)
class DeleteCheckpoint:
    path: str


@dataclass(frozen=True, slots=True)
class Record:
    """An entry of the journal."""

    entry: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tell:
    """Callbacks: the hook's name, and what it is given beside the trial."""

    hook: str
    trial: Trial
    info: dict[str, Any]


Effect = StartTrial | ContinueTrial | SaveTrial | StopTrial | DeleteCheckpoint | Record | Tell
