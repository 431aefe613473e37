"""A task's id names the process that has submitted it."""

import os

from shoal_raylet.waits import is_of


def test_a_task_is_of_the_process_whose_id_its_own_follows_from_and_of_no_other():
    one, other = os.urandom(16), os.urandom(16)
    half = (int.from_bytes(one[:8], "little") ^ int.from_bytes(one[8:], "little")).to_bytes(8, "little")
    assert is_of(half + (7).to_bytes(8, "little"), one)
    assert not is_of(half + (7).to_bytes(8, "little"), other)
    assert not is_of(half, one), "half an id is none"
