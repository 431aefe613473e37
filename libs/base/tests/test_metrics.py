from __future__ import annotations

import threading

import pytest
from shoal_base import metrics
from shoal_base.metrics import Counter, Histogram, Registry


def test_each_kind_renders_as_prometheus_reads_it() -> None:
    registry = Registry()
    registry.counter("b_total", "Bees.").inc(2)
    gauge = registry.gauge("a", 'With "quotes"\nand lines.', ["where"])
    gauge.set(1.5, where='x"y\n')
    histogram = registry.histogram("h_seconds", "", ["m"], [0.1, 1])
    for value in (0.05, 0.1, 0.5, 7):
        histogram.observe(value, m="get")
    assert registry.render().splitlines() == [
        '# HELP a With "quotes"\\nand lines.',
        "# TYPE a gauge",
        'a{where="x\\"y\\n"} 1.5',
        "# HELP b_total Bees.",
        "# TYPE b_total counter",
        "b_total 2",
        "# HELP h_seconds ",
        "# TYPE h_seconds histogram",
        'h_seconds_bucket{m="get",le="0.1"} 2',
        'h_seconds_bucket{m="get",le="1"} 3',
        'h_seconds_bucket{m="get",le="+Inf"} 4',
        'h_seconds_sum{m="get"} 7.65',
        'h_seconds_count{m="get"} 4',
    ]


def test_a_series_can_go_and_a_collector_fills_in() -> None:
    registry = Registry()
    gauge = registry.gauge("g", "", ["n"])
    registry.on_collect(lambda: gauge.set(5, n="a"))
    assert 'g{n="a"} 5' in registry.render()
    gauge.remove(n="a")
    gauge.dec(n="b")
    assert (gauge.value(n="a"), gauge.value(n="b")) == (0, -1)


def test_asking_again_gives_the_same_metric_or_says_what_it_is() -> None:
    registry = Registry()
    assert registry.counter("c", "", ["x"]) is registry.counter("c", "", ["x"])
    for ask in (lambda: registry.gauge("c", "", ["x"]), lambda: registry.counter("c"), lambda: registry.register(Counter("c"))):
        with pytest.raises(ValueError, match="already"):
            ask()


def test_what_makes_no_sense_is_refused() -> None:
    for make in (lambda: Counter("1x"), lambda: Counter("x", "", ["le"]), lambda: Counter("x", "", ["a b"]), lambda: Histogram("x", "", (), [2, 1])):
        with pytest.raises(ValueError, match="metric"):
            make()
    counter = Counter("c", "", ["a"])
    for use in (lambda: counter.inc(-1, a="x"), lambda: counter.inc(), lambda: counter.inc(a="x", b="y")):
        with pytest.raises(ValueError, match="metric c"):
            use()


def test_the_number_of_series_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 3)
    counter = Counter("c", "", ["id"])
    for n in range(10):
        counter.inc(id=str(n))
    assert (counter.value(id="0"), counter.value(id="other")) == (1, 7)


def test_counts_from_many_threads_add_up() -> None:
    counter = Counter("c")
    threads = [threading.Thread(target=lambda: [counter.inc() for _ in range(10_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value() == 40_000
