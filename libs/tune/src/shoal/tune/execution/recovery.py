"""An experiment as its folder tells it: trials from the journal, and the state of searcher and scheduler from the last snapshot and what came after."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..error import JournalError, TuneError
from ..journal import FILE, decode, read_journal
from ..schedulers.trial_scheduler import TrialScheduler
from ..search.searcher import Searcher
from ..search.variants import flat_params
from ..trial import SavedCheckpoint, Trial

__all__ = ["Recovered", "read_experiment", "replay"]

SNAPSHOT = "search-state.pkl"
_log = logging.getLogger("shoal.tune")


@dataclass
class Recovered:
    """What an experiment's journal says.

    Attributes:
        header: metric, mode, name, and so on.
        trials: all of them, as they were when the last entry was written.
        suggested: how many suggestions there were.
        length: bytes of the journal that are good.
        entries: all of them, for `replay`.
    """

    header: dict[str, Any]
    trials: dict[str, Trial] = field(default_factory=dict)
    suggested: int = 0
    length: int = 0
    entries: list[dict[str, Any]] = field(default_factory=list)


class RestoredError(TuneError):
    """An error that an earlier run of the experiment had, of which only the text is left."""


def read_experiment(folder: Path, make_trial: Callable[[int, str, dict[str, Any]], Trial] | None = None) -> Recovered:
    """Reads a folder. `make_trial` names resources and the like; default: a bare trial.

    Raises:
        JournalError: there is no experiment, or its journal is damaged.
    """
    entries, length = read_journal(folder / FILE)
    if not entries:
        raise JournalError(f"the experiment in {folder} has not begun: its journal is empty")
    found = Recovered(decode(entries[0]), length=length, entries=entries)
    old_root = found.header.get("folder")
    for entry in entries[1:]:
        _apply(found, entry, make_trial or _bare)
    for trial in found.trials.values():
        _here(trial, old_root, str(folder))
        _restore_error(trial)
    return found


def _bare(number: int, trial_id: str, config: dict[str, Any]) -> Trial:
    return Trial(trial_id, config, number=number)


def _apply(found: Recovered, entry: dict[str, Any], make_trial: Callable[[int, str, dict[str, Any]], Trial]) -> None:
    kind = entry["t"]
    if kind == "trial":
        trial = make_trial(entry["n"], entry["id"], decode(entry["config"]))
        trial.path = entry["path"]
        trial.evaluated_params = decode(entry["params"])
        trial.custom_name = entry.get("name") or trial.custom_name
        trial.is_restored = True
        found.trials[trial.trial_id] = trial
        found.suggested = max(found.suggested, trial.number + 1)
        return
    if "id" not in entry:
        return
    trial = found.trials[entry["id"]]
    match kind:
        case "result":
            result = {**decode(entry["result"]), "config": trial.config}
            trial.record(result, flat_params(result))
        case "ckpt":
            result = decode(entry["result"]) if "result" in entry else trial.last_result
            trial.checkpoints.append(SavedCheckpoint(entry["path"], result, entry["i"]))
            trial.checkpoint_count = entry["i"] + 1
        case "drop":
            trial.checkpoints = [one for one in trial.checkpoints if one.path != entry["path"]]
        case "config":
            trial.config = decode(entry["config"])
        case "start":
            trial.status = Trial.RUNNING
        case "pause":
            trial.status = Trial.PAUSED
        case "fail":
            trial.num_failures += 1
            trial.error_text = entry["text"]
            trial.status = Trial.PENDING
        case "end":
            trial.status = entry["status"]
            trial.error_text = entry.get("text", "")
            if trial.status == Trial.TERMINATED:
                trial.last_result["done"] = True
        case "again":  # a later run took it up once more
            trial.status = Trial.PENDING
            trial.error_text = ""
            trial.num_failures = 0
            if entry["restart"]:
                trial.checkpoints.clear()


def _here(trial: Trial, old_root: str | None, root: str) -> None:
    """Paths of a folder that was moved; and without checkpoints that were not written to the end."""

    def moved(path: str) -> str:
        return root + path[len(old_root) :] if old_root and old_root != root and path.startswith(f"{old_root}/") else path

    trial.path = moved(trial.path)
    trial.checkpoints = [
        SavedCheckpoint(path, one.result, one.index) for one in trial.checkpoints if os.path.isdir(path := moved(one.path))
    ]  # fmt: skip


def _restore_error(trial: Trial) -> None:
    if trial.status != Trial.ERROR:
        return
    try:
        trial.error = pickle.loads(Path(trial.path, "error.pkl").read_bytes())
    except Exception:  # whatever unpickling brings; the text is enough
        trial.error = RestoredError(trial.error_text)


# -- snapshots ---------------------------------------------------------------------------------------------------------


def read_snapshot(folder: Path) -> dict[str, Any] | None:
    """None: there is none that can be read."""
    path = folder / SNAPSHOT
    try:
        state = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except Exception as error:
        _log.warning("%s cannot be read (%s: %s): the search goes on from the journal alone", path, type(error).__name__, error)
        return None
    return state if isinstance(state, dict) else None


def write_snapshot(folder: Path, state: dict[str, Any]) -> None:
    """In place of the last one."""
    import cloudpickle

    half = folder / f"{SNAPSHOT}.part"
    half.write_bytes(cloudpickle.dumps(state))
    half.replace(folder / SNAPSHOT)


class _Bystander:
    """The controller that a scheduler sees while the past is told again: nothing that it wants is done."""

    def __init__(self, trials: dict[str, Trial]) -> None:
        self._trials = trials

    def get_trials(self) -> list[Trial]:
        return list(self._trials.values())

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self._trials.values() if not trial.is_finished()]

    def get_trial(self, trial_id: str) -> Trial:
        return self._trials[trial_id]

    def waiting_trials(self, status: str) -> Iterable[Trial]:
        return iter(())

    def has_resources_for_trial(self, trial: Trial) -> bool:
        return False

    def can_be_copied(self, trial: Trial) -> bool:
        return False

    def save_trial(self, trial: Trial) -> None: ...
    def stop_trial(self, trial: Trial) -> None: ...
    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None: ...
    def exploit(self, trial: Trial, donor: Trial, config: dict[str, Any]) -> None: ...


def replay(found: Recovered, since: int, searcher: Searcher, scheduler: TrialScheduler) -> None:
    """Tells searcher and scheduler what came after entry number `since`, which their state does not know."""
    controller: Any = _Bystander(found.trials)
    # What the trials were at that time; the objects of `found` are at the end already.
    known: dict[str, Trial] = {}
    stopped: set[str] = set()
    for entry in found.entries[since:]:
        kind, trial_id = entry["t"], entry.get("id", "")
        if kind == "trial":
            trial = known[trial_id] = Trial(trial_id, decode(entry["config"]), number=entry["n"], path=entry["path"])
            searcher.on_trial_restore(trial_id, trial.config)
            scheduler.on_trial_add(controller, trial)
            continue
        trial = known.get(trial_id) or found.trials.get(trial_id)  # type: ignore[assignment]
        if trial is None or trial_id in stopped:
            continue
        if kind == "result":
            result = {**decode(entry["result"]), "config": trial.config}
            if trial_id in known:
                trial.last_result = result
            if scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP:
                stopped.add(trial_id)
                searcher.on_trial_complete(trial_id, flat_params(result))
            else:
                searcher.on_trial_result(trial_id, flat_params(result))
        elif kind == "end":
            stopped.add(trial_id)
            failed = entry["status"] == Trial.ERROR
            if failed:
                scheduler.on_trial_error(controller, trial)
            else:
                scheduler.on_trial_complete(controller, trial, trial.last_result)
            searcher.on_trial_complete(trial_id, flat_params(trial.last_result) or None, error=failed)
