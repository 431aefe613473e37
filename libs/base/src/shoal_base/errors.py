"""The codes that cross the wire, and what they mean."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """In REPLY, LEASE_REFUSED, WORKER_DIED, PULLED, BYE. Never renumber."""

    OK = 0
    # a worker's or an actor's end
    WORKER_CRASHED = 1  # a signal or an unexpected exit code
    WORKER_EXITED = 2  # it meant to
    OUT_OF_MEMORY = 3  # the node was short of memory; among others it might have room later
    NODE_DIED = 4
    KILLED_BY_USER = 5
    OUT_OF_SCOPE = 6
    OWNER_DIED = 7
    INIT_RAISED = 8
    JOB_FINISHED = 9
    MEMORY_LIMIT = 10  # it used more than its own limit, or by itself more than its node has
    # scheduling
    UNSCHEDULABLE = 20
    ENVIRONMENT_FAILED = 21
    PLACEMENT_GROUP_REMOVED = 22
    NODE_AFFINITY_FAILED = 23
    LIMIT_REACHED = 24
    # tasks
    CANCELLED = 30
    TASK_RAISED = 31
    PENDING_CALLS_LIMIT = 32
    ACTOR_DIED = 33
    ACTOR_UNAVAILABLE = 34
    # objects
    OBJECT_LOST = 40
    ARENA_FULL = 41
    OUT_OF_DISK = 42
    OBJECT_FREED = 43
    FETCH_TIMED_OUT = 44
    SOURCE_BUSY = 45  # between stores: it serves as many as it can; the text says who has it, too, if anybody has
    # lost, and not to be made again
    OBJECT_WAS_PUT = 50
    RETRIES_EXHAUSTED = 51
    RETRIES_DISABLED = 52
    LINEAGE_EVICTED = 53
    LINEAGE_BROKEN = 54  # its task cannot run again: an argument or its actor is gone, or it did not end well
    # peers
    WIRE_MISMATCH = 60
    PYTHON_MISMATCH = 61
    UNAUTHENTICATED = 62
    UNREACHABLE = 63
    FENCED = 64
    SHUTTING_DOWN = 65
    BAD_FRAME = 66
