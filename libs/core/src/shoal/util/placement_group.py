"""Placement groups: resources reserved together, on one node or spread over several."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from shoal_base.resources import from_units, to_units

from .. import _groups, _runtime
from .._calls import NOT_FOUND, CallFailed, ask, call, call_once_known
from .._ids import PlacementGroupID

VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}
PLACEMENT_GROUP_BUNDLE_RESOURCE_NAME = "bundle"
NODE_ID_LABEL_KEY = "shoal.io/node-id"


class PlacementGroup:
    """A handle to a placement group. Can be passed to tasks and actors."""

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        return PlacementGroup(PlacementGroupID.nil())

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The resources of each bundle."""
        if self.bundle_cache is None:
            self.bundle_cache = [_amounts(bundle.resources) for bundle in _record(self.id.binary()).bundles]
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def ready(self) -> Any:
        """A reference that is ready when the group is; its value is the group."""
        from .scheduling_strategies import PlacementGroupSchedulingStrategy

        task = _reserved.options(scheduling_strategy=PlacementGroupSchedulingStrategy(self, 0))
        return task.remote(self)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether the group is reserved within `timeout_seconds` (-1: no limit)."""
        _runtime.connected("PlacementGroup.wait()")
        groups = _groups.of_connection()
        group_id = self.id.binary()
        deadline = float("inf") if timeout_seconds < 0 else time.monotonic() + timeout_seconds
        while True:
            left = min(_groups.ASK_AFTER_S, max(0.0, deadline - time.monotonic()))
            state = groups.wait(group_id, left)
            if state is None and left == _groups.ASK_AFTER_S:
                state = _record(group_id).state
                groups.note(group_id, state)
            if state == _groups.CREATED:
                return True
            if state == _groups.REMOVED or time.monotonic() >= deadline:
                return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self.bundle_cache)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


def _amounts(resources: Any) -> dict[str, float]:
    return {name: from_units(units) for name, units in resources.items()}


def _record(group_id: bytes) -> Any:
    from shoal_gcs.v1 import gcs_pb2

    reply = call_once_known(_runtime.connected("a placement group"), "gcs/GetPlacementGroup", gcs_pb2.PlacementGroupQuery(placement_group_id=group_id))
    return gcs_pb2.PlacementGroup.FromString(reply)


def _return_group(group: PlacementGroup) -> PlacementGroup:
    return group


def _make_reserved() -> Any:
    from .._api import remote

    return remote(num_cpus=0, max_retries=0, name="PlacementGroup.ready")(_return_group)


_reserved = _make_reserved()


def validate_placement_group(bundles: Any, strategy: str | None = None, lifetime: str | None = None, _soft_target_node_id: str | None = None,
                             bundle_label_selector: Any = None, topology_strategy: Any = None) -> bool:  # fmt: skip
    """Raises ValueError that names what is wrong."""
    if not isinstance(bundles, list):
        raise ValueError(f"Placement group bundles must be a list, got {type(bundles)}.")
    if not bundles:
        raise ValueError("Bundles must be a non-empty list of resource dictionaries. For example: `[{'CPU': 1.0}, {'GPU': 1.0}]`.")
    for i, bundle in enumerate(bundles):
        if not isinstance(bundle, dict) or not bundle or not all(isinstance(name, str) for name in bundle):
            raise ValueError(f"Bundle {i} must be a non-empty dictionary of resource names to amounts. Got: {bundle!r}")
        for name, amount in bundle.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float):
                raise ValueError(f"Bundle {i}: {name} must be a number, got {amount!r}")
            to_units(amount, f"bundle {i}, {name}")
        if not any(bundle.values()):
            raise ValueError(f"Bundles cannot be an empty dictionary or resources with only 0 values. Bundle {i}: {bundle}")
    if strategy is not None and strategy not in VALID_PLACEMENT_GROUP_STRATEGIES:
        raise ValueError(f"Invalid placement group strategy {strategy!r}. Supported strategies are: {sorted(VALID_PLACEMENT_GROUP_STRATEGIES)}.")
    if lifetime not in (None, "detached"):
        raise ValueError(f"Placement group `lifetime` argument must be either `None` or 'detached'. Got {lifetime!r}.")
    if bundle_label_selector is not None:
        if len(bundle_label_selector) not in (1, len(bundles)):
            raise ValueError(f"bundle_label_selector must have one entry, or one for each of the {len(bundles)} bundles; got {len(bundle_label_selector)}")
        from shoal_base.labels import parse_selector

        for selector in bundle_label_selector:
            parse_selector(selector)
    if topology_strategy:
        raise ValueError("placement_group(topology_strategy=...) is not supported")
    return True


def placement_group(bundles: list[dict[str, float]], strategy: str | None = None, name: str = "", lifetime: str | None = None,
                    _soft_target_node_id: str | None = None, bundle_label_selector: Sequence[dict[str, str]] | None = None,
                    topology_strategy: Any = None) -> PlacementGroup:  # fmt: skip
    """Reserves bundles of resources, all or none. Answers at once; `ready()` and `wait()` tell when it is done.

    Args:
        bundles: the resources of each.
        strategy: "PACK" (default: on few nodes), "SPREAD", "STRICT_PACK" (on one), "STRICT_SPREAD" (each on another).
        lifetime: "detached": stays after the job.
        bundle_label_selector: labels that the node of each bundle must have.

    Raises:
        ValueError: naming what is wrong.
    """
    from shoal_gcs.v1 import gcs_pb2

    validate_placement_group(bundles, strategy, lifetime, _soft_target_node_id, bundle_label_selector, topology_strategy)
    engine = _runtime.ensure("placement_group()")
    group_id = os.urandom(16)
    state = _runtime.state
    record = gcs_pb2.PlacementGroup(
        placement_group_id=group_id, name=name, strategy=strategy or "PACK", job_id=state.job_id, detached=lifetime == "detached", namespace=state.namespace
    )
    selectors = list(bundle_label_selector or [])
    if len(selectors) == 1:
        selectors *= len(bundles)
    for i, bundle in enumerate(bundles):
        made = record.bundles.add(index=i)
        for resource, amount in bundle.items():
            made.resources[resource] = to_units(amount, resource)
        for key, text in selectors[i].items() if selectors else ():
            made.label_selector[key] = text
    if _soft_target_node_id:
        raise ValueError("placement_group(_soft_target_node_id=...) is not supported: use bundle_label_selector")
    _groups.of_connection()  # before the creation, so that its events are heard
    request = gcs_pb2.CreatePlacementGroupRequest(group=record)
    if name:
        call(engine, "gcs/CreatePlacementGroup", request)
    else:
        engine.call_async("gcs/CreatePlacementGroup", request.SerializeToString())
    return PlacementGroup(PlacementGroupID(group_id), [dict(bundle) for bundle in bundles])


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives the resources back; tasks and actors in them end."""
    from shoal_gcs.v1 import gcs_pb2

    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"remove_placement_group() takes a PlacementGroup, got {type(placement_group)}")
    engine = _runtime.connected("remove_placement_group()")
    group_id = placement_group.id.binary()
    request = gcs_pb2.PlacementGroupQuery(placement_group_id=group_id)
    groups = _groups.of_connection()
    if groups.state(group_id) == _groups.CREATED:
        # Not waited for: this node's raylet refuses what is submitted afterwards from the moment that it passes the removal on.
        engine.call_async("gcs/RemovePlacementGroup", request.SerializeToString())
    else:
        call_once_known(engine, "gcs/RemovePlacementGroup", request)
    groups.note(group_id, _groups.REMOVED)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """A named placement group of this namespace.

    Raises:
        ValueError: there is none of that name.
    """
    from shoal_gcs.v1 import gcs_pb2

    if not placement_group_name:
        raise ValueError("Please supply a non-empty value to get_placement_group")
    query = gcs_pb2.PlacementGroupQuery(name=placement_group_name, namespace=_runtime.state.namespace)
    try:
        group = gcs_pb2.PlacementGroup.FromString(ask("get_placement_group()", "gcs/GetPlacementGroup", query))
    except CallFailed as error:
        if error.code != NOT_FOUND:
            raise
        raise ValueError(f"Failed to look up placement group with name: {placement_group_name}") from None
    return PlacementGroup(PlacementGroupID(group.placement_group_id), [_amounts(bundle.resources) for bundle in group.bundles])


