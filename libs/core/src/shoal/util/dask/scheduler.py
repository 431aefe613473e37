"""A graph's nodes as tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dask.base
import dask.config
from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_graph
from dask.core import flatten
from dask.order import order
from dask.typing import Key
from dask.utils import key_split

import shoal
from shoal import ObjectRef

from .callbacks import RayCallbacks, local_ray_callbacks, unpack_ray_callbacks

Refs = dict[Key, ObjectRef[Any]]
_REMOTE_ARGS = "ray_remote_args"


@shoal.remote
def run_node(node: GraphNode, key: Key, names: list[Key], callbacks: RayCallbacks | None, *values: Any) -> Any:
    """Runs in a worker."""
    inputs = dict(zip(names, values, strict=True))
    if callbacks is None:
        return node(inputs)
    states = [before(key, list(values)) for before in callbacks.ray_pretask_cbs]
    result = node(inputs)
    states += [None] * (len(callbacks.ray_posttask_cbs) - len(states))
    for after, state in zip(callbacks.ray_posttask_cbs, states, strict=False):
        after(key, result, state)
    return result


def ray_dask_get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Dask's `get`: computes the keys of a graph.

    Args:
        dsk: a graph, or an expression that has one.
        keys: a key, or nested lists of keys; the values come in the same shape.
        kwargs: `ray_remote_args`: options of all tasks; those of `dask.annotate` around this call, then around a part of the graph, come before them;
            `ray_persist`: references instead of values; `ray_callbacks`: instead of those that are active. Anything else belongs to
            Dask's other schedulers, as `num_workers`.

    Raises:
        What a task raises, as an instance of its own class and of RayTaskError. ValueError: Dask's own `resources=`, here or in an annotation.
    """
    around = dask.base.get_annotations()
    _refuse_resources(kwargs, around)
    options = {**(kwargs.get(_REMOTE_ARGS) or {}), **around.get(_REMOTE_ARGS, {})}
    with local_ray_callbacks(kwargs.get("ray_callbacks")) as active:
        callbacks = unpack_ray_callbacks(active) if active else None
        graph, annotated = _materialized(dsk)
        wanted = list(flatten([keys])) if isinstance(keys, list) else [keys]
        refs = _submit(_needed(graph, wanted), options, annotated, callbacks)
        outputs = {key: refs[key] for key in wanted}
        # What is not wanted itself is freed as soon as the tasks that take it have ended.
        del refs
        for told in callbacks.ray_postsubmit_all_cbs if callbacks else ():
            told(list(outputs.values()), dsk)
        if kwargs.get("ray_persist"):
            return _shaped(keys, outputs)
        values = dict(zip(outputs, shoal.get(list(outputs.values())), strict=True))
        result = _shaped(keys, values)
        for told in callbacks.ray_finish_cbs if callbacks else ():
            told(result)
        return result


# Submission never leaves the caller's thread here.
ray_dask_get_sync = ray_dask_get


def _materialized(dsk: Any) -> tuple[dict[Key, GraphNode], dict[Key, dict[str, Any]]]:
    """The nodes, and the options that annotations give to some."""
    annotated: dict[Key, dict[str, Any]] = {}
    if hasattr(dsk, "__dask_annotations__"):
        found = dsk.__dask_annotations__()
        _refuse_resources(found)
        annotated.update(found.get(_REMOTE_ARGS, {}))
    if hasattr(dsk, "__dask_graph__"):
        dsk = dsk.__dask_graph__()
    for layer in dsk.layers.values() if hasattr(dsk, "layers") else ():
        _refuse_resources(layer.annotations or {})
        given = (layer.annotations or {}).get(_REMOTE_ARGS)
        if given:
            annotated.update({key: given(key) if callable(given) else given for key in layer})
    return convert_legacy_graph(dict(dsk)), annotated


def _refuse_resources(*given: Mapping[str, Any]) -> None:
    if any("resources" in options for options in given):
        raise ValueError('resources= is for other schedulers of Dask: give ray_remote_args={"resources": {...}} for what the tasks need')


def _needed(graph: Mapping[Key, GraphNode], wanted: Iterable[Key]) -> dict[Key, GraphNode]:
    """Those nodes that the wanted ones need. Raises KeyError for a key that the graph lacks."""
    found: dict[Key, GraphNode] = {}
    left = list(wanted)
    while left:
        key = left.pop()
        if key not in found:
            node = found[key] = graph[key]
            left.extend(node.dependencies)
    return found


def _submit(graph: dict[Key, GraphNode], options: dict[str, Any], annotated: dict[Key, dict[str, Any]], callbacks: RayCallbacks | None) -> Refs:
    refs: Refs = {}
    functions: dict[tuple[str, int], Any] = {}
    priority = order(graph)
    for key in sorted(graph, key=priority.__getitem__):
        node = graph[key]
        if isinstance(node, Alias):
            refs[key] = refs[node.target]
        elif isinstance(node, DataNode):
            refs[key] = node.value if isinstance(node.value, ObjectRef) else shoal.put(node.value)
        else:
            own = annotated.get(key)
            which = (key_split(key), id(own))
            if which not in functions:
                functions[which] = run_node.options(**{"name": f"dask:{which[0]}", **options, **(own or {})})
            refs[key] = _start(functions[which], key, node, refs, callbacks)
    return refs


def _start(function: Any, key: Key, node: GraphNode, refs: Refs, callbacks: RayCallbacks | None) -> ObjectRef[Any]:
    names = list(node.dependencies)
    inputs = [refs[name] for name in names]
    for asked in callbacks.ray_presubmit_cbs if callbacks else ():
        value = asked(node, key, inputs)
        if value is not None:
            return shoal.put(value)
    in_worker = callbacks if callbacks and (callbacks.ray_pretask_cbs or callbacks.ray_posttask_cbs) else None
    if in_worker is not None:
        # The driver's own stay there: they may hold what cannot be pickled.
        in_worker = in_worker._replace(ray_presubmit_cbs=[], ray_postsubmit_cbs=[], ray_postsubmit_all_cbs=[], ray_finish_cbs=[])
    ref: ObjectRef[Any] = function.remote(node, key, names, in_worker, *inputs)
    for told in callbacks.ray_postsubmit_cbs if callbacks else ():
        told(node, key, inputs, ref)
    return ref


def _shaped(keys: Any, values: Mapping[Key, Any]) -> Any:
    return tuple(_shaped(key, values) for key in keys) if isinstance(keys, list) else values[keys]


def ray_dask_persist(*collections: Any, **kwargs: Any) -> Any:
    """`dask.persist`, with the results left in the object store. So does `x.persist(ray_persist=True)` under this scheduler."""
    return dask.base.persist(*collections, **{"scheduler": ray_dask_get, "ray_persist": True, **kwargs})


def enable_dask_on_ray(shuffle: str | None = "tasks") -> Any:
    """Makes this Dask's scheduler, until `disable_dask_on_ray` or, as a context manager, until its end.

    Args:
        shuffle: how dataframes shuffle: "tasks", "disk"; None: as Dask chooses. Dask's "p2p" needs its own distributed scheduler.
    """
    settings: dict[str, Any] = {"scheduler": ray_dask_get}
    if shuffle:
        settings["dataframe.shuffle.method"] = shuffle
    return dask.config.set(settings)


def disable_dask_on_ray() -> Any:
    """Back to Dask's own choice."""
    return dask.config.set({"scheduler": None, "dataframe.shuffle.method": None})
