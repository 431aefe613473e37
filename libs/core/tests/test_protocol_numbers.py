"""What the core speaks in Cython and the services in Python are the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

from shoal_base import errors, frames

DECLARED = (Path(__file__).parents[1] / "src/shoal/_core/protocol.pxd").read_text()


def enum(name: str) -> dict[str, int]:
    (body,) = re.findall(rf"^cdef enum {name}:\n((?:    \w+ = \d+\n)+)", DECLARED, re.M)
    return {key: int(number) for key, number in re.findall(r"(\w+) = (\d+)", body)}


def test_every_frame_of_the_core_has_the_number_that_the_services_know():
    core = enum("Frame")
    assert len(core) > 30
    assert core == {name: frames.Type[name].value for name in core}


def test_frames_that_the_core_does_not_know_are_those_between_stores():
    assert {kind.name for kind in frames.Type} - set(enum("Frame")) == {"FETCH", "FETCH_MANY", "FETCHED"}


def test_every_code_of_the_core_is_the_one_of_the_errors():
    core = {name.removeprefix("CODE_"): number for name, number in enum("Code").items()}
    assert len(core) > 10
    assert core == {name: errors.Code[name].value for name in core}
