"""Reinforcement learning on Shoal: environment runners as actors, learners, and algorithms that are known to learn."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .algorithms.algorithm import Algorithm as Algorithm
    from .algorithms.algorithm_config import AlgorithmConfig as AlgorithmConfig
    from .algorithms.dqn import DQN as DQN
    from .algorithms.dqn import DQNConfig as DQNConfig
    from .algorithms.es import ES as ES
    from .algorithms.es import ESConfig as ESConfig
    from .algorithms.ppo import PPO as PPO
    from .algorithms.ppo import PPOConfig as PPOConfig
    from .algorithms.sac import SAC as SAC
    from .algorithms.sac import SACConfig as SACConfig
    from .callbacks.callbacks import RLlibCallback as RLlibCallback
    from .core.rl_module.default_model_config import DefaultModelConfig as DefaultModelConfig
    from .env.context import EnvContext as EnvContext
    from .env.registry import register_env as register_env

_HOME = {
    "Algorithm": "algorithms.algorithm", "AlgorithmConfig": "algorithms.algorithm_config", "DQN": "algorithms.dqn", "DQNConfig": "algorithms.dqn",
    "ES": "algorithms.es", "ESConfig": "algorithms.es", "PPO": "algorithms.ppo", "PPOConfig": "algorithms.ppo", "SAC": "algorithms.sac",
    "SACConfig": "algorithms.sac", "RLlibCallback": "callbacks.callbacks", "DefaultModelConfig": "core.rl_module.default_model_config",
    "EnvContext": "env.context", "register_env": "env.registry",
}  # fmt: skip

__all__ = [
    "Algorithm", "AlgorithmConfig", "DQN", "DQNConfig", "DefaultModelConfig", "ES", "ESConfig", "EnvContext", "PPO", "PPOConfig",
    "RLlibCallback", "SAC", "SACConfig", "register_env",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
