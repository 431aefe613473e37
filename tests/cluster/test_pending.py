"""What waits tells why: to the driver, and to who asks."""

import logging

import shoal
from shoal import _pending


def test_why_names_the_reason_of_what_waits(home, head, monkeypatch, caplog):
    monkeypatch.setattr(_pending, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(_pending, "WARN_AFTER_S", 0.3)
    monkeypatch.setattr(_pending, "WARN_INFEASIBLE_AFTER_S", 0.3)
    monkeypatch.setattr(logging.getLogger("shoal"), "propagate", True)
    from shoal.testing import wait_until

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
        assert "waits for its arguments" in home.cli("why", "00ff", code=1)
        del holder
        assert shoal.get(later, timeout=60) == 2
