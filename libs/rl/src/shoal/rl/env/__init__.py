"""Environments: by name, stepped together, and the runners that play them."""

from .context import EnvContext
from .registry import register_env

__all__ = ["EnvContext", "register_env"]
