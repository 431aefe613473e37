"""shoal.util.collective on gloo."""

import numpy as np
import pytest
import shoal
import torch
from shoal.util import collective
from shoal.util.collective import ReduceOp

pytestmark = pytest.mark.usefixtures("cluster")


@shoal.remote(num_cpus=0)
class Member:
    def join(self, world_size, rank, group="default", timeout=30_000):
        collective.init_collective_group(world_size, rank, "gloo", group, timeout)
        return collective.get_rank(group), collective.get_collective_group_size(group)

    def leave(self, group="default"):
        collective.destroy_collective_group(group)
        return collective.is_group_initialized(group), collective.get_rank(group)

    def call(self, name, *args, **kwargs):
        """The arrays among the arguments as they are afterwards."""
        args = [a.copy() if isinstance(a, np.ndarray) else [x.copy() for x in a] if isinstance(a, list) else a for a in args]
        getattr(collective, name)(*args, **kwargs)
        return args[0] if args else None

    def torch_sum(self, value):
        tensor = torch.full((2, 3), float(value)).t()  # not contiguous
        collective.allreduce(tensor)
        return tensor.tolist()


@pytest.fixture(scope="module")
def pair(cluster):
    members = [Member.remote(), Member.remote()]
    collective.create_collective_group(members, 2, [0, 1], "gloo")
    yield members
    del members


def both(pair, name, *args, **kwargs):
    """The same call at both; an argument that is a tuple has one part for each."""
    picked = [[a[i] if isinstance(a, tuple) else a for a in args] for i in range(2)]
    return shoal.get([m.call.remote(name, *own, **kwargs) for m, own in zip(pair, picked, strict=True)], timeout=60)


def test_allreduce_with_every_operation(pair):
    a, b = np.array([1.0, 5.0]), np.array([3.0, 2.0])
    for op, result in ((ReduceOp.SUM, a + b), (ReduceOp.PRODUCT, a * b), (ReduceOp.MIN, np.minimum(a, b)), (ReduceOp.MAX, np.maximum(a, b))):
        for found in both(pair, "allreduce", (a, b), op=op):
            assert found.tolist() == result.tolist()
    assert shoal.get([m.torch_sum.remote(i + 1) for i, m in enumerate(pair)]) == [[[3.0, 3.0]] * 3] * 2


def test_reduce_changes_the_destination_alone(pair):
    for dst, op, result in ((1, ReduceOp.SUM, 3), (0, ReduceOp.MAX, 2)):
        found = both(pair, "reduce", (np.ones(3), np.full(3, 2.0)), dst, op=op)
        assert found[dst].tolist() == [result] * 3
        assert found[1 - dst].tolist() == [2 - dst] * 3


def test_broadcast_and_allgather_and_reducescatter(pair):
    assert [x.tolist() for x in both(pair, "broadcast", (np.zeros(2, np.int64), np.array([4, 5])), 1)] == [[4, 5], [4, 5]]
    gathered = both(pair, "allgather", [np.zeros(2), np.zeros(2)], (np.ones(2), np.full(2, 7.0)))
    assert [[x.tolist() for x in g] for g in gathered] == [[[1, 1], [7, 7]]] * 2
    parts = ([np.ones(2), np.full(2, 10.0)], [np.full(2, 3.0), np.full(2, 20.0)])
    assert [x.tolist() for x in both(pair, "reducescatter", np.zeros(2), parts)] == [[4, 4], [30, 30]]
    assert [x.tolist() for x in both(pair, "reducescatter", np.zeros(2), parts, op=ReduceOp.PRODUCT)] == [[3, 3], [200, 200]]


def test_send_and_recv_and_barrier(pair):
    sent = pair[0].call.remote("send", np.array([1.5, 2.5]), 1)
    received = pair[1].call.remote("recv", np.zeros(2), 0)
    assert shoal.get([sent, received], timeout=60)[1].tolist() == [1.5, 2.5]
    both(pair, "barrier")


