"""The logical plan: a tree of what the user asked for. Immutable: rewriting makes new nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa

from .._block.meta import Bundle
from .._ops import steps
from .._ops.arrange import SortKey
from .._ops.joining import JoinSpec
from .._run.tasks import Finish, Reads
from ..context import DataContext
from ..expressions import Expr


class Source(Protocol):
    """What can be read."""

    name: str

    def reads(self, parallelism: int, context: DataContext, exact: bool) -> list[tuple[Reads, float | None]]:
        """About `parallelism` tasks, or exactly so many, each with the bytes it is likely to give."""

    def schema(self) -> pa.Schema | None: ...
    def rows(self) -> int | None:
        """When it is known without reading."""

    def files(self) -> list[str]: ...
    def with_columns(self, columns: Sequence[str]) -> Source | None:
        """One that reads only these; None if it cannot."""

    def with_filter(self, expr: Expr) -> Source | None: ...
    def with_limit(self, rows: int) -> Source | None: ...


@dataclass(frozen=True)
class Node:
    """Base. `inputs`: the nodes that it reads from."""

    inputs: tuple[Node, ...]

    @property
    def name(self) -> str:
        return type(self).__name__

    def with_inputs(self, *inputs: Node) -> Node:
        return replace(self, inputs=inputs)

    @property
    def input(self) -> Node:
        return self.inputs[0]

    def schema(self) -> pa.Schema | None:
        """When it is known without running anything."""
        return None

    def rows(self) -> int | None:
        return None

    def walk(self) -> Iterator[Node]:
        yield self
        for node in self.inputs:
            yield from node.walk()


@dataclass(frozen=True)
class Read(Node):
    source: Any
    parallelism: int | None = None
    remote_args: dict[str, Any] = field(default_factory=dict)
    concurrency: int | None = None

    @property
    def name(self) -> str:
        return self.source.name

    def schema(self) -> pa.Schema | None:
        return self.source.schema()

    def rows(self) -> int | None:
        return self.source.rows()


@dataclass(frozen=True)
class Blocks(Node):
    """Blocks that are in the object store."""

    bundles: tuple[Bundle, ...]

    @property
    def name(self) -> str:
        return "Blocks"

    def schema(self) -> pa.Schema | None:
        schemas = [bundle.meta.schema for bundle in self.bundles if bundle.meta.schema is not None]
        filled = [schema for schema in schemas if len(schema)] or schemas
        if not filled:
            return None
        if all(schema.equals(filled[0]) for schema in filled):
            return filled[0]
        try:
            return pa.unify_schemas(filled, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return filled[0]

    def rows(self) -> int | None:
        return sum(bundle.meta.rows for bundle in self.bundles)


@dataclass(frozen=True)
class PoolSpec:
    """Actors of a pool."""

    low: int
    high: int
    in_flight: int = 2


@dataclass(frozen=True)
class Map(Node):
    """A step on each block."""

    step: Any
    remote_args: dict[str, Any] = field(default_factory=dict)
    pool: PoolSpec | None = None
    concurrency: int | None = None
    min_rows: int | None = None

    @property
    def name(self) -> str:
        return self.step.name

    def keeps_rows(self) -> bool:
        """Whether every row gives one row, in order."""
        if isinstance(self.step, steps.RowSteps):
            return all(function.kind == "map" for function in self.step.functions)
        return isinstance(self.step, (steps.Project, steps.Drop, steps.Rename, steps.AddColumn))

    def schema(self) -> pa.Schema | None:
        before = self.input.schema()
        if before is None:
            return None
        if isinstance(self.step, (steps.Project, steps.Drop, steps.Rename)):
            return self.step.apply(before.empty_table()).schema
        if isinstance(self.step, (steps.FilterExpression, steps.RandomSample, steps.Head)):
            return before
        if isinstance(self.step, steps.RowSteps) and all(function.kind == "filter" for function in self.step.functions):
            return before
        return None

    def rows(self) -> int | None:
        return self.input.rows() if self.keeps_rows() else None


class _SameColumns(Node):
    def schema(self) -> pa.Schema | None:
        return self.input.schema()


@dataclass(frozen=True)
class Limit(_SameColumns):
    limit: int

    @property
    def name(self) -> str:
        return f"Limit({self.limit})"

    def rows(self) -> int | None:
        before = self.input.rows()
        return None if before is None else min(before, self.limit)


@dataclass(frozen=True)
class Sort(_SameColumns):
    key: SortKey
    limit: int | None = None

    @property
    def name(self) -> str:
        parts = [f"{column} desc" if descending else column for column, descending in zip(*self.key, strict=True)]
        return f"Sort({', '.join(parts)}{'' if self.limit is None else f', first {self.limit}'})"

    def rows(self) -> int | None:
        return self.input.rows()


@dataclass(frozen=True)
class Shuffle(_SameColumns):
    """`seed`: of the random order; None: rows are only spread evenly."""

    seed: int
    blocks: int | None = None

    @property
    def name(self) -> str:
        return "RandomShuffle"

    def rows(self) -> int | None:
        return self.input.rows()


@dataclass(frozen=True)
class RandomizeBlocks(_SameColumns):
    seed: int

    @property
    def name(self) -> str:
        return "RandomizeBlockOrder"

    def rows(self) -> int | None:
        return self.input.rows()


@dataclass(frozen=True)
class Repartition(_SameColumns):
    blocks: int | None
    rows_per_block: int | None = None
    keys: tuple[str, ...] = ()
    sort: bool = False

    @property
    def name(self) -> str:
        size = self.blocks if self.rows_per_block is None else f"{self.rows_per_block} rows each"
        return f"Repartition({size}{' by ' + ', '.join(self.keys) if self.keys else ''})"

    def rows(self) -> int | None:
        return self.input.rows()


@dataclass(frozen=True)
class Aggregate(Node):
    keys: tuple[str, ...]
    aggregations: tuple[Any, ...]
    partitions: int | None = None

    @property
    def name(self) -> str:
        by = f" by {', '.join(self.keys)}" if self.keys else ""
        return f"Aggregate({', '.join(a.name for a in self.aggregations)}{by})"

    def rows(self) -> int | None:
        return None


@dataclass(frozen=True)
class GroupRows(_SameColumns):
    """Blocks that hold whole groups."""

    keys: tuple[str, ...]
    partitions: int | None = None

    @property
    def name(self) -> str:
        return f"GroupBy({', '.join(self.keys)})"


@dataclass(frozen=True)
class Union(Node):
    def schema(self) -> pa.Schema | None:
        known = [node.schema() for node in self.inputs]
        if any(schema is None for schema in known):
            return None
        try:
            return pa.unify_schemas([schema for schema in known if schema is not None], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return None

    def rows(self) -> int | None:
        known = [node.rows() for node in self.inputs]
        return None if None in known else sum(rows for rows in known if rows is not None)


@dataclass(frozen=True)
class Zip(Node):
    def rows(self) -> int | None:
        return self.input.rows()


@dataclass(frozen=True)
class Join(Node):
    spec: JoinSpec
    partitions: int | None

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True)
class Finished(Node):
    """The end of a plan: what is done with blocks of their final size."""

    finish: Finish
    label: str

    @property
    def name(self) -> str:
        return self.label


def describe(node: Node, depth: int = 0) -> str:
    """The tree as text, the last operator first."""
    lead = "" if depth == 0 else "   " * (depth - 1) + "+- "
    return "\n".join([f"{lead}{node.name}", *(describe(one, depth + 1) for one in node.inputs)])
