"""What an actor leaves here for its next life: the state of its last checkpoint. Gone with the actor."""

from __future__ import annotations

from collections.abc import Mapping

from ..v1 import gcs_pb2 as pb
from .actor_placement import Life
from .effects import DeleteRecord, Persist
from .turn import Refusal, Refused, Turn

TABLE = "actor_states"
MAX_STATE_BYTES = 32 << 20  # Limit: of one actor; it is in this process's memory
MAX_STATES_BYTES = 1 << 30  # Limit: of all


class KeptStates:
    def __init__(self, turn: Turn, lives: Mapping[bytes, Life]) -> None:
        self._turn = turn
        self._lives = lives
        self._states: dict[bytes, pb.ActorCheckpoint] = {}
        self.size_bytes = 0

    def get(self, actor_id: bytes) -> pb.ActorCheckpoint | None:
        return self._states.get(actor_id)

    def keep(self, state: pb.ActorCheckpoint) -> None:
        """Invariant: only the life on record writes, so one that was given up and still runs cannot undo what its successor kept."""
        actor_id, size = state.actor_id, len(state.state)
        check_life(self._lives.get(actor_id), actor_id, state.incarnation)
        known = self._states.get(actor_id)
        if known is not None and (known.incarnation, known.number) >= (state.incarnation, state.number):
            return  # the same request again, after an answer that was lost
        before = len(known.state) if known is not None else 0
        if size > MAX_STATE_BYTES or self.size_bytes - before + size > MAX_STATES_BYTES:
            raise Refused(
                Refusal.LIMIT,
                f"the state of actor {actor_id.hex()} has {size} bytes; the control store keeps at most {MAX_STATE_BYTES} of one actor, and {MAX_STATES_BYTES} "
                f"of all, of which {self.size_bytes} are taken: give checkpoint_path=, a directory that every node sees, or keep less",
            )
        self._states[actor_id] = state
        self.size_bytes += size - before
        self._turn.emit(Persist(TABLE, actor_id, state.SerializeToString()))

    def load(self, state: pb.ActorCheckpoint) -> None:
        if state.actor_id in self._lives:
            self._states[state.actor_id] = state
            self.size_bytes += len(state.state)

    def forget(self, actor_id: bytes) -> None:
        state = self._states.pop(actor_id, None)
        if state is not None:
            self.size_bytes -= len(state.state)
            self._turn.emit(DeleteRecord(TABLE, actor_id))


def check_life(life: Life | None, actor_id: bytes, incarnation: int) -> None:
    """Raises Refused when that life of the actor is not the one on record."""
    if life is None:
        raise Refused(Refusal.NOT_FOUND, f"no living actor {actor_id.hex()}")
    if life.record.incarnation != incarnation:
        raise Refused(Refusal.INVALID, f"life {incarnation} of actor {actor_id.hex()} was given up; life {life.record.incarnation} goes on")
