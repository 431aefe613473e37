"""Metrics of a user's own: counted where the code runs, read as Prometheus text on the head (`/metrics`).

>>> from shoal.util.metrics import Counter, Histogram
>>> requests = Counter("requests", "Requests by route.", tag_keys=("route",))
>>> requests.inc(tags={"route": "/a"})
>>> sizes = Histogram("sizes", boundaries=[10, 100])
>>> sizes.observe(25)

Recording touches this process's memory alone. A thread sends what has changed, all of a process in one message, at most once a second; a process that
records nothing sends nothing. Every sample has the labels `job`, `node` and `worker` beside its tags; a tag of such a name
appears as `exported_job` and so on, as Prometheus does it. What a process counted is shown until a minute after
it ended, or until its job ends. Metrics may be made again under the same name, and may be pickled: they are the process's one metric of that name.
"""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, ClassVar

from .. import _runtime

__all__ = ["Counter", "Gauge", "Histogram", "Metric"]

NAMESPACE = "shoal.metrics"
# How often changes are sent, and how often a process says that it still lives.
SEND_EVERY_S = 1.0
BEAT_EVERY_S = 15.0
# Limit: combinations of tags of one metric in one process; an id as a tag would grow without end. Beyond it, values go to the one with "other" for every tag.
MAX_SERIES = 1000
# Limit: of one process's text.
MAX_TEXT_BYTES = 1 << 20
_OWN_LABELS = ("job", "node", "worker")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_TAG = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_Key = tuple[str, ...]


class Series:
    """The numbers of one metric: what all objects of its name in this process share."""

    def __init__(self, kind: str, name: str, description: str, tag_keys: _Key, boundaries: tuple[float, ...]) -> None:
        self.kind, self.name, self.description, self.tag_keys, self.boundaries = kind, name, description, tag_keys, boundaries
        self._labels = tuple(f"exported_{key}" if key in _OWN_LABELS else key for key in tag_keys)
        self.lock = threading.Lock()
        self.values: dict[_Key, float] = {}  # of a histogram: sums
        self.counts: dict[_Key, list[int]] = {}

    def _bounded(self, key: _Key) -> _Key:
        return key if key in self.values or len(self.values) < MAX_SERIES else ("other",) * len(key)

    def add(self, key: _Key, amount: float) -> None:
        with self.lock:
            key = self._bounded(key)
            self.values[key] = self.values.get(key, 0.0) + amount

    def set(self, key: _Key, value: float) -> None:
        with self.lock:
            self.values[self._bounded(key)] = value

    def observe(self, key: _Key, value: float) -> None:
        with self.lock:
            key = self._bounded(key)
            self.values[key] = self.values.get(key, 0.0) + value
            counts = self.counts.get(key)
            if counts is None:
                counts = self.counts[key] = [0] * (len(self.boundaries) + 1)
            counts[bisect.bisect_left(self.boundaries, value)] += 1

    def render(self, labels: Mapping[str, str]) -> Iterable[str]:
        """Prometheus text, version 0.0.4; `labels` on every sample."""
        with self.lock:
            values = sorted(self.values.items())
            counts = {key: list(found) for key, found in self.counts.items()}
        if not values:
            return
        yield f"# HELP {self.name} " + self.description.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# TYPE {self.name} {self.kind}"
        for key, value in values:
            pairs = [*labels.items(), *zip(self._labels, key, strict=True)]
            if self.kind != "histogram":
                yield f"{self.name}{_labels(pairs)} {_number(value)}"
                continue
            upper = [*(_number(b) for b in self.boundaries), "+Inf"]
            for bound, count in zip(upper, accumulate(counts[key]), strict=True):
                yield f"{self.name}_bucket{_labels([*pairs, ('le', bound)])} {count}"
            yield f"{self.name}_sum{_labels(pairs)} {_number(value)}"
            yield f"{self.name}_count{_labels(pairs)} {sum(counts[key])}"


