"""Utilities on top of tasks and actors."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actor_pool import ActorPool
    from .iterators import as_completed, map_unordered
    from .log_once import disable_log_once_globally, enable_periodic_logging, log_once
    from .named_actors import list_named_actors
    from .node import get_node_instance_id, get_node_ip_address
    from .placement_group import (  # type: ignore[assignment]
        PlacementGroup,
        get_current_placement_group,
        get_placement_group,
        placement_group,
        placement_group_table,
        remove_placement_group,
    )
    from .serialization import deregister_serializer, inspect_serializability, register_serializer

_EXPORTS = {
    "actor_pool": ("ActorPool",),
    "placement_group": ("PlacementGroup", "get_current_placement_group", "get_placement_group", "placement_group", "placement_group_table",
                        "remove_placement_group"),
    "iterators": ("as_completed", "map_unordered"),
    "named_actors": ("list_named_actors",),
    "serialization": ("deregister_serializer", "inspect_serializability", "register_serializer"),
    "log_once": ("disable_log_once_globally", "enable_periodic_logging", "log_once"),
    "node": ("get_node_instance_id", "get_node_ip_address"),
}  # fmt: skip
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_SUBMODULES = ("collective", "dask", "joblib", "metrics", "multiprocessing", "queue", "scheduling_strategies", "state", "yaml_config")

# Literal, so that type checkers see what is exported.
__all__ = [
    "ActorPool", "PlacementGroup", "as_completed", "deregister_serializer", "disable_log_once_globally", "enable_periodic_logging",
    "get_current_placement_group", "get_node_instance_id", "get_node_ip_address", "get_placement_group", "inspect_serializability", "list_named_actors",
    "log_once", "map_unordered", "placement_group", "placement_group_table", "register_serializer", "remove_placement_group",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOME.get(name)
    if home is not None:
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBMODULES})


class _Util(ModuleType):
    """Importing the submodule `placement_group` must not hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # A task's code may name this module; picklers know only plain modules.
        from importlib import import_module

        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Util
