"""What users may do at events of an algorithm."""

from __future__ import annotations

from typing import Any

__all__ = ["RLlibCallback"]


class RLlibCallback:
    """Override what you need; every method is called with keyword arguments, also ones that later versions add: take `**kwargs`.

    `metrics_logger.log_value(name, value)` puts numbers into the result of `train()`. The methods about environments and episodes run in the env runner's
    process.

    >>> class CountShort(RLlibCallback):
    ...     def on_episode_end(self, *, episode, metrics_logger, **kwargs):
    ...         metrics_logger.log_value("short_episodes", float(len(episode) < 10), reduce="sum")
    """

    def on_algorithm_init(self, *, algorithm: Any, metrics_logger: Any, **kwargs: Any) -> None:
        """The algorithm is ready."""

    def on_train_result(self, *, algorithm: Any, metrics_logger: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """A call of `train()` is done; `result` may be changed."""

    def on_evaluate_start(self, *, algorithm: Any, metrics_logger: Any, **kwargs: Any) -> None:
        """Evaluation begins."""

    def on_evaluate_end(self, *, algorithm: Any, metrics_logger: Any, evaluation_metrics: dict[str, Any], **kwargs: Any) -> None:
        """Evaluation is done; `evaluation_metrics` may be changed."""

    def on_env_runners_recreated(self, *, algorithm: Any, env_runner_group: Any, env_runner_indices: list[int], is_evaluation: bool, **kwargs: Any) -> None:
        """Env runners that had died were replaced."""

    def on_checkpoint_loaded(self, *, algorithm: Any, **kwargs: Any) -> None:
        """A checkpoint was restored."""

    def on_environment_created(self, *, env_runner: Any, metrics_logger: Any, env: Any, env_context: Any, **kwargs: Any) -> None:
        """A runner has made its environments; `env` is the vector of them."""

    def on_episode_start(self, *, episode: Any, env_runner: Any, metrics_logger: Any, env: Any, env_index: int, rl_module: Any, **kwargs: Any) -> None:
        """An episode begins."""

    def on_episode_end(self, *, episode: Any, env_runner: Any, metrics_logger: Any, env: Any, env_index: int, rl_module: Any, **kwargs: Any) -> None:
        """An episode has ended; `episode.get_return()`, `len(episode)`."""

    def on_sample_end(self, *, env_runner: Any, metrics_logger: Any, samples: list[Any], **kwargs: Any) -> None:
        """A fragment has been played; `samples` are the episodes that ended in it."""
