"""Rules that give the same result with less work: limits and filters move towards the readers, and only columns that somebody needs are read."""

from __future__ import annotations

from dataclasses import replace

from .._ops import steps
from ..aggregate import AggregateFn
from ..expressions import Column, Expr
from .logical import Aggregate, Blocks, Finished, GroupRows, Limit, Map, Node, RandomizeBlocks, Read, Repartition, Shuffle, Sort, Union


def optimize(plan: Node) -> Node:
    return prune(push_filters(push_limits(plan)), None)


# -- limits --------------------------------------------------------------------------------------------------


def push_limits(node: Node) -> Node:
    node = node.with_inputs(*map(push_limits, node.inputs)) if node.inputs else node
    return _sink_limit(node, node.limit) if isinstance(node, Limit) else node


def _sink_limit(node: Limit, limit: int) -> Node:
    below = node.input
    if isinstance(below, Limit):
        return _sink_limit(Limit(below.inputs, min(limit, below.limit)), min(limit, below.limit))
    if isinstance(below, Map) and below.keeps_rows() and below.pool is None:
        return below.with_inputs(_sink_limit(Limit(below.inputs, limit), limit))
    if isinstance(below, Sort):
        return node.with_inputs(replace(below, limit=limit if below.limit is None else min(limit, below.limit)))
    if isinstance(below, Read):
        limited = below.source.with_limit(limit)
        return node.with_inputs(replace(below, source=limited)) if limited is not None else node
    return node


# -- filters -------------------------------------------------------------------------------------------------


def push_filters(node: Node) -> Node:
    node = node.with_inputs(*map(push_filters, node.inputs)) if node.inputs else node
    if isinstance(node, Map) and isinstance(node.step, steps.FilterExpression):
        return _sink_filter(node, node.step.expr)
    return node


def _sink_filter(node: Map, expr: Expr) -> Node:
    below = node.input
    if isinstance(below, Read):
        filtered = below.source.with_filter(expr)
        return replace(below, source=filtered) if filtered is not None else node
    if isinstance(below, Map):
        moved = _through(below.step, expr)
        return below.with_inputs(_sink_filter(_filter(below.input, moved), moved)) if moved is not None else node
    if isinstance(below, (Shuffle, RandomizeBlocks)) or (isinstance(below, Sort) and below.limit is None):
        return below.with_inputs(_sink_filter(_filter(below.input, expr), expr))
    if isinstance(below, Union):
        return below.with_inputs(*(_sink_filter(_filter(one, expr), expr) for one in below.inputs))
    return node


def _filter(node: Node, expr: Expr) -> Map:
    return Map((node,), steps.FilterExpression(expr))


def _through(step: object, expr: Expr) -> Expr | None:
    """The filter as it reads before `step`; None if it cannot move."""
    if isinstance(step, steps.FilterExpression):
        return expr
    if isinstance(step, steps.Project):
        made = dict(step.outputs)
        if not step.keep and not expr.columns() <= set(made):
            return None  # let the filter itself say which column is missing
        return expr.substitute(made)
    if isinstance(step, steps.Drop):
        return None if expr.columns() & set(step.columns) else expr
    if isinstance(step, steps.Rename) and isinstance(step.names, dict):
        if expr.columns() & (set(step.names) - set(step.names.values())):
            return None
        return expr.substitute({new: Column(old) for old, new in step.names.items()})
    return None


# -- columns -------------------------------------------------------------------------------------------------


def prune(node: Node, needed: frozenset[str] | None) -> Node:
    """Reads only what is needed. `needed` None: all columns."""
    if isinstance(node, Read):
        return _prune_read(node, needed)
    if isinstance(node, Blocks) or not node.inputs:
        return node
    if isinstance(node, Map) and isinstance(node.step, steps.Project) and not node.step.keep and needed is not None:
        outputs = [(name, expr) for name, expr in node.step.outputs if name in needed] or node.step.outputs[:1]
        node = replace(node, step=steps.Project(outputs, False, node.step.name))
    below = _needs(node, needed)
    return node.with_inputs(*(prune(one, below) for one in node.inputs))


def _needs(node: Node, needed: frozenset[str] | None) -> frozenset[str] | None:
    """What `node` needs of its inputs."""
    if isinstance(node, Map):
        return _step_needs(node.step, needed)
    if isinstance(node, Aggregate):
        if any(isinstance(aggregation, AggregateFn) for aggregation in node.aggregations):
            return None
        return frozenset([*node.keys, *(a.on for a in node.aggregations if a.on)])
    if isinstance(node, Finished):
        from .._run.tasks import Discarded

        return frozenset() if isinstance(node.finish, Discarded) else None
    if needed is None:
        return None
    if isinstance(node, Sort):
        return needed | set(node.key.columns)
    if isinstance(node, (GroupRows, Repartition)):
        return needed | set(node.keys)
    if isinstance(node, (Limit, Shuffle, RandomizeBlocks, Union)):
        return needed
    return None


def _step_needs(step: object, needed: frozenset[str] | None) -> frozenset[str] | None:
    if isinstance(step, steps.Project):
        read = frozenset().union(*(expr.columns() for _, expr in step.outputs))
        if not step.keep:
            return read
        return None if needed is None else (needed - {name for name, _ in step.outputs}) | read
    if needed is None:
        return None
    if isinstance(step, steps.FilterExpression):
        return needed | step.expr.columns()
    if isinstance(step, steps.Drop):
        return needed | set(step.columns)
    if isinstance(step, steps.Rename) and isinstance(step.names, dict):
        old = {new: before for before, new in step.names.items()}
        return frozenset(old.get(name, name) for name in needed) | set(step.names)
    if isinstance(step, (steps.RandomSample, steps.Head)):
        return needed
    return None


def _prune_read(node: Read, needed: frozenset[str] | None) -> Node:
    schema = node.source.schema()
    if needed is None or schema is None:
        return node
    # Some column is read in any case: it tells how many rows there are.
    columns = [name for name in schema.names if name in needed] or schema.names[:1]
    if len(columns) == len(schema.names):
        return node
    pruned = node.source.with_columns(columns)
    return node if pruned is None else replace(node, source=pruned)
