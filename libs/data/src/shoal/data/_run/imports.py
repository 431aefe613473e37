"""Imports that a cancelled task cannot leave half done.

A task may be cancelled at any moment, by an exception in the main thread, and NumPy or Polars that were imported half cannot be imported again in that process.
A side thread is not struck.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from importlib import import_module
from types import ModuleType


def imported(name: str) -> ModuleType:
    """The module, imported whole even if this task is cancelled meanwhile."""
    found = sys.modules.get(name)
    spec = getattr(found, "__spec__", None)
    if found is not None and not getattr(spec, "_initializing", False):
        return found
    thread = threading.Thread(target=_try_import, args=(name,), name="shoal-import", daemon=True)
    thread.start()
    thread.join()
    return import_module(name)  # there by now; or it raises here what was wrong


def _try_import(name: str) -> None:
    with contextlib.suppress(Exception):  # who asked for it meets the same error in its own thread
        import_module(name)
