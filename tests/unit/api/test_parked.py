"""Fetches that wait for data keep a bounded amount of memory, and give way to each other."""

from __future__ import annotations

from penstock.account import Ledger
from penstock.api.parked import Parked, ParkedFetch


class Room:
    """``Parked`` with room for so many bytes, and who was woken."""

    def __init__(self, limit: int) -> None:
        self.memory = Ledger("parked", limit)
        self.parked = Parked(self.memory)
        self.woken: list[str] = []

    def enter(self, address: str, size: int, name: str = "") -> ParkedFetch:
        return self.parked.enter(address, size, lambda: self.woken.append(name or address))


def test_who_waits_longest_of_the_address_that_keeps_most_gives_way() -> None:
    room = Room(100)
    first = [room.enter("crowd", 20, f"crowd {number}") for number in range(4)]
    room.enter("few", 20)
    assert room.woken == []
    room.enter("few", 20)
    room.enter("crowd", 20)
    assert room.woken == ["crowd 0", "crowd 1"]
    assert [fetch.gave_way for fetch in first] == [True, True, False, False]
    assert len(room.parked) == 5
    assert room.memory.used_bytes == 140, "who gave way counts until it has left"
    for fetch in first[:2]:
        room.parked.leave(fetch)
    assert room.memory.used_bytes == 100


def test_while_those_that_gave_way_keep_half_as_much_whoever_comes_gives_way_at_once() -> None:
    """A crowd comes faster than fetches have turns to end: in 90 s they kept four times the broker's memory."""
    room = Room(100)
    fetches = [room.enter("crowd", 20) for _ in range(20)]
    leaving = [fetch for fetch in fetches if fetch.gave_way and fetch.counts]
    assert len(leaving) == 3
    assert room.memory.used_bytes == 160
    assert [fetch.gave_way for fetch in fetches[8:]] == [True] * 12
    assert not any(fetch.counts for fetch in fetches[8:])
    crowded = [room.parked.is_crowded]
    room.parked.leave(leaving[0])
    assert [*crowded, room.parked.is_crowded] == [True, False]
    assert not room.enter("crowd", 20).gave_way


def test_what_ends_its_wait_leaves_its_room_to_others_once() -> None:
    room = Room(100)
    fetch = room.enter("a", 100)
    room.parked.leave(fetch)
    room.parked.leave(fetch)
    assert room.memory.used_bytes == 0
    room.enter("b", 100)
    assert room.woken == []


def test_one_that_is_larger_than_all_there_is_gives_way_itself_and_drives_nobody_away() -> None:
    room = Room(100)
    room.enter("a", 100)
    assert room.enter("b", 101).gave_way
    assert room.woken == []
    assert len(room.parked) == 1


def test_the_newest_fetch_may_be_the_only_one_that_its_address_has_to_give() -> None:
    room = Room(100)
    room.enter("a", 40)
    large = room.enter("b", 90)
    assert large.gave_way
    assert room.woken == ["b"]
    room.parked.leave(large)
    assert room.memory.used_bytes == 40
