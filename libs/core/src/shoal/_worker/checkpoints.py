"""A plain actor whose state outlives its process: kept before the answer of the call that makes it due, taken up again at a restart."""

from __future__ import annotations

import pickle
import sys
import time
from types import SimpleNamespace
from typing import Any

from .._core.engine import REPLY_OK, REPLY_RAISED, TASK_STREAMING, Payload, Task
from .._serialization import load, serialize
from ..exceptions import ActorCheckpointError
from . import errors
from .checkpoint_places import AtControlStore, AtPath, Fenced, Place
from .checkpoint_rules import Answer, AppliedCalls, Dumped, Schedule, answer_of, size_of
from .executor import Executor, _flush_and_end, _StopLoop

_FORMAT = 1
_clock = time.monotonic


def checkpoints_of(executor: Executor) -> Checkpoints:
    extra, lease = executor.extra, executor.lease
    at_store = AtControlStore(executor.engine, executor.actor_id, lease.incarnation)
    place: Place = AtPath(extra.checkpoint_path, executor.actor_id, at_store) if extra.checkpoint_path else at_store
    return Checkpoints(executor, place, Schedule(extra.checkpoint_every, extra.checkpoint_every_s), lease.incarnation)


class Checkpoints:
    """On the main thread. `answer` stands between the executor and the engine: what it answers is kept first, when that is due."""

    def __init__(self, executor: Executor, place: Place, schedule: Schedule, incarnation: int) -> None:
        self._executor = executor
        self._engine = executor.engine
        self._place = place
        self._schedule = schedule
        self._applied = AppliedCalls(executor.engine.arrived)
        self._incarnation = incarnation
        self._number = 0

    # -- a restart
    def restore(self) -> None:
        """After `__init__`. Raises ActorCheckpointError: an actor never goes on with less than what was kept."""
        if not self._incarnation:
            return
        try:
            kept = self._place.fetch()
            if kept is None:
                return
            form, state, applied = pickle.loads(kept)
            if form != _FORMAT:
                raise ValueError(f"the checkpoint has format {form}, and this release knows {_FORMAT}")
            self._executor.actor.__shoal_restore__(_load(*state))
        except Exception as error:
            raise self._error("could not be restored from its last checkpoint, so it does not go on", error) from error
        self._applied.load(applied, _clock())

    # -- calls
    def run(self) -> None:
        """In the place of the executor's loop: it wakes up for what is due, and keeps what is left at the end, for a next life elsewhere."""
        executor, engine, schedule = self._executor, self._engine, self._schedule
        while True:
            nudges = engine.nudges
            if executor.exiting:
                break
            try:
                executor._idle = True
                task = engine.next_task("", schedule.wait_s(_clock()), nudges)
                executor._idle = False
            except (_StopLoop, KeyboardInterrupt):
                continue
            if task is not None:
                if not task.attempt or not self._answer_again(task):
                    executor.execute(task)
            elif engine.closed:
                return
            elif schedule.due_idle(_clock()):
                self._keep_idle()
            del task
        if schedule.calls:
            self._keep_idle()
        executor.linger()

    def answer(self, task: Task, status: int, results: Any, duration_us: int = 0, items: int = 0) -> None:
        if status in (REPLY_OK, REPLY_RAISED):
            now = _clock()
            answer = answer_of(status, results, bool(task.flags & TASK_STREAMING))
            self._applied.add(task.task_id, task.caller, answer, size_of(answer), now)
            self._schedule.ran(now)
            if self._schedule.due_after_call(now):
                failure = self._keep()
                if failure is not None:
                    status, results = REPLY_RAISED, (errors.payload_of(failure, task.name, self._executor.actor, self._executor.actor_id),)
        self._engine.reply(task, status, results, duration_us, items)
        self._applied.answered(task.task_id, self._engine.answer_mark(task))

    def _answer_again(self, task: Task) -> bool:
        """True: it ran before, in this life or in one that was kept."""
        ran, answer = self._applied.find(task.task_id)
        if not ran:
            return False
        if self._engine.begin(task):
            self._engine.reply(task, *self._once_more(task, answer))
            self._applied.answered(task.task_id, self._engine.answer_mark(task))
        return True

    def _once_more(self, task: Task, answer: Answer | None) -> tuple[int, tuple[Payload, ...]]:
        if answer is not None:
            return answer[0], tuple(Payload(kind, inband, buffers) for kind, inband, buffers in answer[1])
        actor_id = self._executor.actor_id
        lost = ActorCheckpointError(
            f"{task.name} has run, and the actor's state holds what it did, but its answer was lost with the process (a stream, references, or too large "
            "to be kept beside the state). It is not run again: ask the actor for what you need of it.",
            actor_id.hex(),
        )
        return REPLY_RAISED, (errors.payload_of(lost, task.name, self._executor.actor, actor_id),)

    # -- keeping
    def _keep(self) -> ActorCheckpointError | None:
        try:
            self._place.keep(self._number + 1, self._dump())
        except Fenced as error:
            self._end_fenced(error)
        except Exception as error:
            self._schedule.failed(_clock())
            return self._error(
                f"ran {self._schedule.calls} call(s) since its last checkpoint, this one included, and their state could not be kept; "
                "they count while its process lives, and the next call tries again", error,
            )  # fmt: skip
        self._number += 1
        self._schedule.kept()
        return None

    def _keep_idle(self) -> None:
        failure = self._keep()
        if failure is not None:
            print(f"shoal: {failure}", file=sys.stderr, flush=True)

    def _dump(self) -> bytes:
        state = serialize(self._executor.actor.__shoal_save__(), "the state that __shoal_save__ returned")
        if state.refs:
            raise TypeError(f"the state that __shoal_save__ returned holds {len(state.refs)} ObjectRef(s), which end with this process: return the values")
        applied: Dumped = self._applied.dump(_clock())
        return pickle.dumps((_FORMAT, (state.kind, state.inband, [bytes(buffer) for buffer in state.buffers]), applied), 5)

    def _end_fenced(self, error: Fenced) -> None:
        """Its successor has what was kept before: nobody may be told of anything since."""
        if self._executor.exiting:
            return
        self._engine.set_last_words(f"fenced: {error}")
        print(f"shoal: this life of the actor ends: {error}", file=sys.stderr)
        _flush_and_end(1)

    def _error(self, what: str, error: Exception) -> ActorCheckpointError:
        actor_id = self._executor.actor_id.hex()
        made = ActorCheckpointError(f"Actor {self._executor.actor_class_name} ({actor_id}) {what}. {type(error).__name__}: {error}", actor_id)
        made.__cause__ = error
        return made


def _load(kind: int, inband: bytes, buffers: list[bytes]) -> Any:
    # Buffers that may be written: what was a NumPy array of the actor's own is one again.
    value: Any = SimpleNamespace(kind=kind, inband=inband, buffers=[bytearray(buffer) for buffer in buffers])
    return load(value)
