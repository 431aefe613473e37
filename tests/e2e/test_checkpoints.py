"""Actors whose state outlives their process, killed at any moment."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import shoal
from shoal.exceptions import ActorCheckpointError

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]


@shoal.remote(max_restarts=-1, max_task_retries=-1)
class Counter:
    def __init__(self):
        self.count = 0
        self.restored = 0

    def __shoal_save__(self):
        return {"count": self.count, "array": np.full(3, self.count)}

    def __shoal_restore__(self, state):
        self.count = state["count"]
        state["array"] += 1  # it may be written
        self.restored += 1

    def add(self):
        self.count += 1
        return self.count

    def large(self):
        self.count += 1
        return bytes(8 << 20)

    def items(self):
        self.count += 1
        yield self.count

    def seen(self):
        return self.count, self.restored

    def pid(self):
        return os.getpid()


def kill(actor):
    os.kill(shoal.get(actor.pid.remote(), timeout=60), signal.SIGKILL)


@pytest.mark.parametrize("where", ["at the control store", "at a path"])
def test_each_call_counts_once_however_often_the_process_is_killed(where, tmp_path):
    path = {} if where == "at the control store" else {"checkpoint_path": str(tmp_path)}
    actor = Counter.options(checkpoint_every=1, **path).remote()
    pids = set()
    ended = threading.Event()

    def strike():
        while not ended.wait(0.15) and len(pids) < 4:
            pid = shoal.get(actor.pid.remote(), timeout=60)
            pids.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        answers = []
        while len(answers) < 150 or len(pids) < 4:
            answers += shoal.get([actor.add.remote() for _ in range(25)], timeout=60)
    finally:
        ended.set()
        killer.join()
    assert answers == list(range(1, len(answers) + 1))
    assert shoal.get(actor.seen.remote(), timeout=60)[0] == len(answers)


def die_once_kept(_self, flag):
    """From now on, in this process: a kill after a checkpoint was kept, before the call is answered."""
    from shoal._worker.checkpoint_places import AtControlStore

    keep = AtControlStore.keep

    def keep_and_die(*arguments):
        keep(*arguments)
        if not os.path.exists(flag):
            open(flag, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)

    AtControlStore.keep = keep_and_die


@pytest.mark.parametrize(("call", "answer"), [("add", 1), ("large", ActorCheckpointError), ("items", ActorCheckpointError)])
def test_a_call_that_was_kept_and_not_answered_is_answered_by_the_next_life_and_not_run_again(call, answer, tmp_path):
    actor = Counter.options(checkpoint_every=2).remote()
    shoal.get(actor.__ray_call__.remote(die_once_kept, str(tmp_path / "died")), timeout=60)
    result = getattr(actor, call).remote()
    if answer is ActorCheckpointError:
        with pytest.raises(ActorCheckpointError, match="has run, and .* its answer was lost.* not run again"):
            list(map(shoal.get, result)) if call == "items" else shoal.get(result, timeout=60)
    else:
        assert shoal.get(result, timeout=60) == answer
    assert shoal.get(actor.seen.remote(), timeout=60) == (1, 1)


def test_what_came_after_the_last_checkpoint_is_lost_and_nothing_before():
    actor = Counter.options(checkpoint_every=5).remote()
    assert shoal.get([actor.add.remote() for _ in range(7)], timeout=60) == [1, 2, 3, 4, 5, 6, 7]
    kill(actor)  # pid() was the eighth call
    assert shoal.get(actor.seen.remote(), timeout=60) == (5, 1)


def test_an_idle_actor_keeps_its_state_after_the_time(wait_until, tmp_path):
    actor = Counter.options(checkpoint_every_s=0.3, checkpoint_path=str(tmp_path)).remote()
    pid = shoal.get(actor.pid.remote(), timeout=60)
    assert shoal.get(actor.add.remote(), timeout=60) == 1
    wait_until(lambda: list(tmp_path.rglob("*.checkpoint")), what="a checkpoint without another call")
    os.kill(pid, signal.SIGKILL)
    assert shoal.get(actor.seen.remote(), timeout=60) == (1, 1)


def test_a_call_whose_answer_cannot_be_kept_is_not_run_again():
    actor = Counter.options(checkpoint_every=1).remote()
    assert len(shoal.get(actor.large.remote(), timeout=60)) == 8 << 20
    assert [shoal.get(item) for item in actor.items.remote()] == [2]
    kill(actor)
    assert shoal.get(actor.seen.remote(), timeout=60) == (2, 1)


def test_a_state_that_cannot_be_saved_fails_the_call_and_not_the_actor():
    @shoal.remote(max_restarts=1, checkpoint_every=1)
    class Fickle:
        def __init__(self):
            self.state = None

        def __shoal_save__(self):
            if self.state == "raise":
                raise OSError("no state today")
            return {"reference": shoal.put(1), "lock": threading.Lock()}.get(self.state, self.state)

        def __shoal_restore__(self, state):
            self.state = state

        def set(self, state):
            self.state = state
            return state

    actor = Fickle.remote()
    with pytest.raises(ActorCheckpointError, match=r"ran 1 call.*could not be kept.*OSError: no state today"):
        shoal.get(actor.set.remote("raise"), timeout=60)
    with pytest.raises(ActorCheckpointError, match=r"1 ObjectRef.*return the values"):
        shoal.get(actor.set.remote("reference"), timeout=60)
    with pytest.raises(ActorCheckpointError, match="TypeError"):
        shoal.get(actor.set.remote("lock"), timeout=60)
    assert shoal.get(actor.set.remote("fine"), timeout=60) == "fine"


def test_an_actor_that_cannot_take_up_its_state_ends_and_says_why():
    @shoal.remote(max_restarts=5, checkpoint_every=1)
    class Refusing:
        def __shoal_save__(self):
            return "state"

        def __shoal_restore__(self, state):
            raise ValueError(f"I do not know {state!r}")

        def pid(self):
            return os.getpid()

    actor = Refusing.remote()
    kill(actor)
    with pytest.raises(ActorCheckpointError, match=r"could not be restored from its last checkpoint.*ValueError: I do not know 'state'"):
        while True:
            try:
                shoal.get(actor.pid.remote(), timeout=60)
            except shoal.exceptions.ActorUnavailableError:
                continue


def test_a_folder_that_has_gone_is_told_and_the_actor_does_not_begin_anew(tmp_path):
    actor = Counter.options(checkpoint_every=1, checkpoint_path=str(tmp_path / "states")).remote()
    shoal.get(actor.add.remote(), timeout=60)
    pid = shoal.get(actor.pid.remote(), timeout=60)
    shutil.rmtree(tmp_path / "states")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorCheckpointError, match="holds no checkpoint as new as number"):
        shoal.get(actor.seen.remote(), timeout=60)


def test_a_class_without_the_two_methods_and_one_with_async_methods_are_refused():
    @shoal.remote(max_restarts=1, checkpoint_every=1)
    class Bare:
        pass

    with pytest.raises(ValueError, match="checkpoints of .*Bare need __shoal_save__ and __shoal_restore__"):
        Bare.remote()

    @shoal.remote(max_restarts=1, checkpoint_every=1)
    class Async:
        def __shoal_save__(self):
            return None

        def __shoal_restore__(self, state):
            pass

        async def wait(self):
            pass

    with pytest.raises(ValueError, match="async methods"):
        Async.remote()


CREATOR = """
    import os, sys, shoal

    @shoal.remote(max_restarts=-1, max_task_retries=-1, lifetime="detached", name="heir", namespace="kept")
    class Heir:
        def __init__(self, large, reference, small):
            self.sizes = len(large), len(reference), small

        def seen(self):
            return self.sizes, os.getpid()

    shoal.init({address!r}, log_to_driver=False)
    heir = Heir.remote(bytes(5 << 20), shoal.put(bytes(3 << 20)), "small")
    shoal.get(heir.seen.remote(), timeout=60)
    print("made", flush=True)
"""


def test_a_detached_actor_restarts_with_its_arguments_after_its_creators_end(cluster, wait_until):
    code = textwrap.dedent(CREATOR).format(address=cluster.address_info["address"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "made" in done.stdout, done.stderr
    heir = shoal.get_actor("heir", namespace="kept")
    for _ in range(2):
        sizes, pid = shoal.get(heir.seen.remote(), timeout=60)
        assert sizes == (5 << 20, 3 << 20, "small")
        os.kill(pid, signal.SIGKILL)
    assert shoal.get(heir.seen.remote(), timeout=60)[0] == (5 << 20, 3 << 20, "small")
    shoal.kill(heir)
