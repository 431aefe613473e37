"""What users may do at events of an algorithm."""

from .callbacks import RLlibCallback

__all__ = ["RLlibCallback"]
