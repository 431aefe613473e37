"""What waits tells why: to the driver, and to who asks."""

import logging
import os
import re
import signal

import shoal
from shoal import _pending
from shoal.testing import wait_until
from shoal.util.placement_group import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def test_why_names_the_reason_of_what_waits(home, head, monkeypatch, caplog):
    monkeypatch.setattr(_pending, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(_pending, "WARN_AFTER_S", 0.3)
    monkeypatch.setattr(_pending, "WARN_INFEASIBLE_AFTER_S", 0.3)
    monkeypatch.setattr(logging.getLogger("shoal"), "propagate", True)
    def wait_for(condition, what):
        return wait_until(condition, what=what)

    @shoal.remote(num_cpus=64)
    def large():
        return 1

    @shoal.remote(num_cpus=2)
    class Holder:
        def ping(self):
            return 1

    @shoal.remote
    def small():
        return 2

    with shoal.init(head["gcs"], log_to_driver=False):
        ref = large.remote()
        wait_for(lambda: any("cannot run on any node" in r.getMessage() for r in caplog.records), "the warning")
        assert "large needs CPU 64: fits no node of the cluster" in home.cli("why", "large")
        shoal.cancel(ref)
        holder = Holder.remote()
        shoal.get(holder.ping.remote(), timeout=60)
        later = small.remote()
        wait_for(lambda: any("while no task of this program runs" in r.getMessage() for r in caplog.records), "the second warning")
        assert "is ALIVE" in home.cli("why", holder._actor_id.hex()[:10])
        assert "is found by its whole id" in home.cli("why", "00ff", code=1)
        assert "CPU 1 wanted, 0 free of 2" in home.cli("why", later.task_id().hex())
        del holder
        assert shoal.get(later, timeout=60) == 2


def test_one_task_tells_what_it_waits_for_wherever_it_stands(home, head, tmp_path):
    go = tmp_path / "go"

    @shoal.remote(max_retries=0)
    def run_until(path):
        wait_until(lambda: os.path.exists(path), 60)

    @shoal.remote
    def after(*values):
        return len(values)

    @shoal.remote(num_cpus=2)
    class Whole:
        def ping(self):
            return 1

    @shoal.remote(num_cpus=0)
    class Parent:
        def start(self):
            self.ref = after.remote()
            return self.ref.task_id().hex(), os.getpid()

    def why(ref):
        return home.cli("why", ref.hex())

    with shoal.init(head["gcs"], log_to_driver=False):
        holders = [run_until.remote(str(go)) for _ in range(2)]
        wait_until(lambda: all("runs on node" in why(ref) for ref in holders), 60)
        queued = after.remote()
        assert re.search(r"submitted by the driver \(pid \d+ on node \w{12}\), waits for a worker\n", why(queued))
        assert "CPU 1 wanted, 0 free of 2" in why(queued)
        last = after.remote(after.remote(queued), 1)
        lines = why(last).splitlines()
        assert "waits for 1 argument:" in lines[0]
        assert [line.partition(" (")[2][:32] for line in lines if line.startswith("task ")][-1] == queued.task_id().hex(), "the chain ends at its cause"
        assert "CPU 1 wanted, 0 free of 2" in lines[-1]
        call = Whole.remote().ping.remote()
        wait_until(lambda: "CPU 2" in why(call), 30)
        assert re.search(r"waits for its actor: actor Whole \(\w{32}\) is PENDING_CREATION", why(call))
        group = placement_group([{"CPU": 2}])
        inside = after.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
        wait_until(lambda: "is PENDING: bundle 0 (CPU 2)" in why(inside), 30)
        parent = Parent.remote()
        task_id, pid = shoal.get(parent.start.remote(), timeout=60)
        assert f"submitted by a worker (pid {pid}" in home.cli("why", task_id)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert "did not answer: it is stopped" in home.cli("why", task_id)
        finally:
            os.kill(pid, signal.SIGCONT)
        go.touch()
        assert shoal.get([last, inside], timeout=60) == [2, 0]
        remove_placement_group(group)
        assert shoal.get(call, timeout=60) == 1
        assert "has ended: FINISHED" in why(last)
