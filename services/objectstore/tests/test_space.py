"""The queue for space, without an arena: one event in, all effects out."""

from __future__ import annotations

from shoal_objectstore.space import (
    ClientLeft,
    ExtentReserved,
    ExtentWanted,
    Kind,
    MakeRoom,
    Refuse,
    Reserve,
    RoomLacked,
    RoomMade,
    Source,
    Space,
    Ticked,
    plan,
)

MIB = 1 << 20


def wanted(token: str, size: int = MIB, client: int = 1, at: float = 0.0) -> ExtentWanted:
    return ExtentWanted(token, client, size, 0, at)


def space() -> Space:
    return Space(64 * MIB, 16 * MIB, 30.0)


def test_a_request_is_tried_at_once_and_forgotten_when_it_has_its_extent() -> None:
    s = space()
    assert s.handle(wanted("a")) == [Reserve("a", 1, 4 * MIB, Kind.SHARED)]
    assert s.handle(ExtentReserved("a")) == []
    assert s.waiting == 0


def test_what_could_never_fit_is_refused_at_once() -> None:
    assert space().handle(wanted("a", 65 * MIB)) == [Refuse("a", 1, 65 * MIB, 0.0, True)]


def test_sources_of_room_are_used_from_the_cheapest_on_and_each_once_a_round() -> None:
    s = space()
    s.handle(wanted("a", 20 * MIB))
    for source in Source:
        assert s.handle(RoomLacked("a", 5 * MIB)) == [MakeRoom(source, 5 * MIB)]
        assert s.handle(RoomMade(source)) == [Reserve("a", 1, 20 * MIB, Kind.WHOLE)]
    assert s.handle(RoomLacked("a", 5 * MIB)) == []
    assert s.handle(Ticked(1.0)) == [Reserve("a", 1, 20 * MIB, Kind.WHOLE)]
    assert s.handle(RoomLacked("a", 5 * MIB)) == [MakeRoom(Source.EMPTY_EXTENTS, 5 * MIB)]


def test_in_need_a_shared_extent_is_no_larger_than_the_object() -> None:
    s = space()
    assert s.handle(wanted("a", 2 * MIB)) == [Reserve("a", 1, 8 * MIB, Kind.SHARED)]
    s.handle(RoomLacked("a", MIB))
    assert s.handle(RoomMade(Source.EMPTY_EXTENTS)) == [Reserve("a", 1, 2 * MIB, Kind.SHARED)]


def test_the_next_source_is_not_opened_before_everybody_was_tried_on_the_last() -> None:
    s = space()
    s.handle(wanted("a"))
    s.handle(wanted("b"))
    assert s.handle(RoomLacked("a", MIB)) == [], "b is still being tried"
    assert s.handle(RoomLacked("b", MIB)) == [MakeRoom(Source.EMPTY_EXTENTS, 2 * MIB)]
    assert len(s.handle(RoomMade(Source.EMPTY_EXTENTS))) == 2
    assert s.handle(ExtentReserved("a")) == []
    assert s.handle(RoomLacked("b", MIB)) == [MakeRoom(Source.HALF_EMPTY_EXTENTS, MIB)]


def test_whoever_waited_too_long_is_refused_and_the_others_go_on() -> None:
    s = space()
    s.handle(wanted("a", at=0.0))
    s.handle(wanted("b", at=10.0))
    for token in "ab":
        s.handle(RoomLacked(token, MIB))
    refused, *rest = s.handle(Ticked(30.0))
    assert refused == Refuse("a", 1, MIB, 30.0, False)
    assert rest == [], "room is being made"
    assert [e.token for e in s.handle(RoomMade(Source.EMPTY_EXTENTS)) if isinstance(e, Reserve)] == ["b"]


def test_a_client_that_left_waits_no_more() -> None:
    s = space()
    s.handle(wanted("a", client=3))
    s.handle(RoomLacked("a", MIB))
    s.handle(ClientLeft(3))
    assert s.waiting == 0
    assert s.handle(RoomMade(Source.EMPTY_EXTENTS)) == []


def test_extents_double_with_what_a_client_holds_up_to_the_usual_size() -> None:
    held, sizes = 0, []
    for _ in range(6):
        kind, size = plan(100_000, held, 16 * MIB)
        assert kind is Kind.SHARED
        sizes.append(size // MIB)
        held += size
    assert sizes == [2, 2, 4, 8, 16, 16]


def test_whoever_comes_after_a_round_gets_a_round_of_its_own_at_once() -> None:
    s = space()
    s.handle(wanted("a", 20 * MIB))
    for source in Source:
        s.handle(RoomLacked("a", 5 * MIB))
        s.handle(RoomMade(source))
    assert s.handle(ExtentReserved("a")) == []
    assert s.handle(wanted("b", 20 * MIB)) == [Reserve("b", 1, 20 * MIB, Kind.WHOLE)]
    assert s.handle(RoomLacked("b", MIB)) == [MakeRoom(Source.EMPTY_EXTENTS, MIB)]


def test_when_the_disk_takes_nothing_all_who_wait_are_refused_at_once_and_told_why() -> None:
    s = space()
    s.handle(wanted("a", 20 * MIB))
    for source in Source:
        s.handle(RoomLacked("a", 5 * MIB))
        s.handle(RoomMade(source, "no space left" if source is Source.DISK else ""))
    [refused] = s.handle(RoomLacked("a", 5 * MIB))
    assert isinstance(refused, Refuse)
    assert refused.failed == "no space left"
    assert s.waiting == 0
    s.handle(wanted("b", 20 * MIB))
    assert s.handle(RoomLacked("b", MIB)) == [MakeRoom(Source.EMPTY_EXTENTS, MIB)]


def test_what_the_disk_said_to_one_who_found_room_after_all_is_not_told_to_another_one_later() -> None:
    s = space()
    s.handle(wanted("a", 20 * MIB))
    for source in Source:
        s.handle(RoomLacked("a", MIB))
        s.handle(RoomMade(source, "no space left" if source is Source.DISK else ""))
    assert s.handle(ExtentReserved("a")) == [], "somebody else had given room back"
    s.handle(wanted("b", 20 * MIB, at=100.0))
    assert s.handle(RoomLacked("b", MIB)) == [MakeRoom(Source.EMPTY_EXTENTS, MIB)]
