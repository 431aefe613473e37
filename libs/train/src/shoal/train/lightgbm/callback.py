"""Reports while LightGBM trains."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..session import get_context, report

__all__ = ["RayTrainReportCallback"]


class RayTrainReportCallback:
    """A callback of `lightgbm.train` that reports the metrics of each round to `shoal.train`, and saves the model as a checkpoint.

    Metrics are named `<valid set>-<metric>`, as in `valid_0-binary_logloss`.

    Args:
        metrics: which of them: names, or a dict of new names to names. Default: all.
        filename: of the model in the checkpoint.
        frequency: a checkpoint every so many rounds; 0: none on the way.
        checkpoint_at_end: whether there is one after the last round.
        results_postprocessing_fn: takes the metrics and gives what is reported.

    Raises:
        ValueError: a wanted metric is not there; naming those that are.
    """

    CHECKPOINT_NAME = "model.txt"
    # After LightGBM's own callbacks, which evaluate.
    order = 30
    before_iteration = False

    def __init__(
        self, metrics: str | Sequence[str] | Mapping[str, str] | None = None, filename: str = CHECKPOINT_NAME, frequency: int = 0,
        checkpoint_at_end: bool = True, results_postprocessing_fn: Callable[[dict[str, float]], dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        if frequency < 0:
            raise ValueError(f"frequency={frequency!r}: a number of rounds is wanted, or 0")
        self._metrics = [metrics] if isinstance(metrics, str) else metrics
        self._filename = filename
        self._frequency = frequency
        self._checkpoint_at_end = checkpoint_at_end
        self._postprocess = results_postprocessing_fn

    @classmethod
    def get_model(cls, checkpoint: Checkpoint, filename: str = CHECKPOINT_NAME) -> Any:
        """The `lightgbm.Booster` of a checkpoint."""
        import lightgbm

        with checkpoint.as_directory() as folder:
            return lightgbm.Booster(model_file=str(Path(folder, filename)))

    def __call__(self, env: Any) -> None:
        """`env`: LightGBM's CallbackEnv."""
        found = self._found(env)
        done = env.iteration + 1
        last = done == env.end_iteration
        due = bool(self._frequency) and done % self._frequency == 0
        if not (due or (last and self._checkpoint_at_end)):
            report(found)
            return
        with tempfile.TemporaryDirectory() as folder:
            # All ranks grow the same trees: one of them saves.
            checkpoint = None
            if get_context().get_world_rank() == 0:
                env.model.save_model(str(Path(folder, self._filename)))
                checkpoint = Checkpoint.from_directory(folder)
            report(found, checkpoint=checkpoint)

    def _found(self, env: Any) -> dict[str, Any]:
        known = {f"{one[0]}-{one[1]}": float(one[2]) for one in env.evaluation_result_list or ()}
        wanted = self._metrics
        if wanted is not None:
            names = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in wanted}
            missing = [name for name in names.values() if name not in known]
            if missing:
                raise ValueError(f"RayTrainReportCallback: there is no metric {missing[0]!r}; there are {', '.join(known) or 'none: give valid_sets'}")
            known = {new: known[name] for new, name in names.items()}
        return self._postprocess(known) if self._postprocess is not None else known