def _labels(pairs: list[tuple[str, str]]) -> str:
    escaped = [(name, value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")) for name, value in pairs]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if value == value and abs(value) < 1e15 and value == int(value) else repr(float(value)).replace("inf", "Inf").replace("nan", "NaN")


class Registry:
    """All metrics of this process, and the thread that sends them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.series: dict[str, Series] = {}
        self.changed = False
        self._wake = threading.Event()
        self._sending: Any = None  # the engine that a thread sends through
        self._beat = 0

    def register(self, kind: str, name: str, description: str, tag_keys: _Key, boundaries: tuple[float, ...]) -> Series:
        with self.lock:
            found = self.series.get(name)
            if found is None:
                found = self.series[name] = Series(kind, name, description, tag_keys, boundaries)
            elif (found.kind, found.tag_keys, found.boundaries) != (kind, tag_keys, boundaries):
                raise ValueError(
                    f"metric {name!r} exists in this process as a {found.kind} with tag_keys={found.tag_keys}"
                    f"{f' and boundaries={list(found.boundaries)}' if found.boundaries else ''}; it cannot also be a {kind} with tag_keys={tag_keys}"
                    f"{f' and boundaries={list(boundaries)}' if boundaries else ''}"
                )
            return found

    def touch(self) -> None:
        """Something was recorded."""
        if not self.changed:
            self.changed = True
            self._wake.set()
        engine = _runtime.state.engine
        if engine is not None and engine is not self._sending:
            self._start(engine)

    def _start(self, engine: Any) -> None:
        with self.lock:
            if self._sending is engine:
                return
            self._sending = engine
        now = _runtime.current()
        job_id = now.job_id if now is not None else _runtime.state.job_id
        ended = threading.Event()
        threading.Thread(target=self._run, args=(engine, job_id, ended), name="shoal-metrics", daemon=True).start()
        _runtime.state.at_disconnect.append(lambda: self._end(ended))
        if _runtime.state.kind == _runtime.WORKER:
            import atexit

            atexit.register(self.send, engine, job_id)

    def _end(self, ended: threading.Event) -> None:
        """Nothing here may keep the engine of an ended connection: its arena would stay mapped."""
        with self.lock:
            self._sending = None
        ended.set()
        self._wake.set()

    def _run(self, engine: Any, job_id: bytes, ended: threading.Event) -> None:
        while not ended.is_set() and not engine.closed:
            self.send(engine, job_id)
            ended.wait(SEND_EVERY_S)
            self._wake.wait(BEAT_EVERY_S)

    def send(self, engine: Any, job_id: bytes) -> None:
        if engine.closed:
            return
        from shoal_gcs.v1 import gcs_pb2

        self._wake.clear()
        self.changed = False
        state = _runtime.state
        labels = {"job": job_id.hex(), "node": state.node_id.hex(), "worker": state.worker_id.hex()}
        key = f"{labels['job']}/{labels['node']}/{labels['worker']}".encode()
        request = gcs_pb2.KvPutRequest(namespace=NAMESPACE, key=key, value=self.text(labels), overwrite=True, job_id=job_id)
        engine.call_async("gcs/KvPut", request.SerializeToString())

    def text(self, labels: Mapping[str, str]) -> bytes:
        self._beat += 1
        with self.lock:
            series = list(self.series.values())
        lines = [f"# beat {self._beat}"]  # differs from the last one: the head tells the living by it
        size = 0
        for one in series:
            rendered = list(one.render(labels))
            size += sum(len(line) + 1 for line in rendered)
            if size > MAX_TEXT_BYTES:
                break
            lines += rendered
        return ("\n".join(lines) + "\n").encode()


registry = Registry()


class Metric:
    """What the three kinds share."""

    _kind: ClassVar[str] = ""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        self._open(name, description, tag_keys, ())

    def _open(self, name: str, description: str, tag_keys: tuple[str, ...] | None, boundaries: tuple[float, ...]) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError("Empty name is not allowed. Please provide a metric name.")
        if not _NAME.fullmatch(name):
            raise ValueError(f"metric name {name!r}: letters, digits, '_' and ':', not beginning with a digit")
        keys = () if tag_keys is None else tag_keys
        if not isinstance(keys, tuple):
            raise TypeError(f"tag_keys should be a tuple type, got: {type(keys)}")
        for key in keys:
            if not isinstance(key, str):
                raise TypeError(f"tag keys must be str, got {type(key)}")
            if not _TAG.fullmatch(key) or key == "le":
                raise ValueError(f"metric {name}: tag key {key!r} is not allowed: letters, digits and '_', not beginning with a digit, and not le")
        self._default_tags: dict[str, str] = {}
        self._series = registry.register(self._kind, name, description, keys, boundaries)

    def set_default_tags(self, default_tags: dict[str, str]) -> Any:
        """Values for tags that a record does not give. Returns this metric.

        Raises:
            TypeError: no dict, or a value that is no text. ValueError: an unknown key.
        """
        if not isinstance(default_tags, dict):
            raise TypeError(f"default tags must be a dict of str to str, got {default_tags!r}")
        for key, value in default_tags.items():
            self._checked(key, value)
        self._default_tags = dict(default_tags)
        return self

    def _checked(self, key: str, value: Any) -> None:
        if key not in self._series.tag_keys:
            raise ValueError(f"Unrecognized tag key {key}.")
        if not isinstance(value, str):
            raise TypeError(f"Tag values must be str, got {type(value)}.")

    def _key(self, tags: dict[str, str] | None) -> _Key:
        keys = self._series.tag_keys
        if not keys and not tags:
            return ()
        if tags is not None:
            for key, value in tags.items():
                self._checked(key, value)
        merged = {**self._default_tags, **(tags or {})}
        if len(merged) < len(keys):
            raise ValueError(f"Missing value for tag key(s): {', '.join(key for key in keys if key not in merged)}.")
        return tuple(merged[key] for key in keys)

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        series = self._series
        return {"name": series.name, "description": series.description, "tag_keys": series.tag_keys, "default_tags": dict(self._default_tags)}

    def __reduce__(self) -> tuple[Any, ...]:
        series = self._series
        return _rebuild, (type(self), series.name, series.description, series.tag_keys, series.boundaries, self._default_tags)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._series.name!r}, tag_keys={self._series.tag_keys})"


def _rebuild(cls: type[Metric], name: str, description: str, tag_keys: _Key, boundaries: tuple[float, ...], default_tags: dict[str, str]) -> Metric:
    made = cls.__new__(cls)
    made._open(name, description, tag_keys, boundaries)
    made._default_tags = default_tags
    return made


def _real(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"value must be int or float, got {type(value)}.")
    return value


class Counter(Metric):
    """A number that only grows.

    Args:
        name: under which Prometheus finds it, as it is given.
        tag_keys: what each record is told apart by; few values each.

    Raises:
        ValueError, TypeError: a wrong name or tag; the name belongs to another metric of this process.
    """

    _kind = "counter"

    def inc(self, value: int | float = 1.0, tags: dict[str, str] | None = None) -> None:
        """Raises ValueError unless `value` > 0 and every tag has a value."""
        if _real(value) <= 0:
            raise ValueError(f"value must be >0, got {value}")
        self._series.add(self._key(tags), value)
        registry.touch()


class Gauge(Metric):
    """A number that goes up and down; the last one set is shown."""

    _kind = "gauge"

    def set(self, value: int | float | None, tags: dict[str, str] | None = None) -> None:
        """None changes nothing, as in Ray."""
        if value is None:
            return
        self._series.set(self._key(tags), float(_real(value)))
        registry.touch()


class Histogram(Metric):
    """How values are spread over buckets.

    Args:
        boundaries: upper ends of the buckets, positive and rising.
    """

    _kind = "histogram"

    def __init__(self, name: str, description: str = "", boundaries: list[float] | None = None, tag_keys: tuple[str, ...] | None = None) -> None:
        if boundaries is None or len(boundaries) == 0:
            raise ValueError('boundaries argument should be provided when using the Histogram class. e.g., Histogram("name", boundaries=[1.0, 2.0])')
        for i, bound in enumerate(boundaries):
            if _real(bound) <= 0:
                raise ValueError(f"Invalid `boundaries` argument at index {i}, {boundaries}. Use positive values for the arguments.")
        if sorted(set(boundaries)) != list(boundaries):
            raise ValueError(f"boundaries={boundaries} must rise")
        self._open(name, description, tag_keys, tuple(boundaries))

    def observe(self, value: int | float, tags: dict[str, str] | None = None) -> None:
        self._series.observe(self._key(tags), float(_real(value)))
        registry.touch()

    @property
    def info(self) -> dict[str, Any]:
        return {**super().info, "boundaries": list(self._series.boundaries)}
