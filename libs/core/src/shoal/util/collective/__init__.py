"""Collective calls between actors or tasks, on torch.distributed: gloo between CPUs, nccl between GPUs.

Every member joins under its rank, then all make the same calls in the same order::

    @shoal.remote
    class Member:
        def __init__(self, world_size, rank):
            collective.init_collective_group(world_size, rank, backend="gloo", group_name="sums")
        def total(self, value):
            array = np.full(4, value)
            collective.allreduce(array, "sums")
            return array

Tensors are numpy arrays (gloo) or torch tensors, and are changed in place. A process may be in several groups. Groups belong to their job. Nothing waits
without end: joining and each call fail after the group's `gloo_timeout` milliseconds, with an error that names group, rank and call. What is no tensor, and
lists of another length than the group's size, are a RuntimeError. The traffic between
ranks is torch's own: neither encrypted nor authenticated, so groups belong on a network that you trust.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .types import Backend, ReduceOp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .group import CollectiveGroup

__all__ = [
    "Backend", "ReduceOp", "allgather", "allreduce", "barrier", "broadcast", "create_collective_group", "destroy_collective_group",
    "get_collective_group_size", "get_group_handle", "get_rank", "gloo_available", "init_collective_group", "is_backend_available", "is_group_initialized",
    "nccl_available", "recv", "reduce", "reducescatter", "send",
]  # fmt: skip

DEFAULT_TIMEOUT_MS = 30_000
_groups: dict[str, CollectiveGroup] = {}
_joining: set[str] = set()
_lock = threading.Lock()


# -- groups ------------------------------------------------------------------------------------------------------------


def nccl_available() -> bool:
    """Whether torch has NCCL and sees a GPU."""
    import torch

    return bool(torch.cuda.is_available() and torch.distributed.is_nccl_available())


def gloo_available() -> bool:
    from torch import distributed

    return bool(distributed.is_available() and distributed.is_gloo_available())


def is_backend_available(backend: str) -> bool:
    return {Backend.NCCL: nccl_available, Backend.GLOO: gloo_available}[Backend(backend)]()


def _check(world_size: int, rank: int, backend: str, group_name: str, gloo_timeout: int) -> Backend:
    if not isinstance(group_name, str) or not group_name:
        raise ValueError(f"group_name must be a text of at least one character, got {group_name!r}")
    if world_size <= 0:
        raise ValueError(f"world_size={world_size}: at least 1 is wanted")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank}: 0 to {world_size - 1} is wanted for world_size={world_size}")
    if gloo_timeout <= 0:
        raise ValueError(f"gloo_timeout={gloo_timeout}: milliseconds, more than 0")
    return Backend(backend)


def init_collective_group(
    world_size: int, rank: int, backend: str = Backend.NCCL, group_name: str = "default", gloo_timeout: int = DEFAULT_TIMEOUT_MS
) -> None:
    """Joins a group; returns once all ranks have.

    Args:
        backend: "nccl" or "gloo".
        gloo_timeout: milliseconds until joining, and later each call, fails; of either backend.

    Raises:
        RuntimeError: this process is in a group of that name already; the backend is not there. ValueError: a wrong rank, size, name or backend.
        TimeoutError: somebody did not come.
    """
    checked = _check(world_size, rank, backend, group_name, gloo_timeout)
    from ... import _runtime

    _runtime.ensure("init_collective_group()")
    if not is_backend_available(checked):
        hint = "there is no GPU, or torch was built without NCCL; backend='gloo' works on CPUs" if checked == Backend.NCCL else "torch was built without it"
        raise RuntimeError(f"backend {str(checked)!r} is not available in this process: {hint}")
    with _lock:
        if group_name in _groups or group_name in _joining:
            raise RuntimeError(f"this process is in the collective group {group_name!r} already: destroy_collective_group({group_name!r}) first")
        _joining.add(group_name)
    from .group import CollectiveGroup

    try:
        made = CollectiveGroup(group_name, rank, world_size, checked, gloo_timeout / 1000)
        with _lock:
            _groups[group_name] = made
        _runtime.state.at_disconnect.append(lambda: destroy_collective_group(group_name))
    finally:
        with _lock:
            _joining.discard(group_name)


def create_collective_group(
    actors: list[Any], world_size: int, ranks: list[int], backend: str = Backend.NCCL, group_name: str = "default", gloo_timeout: int = DEFAULT_TIMEOUT_MS
) -> None:
    """Makes the actors members of a group, from outside; returns once they all are. Each must be free to take a call.

    Raises:
        RuntimeError: ranks that are not 0 to world_size - 1, one for each actor. Else what `init_collective_group` raises.
    """
    if len(actors) != len(ranks) or sorted(ranks) != list(range(world_size)) or not ranks:
        raise RuntimeError(f"{len(actors)} actors with ranks={ranks} for world_size={world_size}: every rank from 0 to {world_size - 1} is wanted once")
    for rank in ranks:
        _check(world_size, rank, backend, group_name, gloo_timeout)
    from ..._api import get

    joined = [
        actor.__shoal_call__.remote(_join_from_outside, world_size, rank, str(backend), group_name, gloo_timeout)
        for actor, rank in zip(actors, ranks, strict=True)
    ]
    get(joined, timeout=2 * gloo_timeout / 1000 + 30)


def _join_from_outside(_actor: Any, world_size: int, rank: int, backend: str, group_name: str, gloo_timeout: int) -> None:
    init_collective_group(world_size, rank, backend, group_name, gloo_timeout)


def destroy_collective_group(group_name: str = "default") -> None:
    """Leaves a group; nothing happens for one that this process is not in."""
    with _lock:
        group = _groups.pop(group_name, None)
    if group is not None:
        group.destroy()


def is_group_initialized(group_name: str) -> bool:
    """Whether this process is in the group."""
    return group_name in _groups


def get_group_handle(group_name: str = "default") -> CollectiveGroup:
    """Raises RuntimeError when this process is not in the group."""
    group = _groups.get(group_name)
    if group is None:
        known = ", ".join(sorted(_groups)) or "none"
        raise RuntimeError(f"this process is not in the collective group {group_name!r} (its groups: {known}): call init_collective_group() first")
    return group


def get_rank(group_name: str = "default") -> int:
    """-1 when this process is not in the group."""
    group = _groups.get(group_name)
    return -1 if group is None else group.rank


def get_collective_group_size(group_name: str = "default") -> int:
    """-1 when this process is not in the group."""
    group = _groups.get(group_name)
    return -1 if group is None else group.world_size


# -- calls -------------------------------------------------------------------------------------------------------------


@contextmanager
def _in_place(group: CollectiveGroup, tensor: Any, written: bool = True) -> Iterator[Any]:
    """A contiguous torch tensor with the memory of what the user gave; one of its own, copied back, where that has gaps."""
    given = _as_tensor(group, tensor, written)
    if given.is_contiguous():
        yield given
        return
    packed = given.contiguous()
    yield packed
    if written:
        given.copy_(packed)


def _as_tensor(group: CollectiveGroup, tensor: Any, written: bool) -> Any:
    import torch

    if isinstance(tensor, torch.Tensor):
        given = tensor.detach()
    elif type(tensor).__module__.partition(".")[0] == "numpy" and hasattr(tensor, "dtype"):
        if written and not tensor.flags.writeable:
            raise ValueError("the array is read-only, and the result would be written into it: copy it first (arrays from get() lie in shared memory)")
        given = torch.from_numpy(tensor if tensor.flags.writeable else tensor.copy())
    elif hasattr(tensor, "__cuda_array_interface__"):
        given = torch.as_tensor(tensor, device="cuda")
    else:
        raise RuntimeError(f"a numpy array or a torch tensor is wanted, got {type(tensor)}")
    wanted = "cuda" if group.backend == Backend.NCCL else "cpu"
    if given.device.type != wanted:
        raise ValueError(f"the collective group {group.group_name!r} uses {group.backend}: tensors on {wanted} are wanted, got one on {given.device.type}")
    return given


def _other(group: CollectiveGroup, rank: int, what: str) -> int:
    if not 0 <= rank < group.world_size:
        raise ValueError(f"{what}={rank}: the collective group {group.group_name!r} has the ranks 0 to {group.world_size - 1}")
    return rank


def _peer(group: CollectiveGroup, rank: int, what: str) -> int:
    if rank == group.rank:
        raise RuntimeError(f"{what}={rank} is this process itself")
    return _other(group, rank, what)


def _list(group: CollectiveGroup, tensors: Any) -> list[Any]:
    if not isinstance(tensors, list):
        raise RuntimeError(f"tensor_list must be a list with one tensor for each rank, got {type(tensors)}")
    if len(tensors) != group.world_size:
        raise RuntimeError(f"tensor_list has {len(tensors)} tensors; the collective group {group.group_name!r} has {group.world_size} ranks")
    return tensors


def allreduce(tensor: Any, group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """Every rank's tensor becomes the sum (or product, minimum, maximum) of all."""
    group = get_group_handle(group_name)
    with _in_place(group, tensor) as mine:
        group.allreduce(mine, op)


