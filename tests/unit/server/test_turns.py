"""Turns on the loop: who asks for much gets slices, and everybody else is served in between."""

from __future__ import annotations

from collections.abc import Callable

from penstock.server.turns import SLICE_S, Turns


class Work:
    """Needs so many slices, each of which takes ``SLICE_S``."""

    def __init__(self, loop: Loop, name: str, slices: int) -> None:
        self._loop = loop
        self._name = name
        self._slices = slices

    def turn(self) -> None:
        self._loop.now += SLICE_S
        self._loop.history.append(self._name)
        self._slices -= 1
        if self._slices:
            self._loop.turns.add(self)


class Loop:
    """Iterations of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.history: list[str] = []
        self._next: list[Callable[[], None]] = []
        self.turns = Turns(self._next.append, lambda: self.now)

    def iterate(self) -> None:
        calls, self._next[:] = list(self._next), []
        for call in calls:
            call()


def test_connections_take_turns_and_all_of_them_together_one_slice_per_iteration() -> None:
    loop = Loop()
    for name, slices in (("a", 3), ("b", 1), ("c", 2)):
        loop.turns.add(Work(loop, name, slices))
    for count in range(1, 7):
        loop.iterate()
        assert len(loop.history) == count
    assert loop.history == ["a", "b", "c", "a", "c", "a"]
    loop.iterate()
    assert len(loop.history) == 6
    assert len(loop.turns) == 0


def test_one_alone_gets_one_slice_per_iteration_too() -> None:
    loop = Loop()
    loop.turns.add(Work(loop, "a", 50))
    for _ in range(10):
        loop.iterate()
    assert loop.history == ["a"] * 10
