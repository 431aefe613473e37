"""The arguments of a detached actor: its creator ends before it, so they move to the control store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .checkpoint_places import ask_patiently

if TYPE_CHECKING:
    from .._core.engine import Task
    from .executor import Executor

MAX_KEPT_BYTES = 64 << 20  # Limit: the control store has them in its memory for as long as the actor lives


def keep_arguments(executor: Executor, task: Task) -> None:
    """After `__init__`, before anybody hears that the actor lives. What lay inside the creation is at the control store as it is."""
    creation = executor.engine.by_value(task)
    if not creation:
        return
    if len(creation) > MAX_KEPT_BYTES:
        print(
            f"shoal: the arguments of detached actor {executor.actor_class_name} have {len(creation)} bytes, and at most {MAX_KEPT_BYTES} are kept with it: "
            "it cannot restart after its creator's end. Give it a path to what is large",
            file=sys.stderr,
        )
        return
    from shoal_gcs.v1 import gcs_pb2

    arguments = gcs_pb2.ActorArguments(actor_id=executor.actor_id, incarnation=executor.lease.incarnation, creation_task=creation)
    ask_patiently(executor.engine, "gcs/KeepActorArguments", arguments, "this actor's creation")
