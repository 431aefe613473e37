"""Where a task or an actor may run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .placement_group import PlacementGroup


class PlacementGroupSchedulingStrategy:
    """In a placement group's reserved resources.

    Args:
        placement_group: the group.
        placement_group_bundle_index: which bundle; -1: any.
        placement_group_capture_child_tasks: whether tasks and actors started inside run in the group too.
    """

    def __init__(self, placement_group: PlacementGroup, placement_group_bundle_index: int = -1,
                 placement_group_capture_child_tasks: bool | None = None) -> None:  # fmt: skip
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """On one node.

    Args:
        node_id: the node's id in hex.
        soft: True: anywhere else if that node is gone or full.
    """

    def __init__(self, node_id: str, soft: bool, _spill_on_unavailable: bool = False, _fail_on_unavailable: bool = False) -> None:
        if not isinstance(node_id, str):
            node_id = node_id.hex()
        try:
            raw = bytes.fromhex(node_id)
        except ValueError as error:
            raise ValueError(f"node_id={node_id!r} is no node id: {error}. nodes() lists them.") from error
        if len(raw) != 16:
            raise ValueError(f"node_id={node_id!r} is no node id: 32 hexadecimal digits are wanted. nodes() lists them.")
        self.node_id = node_id
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable


class _LabelMatch:
    def __init__(self, *values: str) -> None:
        for value in values:
            if not isinstance(value, str):
                raise ValueError(f"a label's value is a string, got {value!r} of type {type(value).__name__}")
        self.values = list(values)


class In(_LabelMatch):
    """The label has one of these values."""

    def selector(self) -> str:
        return f"in({','.join(self.values)})"


class NotIn(_LabelMatch):
    """The label has none of these values."""

    def selector(self) -> str:
        return f"!in({','.join(self.values)})"


class Exists:
    """The node has this label."""

    def selector(self) -> str:
        return "exists()"


class DoesNotExist:
    """The node lacks this label."""

    def selector(self) -> str:
        return "!exists()"


LabelMatch = In | NotIn | Exists | DoesNotExist


class NodeLabelSchedulingStrategy:
    """On nodes whose labels match.

    Args:
        hard: key to In, NotIn, Exists or DoesNotExist; every one must hold.
        soft: preferred among the nodes that remain.
    """

    def __init__(self, hard: Mapping[str, LabelMatch], *, soft: Mapping[str, LabelMatch] | None = None) -> None:
        self.hard = _check_expressions(hard, "hard")
        self.soft = _check_expressions(soft or {}, "soft")

    def selectors(self) -> tuple[dict[str, str], dict[str, str]]:
        """Both maps in the written form of label selectors."""
        return {k: v.selector() for k, v in self.hard.items()}, {k: v.selector() for k, v in self.soft.items()}


def _check_expressions(expressions: Mapping[str, Any], where: str) -> dict[str, LabelMatch]:
    for key, match in expressions.items():
        if not isinstance(key, str):
            raise ValueError(f"{where}: a label's key is a string, got {key!r}")
        if not isinstance(match, In | NotIn | Exists | DoesNotExist):
            raise ValueError(f"{where}[{key!r}] must be In, NotIn, Exists or DoesNotExist, got {match!r}")
        if isinstance(match, In | NotIn) and not match.values:
            raise ValueError(f"{where}[{key!r}]: {type(match).__name__} needs at least one value")
    return dict(expressions)


SchedulingStrategyT = None | str | PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy | NodeLabelSchedulingStrategy
