"""Listeners of a partition: told once, a crowd some in each iteration of the loop."""

from __future__ import annotations

import asyncio

import pytest

from penstock.log.listeners import TOLD_AT_ONCE, Listener, Listeners

pytestmark = pytest.mark.anyio


def naming(told: list[int], number: int) -> Listener:
    return lambda: told.append(number)


async def iterations(count: int = 1) -> None:
    """So many of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_few_are_told_at_once_and_not_again_before_they_ask_again() -> None:
    listeners, told = Listeners(), list[int]()
    few = [naming(told, number) for number in range(TOLD_AT_ONCE)]
    for one in few:
        listeners.add(one)
    listeners.tell()
    assert told == list(range(TOLD_AT_ONCE))
    listeners.tell()
    await iterations(10)
    assert len(told) == TOLD_AT_ONCE
    listeners.add(few[3])
    listeners.tell()
    assert told[TOLD_AT_ONCE:] == [3]
    assert len(listeners) == TOLD_AT_ONCE, "who was told is still there"
    for one in few:
        listeners.remove(one)
    assert len(listeners) == 0


async def test_of_a_crowd_some_are_told_in_each_iteration_whatever_else_is_told_meanwhile() -> None:
    listeners, told = Listeners(), list[int]()
    crowd = [naming(told, number) for number in range(4 * TOLD_AT_ONCE)]
    for one in crowd[:-1]:
        listeners.add(one)
    listeners.tell()
    assert len(told) == TOLD_AT_ONCE
    listeners.add(crowd[-1])
    for portions in (2, 3, 4):
        listeners.tell()  # neither tells anybody twice nor more at a time
        assert len(told) == (portions - 1) * TOLD_AT_ONCE
        await iterations()
        assert len(told) == portions * TOLD_AT_ONCE
    await iterations(10)
    assert told == list(range(4 * TOLD_AT_ONCE))


async def test_who_is_removed_is_not_told_also_by_one_that_was_told_before_it() -> None:
    listeners, told = Listeners(), list[int]()
    crowd = [naming(told, number) for number in range(2 * TOLD_AT_ONCE)]

    def removing() -> None:
        listeners.remove(crowd[0])
        listeners.remove(crowd[-1])

    listeners.add(removing)
    for one in crowd:
        listeners.add(one)
    listeners.tell()
    while len(told) < len(crowd) - 2:
        await iterations()
    await iterations(10)
    assert told == list(range(1, len(crowd) - 1))
    listeners.remove(crowd[0])  # unknown ones are ignored


async def test_who_asks_again_while_it_is_to_be_told_is_told_by_the_next() -> None:
    listeners, told = Listeners(), list[int]()
    crowd = [naming(told, number) for number in range(TOLD_AT_ONCE + 1)]
    for one in crowd:
        listeners.add(one)
    listeners.tell()
    listeners.add(crowd[-1])
    await iterations(10)
    assert told == list(range(TOLD_AT_ONCE))
    listeners.tell()
    assert told[TOLD_AT_ONCE:] == [TOLD_AT_ONCE]


async def test_who_is_removed_by_one_of_a_few_is_not_told() -> None:
    listeners, told = Listeners(), list[int]()
    neighbour = naming(told, 1)
    listeners.add(lambda: listeners.remove(neighbour))
    listeners.add(neighbour)
    listeners.tell()
    assert told == [], "removed before it was told"
