"""Payloads: what is packed comes back, what is cut short is refused, sizes are those of ARCHITECTURE.md."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_base import wire
from shoal_base.frames import HEADER_SIZE, BadFrame, Type, pack_header, unpack_header

FRAMES = [cls for cls in vars(wire).values() if isinstance(cls, type) and issubclass(cls, msgspec.Struct) and hasattr(cls, "pack")]
BY_TYPE = {
    "bool": st.booleans(),
    "str": st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    "tuple[tuple[int, int], ...]": st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=5).map(tuple),
    "tuple[tuple[bytes, bytes, int], ...]": st.lists(
        st.tuples(st.binary(min_size=20, max_size=20), st.binary(min_size=16, max_size=16), st.integers(-(2**31), 2**31 - 1)), max_size=5
    ).map(tuple),
    "tuple[tuple[bytes, int, int], ...]": st.lists(
        st.tuples(st.binary(min_size=20, max_size=20), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=5
    ).map(tuple),
    "tuple[tuple[bytes, int, int, str], ...]": st.lists(
        st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.just("host:1")), max_size=5
    ).map(tuple),
}
SIZES = {"object_id": 20, "job_id": 4}


def values(name: str, kind: str) -> st.SearchStrategy[Any]:
    if kind == "int":
        bits = 8 if name.startswith(("wire_", "py_", "kind", "priority")) else 16 if name == "code" else 32
        return st.integers(0, 2**bits - 1)
    if name == "owner":
        return st.sampled_from([0, 32]).flatmap(lambda n: st.binary(min_size=n, max_size=n))
    if kind == "bytes":
        size = SIZES.get(name, 16) if name.endswith("_id") else None
        return st.binary(min_size=size or 0, max_size=size or 60)
    return BY_TYPE[kind]


def example(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    annotations = {name: kind for base in reversed(cls.__mro__) for name, kind in vars(base).get("__annotations__", {}).items()}
    return st.builds(cls, **{name: values(name, annotations[name]) for name in cls.__struct_fields__})


@pytest.mark.parametrize("cls", FRAMES, ids=lambda cls: cls.__name__)
def test_what_is_packed_comes_back(cls: Any) -> None:
    @given(example(cls))
    def holds(frame: Any) -> None:
        assert cls.unpack(frame.pack()) == frame

    holds()


@pytest.mark.parametrize("cls", FRAMES, ids=lambda cls: cls.__name__)
def test_what_is_cut_short_is_refused_and_nothing_else_is_raised(cls: Any) -> None:
    @given(example(cls), st.data())
    def holds(frame: Any, data: st.DataObject) -> None:
        packed = frame.pack()
        cut = packed[: data.draw(st.integers(0, max(0, len(packed) - 1)))]
        with contextlib.suppress(BadFrame):
            cls.unpack(cut)

    holds()
    with pytest.raises(BadFrame):
        cls.unpack(b"")


@pytest.mark.parametrize("cls", FRAMES, ids=lambda cls: cls.__name__)
def test_random_bytes_never_raise_anything_but_bad_frame(cls: Any) -> None:
    @given(st.binary(max_size=200))
    def holds(data: bytes) -> None:
        with contextlib.suppress(BadFrame):
            cls.unpack(data)

    holds()


def test_each_frame_is_named_after_its_type() -> None:
    for cls in FRAMES:
        words = "".join(f"_{c}" if c.isupper() else c for c in cls.__name__).strip("_").upper()
        assert Type(cls.TYPE).name == words


def test_a_count_that_the_payload_cannot_hold_is_refused_before_anything_is_made() -> None:
    with pytest.raises(BadFrame, match="4294967295 records"):
        wire.Free.unpack(bytes(16) + b"\xff\xff\xff\xff")


def test_an_id_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        wire.LeaseReturn(1, b"short").pack()
    with pytest.raises(ValueError, match="object_id takes 20 bytes"):
        wire.Fetch(b"short", 1, 2).pack()


def test_fields_that_an_older_side_does_not_send_have_their_defaults() -> None:
    pull = wire.Pull(1, bytes(20), 2, bytes(16), 3, 4, "h:1", priority=2, others=((bytes(16), 5, 6, "h:2"),))
    assert wire.Pull.unpack(pull.pack()[: 8 + 20 + 8 + 16 + 8 + 2 + 3]) == wire.Pull(1, bytes(20), 2, bytes(16), 3, 4, "h:1")
    assert wire.Fetch.unpack(wire.Fetch(bytes(20), 1, 2, 3, 4).pack()[:28]) == wire.Fetch(bytes(20), 1, 2)


def test_sizes_are_those_of_the_architecture() -> None:
    assert HEADER_SIZE == 32
    assert len(wire.Hello(bytes(16), bytes(16), bytes(4), 1, 1, 1, 3, 11, 0).pack()) == 45
    assert len(wire.LeaseGrant(1, 2, bytes(16), bytes(16), "h:1").pack()) == 4 + 8 + 16 + 16 + 2 + 3
    assert len(wire.Fetched(0, 5).pack()) == 10


def test_a_header_comes_back() -> None:
    header = unpack_header(pack_header(5, Type.TASK, flags=3, epoch=7, credit=9, sequence=11, acknowledgement=13))
    assert (header.length, header.type, header.flags, header.epoch, header.credit, header.sequence, header.acknowledgement) == (5, 10, 3, 7, 9, 11, 13)


def test_the_head_of_a_task_is_read_without_the_rest() -> None:
    head = wire.TaskHead.unpack(bytes(range(16)) + b"\1\0" + b"\2\0" + b"\3\0\0\0" + b"\4" + bytes(7) + b"jobx" + b"f" * 16 + b"a" * 16 + b"the rest")
    assert (head.kind, head.num_returns, head.attempt, head.lease_id, head.job_id, head.actor_id) == (1, 2, 3, 4, b"jobx", b"a" * 16)
    with pytest.raises(BadFrame):
        wire.TaskHead.unpack(bytes(10))
