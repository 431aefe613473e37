"""Algorithms and their settings."""

from .algorithm import Algorithm
from .algorithm_config import AlgorithmConfig
from .dqn import DQN, DQNConfig
from .es import ES, ESConfig
from .ppo import PPO, PPOConfig
from .sac import SAC, SACConfig

__all__ = ["DQN", "ES", "PPO", "SAC", "Algorithm", "AlgorithmConfig", "DQNConfig", "ESConfig", "PPOConfig", "SACConfig"]
