"""Metrics in Prometheus' text format, version 0.0.4. Thread-safe.

>>> registry = Registry()
>>> leases = registry.counter("shoal_leases_total", "Leases granted.", ["kind"])
>>> leases.inc(kind="local")
>>> print(registry.render(), end="")
# HELP shoal_leases_total Leases granted.
# TYPE shoal_leases_total counter
shoal_leases_total{kind="local"} 1
"""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds, from a frame's journey to a slow start.
DEFAULT_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
# Limit: label combinations of one metric; an id as a label would grow without end. Beyond it, values go to the series with "other" for every label.
MAX_SERIES = 10_000

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_Key = tuple[str, ...]


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _show(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


class _Metric:
    kind = ""

    def __init__(self, name: str, doc: str = "", labels: Sequence[str] = ()) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"metric name {name!r}: letters, digits, '_' and ':', not beginning with a digit")
        for label in labels:
            if not _LABEL.fullmatch(label) or label.startswith("__") or label == "le":
                raise ValueError(f"metric {name}: label {label!r} is not allowed")
        self.name, self.doc, self.labels = name, doc, tuple(labels)
        self._lock = threading.Lock()

    def _key(self, labels: dict[str, str], known: Callable[[_Key], bool], count: int) -> _Key:
        try:
            key = tuple(str(labels[label]) for label in self.labels)
        except KeyError as error:
            raise ValueError(f"metric {self.name}: label {error} is missing; its labels are {self.labels}") from None
        if len(labels) != len(self.labels):
            raise ValueError(f"metric {self.name}: labels {sorted(set(labels) - set(self.labels))} are unknown; its labels are {self.labels}")
        return key if count < MAX_SERIES or known(key) else ("other",) * len(self.labels)

    def _series(self, key: _Key, *more: tuple[str, str]) -> str:
        pairs = [*zip(self.labels, key, strict=True), *more]
        return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in pairs) + "}" if pairs else ""

    def render(self) -> Iterable[str]:
        yield f"# HELP {self.name} " + self.doc.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# TYPE {self.name} {self.kind}"
        yield from self._samples()

    def _samples(self) -> Iterable[str]:
        raise AssertionError("each kind of metric has its own samples")


class _Single(_Metric):
    """One number for each combination of labels."""

    def __init__(self, name: str, doc: str = "", labels: Sequence[str] = ()) -> None:
        super().__init__(name, doc, labels)
        self._values: dict[_Key, float] = {} if labels else {(): 0.0}

    def _add(self, amount: float, labels: dict[str, str]) -> None:
        with self._lock:
            key = self._key(labels, self._values.__contains__, len(self._values))
            self._values[key] = self._values.get(key, 0.0) + amount

    def value(self, **labels: str) -> float:
        with self._lock:
            return self._values.get(tuple(str(labels[label]) for label in self.labels), 0.0)

    def _samples(self) -> Iterable[str]:
        with self._lock:
            values = sorted(self._values.items())
        return [f"{self.name}{self._series(key)} {_show(value)}" for key, value in values]


class Counter(_Single):
    kind = "counter"

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        if amount < 0:
            raise ValueError(f"metric {self.name}: a counter cannot go down ({amount})")
        self._add(amount, labels)


class Gauge(_Single):
    kind = "gauge"

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        self._add(amount, labels)

    def dec(self, amount: float = 1.0, **labels: str) -> None:
        self._add(-amount, labels)

    def set(self, value: float, **labels: str) -> None:
        with self._lock:
            self._values[self._key(labels, self._values.__contains__, len(self._values))] = float(value)

    def remove(self, **labels: str) -> None:
        """The series is gone, not zero."""
        with self._lock:
            self._values.pop(tuple(str(labels[label]) for label in self.labels), None)


class Histogram(_Metric):
    kind = "histogram"

    def __init__(self, name: str, doc: str = "", labels: Sequence[str] = (), buckets: Sequence[float] = DEFAULT_BUCKETS) -> None:
        super().__init__(name, doc, labels)
        if not buckets or list(buckets) != sorted(set(buckets)):
            raise ValueError(f"metric {name}: buckets must grow, got {list(buckets)}")
        self.buckets = tuple(float(b) for b in buckets)
        self._counts: dict[_Key, list[int]] = {}
        self._sums: dict[_Key, float] = {}

    def observe(self, value: float, **labels: str) -> None:
        with self._lock:
            key = self._key(labels, self._counts.__contains__, len(self._counts))
            counts = self._counts.setdefault(key, [0] * (len(self.buckets) + 1))
            counts[bisect.bisect_left(self.buckets, value)] += 1
            self._sums[key] = self._sums.get(key, 0.0) + value

    def _samples(self) -> Iterable[str]:
        with self._lock:
            rows = [(key, list(counts), self._sums[key]) for key, counts in sorted(self._counts.items())]
        lines = []
        for key, counts, total in rows:
            for edge, below in zip((*self.buckets, float("inf")), accumulate(counts), strict=True):
                lines.append(f"{self.name}_bucket{self._series(key, ('le', _show(edge)))} {below}")
            lines.append(f"{self.name}_sum{self._series(key)} {_show(total)}")
            lines.append(f"{self.name}_count{self._series(key)} {sum(counts)}")
        return lines


M = TypeVar("M", bound=_Metric)


class Registry:
    """Metrics by name. Asking for a name again gives the same metric; with another kind or other labels it raises ValueError."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}
        self._collectors: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def counter(self, name: str, doc: str = "", labels: Sequence[str] = ()) -> Counter:
        return self._get(name, labels, Counter, lambda: Counter(name, doc, labels))

    def gauge(self, name: str, doc: str = "", labels: Sequence[str] = ()) -> Gauge:
        return self._get(name, labels, Gauge, lambda: Gauge(name, doc, labels))

    def histogram(self, name: str, doc: str = "", labels: Sequence[str] = (), buckets: Sequence[float] = DEFAULT_BUCKETS) -> Histogram:
        return self._get(name, labels, Histogram, lambda: Histogram(name, doc, labels, buckets))

    def register(self, metric: M) -> M:
        """For a metric made on its own. Raises ValueError when the name is taken."""
        with self._lock:
            if metric.name in self._metrics:
                raise ValueError(f"metric {metric.name} is registered already")
            self._metrics[metric.name] = metric
        return metric

    def on_collect(self, collect: Callable[[], None]) -> None:
        """Called before each rendering: for gauges that are cheaper to read than to keep."""
        self._collectors.append(collect)

    def _get(self, name: str, labels: Sequence[str], kind: type[M], make: Callable[[], M]) -> M:
        with self._lock:
            metric = self._metrics.get(name)
            if metric is None:
                self._metrics[name] = metric = make()
            if not isinstance(metric, kind) or metric.labels != tuple(labels):
                raise ValueError(f"metric {name} is a {metric.kind} with labels {metric.labels} already")
            return metric

    def render(self) -> str:
        for collect in self._collectors:
            collect()
        with self._lock:
            metrics = sorted(self._metrics.values(), key=lambda metric: metric.name)
        return "".join(f"{line}\n" for metric in metrics for line in metric.render())
