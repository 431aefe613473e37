"""What the processes of a job hold of its limits on one node, from the words that they share."""

from __future__ import annotations

import pytest
from shoal_raylet.allowances import ALLOWANCE_BYTES, Allowance, Kind, share_of
from shoal_raylet.memory import ControlPages

JOB, ANOTHER = b"\1\0\0\0", b"\2\0\0\0"
NUMBER = {JOB: 1, ANOTHER: 2}
TASKS, BYTES = Kind.UNFINISHED_TASKS, Kind.OBJECT_BYTES


class Process:
    """One of a job, as the core worker writes its words."""

    def __init__(self, words: memoryview, index: int, job: bytes = JOB) -> None:
        self.words = words[index * 8 : index * 8 + 8]
        self.words[0] = NUMBER[job]
        self.allowance = Allowance(words, index)

    def write(self, size: int) -> bool:
        """Sets bytes aside; False where it would have to ask."""
        _, _, held, writing, passed, _, allowed, leaving = self.words
        if held + writing + leaving + size + passed > allowed:
            return False
        self.words[3] += size
        return True

    def settle(self, size: int) -> None:
        self.words[3] -= size
        self.words[2] += size

    def pass_on(self, size: int) -> None:
        self.words[7] += size
        self.words[3] -= size

    def confirm(self, size: int) -> None:
        self.words[4] += size
        self.words[7] -= size


@pytest.fixture
def words() -> memoryview:
    return memoryview(bytearray(4 * ALLOWANCE_BYTES)).cast("B").cast("Q")


def share(processes: list[Process], kind: Kind = BYTES, job: bytes = JOB, **fields: object) -> tuple[int, int, tuple[int, int]]:
    given, held, _, most = share_of(job, kind, [(number, one.allowance) for number, one in enumerate(processes)], **{"take_back": False, **fields})  # type: ignore[arg-type]
    return given, held, most


def test_nothing_is_allowed_until_it_was_given_and_then_no_more_than_that(words: memoryview) -> None:
    one = Process(words, 0)
    assert not one.write(1)
    assert share([one], more_for=0, more=100) == (100, 0, (0, 0))
    assert one.write(60)
    assert not one.write(41)
    one.settle(60)
    assert share([one]) == (100, 60, (0, 60))


def test_what_is_not_used_is_taken_back_and_what_is_held_or_written_stays(words: memoryview) -> None:
    one, two = Process(words, 0), Process(words, 1)
    share([one, two], more_for=0, more=100)
    share([one, two], more_for=1, more=100)
    one.write(30)
    one.settle(30)
    one.write(20)
    assert share([one, two], take_back=True) == (50, 50, (0, 50))
    assert not one.write(1)
    assert not two.write(1)


def test_a_result_takes_its_permission_along_to_its_owner(words: memoryview) -> None:
    worker, owner = Process(words, 0), Process(words, 1)
    share([worker, owner], more_for=0, more=100)
    assert worker.write(80)
    worker.pass_on(80)
    assert not worker.write(21), "else results without end would pass through one permission"
    assert share([worker, owner]) == (100, 80, (0, 80)), "on its way it counts still"
    assert worker.allowance.moving(BYTES) == 80
    owner.words[2] += 80  # the answer has arrived
    worker.confirm(80)
    assert worker.allowance.moving(BYTES) == 0
    assert not worker.write(21)
    assert share([worker, owner]) == (100, 80, (1, 80))
    owner.words[2] -= 80
    assert share([worker, owner]) == (20, 0, (0, 0))


def test_more_is_given_on_top_of_what_a_process_holds_without_having_asked(words: memoryview) -> None:
    owner = Process(words, 0)
    owner.words[2] = 500  # results that others wrote
    assert not owner.write(10)
    assert share([owner], more_for=0, more=10) == (510, 500, (0, 500))
    assert owner.write(10)


def test_kinds_and_jobs_are_apart(words: memoryview) -> None:
    one, other = Process(words, 0), Process(words, 1, ANOTHER)
    one.words[1] = 7  # tasks
    share([one, other], TASKS, more_for=0, more=3)
    assert share([one, other], TASKS) == (10, 7, (0, 7))
    assert share([one, other], BYTES) == (0, 0, (0, 0))
    assert share([one, other], TASKS, ANOTHER) == (0, 0, (1, 0))
    assert share([one, other], TASKS, b"\3\0\0\0") == (0, 0, (-1, -1))


def test_between_two_writes_of_a_process_nothing_is_negative(words: memoryview) -> None:
    one = Process(words, 0)
    one.words[3] = 2**64 - 5  # taken back before it was added, as another thread of it saw it
    assert share([one])[:2] == (0, 0)


def test_a_record_that_is_lent_again_allows_nothing() -> None:
    pages = ControlPages()
    try:
        number = pages.take()
        assert number is not None
        words = pages.allowances[number * 8 : number * 8 + 8]
        words[0], words[2], words[6] = 1, 500, 900
        words.release()
        assert pages.allowance(number).is_of(JOB)
        pages.give_back(number)
        assert not pages.allowance(number).is_of(JOB)
        assert (pages.allowance(number).given(BYTES), pages.allowance(number).held(BYTES)) == (0, 0)
    finally:
        pages.close()