def get_current_placement_group() -> PlacementGroup | None:
    """The placement group that the caller runs in; None outside of one."""
    now = _runtime.current()
    group = now.scope.placement_group if now is not None else b""
    return PlacementGroup(PlacementGroupID(group)) if group else None


_STATES = {0: "PENDING", 1: "CREATED", 2: "REMOVED", 3: "RESCHEDULING"}


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """One group's state, or all groups' by their ids."""
    from shoal_gcs.v1 import gcs_pb2

    if placement_group is not None:
        return _row(_record(placement_group.id.binary()))
    groups = gcs_pb2.PlacementGroupList.FromString(ask("placement_group_table()", "gcs/ListPlacementGroups")).groups
    return {group.placement_group_id.hex(): _row(group) for group in groups}


def _row(group: Any) -> dict[str, Any]:
    return {
        "placement_group_id": group.placement_group_id.hex(), "name": group.name, "strategy": group.strategy, "state": _STATES.get(group.state, "UNKNOWN"),
        "bundles": {bundle.index: _amounts(bundle.resources) for bundle in group.bundles},
        "bundles_to_node_id": {bundle.index: bundle.node_id.hex() for bundle in group.bundles},
        "stats": {"scheduling_state": _STATES.get(group.state, "UNKNOWN"), "pending_reason": group.pending_reason},
    }  # fmt: skip


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """Raises ValueError for a bundle that the group does not have."""
    if placement_group.is_empty:
        if bundle_index != -1:
            raise ValueError("If placement group is not set, the value of bundle index must be -1.")
    elif not -1 <= bundle_index < placement_group.bundle_count:
        raise ValueError(f"placement group bundle index {bundle_index} is invalid. Valid placement group indexes: 0-{placement_group.bundle_count - 1}")
