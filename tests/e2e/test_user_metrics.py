"""shoal.util.metrics: from any process to the head's page."""

import re
import urllib.request
from pathlib import Path

import pytest
import shoal
from shoal.util.metrics import Counter, Gauge, Histogram


@pytest.fixture(scope="module")
def page():
    context = shoal.init("local", num_cpus=2, log_to_driver=False)
    import json

    secrets = Path(json.loads((Path(context["session_dir"]) / "node.json").read_text())["secrets_dir"])
    token = (secrets / "user.token").read_text().strip()
    request = urllib.request.Request(f"http://{context['http_address']}/metrics", headers={"Authorization": f"Bearer {token}"})

    def read() -> str:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    yield read
    shoal.shutdown()


def test_a_task_an_actor_and_the_driver_are_seen_on_one_page(page, wait_until):
    seen = Counter("seen_things", "What was seen.", tag_keys=("who",))

    @shoal.remote
    def task():
        seen.inc(2, tags={"who": "task"})
        return shoal.get_runtime_context().get_worker_id()

    @shoal.remote(num_cpus=0)
    class Watcher:
        def __init__(self):
            self.level = Gauge("level")
            self.sizes = Histogram("sizes", boundaries=[1, 10])

        def look(self):
            self.level.set(7)
            self.sizes.observe(5)
            seen.inc(3, tags={"who": "actor"})

    watcher = Watcher.remote()
    seen.inc(tags={"who": "driver"})
    worker, _ = shoal.get([task.remote(), watcher.look.remote()])
    mine = shoal.get_runtime_context()
    wanted = [
        rf'seen_things{{job="{mine.get_job_id()}",node="{mine.get_node_id()}",worker="{worker}",who="task"}} 2',
        rf'seen_things{{job="{mine.get_job_id()}",node="{mine.get_node_id()}",worker="{mine.get_worker_id()}",who="driver"}} 1',
    ]  # fmt: skip

    def complete():
        text = page()
        patterns = [*map(re.escape, wanted), r'seen_things{.*who="actor"} 3', r"level{.*} 7", r'sizes_bucket{.*le="10"} 1']
        return all(re.search(pattern, text) for pattern in patterns)

    wait_until(complete, what="all samples on the page")
    assert page().count("# TYPE seen_things counter") == 1
