"""When an actor's state is kept, and which calls are in it. Decides; reads no clock and writes nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

RETRY_S = 1.0  # between two attempts while no call comes
# How long the answer of a call is remembered of which nobody can say whether it arrived: callers ask again within seconds of a restart.
FORGET_S = 600.0
MAX_CALLS = 10_000  # Limit: of calls that are remembered
MAX_ANSWER_BYTES = 4 << 20  # Limit: of their answers; beyond it only that they have run

# A call's status, and its results: kind, in-band bytes, buffers.
Answer = tuple[int, list[tuple[int, bytes, list[bytes]]]]
Mark = tuple[int, int]
Dumped = list[tuple[bytes, bytes, "Answer | None"]]


class Schedule:
    """`every` calls, or `every_s` seconds after the first call that is not kept; 0: not by that."""

    def __init__(self, every: int, every_s: float) -> None:
        self._every = every
        self._every_s = every_s
        self._since = 0.0
        self._not_before = 0.0
        self.calls = 0  # that ran since the last checkpoint

    def ran(self, now: float) -> None:
        if not self.calls:
            self._since = now
        self.calls += 1

    def due_after_call(self, now: float) -> bool:
        return bool(self._every and self.calls >= self._every) or self._late(now)

    def due_idle(self, now: float) -> bool:
        return self._late(now) and now >= self._not_before

    def wait_s(self, now: float) -> float:
        """How long an idle actor may sleep; -1: until the next call."""
        if not self.calls or not self._every_s:
            return -1.0
        return max(0.0, self._since + self._every_s - now, self._not_before - now)

    def kept(self) -> None:
        self.calls = 0

    def failed(self, now: float) -> None:
        self._not_before = now + RETRY_S

    def _late(self, now: float) -> bool:
        return bool(self.calls and self._every_s) and now - self._since >= self._every_s


class _Call:
    __slots__ = ("answer", "caller", "mark", "since", "size")

    def __init__(self, caller: bytes, answer: Answer | None, size: int, since: float) -> None:
        self.caller = caller
        self.answer = answer
        self.size = size
        self.since = since
        self.mark: Mark | None = None  # not answered yet, or by a former life


class AppliedCalls:
    """Calls that have run and whose answers may not have arrived: whoever asks again gets the answer, and nothing runs twice.

    Kept with the state, so that a call is in both or in neither.
    """

    def __init__(self, arrived: Callable[[bytes, int, int], bool]) -> None:
        self._arrived = arrived
        self._calls: OrderedDict[bytes, _Call] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, task_id: bytes, caller: bytes, answer: Answer | None, size: int, now: float) -> None:
        self._drop(task_id)
        self._calls[task_id] = _Call(caller, answer, size if answer is not None else 0, now)
        self._bytes += self._calls[task_id].size
        while len(self._calls) > MAX_CALLS:
            self._drop(next(iter(self._calls)))
        if self._bytes > MAX_ANSWER_BYTES:
            self._shorten()

    def answered(self, task_id: bytes, mark: Mark) -> None:
        call = self._calls.get(task_id)
        if call is not None:
            call.mark = mark

    def find(self, task_id: bytes) -> tuple[bool, Answer | None]:
        """Whether it has run and must not run again, and its answer, if that is still known."""
        call = self._calls.get(task_id)
        if call is None or self._has_arrived(call):  # who has the answer asks again only when the result itself was lost since
            return False, None
        return True, call.answer

    def dump(self, now: float) -> Dumped:
        """What the checkpoint must hold, after what has arrived was forgotten."""
        for task_id, call in list(self._calls.items()):
            if self._has_arrived(call) or now - call.since >= FORGET_S:
                self._drop(task_id)
        return [(task_id, call.caller, call.answer) for task_id, call in self._calls.items()]

    def load(self, dumped: Dumped, now: float) -> None:
        for task_id, caller, answer in dumped:
            self.add(task_id, caller, answer, size_of(answer), now)

    def _has_arrived(self, call: _Call) -> bool:
        return call.mark is not None and self._arrived(call.caller, *call.mark)

    def _drop(self, task_id: bytes) -> None:
        call = self._calls.pop(task_id, None)
        if call is not None:
            self._bytes -= call.size

    def _shorten(self) -> None:
        for call in self._calls.values():
            if self._bytes <= MAX_ANSWER_BYTES:
                return
            self._bytes -= call.size
            call.answer, call.size = None, 0


def answer_of(status: int, results: Any, streaming: bool) -> Answer | None:
    """The answer as it can be given once more; None: it cannot, since it holds references, which end with their process, or is a stream."""
    if streaming or any(payload.refs for payload in results) or sum(payload.nbytes for payload in results) > MAX_ANSWER_BYTES:
        return None
    return status, [(payload.kind, payload.inband, [bytes(buffer) for buffer in payload.buffers]) for payload in results]


def size_of(answer: Answer | None) -> int:
    return 0 if answer is None else sum(len(inband) + sum(map(len, buffers)) for _, inband, buffers in answer[1])
