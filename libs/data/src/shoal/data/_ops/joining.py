"""Joins of two tables, in Arrow's Acero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .._block import tables
from ..exceptions import SchemaMismatchError, check_columns
from .steps import TaskInfo

KINDS = {
    "inner": "inner", "left_outer": "left outer", "right_outer": "right outer", "full_outer": "full outer", "left_semi": "left semi",
    "right_semi": "right semi",     "left_anti": "left anti", "right_anti": "right anti",
}  # fmt: skip
# With these each row of the left side finds its result alone, so the right side can be sent whole to every task.
BROADCAST = ("inner", "left_outer", "left_semi", "left_anti")
_LEFT, _RIGHT = "__left", "__right"


@dataclass
class JoinSpec:
    kind: str
    left_on: list[str]
    right_on: list[str]
    left_suffix: str | None = None
    right_suffix: str | None = None

    @property
    def name(self) -> str:
        return f"Join({self.kind} on {', '.join(self.left_on)})"

    def join(self, left: pa.Table, right: pa.Table) -> pa.Table:
        check_columns(self.left_on, left.column_names, f"join, left side: {self.name}")
        check_columns(self.right_on, right.column_names, f"join, right side: {self.name}")
        left, right = self._suffixed(left, right)
        right = self._keys_like(left, right)
        # Acero carries no nested or extension columns: then it joins row numbers, and the rows are taken by them.
        if all(_carried(field.type) for field in [*left.schema, *right.schema]):
            return left.join(right, keys=self.left_on, right_keys=self.right_on, join_type=KINDS[self.kind], coalesce_keys=True, use_threads=False)
        return self._by_numbers(left, right)

    def _suffixed(self, left: pa.Table, right: pa.Table) -> tuple[pa.Table, pa.Table]:
        if self.kind.endswith(("semi", "anti")):
            return left, right
        both = (set(left.column_names) & set(right.column_names)) - (set(self.left_on) | set(self.right_on) if self.left_on == self.right_on else set())
        both -= {a for a, b in zip(self.left_on, self.right_on, strict=True) if a == b}
        if not both:
            return left, right
        if not self.left_suffix and not self.right_suffix:
            raise SchemaMismatchError(f"{self.name}: both sides have columns {sorted(both)}; give left_suffix or right_suffix, or rename them")
        return _renamed(left, both - set(self.left_on), self.left_suffix), _renamed(right, both - set(self.right_on), self.right_suffix)

    def _keys_like(self, left: pa.Table, right: pa.Table) -> pa.Table:
        for a, b in zip(self.left_on, self.right_on, strict=True):
            wanted, given = left.schema.field(a).type, right.schema.field(b).type
            if wanted != given:
                try:
                    right = right.set_column(right.column_names.index(b), b, right[b].cast(wanted))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise SchemaMismatchError(f"{self.name}: the keys have different types, {a!r} {wanted} and {b!r} {given}") from error
        return right

    def _by_numbers(self, left: pa.Table, right: pa.Table) -> pa.Table:
        numbered_left = left.select(self.left_on).append_column(_LEFT, pa.array(np.arange(left.num_rows)))
        numbered_right = right.select(self.right_on).append_column(_RIGHT, pa.array(np.arange(right.num_rows)))
        joined = numbered_left.join(
            numbered_right, keys=self.left_on, right_keys=self.right_on, join_type=KINDS[self.kind], coalesce_keys=True, use_threads=False
        )
        columns: dict[str, Any] = {name: joined[name] for name in joined.column_names if name not in (_LEFT, _RIGHT)}
        for table, number, keys in ((left, _LEFT, self.left_on), (right, _RIGHT, self.right_on)):
            if number in joined.column_names:
                rest = [name for name in table.column_names if name not in keys]
                taken = table.select(rest).take(joined[number])
                columns.update({name: taken[name] for name in rest})
        return pa.table(columns)


def _renamed(table: pa.Table, names: set[str], suffix: str | None) -> pa.Table:
    return table.rename_columns([f"{name}{suffix or ''}" if name in names else name for name in table.column_names])


def _carried(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType))


class JoinPartitions:
    """Reducer: one partition of both sides."""

    def __init__(self, spec: JoinSpec) -> None:
        self.spec = spec

    def __call__(self, groups: list[list[pa.Table]]) -> Iterator[pa.Table]:
        yield self.spec.join(tables.concat(groups[0]), tables.concat(groups[1]))


class BroadcastJoin:
    """Step: each piece of the left side with the whole right side, which `tables_of` fetches once for each task."""

    def __init__(self, spec: JoinSpec, right: list[Any]) -> None:
        self.spec = spec
        self.right = right
        self.name = spec.name

    def __call__(self, pieces: Iterator[pa.Table], info: TaskInfo) -> Iterator[pa.Table]:
        import shoal

        right = tables.concat(shoal.get(self.right))
        for piece in pieces:
            if piece.num_columns:
                yield self.spec.join(piece, right)
