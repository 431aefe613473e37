"""The node's object store: a shared-memory arena that processes put into and get from without asking anyone, and the service that
lends its space and moves objects between nodes.

``get_include()`` is the folder of ``shoal_arena.h``, the arena's layout and client side for C and C++.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._arena import (
        Arena,
        ArenaError,
        ArenaOSError,
        Buffer,
        LayoutMismatch,
        NeedExtent,
        NoSlot,
        ObjectGone,
        Store,
        Writable,
        WrongState,
        create_arena,
        format_arena,
    )
    from .client import Client, NameTaken, NoSuchName, ObjectDamaged, StoreError, StoreFull, StoreGone

__version__ = "0.1.0"

__all__ = [
    "Arena",
    "ArenaError",
    "ArenaOSError",
    "Buffer",
    "Client",
    "LayoutMismatch",
    "NameTaken",
    "NeedExtent",
    "NoSlot",
    "NoSuchName",
    "ObjectDamaged",
    "ObjectGone",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreGone",
    "Writable",
    "WrongState",
    "__version__",
    "create_arena",
    "format_arena",
    "get_include",
]


_CLIENT = frozenset({"Client", "NameTaken", "NoSuchName", "ObjectDamaged", "StoreError", "StoreFull", "StoreGone"})


def get_include() -> str:
    """The folder that holds ``shoal_arena.h``."""
    return str(Path(__file__).resolve().parent / "include")


def __getattr__(name: str) -> Any:
    # Late, so that builds that only want get_include() need no compiled extension.
    if name in _CLIENT:
        from . import client

        return getattr(client, name)
    if name in __all__:
        from . import _arena

        return getattr(_arena, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
