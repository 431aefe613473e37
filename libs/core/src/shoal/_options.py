"""The options of tasks, actors and methods: which exist, what they may be, and the errors that name a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shoal_base.resources import to_units

from .util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, PlacementGroupSchedulingStrategy

DEFAULT_MAX_RETRIES = 3
DEFAULT_TASK_CPUS = 1
DEFAULT_ASYNC_CONCURRENCY = 1000
# An accelerator's type is a resource of the nodes that have it; a task takes the smallest amount, only to be sent there.
_ACCELERATOR_TYPE_SHARE = 0.001
MAX_RETURNS = 0xFFFF

Check = Callable[[str, Any], None]


def _typed(name: str, value: Any, *types: type) -> None:
    if isinstance(value, bool) and bool not in types:
        raise TypeError(f"The type of keyword {name!r} must be {_names(types)}, but received type {bool}")
    if not isinstance(value, types):
        raise TypeError(f"The type of keyword {name!r} must be {_names(types)}, but received type {type(value)}")


def _names(types: tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in types)


def _integer(low: int, *special: int, high: int = 2**31 - 1) -> Check:
    def check(name: str, value: Any) -> None:
        if value is None:
            return
        _typed(name, value, int)
        if value not in special and not low <= value <= high:
            allowed = ", ".join(str(s) for s in special)
            raise ValueError(f"The keyword {name!r} only accepts integers from {low} on{f', or {allowed}' if allowed else ''}; got {value}")

    return check


def _amount(name: str, value: Any) -> None:
    if value is None:
        return
    _typed(name, value, int, float)
    if not value >= 0:
        raise ValueError(f"The quantity of resource {name} cannot be negative: {name}={value}")
    if value == float("inf"):
        raise ValueError(f"The quantity of resource {name} must be finite")
    to_units(value, name)
    if name == "num_gpus" and value > 1 and value != int(value):
        raise ValueError(f"num_gpus={value}: more than one GPU is taken whole; use an integer, or a fraction below 1")


def _resources(name: str, value: Any) -> None:
    if value is None:
        return
    _typed(name, value, dict)
    for key, amount in value.items():
        if key in ("CPU", "GPU"):
            raise ValueError("Use the 'num_cpus' and 'num_gpus' keyword instead of 'CPU' and 'GPU' in 'resources' keyword")
        if key in ("memory", "object_store_memory"):
            raise ValueError(f"Use the {key!r} keyword instead of {key!r} in 'resources' keyword")
        if not isinstance(key, str):
            raise TypeError(f"resources: a resource's name is a string, got {key!r}")
        _amount(f"resources[{key!r}]", amount)


def _duration(name: str, value: Any) -> None:
    if value is None:
        return
    _typed(name, value, int, float)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}: a finite number of seconds above 0 is wanted")


def _text(name: str, value: Any) -> None:
    if value is not None:
        _typed(name, value, str)


def _flag(name: str, value: Any) -> None:
    if value is not None:
        _typed(name, value, bool)


def _mapping(name: str, value: Any) -> None:
    if value is not None:
        _typed(name, value, dict)


def _anything(name: str, value: Any) -> None:
    """Checked where it is used."""


def _environment(name: str, value: Any) -> None:
    """What is in it is checked when it is used: it may name files."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"runtime_env must be dict or RuntimeEnv, but got: {type(value)}")


def _num_returns(name: str, value: Any) -> None:
    if value is None or value in ("streaming", "dynamic"):
        return
    if isinstance(value, str):
        raise TypeError(f"num_returns={value!r}: an integer from 0 on, 'streaming' or 'dynamic' is wanted")
    _integer(0, high=MAX_RETURNS)(name, value)


def _retry_exceptions(name: str, value: Any) -> None:
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, list | tuple):
        raise TypeError(f"retry_exceptions must be a bool or a list of exception classes, got {type(value)}")
    for item in value:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ValueError(f"retry_exceptions holds {item!r}, which is no exception class")


