"""Proximal policy optimisation: Schulman, Wolski, Dhariwal, Radford, Klimov 2017, arXiv:1707.06347."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, ClassVar

from ..core.networks import NetworkSpec, build_spec
from ..core.rl_module.default_model_config import DefaultModelConfig
from ..env.fragment import Fragment
from ..env.runner import RunnerPlan, Spaces
from ..errors import ConfigError
from ..settings import NotProvided, Setting, flag, integer, number, schedule
from .algorithm import Algorithm
from .algorithm_config import AlgorithmConfig

__all__ = ["PPO", "PPOConfig"]


_NUMPY, _TORCH = "shoal.rl.algorithms.ppo_learner:NumpyPPOLearner", "shoal.rl.algorithms.ppo_torch:TorchPPOLearner"


class PPOConfig(AlgorithmConfig):
    """Settings of PPO.

    >>> PPOConfig().environment("CartPole-v1").training(lr=3e-4, clip_param=0.2, minibatch_size=64).clip_param
    0.2
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "lr": Setting("training", 5e-5, schedule(number(above=0.0))),
        "train_batch_size_per_learner": Setting("training", 4000, integer(1)),
        "num_epochs": Setting("training", 30, integer(1)),
        "minibatch_size": Setting("training", 128, integer(1)),
        "shuffle_batch_per_epoch": Setting("training", True, flag),
        "use_critic": Setting("training", True, flag),
        "use_gae": Setting("training", True, flag),
        "lambda_": Setting("training", 1.0, number(0, 1)),
        "use_kl_loss": Setting("training", True, flag),
        "kl_coeff": Setting("training", 0.2, number(0)),
        "kl_target": Setting("training", 0.01, number(above=0.0)),
        "vf_loss_coeff": Setting("training", 1.0, number(0)),
        "entropy_coeff": Setting("training", 0.0, schedule(number(0))),
        "clip_param": Setting("training", 0.3, number(above=0.0)),
        "vf_clip_param": Setting("training", 10.0, number(above=0.0)),
    }
    MODEL_DEFAULTS: ClassVar[dict[str, Any]] = {"vf_share_layers": False}

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PPO)

    def training(
        self,
        *,
        num_epochs: Any = NotProvided,
        minibatch_size: Any = NotProvided,
        shuffle_batch_per_epoch: Any = NotProvided,
        use_critic: Any = NotProvided,
        use_gae: Any = NotProvided,
        lambda_: Any = NotProvided,
        use_kl_loss: Any = NotProvided,
        kl_coeff: Any = NotProvided,
        kl_target: Any = NotProvided,
        vf_loss_coeff: Any = NotProvided,
        entropy_coeff: Any = NotProvided,
        clip_param: Any = NotProvided,
        vf_clip_param: Any = NotProvided,
        **others: Any,
    ) -> PPOConfig:
        """Besides those of every algorithm (gamma, lr, grad_clip, train_batch_size_per_learner):

        Args:
            num_epochs, minibatch_size: how often a batch is gone through, in steps of so many rows; what remains joins the last one.
            shuffle_batch_per_epoch: in a new order each time.
            use_critic: learn a value function and take it off the returns.
            use_gae, lambda_: advantages by generalised estimation (Schulman et al. 2015, arXiv:1506.02438) with this lambda; else with lambda 1.
            use_kl_loss, kl_coeff, kl_target: penalise the divergence from the policy that sampled, with a coefficient that adapts to hold the target.
            vf_loss_coeff, vf_clip_param: the value loss's weight, and the bound of the squared error of each row.
            entropy_coeff: bonus for a policy that stays open; also a schedule.
            clip_param: how far the ratio of probabilities may go from 1.
        """
        own = {name: value for name, value in locals().items() if name in PPOConfig.SETTINGS}
        super().training(**others)
        self._set("training", own, {})
        return self

    def validate(self) -> None:
        super().validate()
        if self.minibatch_size > self.train_batch_size_per_learner:
            raise ConfigError(
                f"PPOConfig: minibatch_size={self.minibatch_size} is greater than train_batch_size_per_learner={self.train_batch_size_per_learner}"
            )
        envs = int(self.num_envs_per_env_runner) * max(1, int(self.num_env_runners))
        if envs < int(self.num_learners):
            raise ConfigError(
                f"PPOConfig: num_learners={self.num_learners} share {envs} environments (runners x num_envs_per_env_runner); each learner needs one at least"
            )


def _network(model: DefaultModelConfig, critic: bool, spaces: Spaces) -> NetworkSpec:
    return build_spec(model, spaces.observations.size, spaces.actions.size, gaussian=not spaces.actions.discrete, critic=critic)


def _policy(spaces: Spaces) -> str:
    return "categorical" if spaces.actions.discrete else "gaussian"


class PPO(Algorithm):
    """Samples a batch with the current policy, learns from it in epochs of minibatches, and forgets it. On-policy: nobody plays while it learns."""

    config_class = PPOConfig

    def _runner_plan(self, config: AlgorithmConfig) -> RunnerPlan:
        return RunnerPlan.of(config, partial(_network, config.get_model_config(), config.use_critic), _policy)

    def start_learning(self) -> None:
        from ..core.learner_group import learner_group

        self.learner_group = learner_group(_NUMPY, _TORCH, self.algo_config, self.spec, self.theta, self.spaces.actions.discrete)

    def training_step(self) -> dict[str, Any]:
        config, group = self.algo_config, self.env_runner_group
        wanted, steps = config.total_train_batch_size, config.get_rollout_fragment_length()
        started = time.perf_counter()
        rounds: list[Fragment] = []
        sampled = 0
        while sampled < wanted:
            fragments = self.count_samples(group.sample(steps, self.theta, 0.0, self.statistics))
            rounds.append(Fragment.join(fragments))
            sampled += rounds[-1].rewards.size
        between = time.perf_counter()
        # Each round begins where the one before it ended, but as columns of their own they need no stitching: every column knows what follows it.
        batch = Fragment.join(rounds)
        parts = batch.split(self.learner_group.count) if self.learner_group.count > 1 else [batch]
        self.theta, reported, _ = self.learner_group.update(parts, self._sampled)
        self._trained += int(reported["num_module_steps_trained"]) * self.learner_group.count
        self._timers["env_runner_sampling_timer"] += between - started
        self._timers["learner_update_timer"] += time.perf_counter() - between
        return reported

    def network(self) -> Any:
        from ..core.torch_network import TorchNetwork

        return TorchNetwork(self.spec, self.theta)

    def learning_state(self) -> dict[str, Any]:
        return {"learner": self.learner_group.get_state()}

    def set_learning_state(self, parts: dict[str, Any]) -> None:
        self.learner_group.set_state(parts["learner"])

    def stop_learning(self) -> None:
        if hasattr(self, "learner_group"):
            self.learner_group.stop()
