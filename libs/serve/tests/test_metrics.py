"""serve.metrics: what a metric of a replica says by itself."""

import re

import pytest
import shoal
import shoal.util.metrics
from shoal import serve

pytestmark = pytest.mark.usefixtures("applications")


@serve.deployment
class Counting:
    def __init__(self):
        metrics = serve.metrics
        self.answers = metrics.Counter("serve_test_answers", "Answers.", tag_keys=("language", "route"))
        self.answers.set_default_tags({"language": "en"})
        self.depth = metrics.Gauge("serve_test_depth")
        self.sizes = metrics.Histogram("serve_test_sizes", boundaries=[10, 100], tag_keys=("kind",))

    def __call__(self, request):
        self.answers.inc()
        self.answers.inc(2, tags={"language": "de", "route": "elsewhere"})
        self.depth.set(3)
        self.sizes.observe(20, tags={"kind": "text"})
        return "counted"

    def told(self):
        from shoal.util.metrics import registry

        return registry.text({}).decode(), serve.get_replica_context().replica_tag

    def refused(self):
        with pytest.raises(ValueError, match="metric x: the tag 'replica' is added in every replica; leave it out of tag_keys"):
            serve.metrics.Counter("x", tag_keys=("replica",))
        return "refused"


def tags_of(text, name):
    """The tags and the value of each sample."""
    found = []
    for tags, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
        found.append((dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)))
    return found


def test_metrics_of_a_replica_say_which_it_is_and_for_which_route(client):
    handle = serve.run(Counting.bind(), name="app", route_prefix="/count")
    assert client.get("/count").text == "counted"
    text, replica = handle.told.remote().result(timeout_s=30)
    own = {"deployment": "Counting", "application": "app", "replica": replica}
    assert sorted(tags_of(text, "serve_test_answers"), key=lambda pair: pair[1]) == [
        ({"language": "en", "route": "/count", **own}, 1.0), ({"language": "de", "route": "elsewhere", **own}, 2.0),
    ]  # fmt: skip
    assert tags_of(text, "serve_test_depth") == [(own, 3.0)]
    assert tags_of(text, "serve_test_sizes_sum") == [({"kind": "text", **own}, 20.0)]
    assert handle.refused.remote().result(timeout_s=30) == "refused"


def test_outside_of_replicas_they_are_ordinary_metrics():
    counter = serve.metrics.Counter("serve_test_plain", tag_keys=("deployment",))
    counter.inc(tags={"deployment": "mine"})
    assert tags_of(shoal.util.metrics.registry.text({}).decode(), "serve_test_plain") == [({"deployment": "mine"}, 1.0)]
    with pytest.raises(ValueError, match="Missing value for tag"):
        counter.inc()
    assert isinstance(counter, shoal.util.metrics.Counter)
