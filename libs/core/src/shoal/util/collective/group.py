"""A group of processes that compute together, on a process group of torch.distributed of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ... import _runtime
from .rendezvous import leave, meet, torch_distributed
from .types import Backend, ReduceOp


class CollectiveGroup:
    """This process's part in a group. Not for several threads at once: ranks must make the same calls in the same order."""

    def __init__(self, group_name: str, rank: int, world_size: int, backend: Backend, timeout_s: float) -> None:
        self.group_name, self.rank, self.world_size, self.backend, self.timeout_s = group_name, rank, world_size, backend, timeout_s
        self._meeting = meet(group_name, rank, world_size, timeout_s)
        try:
            self._made = self._process_group()
        except BaseException as error:
            leave(self._meeting, rank)
            if isinstance(error, RuntimeError):
                first = str(error).splitlines()[0]
                raise TimeoutError(f"the {world_size} ranks of the collective group {group_name!r} did not meet within {timeout_s:g} s: {first}") from error
            raise

    def _process_group(self) -> Any:
        distributed = torch_distributed()
        store = distributed.PrefixStore("group", self._meeting.store)
        timeout = timedelta(seconds=self.timeout_s)
        if self.backend == Backend.NCCL:
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = timeout
            return distributed.ProcessGroupNCCL(store, self.rank, self.world_size, options)
        options = distributed.ProcessGroupGloo._Options()
        # The address that the cluster knows this node by: a host's name may lead to another network, or nowhere.
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname=_runtime.state.node_ip or "127.0.0.1")]
        options._timeout = timeout
        return distributed.ProcessGroupGloo(store, self.rank, self.world_size, options)

    def destroy(self) -> None:
        leave(self._meeting, self.rank)
        self._made = self._meeting.store = None

    # -- operations, in place on torch tensors
    def _wait(self, what: str, start: Callable[[], Any]) -> None:
        try:
            work = start()
            if work is not None:
                work.wait()
            if self.backend == Backend.NCCL:
                import torch

                torch.cuda.current_stream().synchronize()
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise RuntimeError(
                f"{what} in the collective group {self.group_name!r} failed at rank {self.rank} of {self.world_size} (timeout {self.timeout_s:g} s): "
                f"{lines[0] if lines else type(error).__name__}. Have all ranks made the same call, with tensors of one shape and type, and do they live?"
            ) from error

    def allreduce(self, tensor: Any, op: ReduceOp) -> None:
        from torch import distributed

        options = distributed.AllreduceOptions()
        options.reduceOp = _op(op)
        self._wait("allreduce", lambda: self._made.allreduce([tensor], options))

    def reduce(self, tensor: Any, dst_rank: int, op: ReduceOp) -> None:
        from torch import distributed

        options = distributed.ReduceOptions()
        options.reduceOp, options.rootRank, options.rootTensor = _op(op), dst_rank, 0
        # Intermediate sums land in the senders' tensors: those must stay as they are.
        mine = tensor if self.rank == dst_rank else tensor.clone()
        self._wait("reduce", lambda: self._made.reduce([mine], options))

    def broadcast(self, tensor: Any, src_rank: int) -> None:
        from torch import distributed

        options = distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = src_rank, 0
        self._wait("broadcast", lambda: self._made.broadcast([tensor], options))

    def allgather(self, outputs: list[Any], tensor: Any) -> None:
        self._wait("allgather", lambda: self._made.allgather([outputs], [tensor]))

    def reducescatter(self, output: Any, inputs: list[Any], op: ReduceOp) -> None:
        if self.backend == Backend.NCCL:
            from torch import distributed

            options = distributed.ReduceScatterOptions()
            options.reduceOp = _op(op)
            self._wait("reducescatter", lambda: self._made.reduce_scatter([output], [inputs], options))
            return
        import torch

        # Gloo reduces all parts everywhere; its own reduce-scatter is not in every release of torch.
        whole = torch.stack([part.contiguous() for part in inputs])
        self.allreduce(whole, op)
        output.copy_(whole[self.rank])

    def send(self, tensor: Any, dst_rank: int) -> None:
        self._wait(f"send to rank {dst_rank}", lambda: self._made.send([tensor], dst_rank, 0))

    def recv(self, tensor: Any, src_rank: int) -> None:
        self._wait(f"recv from rank {src_rank}", lambda: self._made.recv([tensor], src_rank, 0))

    def barrier(self) -> None:
        if self.backend == Backend.NCCL:
            import torch

            self.allreduce(torch.zeros(1, device="cuda"), ReduceOp.SUM)
            return
        self._wait("barrier", lambda: self._made.barrier())


def _op(op: ReduceOp) -> Any:
    from torch import distributed

    return getattr(distributed.ReduceOp, op.name)