def _strategy(name: str, value: Any) -> None:
    known = (PlacementGroupSchedulingStrategy, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy)
    if value is None or isinstance(value, known):
        return
    if isinstance(value, str):
        if value in ("DEFAULT", "SPREAD"):
            return
        raise ValueError(f"scheduling_strategy={value!r}: 'DEFAULT', 'SPREAD', or an object from util.scheduling_strategies is wanted")
    raise TypeError(f"scheduling_strategy must be a string or an object from util.scheduling_strategies, got {type(value)}")


def _selector(name: str, value: Any) -> None:
    if value is None:
        return
    _typed(name, value, dict)
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"{name} must be a dict of str to str, got {key!r}: {text!r}")
    from shoal_base.labels import parse_selector

    parse_selector(value)


def _fallback(name: str, value: Any) -> None:
    if value is None:
        return
    _typed(name, value, list)
    for i, step in enumerate(value):
        if not isinstance(step, dict) or set(step) != {"label_selector"}:
            raise ValueError(f"fallback_strategy[{i}] must be a dict with the one key 'label_selector', got {step!r}")
        _selector(f"fallback_strategy[{i}]['label_selector']", step["label_selector"])


def _no_tensor_transport(name: str, value: Any) -> None:
    if value not in (None, False, "", "object_store", "OBJECT_STORE"):
        raise ValueError(f"{name}={value!r} is not supported: tensors travel through the object store")


def _lifetime(name: str, value: Any) -> None:
    if value not in (None, "detached", "non_detached"):
        raise ValueError(f"actor `lifetime` argument must be one of 'detached', 'non_detached' and 'None', got {value!r}")


def _actor_name(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"name must be None or a string, got: '{type(value)}'.")
    if value == "":
        raise ValueError("Actor name cannot be an empty string.")


