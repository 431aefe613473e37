"""The node's object store: a shared-memory arena that processes put into and get from without asking anyone, and the service that
lends its space and moves objects between nodes.

``get_include()`` is the folder of ``shoal_arena.h``, the arena's layout and client side for C and C++.
"""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def get_include() -> str:
    """The folder that holds ``shoal_arena.h``."""
    return str(Path(__file__).resolve().parent / "include")


__all__ = ["__version__", "get_include"]
