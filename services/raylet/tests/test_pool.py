"""The worker pool against zygotes that behave in every bad way, and one that behaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from raylet_node import alive
from shoal_raylet.pool import Process, WorkerPool

pytestmark = pytest.mark.timeout(60)

FORK_AND_WAIT = 'pid = sleeper(); say(op="forked", id=request["id"], pid=pid); say(op="exited", pid=pid, status=os.waitpid(pid, 0)[1])'
# A zygote of one rule: what it does with a fork request is the body of `fork(request)`.
ZYGOTE = """
import argparse, json, os, socket, sys
parser = argparse.ArgumentParser(); parser.add_argument("--control-fd", type=int)
control = socket.socket(fileno=parser.parse_args().control_fd)
def say(**message): control.sendall(json.dumps(message).encode() + b"\\n")
def sleeper():
    pid = os.fork()
    if not pid:
        control.close(); os.execlp("sleep", "sleep", "1000")
    return pid
def fork(request):
    {body}
{before}
say(op="ready", pid=os.getpid())
for line in control.makefile("r"):
    fork(json.loads(line))
"""


class Watch:
    """A pool whose ends are collected."""

    def __init__(self, directory: Path, body: str, before: str = "", **options: float) -> None:
        (directory / "logs").mkdir(exist_ok=True)
        script = directory / "zygote.py"
        script.write_text(ZYGOTE.replace("{body}", body).replace("{before}", before))
        self.ends: asyncio.Queue[tuple[Process, int | None, str]] = asyncio.Queue()
        self.pool = WorkerPool([sys.executable, str(script)], str(directory), lambda *end: self.ends.put_nowait(end), **options)
        self.pool.start()

    async def end(self) -> tuple[Process, int | None, str]:
        return await asyncio.wait_for(self.ends.get(), 10)


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def run(coroutine) -> None:
    asyncio.run(coroutine)


def test_a_process_that_ends_is_told_with_its_status(tmp_path):
    async def main():
        watch = Watch(tmp_path, FORK_AND_WAIT.replace("; say(op=\"exited\"", "; os.kill(pid, 11); say(op=\"exited\""))
        watch.pool.fork(1, "")
        process, status, text = await watch.end()
        assert process.fork == 1
        assert status is not None
        assert os.WTERMSIG(status) == signal.SIGSEGV
        assert "SIGSEGV" in text
        await watch.pool.stop(0)

    run(main())


def test_a_fork_that_fails_is_told_with_the_reason(tmp_path):
    async def main():
        watch = Watch(tmp_path, 'say(op="forked", id=request["id"], pid=0, error="no memory")')
        watch.pool.fork(1, "")
        _process, status, text = await watch.end()
        assert status is None
        assert "no memory" in text
        await watch.pool.stop(0)

    run(main())


def test_a_process_that_never_registers_is_killed_and_told(tmp_path):
    async def main():
        watch = Watch(tmp_path, FORK_AND_WAIT, start_timeout_s=0.5)
        watch.pool.fork(1, "")
        _process, _status, text = await watch.end()
        assert "did not register within 0.5 s" in text
        await watch.pool.stop(0)

    run(main())


def test_a_zygote_that_answers_nothing_fails_the_fork_in_time(tmp_path):
    async def main():
        watch = Watch(tmp_path, "pass", start_timeout_s=0.3)
        watch.pool.fork(1, "")
        _process, status, text = await watch.end()
        assert status is None
        assert "never forked" in text
        await watch.pool.stop(0)

    run(main())


def test_what_is_no_json_is_ignored(tmp_path):
    async def main():
        watch = Watch(tmp_path, 'control.sendall(b"Traceback: what?\\n"); say(op="forked", id=request["id"], pid=0)')
        watch.pool.fork(1, "")
        await watch.end()
        await watch.pool.stop(0)

    run(main())


def test_a_zygote_that_dies_fails_its_forks_and_is_started_again(tmp_path):
    async def main():
        watch = Watch(tmp_path, f'''
    if not os.path.exists({str(tmp_path / "died")!r}):
        open({str(tmp_path / "died")!r}, "w"); os._exit(1)
    say(op="forked", id=request["id"], pid=sleeper())''')
        watch.pool.fork(1, "")
        _process, _status, text = await watch.end()
        assert "zygote" in text
        watch.pool.fork(2, "")
        await until(lambda: any(process.pid for process in watch.pool.by_worker.values()))
        assert watch.pool.restarts == 1
        (process,) = watch.pool.by_worker.values()
        await watch.pool.stop(0)
        assert not alive(process.pid)

    run(main())


def test_only_the_token_that_was_given_out_registers_and_only_once(tmp_path):
    async def main():
        watch = Watch(tmp_path, 'say(op="forked", id=request["id"], pid=sleeper())')
        watch.pool.fork(1, "")
        (process,) = watch.pool.by_worker.values()
        assert watch.pool.register("guess", process.worker_id) is None
        assert watch.pool.register(process.token, os.urandom(16)) is None
        assert watch.pool.register(process.token, process.worker_id) is process
        assert watch.pool.register(process.token, process.worker_id) is None
        await watch.pool.stop(0)

    run(main())


def test_a_killed_process_that_the_zygote_does_not_report_is_noticed_all_the_same(tmp_path):
    async def main():
        watch = Watch(tmp_path, 'pid = sleeper(); say(op="forked", id=request["id"], pid=pid)')
        watch.pool.fork(1, "")
        await until(lambda: any(process.pidfd >= 0 for process in watch.pool.by_worker.values()))
        (process,) = watch.pool.by_worker.values()
        watch.pool.kill(process.worker_id)
        assert (await watch.end())[0] is process
        await watch.pool.stop(0)

    run(main())


def test_a_zygote_that_imports_for_long_has_a_time_of_its_own(tmp_path):
    async def scenario() -> None:
        watch = Watch(tmp_path, FORK_AND_WAIT, "import time; time.sleep(1)", start_timeout_s=0.5, zygote_timeout_s=60)
        watch.pool.fork(1, "")
        process, _status, text = await watch.end()
        assert process.pid, "it was forked, long after a worker's own time"
        assert text.startswith("it did not register within 0.5 s")
        await watch.pool.stop(0)

    run(scenario())


def test_a_zygote_that_is_never_ready_fails_what_waits_for_it(tmp_path):
    async def scenario() -> None:
        watch = Watch(tmp_path, FORK_AND_WAIT, "import time; time.sleep(1000)", zygote_timeout_s=0.5)
        watch.pool.fork(1, "")
        process, _status, text = await watch.end()
        assert not process.pid and text.startswith("the zygote was not ready within 0.5 s")
        await watch.pool.stop(0)

    run(scenario())
