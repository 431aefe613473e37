"""Trainables as classes, which are asked for one step after the other."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.train import Checkpoint

    from .resources import PlacementGroupFactory

__all__ = ["Trainable"]

_PICKLE_FILE = "checkpoint.pkl"


class Trainable:
    """A trainable whose steps Tune asks for one by one, so that it can save, pause, and go on elsewhere. To be subclassed.

    Args:
        config: the trial's configuration; also `self.config`.

    Example::

        class Model(Trainable):
            def setup(self, config):
                self.x = 0.0
            def step(self):
                self.x += self.config["lr"]
                return {"score": self.x}
            def save_checkpoint(self, checkpoint_dir):
                return {"x": self.x}                      # or write files there, and return nothing
            def load_checkpoint(self, checkpoint):
                self.x = checkpoint["x"]                  # a dict if one was returned, else the folder's path
    """

    def __init__(
        self, config: dict[str, Any] | None = None, *, trial_id: str = "", trial_name: str = "", logdir: str | None = None, resources: Any = None,
    ) -> None:  # fmt: skip
        self.config: dict[str, Any] = config if config is not None else {}
        self._trial_id, self._trial_name, self._logdir, self._resources = trial_id, trial_name, logdir, resources
        self._iteration = 0
        self._time_total = 0.0
        self.setup(self.config)

    # -- to be defined by subclasses -----------------------------------------------------------------------------------

    def setup(self, config: dict[str, Any]) -> None:
        """Once, at the start."""

    def step(self) -> dict[str, Any]:
        """One iteration; its metrics. `done=True` in them ends the trial."""
        raise NotImplementedError(f"{type(self).__name__} must define step()")

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any] | None:
        """Writes what is needed to go on into the folder; or returns it as a dict."""
        raise NotImplementedError(f"{type(self).__name__} must define save_checkpoint(checkpoint_dir) to be paused, copied or resumed")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from what `save_checkpoint` returned; if that was nothing, from the folder."""
        raise NotImplementedError(f"{type(self).__name__} must define load_checkpoint(checkpoint) to be paused, copied or resumed")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Becomes a trial of another configuration, as if newly set up. False: it cannot, and a new object takes its place. For `reuse_actors`."""
        return False

    def cleanup(self) -> None:
        """Once, in the end."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory | None:
        """What a trial of this configuration needs; None: one CPU."""
        return None

    # -- for subclasses ------------------------------------------------------------------------------------------------

    @property
    def iteration(self) -> int:
        """How many steps were made, those before the last restore too."""
        return self._iteration

    training_iteration = iteration

    @property
    def trial_id(self) -> str:
        return self._trial_id

    @property
    def trial_name(self) -> str:
        return self._trial_name

    @property
    def logdir(self) -> str:
        """The trial's folder."""
        if self._logdir is None:
            self._logdir = tempfile.mkdtemp(prefix="trainable_")
        return self._logdir

    @property
    def trial_resources(self) -> Any:
        return self._resources

    def get_config(self) -> dict[str, Any]:
        return self.config

    # -- for whoever runs it -------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """One step, with `training_iteration`, `time_this_iter_s` and `time_total_s` filled in. Also without Tune."""
        start = time.perf_counter()
        result = self.step()
        if not isinstance(result, dict):
            raise TypeError(f"{type(self).__name__}.step() must return a dict of metrics, got {type(result).__name__}")
        taken = result.get("time_this_iter_s", time.perf_counter() - start)
        self._iteration += 1
        self._time_total += taken
        return {**result, "training_iteration": self._iteration, "time_this_iter_s": taken, "time_total_s": self._time_total}

    def save(self, checkpoint_dir: str | None = None) -> str:
        """Into a folder (default: a new temporary one); its path."""
        folder = checkpoint_dir or tempfile.mkdtemp(prefix="checkpoint_")
        os.makedirs(folder, exist_ok=True)
        saved = self.save_checkpoint(folder)
        if isinstance(saved, dict):
            import cloudpickle

            Path(folder, _PICKLE_FILE).write_bytes(cloudpickle.dumps(saved))
        elif saved is not None and os.path.abspath(str(saved)) != os.path.abspath(folder):
            raise ValueError(f"{type(self).__name__}.save_checkpoint() must return a dict, or nothing after writing into {folder}; got {saved!r}")
        Path(folder, ".trainable.json").write_text(json.dumps({"iteration": self._iteration, "time_total_s": self._time_total}))
        return folder

    def restore(self, checkpoint_path: str | Checkpoint) -> None:
        """From a folder or a checkpoint of `save`. Only ones that you trust: dicts are unpickled."""
        if not isinstance(checkpoint_path, str | os.PathLike):
            with checkpoint_path.as_directory() as folder:
                self.restore(folder)
            return
        counts = Path(checkpoint_path, ".trainable.json")
        if counts.exists():
            known = json.loads(counts.read_text())
            self._iteration, self._time_total = known["iteration"], known["time_total_s"]
        pickled = Path(checkpoint_path, _PICKLE_FILE)
        if pickled.exists():
            import cloudpickle

            self.load_checkpoint(cloudpickle.loads(pickled.read_bytes()))
        else:
            self.load_checkpoint(str(checkpoint_path))

    def reset(self, new_config: dict[str, Any], *, trial_id: str = "", trial_name: str = "", logdir: str | None = None) -> bool:
        """Another trial in the same object; False: it cannot."""
        if not self.reset_config(new_config):
            return False
        self.config = new_config
        self._trial_id, self._trial_name, self._logdir = trial_id, trial_name, logdir
        self._iteration, self._time_total = 0, 0.0
        return True

    def stop(self) -> None:
        """Ends it: `cleanup`."""
        self.cleanup()
