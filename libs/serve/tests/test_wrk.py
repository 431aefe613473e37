"""Killed replicas under the load of wrk, which asks faster than any generator in Python. `make wrk` installs it; without it these tests are skipped."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import shoal
from shoal import serve

CONNECTIONS = 32
KILLS = 3
# Limit: of the load; the test ends it before.
SECONDS = 90
REPORT = Path(__file__).with_name("wrk_report.lua")

pytestmark = [pytest.mark.usefixtures("applications"), pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed; make wrk installs it")]


@serve.deployment(num_replicas=2, max_ongoing_requests=CONNECTIONS, graceful_shutdown_wait_loop_s=0.05)
class Echo:
    def __init__(self):
        self.served = 0

    async def __call__(self, request=None):
        self.served += 1
        return "echo"

    async def state(self):
        return os.getpid(), self.served


class Wrk:
    """wrk on this address, until the report is asked for."""

    def __init__(self, address):
        command = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{SECONDS}s", "--timeout", "30s", "-s", str(REPORT), f"{address}/"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output = ""

    def report(self):
        """How many requests were answered, and how many failed in which way."""
        self._process.send_signal(signal.SIGINT)
        self.output, _ = self._process.communicate(timeout=60)
        found = re.search(r"^REPORT (.*)$", self.output, re.MULTILINE)
        assert found, self.output
        return {name: int(number) for name, number in (pair.split("=") for pair in found[1].split())}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(30)
        self._process.stdout.close()


def test_a_killed_replica_fails_only_what_it_had_in_flight(address, wait_until):
    handle = serve.run(Echo.bind())
    victims = []

    def busy():
        """The process of a living replica to which requests have come."""
        try:
            pid, served = handle.state.remote().result(timeout_s=30)
        except shoal.exceptions.RayActorError:  # a call of ours may be in flight on the one that was killed, too
            return None
        return pid if served > 500 and pid not in victims else None

    def whole():
        status = serve.status().applications["default"]
        return status.status == "RUNNING" and status.deployments["Echo"].replica_states.get("RUNNING") == 2

    with Wrk(address) as load:
        for _ in range(KILLS):
            victims.append(wait_until(busy, what="a replica under load"))
            os.kill(victims[-1], signal.SIGKILL)
            wait_until(busy, what="the other replica, still under load")
            wait_until(whole, what="a replacement")
        report = load.report()
    print(f"\n{report} with {KILLS} kills")
    # At most all connections waited for the replica that was killed; connections themselves stay whole.
    assert report["status"] <= KILLS * CONNECTIONS, load.output
    assert (report["connect"], report["read"], report["write"], report["timeout"]) == (0, 0, 0, 0), load.output
    assert report["requests"] > KILLS * 500, load.output