def _namespace(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError("namespace must be None or a string.")
    if value == "":
        raise ValueError('"" is not a valid namespace. Pass None to not specify a namespace.')


def _groups(name: str, value: Any) -> None:
    if value is None:
        return
    _typed(name, value, dict)
    for group, limit in value.items():
        if not isinstance(group, str) or not group:
            raise ValueError(f"concurrency_groups: a group's name is a non-empty string, got {group!r}")
        _integer(1)(f"concurrency_groups[{group!r}]", limit)


_COMMON: dict[str, Check] = {
    "name": _text,
    "num_cpus": _amount,
    "num_gpus": _amount,
    "memory": _amount,
    "resources": _resources,
    "accelerator_type": _text,
    "runtime_env": _environment,
    "scheduling_strategy": _strategy,
    "label_selector": _selector,
    "fallback_strategy": _fallback,
    "enable_task_events": _flag,
    "placement_group": _anything,
    "placement_group_bundle_index": _integer(0, -1),
    "placement_group_capture_child_tasks": _flag,
    "_metadata": _mapping,
    "_labels": _mapping,
}
TASK: dict[str, Check] = {
    **_COMMON,
    "num_returns": _num_returns,
    "max_calls": _integer(0),
    "max_retries": _integer(0, -1),
    "retry_exceptions": _retry_exceptions,
    "timeout_s": _duration,
    "_generator_backpressure_num_objects": _integer(1, -1),
}
ACTOR: dict[str, Check] = {
    **_COMMON,
    "name": _actor_name,
    "object_store_memory": _amount,
    "namespace": _namespace,
    "lifetime": _lifetime,
    "get_if_exists": _flag,
    "max_concurrency": _integer(1),
    "max_restarts": _integer(0, -1),
    "max_task_retries": _integer(0, -1),
    "max_pending_calls": _integer(1, -1),
    "concurrency_groups": _groups,
    "allow_out_of_order_execution": _flag,
    "checkpoint_every": _integer(1),
    "checkpoint_every_s": _duration,
    "checkpoint_path": _text,
    "enable_tensor_transport": _no_tensor_transport,
    "_generator_backpressure_num_objects": _integer(1, -1),
}
METHOD: dict[str, Check] = {
    "num_returns": _num_returns,
    "concurrency_group": _text,
    "max_task_retries": _integer(0, -1),
    "retry_exceptions": _retry_exceptions,
    "enable_task_events": _flag,
    "tensor_transport": _no_tensor_transport,
    "_generator_backpressure_num_objects": _integer(1, -1),
    "timeout_s": _duration,
    "name": _text,
}


def check(options: Mapping[str, Any], allowed: Mapping[str, Check], what: str) -> dict[str, Any]:
    """Checks each option alone. Raises ValueError or TypeError that names the option.

    >>> check({"num_cpus": 2}, TASK, "remote functions")
    {'num_cpus': 2}
    """
    for name, value in options.items():
        rule = allowed.get(name)
        if rule is None:
            if name == "object_store_memory":
                raise ValueError("Setting 'object_store_memory' is not implemented for tasks")
            close = _closest(name, allowed)
            valid = sorted(k for k in allowed if not k.startswith("_"))
            raise ValueError(f"Invalid option keyword {name} for {what}.{close} Valid ones are {valid}.")
        rule(name, value)
    return dict(options)


def _closest(name: str, allowed: Mapping[str, Check]) -> str:
    import difflib

    near = difflib.get_close_matches(name, allowed, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def check_task(options: Mapping[str, Any]) -> dict[str, Any]:
    return check(options, TASK, "remote functions")


def check_actor(options: Mapping[str, Any]) -> dict[str, Any]:
    """Also what two options together exclude."""
    checked = check(options, ACTOR, "actors")
    if checked.get("get_if_exists") and not checked.get("name"):
        raise ValueError("The actor name must be specified to use `get_if_exists`.")
    if checked.get("max_restarts") == 0 and checked.get("max_task_retries"):
        raise ValueError(
            f"max_task_retries={checked['max_task_retries']} needs an actor that can restart: 'max_task_retries' cannot be set if 'max_restarts' is 0."
        )
    _check_checkpoints(checked)
    return checked


_ONE_AT_A_TIME = ("max_concurrency", "concurrency_groups", "allow_out_of_order_execution")


def _check_checkpoints(options: Mapping[str, Any]) -> None:
    asked = [name for name in ("checkpoint_every", "checkpoint_every_s", "checkpoint_path") if options.get(name) is not None]
    if not asked:
        return
    if asked == ["checkpoint_path"]:
        raise ValueError("checkpoint_path says where checkpoints go: give checkpoint_every (calls) or checkpoint_every_s (seconds) as well, which say when")
    if not options.get("max_restarts"):
        raise ValueError(f"{asked[0]} needs an actor that can restart, since a checkpoint is read by its next life: set max_restarts")
    for name in _ONE_AT_A_TIME:
        if options.get(name) not in (None, 1, {}, False):
            raise ValueError(f"{asked[0]} needs an actor that runs one call after the other, and {name}={options[name]!r}: calls would be half in a checkpoint")


def check_method(options: Mapping[str, Any]) -> dict[str, Any]:
    return check(options, METHOD, "actor methods")


# -- what the scheduler is told ----------------------------------------------------------------------------------------


class Placement:
    """Resources in units, and where."""

    __slots__ = ("bundle_index", "capture", "label_selector", "node_id", "placement_group", "resources", "soft", "soft_label_selector", "strategy")

    def __init__(self) -> None:
        self.resources: dict[str, int] = {}
        self.strategy = ""
        self.node_id = b""
        self.soft = False
        self.placement_group = b""
        self.bundle_index = -1
        self.capture = False
        self.label_selector: dict[str, str] = {}
        self.soft_label_selector: dict[str, str] = {}

    def fill(self, message: Any) -> Any:
        """Writes itself into a LeaseClass or a Placement message."""
        for name, units in self.resources.items():
            message.resources[name] = units
        message.strategy = self.strategy
        message.node_id = self.node_id
        message.soft = self.soft
        message.placement_group_id = self.placement_group
        message.bundle_index = self.bundle_index
        message.capture_child_tasks = self.capture
        for key, text in self.label_selector.items():
            message.label_selector[key] = text
        for key, text in self.soft_label_selector.items():
            message.soft_label_selector[key] = text
        return message


def resources_of(options: Mapping[str, Any], default_cpus: float | None) -> dict[str, int]:
    """All resource options as one map of units; zeros are left out."""
    cpus = options.get("num_cpus")
    wanted: dict[str, Any] = {
        "CPU": default_cpus if cpus is None else cpus,
        "GPU": options.get("num_gpus"),
        "memory": options.get("memory"),
        "object_store_memory": options.get("object_store_memory"),
        **(options.get("resources") or {}),
    }
    accelerator = options.get("accelerator_type")
    if accelerator:
        wanted[f"accelerator_type:{accelerator}"] = _ACCELERATOR_TYPE_SHARE
    return {name: to_units(amount, name) for name, amount in wanted.items() if amount}


def placement_of(options: Mapping[str, Any], resources: dict[str, int], inherited_group: bytes) -> Placement:
    """Where to run; `inherited_group` is the placement group of a parent that captures its children."""
    place = Placement()
    place.resources = resources
    strategy = _given_strategy(options)
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        _into_group(place, strategy, inherited_group)
    elif isinstance(strategy, NodeAffinitySchedulingStrategy):
        place.node_id, place.soft = bytes.fromhex(strategy.node_id), bool(strategy.soft)
    elif isinstance(strategy, NodeLabelSchedulingStrategy):
        place.label_selector, place.soft_label_selector = strategy.selectors()
    elif strategy == "SPREAD":
        place.strategy = "SPREAD"
    elif strategy is None and inherited_group:
        place.placement_group, place.capture = inherited_group, True
    selector = options.get("label_selector") or {}
    fallback = options.get("fallback_strategy") or []
    if fallback:
        # The preferred labels are wished; the last step of the fall-back is what must hold.
        place.soft_label_selector = {**place.soft_label_selector, **selector}
        selector = fallback[-1]["label_selector"]
    place.label_selector = {**place.label_selector, **selector}
    return place


def _given_strategy(options: Mapping[str, Any]) -> Any:
    strategy = options.get("scheduling_strategy")
    group = options.get("placement_group", "default")
    if group in ("default", None):
        return "DEFAULT" if group is None and strategy is None else strategy
    if strategy is not None:
        raise ValueError("Placement groups should be specified via the scheduling_strategy option. The placement_group option is deprecated; give one of them.")
    index = options.get("placement_group_bundle_index")
    return PlacementGroupSchedulingStrategy(group, -1 if index is None else index, options.get("placement_group_capture_child_tasks"))


def _into_group(place: Placement, strategy: PlacementGroupSchedulingStrategy, inherited_group: bytes) -> None:
    group = strategy.placement_group
    if group is None:
        return
    index = strategy.placement_group_bundle_index
    if group.is_empty:
        raise ValueError("the placement group of scheduling_strategy is empty")
    count = group.bundle_count
    if not -1 <= index < count:
        raise ValueError(f"placement group bundle index {index} is invalid. Valid placement group indexes: 0-{count - 1}, or -1 for any")
    place.placement_group = group.id.binary()
    place.bundle_index = index
    capture = strategy.placement_group_capture_child_tasks
    place.capture = bool(inherited_group) if capture is None else bool(capture)
    _fits_a_bundle(place, group)


def _fits_a_bundle(place: Placement, group: Any) -> None:
    bundles = group.bundle_specs if place.bundle_index < 0 else [group.bundle_specs[place.bundle_index]]
    for bundle in bundles:
        have = {name: to_units(amount, name) for name, amount in bundle.items()}
        if all(have.get(name, 0) >= units for name, units in place.resources.items()):
            return
    from shoal_base.resources import show

    raise ValueError(f"Cannot schedule with the placement group because the resource request {show(place.resources)} cannot fit into any bundle of {bundles}")
