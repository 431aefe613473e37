"""shoal.util.metrics, without a cluster."""

import pickle
import uuid

import pytest
from shoal._http.metrics import Freshness, merge
from shoal.util import metrics
from shoal.util.metrics import Counter, Gauge, Histogram


def name() -> str:
    return "m" + uuid.uuid4().hex


def lines(metric):
    return list(metric._series.render({"job": "j"}))


def test_what_is_recorded_is_rendered_with_its_tags_escaped():
    counter = Counter(name(), "a\nb", tag_keys=("route", "code")).set_default_tags({"code": "200"})
    counter.inc(tags={"route": 'a"b'})
    counter.inc(2.5, tags={"route": 'a"b'})
    counter.inc(1, tags={"route": "c", "code": "500"})
    own = counter.info["name"]
    assert lines(counter) == [
        f"# HELP {own} a\\nb", f"# TYPE {own} counter", f'{own}{{job="j",route="a\\"b",code="200"}} 3.5', f'{own}{{job="j",route="c",code="500"}} 1',
    ]  # fmt: skip


def test_a_histogram_counts_into_its_buckets():
    histogram = Histogram(name(), boundaries=[1, 10])
    for value in (0.5, 1, 5, 100):
        histogram.observe(value)
    own = histogram.info["name"]
    assert lines(histogram)[2:] == [
        f'{own}_bucket{{job="j",le="1"}} 2', f'{own}_bucket{{job="j",le="10"}} 3', f'{own}_bucket{{job="j",le="+Inf"}} 4', f'{own}_sum{{job="j"}} 106.5',
        f'{own}_count{{job="j"}} 4',
    ]  # fmt: skip


def test_a_gauge_shows_the_last_value_and_ignores_none():
    gauge = Gauge(name())
    gauge.set(3)
    gauge.set(1.5)
    gauge.set(None)
    assert lines(gauge)[2].endswith(" 1.5")


def test_a_tag_named_as_one_of_shoals_labels_stands_beside_it_and_a_truth_is_a_number():
    gauge = Gauge(name(), tag_keys=("job", "kind"))
    gauge.set(True, tags={"job": "mine", "kind": "a"})
    assert lines(gauge)[2] == gauge.info["name"] + '{job="j",exported_job="mine",kind="a"} 1'


def test_the_same_name_is_the_same_metric_and_survives_pickling():
    first = Counter(name(), tag_keys=("a",)).set_default_tags({"a": "x"})
    second = pickle.loads(pickle.dumps(first))
    first.inc()
    second.inc()
    assert lines(first)[2].endswith(" 2")
    histogram = Histogram(name(), boundaries=[1.0])
    assert pickle.loads(pickle.dumps(histogram)).info == histogram.info
    with pytest.raises(ValueError, match="exists in this process as a counter"):
        Gauge(first.info["name"])


def test_tags_without_end_end_in_one_series(monkeypatch):
    monkeypatch.setattr(metrics, "MAX_SERIES", 3)
    counter = Counter(name(), tag_keys=("id",))
    for i in range(10):
        counter.inc(tags={"id": str(i)})
    assert len(lines(counter)) == 2 + 4
    assert any('id="other"' in line and line.endswith(" 7") for line in lines(counter))


@pytest.mark.parametrize(("make", "error", "text"), [
    (lambda: Counter(""), ValueError, "Empty name"),
    (lambda: Counter("a b"), ValueError, "letters, digits"),
    (lambda: Counter(name(), tag_keys="x"), TypeError, "tuple"),
    (lambda: Counter(name(), tag_keys=("le",)), ValueError, "tag key 'le' is not allowed"),
    (lambda: Counter(name(), tag_keys=("x",)).inc(), ValueError, "Missing value for tag key\\(s\\): x"),
    (lambda: Counter(name(), tag_keys=("x",)).inc(tags={"y": "1"}), ValueError, "Unrecognized tag key y"),
    (lambda: Counter(name(), tag_keys=("x",)).inc(tags={"x": 1}), TypeError, "Tag values must be str"),
    (lambda: Counter(name()).inc(0), ValueError, ">0"),
    (lambda: Counter(name()).inc("1"), TypeError, "int or float"),
    (lambda: Counter(name(), tag_keys=("x",)).set_default_tags({"y": "1"}), ValueError, "Unrecognized"),
    (lambda: Counter(name(), tag_keys=("x",)).set_default_tags(["x"]), TypeError, "must be a dict"),
    (lambda: Histogram(name()), ValueError, "boundaries argument should be provided"),
    (lambda: Histogram(name(), boundaries=[0, 1]), ValueError, "index 0"),
    (lambda: Histogram(name(), boundaries=[2, 1]), ValueError, "rise"),
])  # fmt: skip
def test_what_is_wrong_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_what_the_dead_left_goes_after_a_minute():
    seen = Freshness()
    assert seen.sort({b"a": b"1", b"b": b"1"}, 0) == ([b"1", b"1"], [])
    assert seen.sort({b"a": b"2", b"b": b"1"}, 50) == ([b"2", b"1"], [])
    assert seen.sort({b"a": b"2", b"b": b"1"}, 70) == ([b"2"], [b"b"])


def test_two_processes_samples_make_one_family():
    a, b = metrics.Registry(), metrics.Registry()
    for registry in (a, b):
        registry.register("counter", "x", "d", (), ()).add((), 1)
    page = merge([a.text({"worker": "1"}).decode(), b.text({"worker": "2"}).decode()])
    assert page == '# HELP x d\n# TYPE x counter\nx{worker="1"} 1\nx{worker="2"} 1\n'
