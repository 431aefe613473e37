"""Networks for a space: what runs in the env runners (numpy) and what is trained (torch)."""

from .default_model_config import DefaultModelConfig

__all__ = ["DefaultModelConfig"]