def test_a_barrier_lets_nobody_through_before_the_last_is_there(pair):
    early = pair[0].call.remote("barrier")
    assert shoal.wait([early], timeout=0.3) == ([], [early])
    shoal.get([early, pair[1].call.remote("barrier")], timeout=60)


def test_a_process_is_in_several_groups_and_a_name_may_be_used_again(pair):
    for _ in range(2):
        assert shoal.get([m.join.remote(2, 1 - i, "other") for i, m in enumerate(pair)], timeout=60) == [(1, 2), (0, 2)]
        assert [x.tolist() for x in both(pair, "broadcast", (np.array([1]), np.array([2])), 0, group_name="other")] == [[2], [2]]
        assert [x.tolist() for x in both(pair, "allreduce", np.array([1]))] == [[2], [2]]
        assert shoal.get([m.leave.remote("other") for m in pair], timeout=60) == [(False, -1)] * 2


def test_who_does_not_come_is_waited_for_in_bounded_time():
    member = Member.remote()
    with pytest.raises(TimeoutError, match="rank 1 of 2 could not join the collective group 'lonely' within 0.5 s: rank 0 has not called"):
        shoal.get(member.join.remote(2, 1, "lonely", 500), timeout=60)
    with pytest.raises(TimeoutError, match="2 ranks of the collective group 'lonely' did not meet"):
        shoal.get(member.join.remote(2, 0, "lonely", 500), timeout=60)


def test_a_call_that_a_rank_does_not_make_fails_in_bounded_time(cluster):
    members = [Member.remote(), Member.remote()]
    collective.create_collective_group(members, 2, [0, 1], "gloo", "short", gloo_timeout=1000)
    with pytest.raises(RuntimeError, match="allreduce in the collective group 'short' failed at rank 0 of 2"):
        shoal.get(members[0].call.remote("allreduce", np.ones(2), group_name="short"), timeout=60)


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda m: collective.init_collective_group(2, 2, "gloo"), ValueError, "rank=2: 0 to 1"),
    (lambda m: collective.init_collective_group(0, 0, "gloo"), ValueError, "world_size=0"),
    (lambda m: collective.init_collective_group(1, 0, "mpi"), ValueError, "backend 'mpi'"),
    (lambda m: collective.init_collective_group(1, 0, "gloo", ""), ValueError, "group_name"),
    (lambda m: collective.create_collective_group(m, 2, [0, 0], "gloo"), RuntimeError, "every rank from 0 to 1"),
    (lambda m: collective.allreduce(np.ones(1), "none"), RuntimeError, "not in the collective group 'none'"),
    (lambda m: shoal.get(m[0].call.remote("send", np.ones(1), 0)), RuntimeError, "itself"),
    (lambda m: shoal.get(m[0].call.remote("send", np.ones(1), 9)), ValueError, "ranks 0 to 1"),
    (lambda m: shoal.get(m[0].call.remote("allgather", [np.ones(1)], np.ones(1))), RuntimeError, "has 1 tensors"),
    (lambda m: shoal.get(m[0].call.remote("allreduce", "text")), RuntimeError, "numpy array or a torch tensor"),
    (lambda m: shoal.get(m[0].join.remote(2, 0)), RuntimeError, "already"),
])  # fmt: skip
def test_what_is_wrong_is_refused(pair, call, error, text):
    with pytest.raises(error, match=text):
        call(pair)


@pytest.mark.skipif(collective.nccl_available(), reason="there is a GPU")
def test_nccl_without_a_gpu_is_refused():
    with pytest.raises(RuntimeError, match="backend='gloo' works on CPUs"):
        collective.init_collective_group(1, 0)


def test_a_read_only_array_is_not_written_to(cluster):
    collective.init_collective_group(1, 0, "gloo", "alone")
    array = shoal.get(shoal.put(np.ones(100_000)))
    with pytest.raises(ValueError, match="read-only"):
        collective.allreduce(array, "alone")
    collective.destroy_collective_group("alone")
