"""Workers that own what others hold stay until nobody does."""

import collections
import os

import shoal


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_max_calls_does_not_end_a_worker_whose_objects_are_held(cluster, wait_until):
    @shoal.remote(max_calls=1)
    def make():
        return os.getpid(), [shoal.put(b"inside"), shoal.put(b"x" * 300_000)]

    made = [shoal.get(make.remote(), timeout=60) for _ in range(3)]
    pids = [pid for pid, _ in made]
    assert len(set(pids)) == 3

    @shoal.remote(num_cpus=4)
    def takes_all():
        return True

    # They hold no CPU meanwhile, and are lent to nobody.
    assert shoal.get(takes_all.remote(), timeout=60)

    @shoal.remote
    def where():
        return os.getpid()

    assert not set(shoal.get([where.remote() for _ in range(40)], timeout=60)) & set(pids)
    for _, (small, large) in made:
        assert shoal.get(small, timeout=30) == b"inside"
        assert shoal.get(large, timeout=30) == b"x" * 300_000
    assert all(alive(pid) for pid in pids)
    made.clear()
    del small, large
    wait_until(lambda: not any(alive(pid) for pid in pids), what="the workers end with the last reference")


def test_tasks_that_were_sent_behind_the_last_call_run_elsewhere(cluster, wait_until):
    @shoal.remote(max_calls=2)
    def make(n):
        return n, os.getpid(), shoal.put(n)

    made = shoal.get([make.remote(n) for n in range(12)], timeout=60)
    assert [n for n, _, _ in made] == list(range(12))
    assert shoal.get([ref for _, _, ref in made], timeout=60) == list(range(12))
    ran = collections.Counter(pid for _, pid, _ in made)
    assert max(ran.values()) <= 2
    made.clear()
    wait_until(lambda: not any(alive(pid) for pid in ran if ran[pid] == 2), what="the workers end with the last reference")