def reduce(tensor: Any, dst_rank: int = 0, group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """Rank `dst_rank`'s tensor becomes the sum of all; the others' stay as they are."""
    group = get_group_handle(group_name)
    _other(group, dst_rank, "dst_rank")
    with _in_place(group, tensor, group.rank == dst_rank) as mine:
        group.reduce(mine, dst_rank, op)


def broadcast(tensor: Any, src_rank: int = 0, group_name: str = "default") -> None:
    """Every rank's tensor becomes that of rank `src_rank`."""
    group = get_group_handle(group_name)
    _other(group, src_rank, "src_rank")
    with _in_place(group, tensor, group.rank != src_rank) as mine:
        group.broadcast(mine, src_rank)


def allgather(tensor_list: list[Any], tensor: Any, group_name: str = "default") -> None:
    """`tensor_list[i]` becomes rank i's `tensor`."""
    group = get_group_handle(group_name)
    outputs = [_as_tensor(group, item, True) for item in _list(group, tensor_list)]
    with _in_place(group, tensor, False) as mine:
        packed = [output.contiguous() for output in outputs]
        group.allgather(packed, mine)
    for output, result in zip(outputs, packed, strict=True):
        if output is not result:
            output.copy_(result)


def reducescatter(tensor: Any, tensor_list: list[Any], group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """Rank i's `tensor` becomes the sum of all ranks' `tensor_list[i]`."""
    group = get_group_handle(group_name)
    inputs = [_as_tensor(group, item, False).contiguous() for item in _list(group, tensor_list)]
    with _in_place(group, tensor) as mine:
        group.reducescatter(mine, inputs, op)


def send(tensor: Any, dst_rank: int, group_name: str = "default") -> None:
    """To one rank, which must `recv` it."""
    group = get_group_handle(group_name)
    _peer(group, dst_rank, "dst_rank")
    with _in_place(group, tensor, False) as mine:
        group.send(mine, dst_rank)


def recv(tensor: Any, src_rank: int, group_name: str = "default") -> None:
    """From one rank, into `tensor`, which has the shape and type of what was sent."""
    group = get_group_handle(group_name)
    _peer(group, src_rank, "src_rank")
    with _in_place(group, tensor) as mine:
        group.recv(mine, src_rank)


def barrier(group_name: str = "default") -> None:
    """Returns once every rank is there."""
    get_group_handle(group_name).barrier()
