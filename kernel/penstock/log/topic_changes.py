"""Which topics are being created, grown, configured or deleted: one change of a name at a time."""

from __future__ import annotations

__all__ = ("TopicChanges",)

from collections.abc import Collection, Iterable
from typing import Final

import anyio

from penstock.work.pieces import in_portions

#: Names that are looked at in one go: a client may ask for a hundred thousand.
_NAMES: Final = 500


class TopicChanges:
    """Names that a change holds, and who waits for them.

    A change takes a few metadata entries, each as long as the store takes; until its end, what metadata say and what
    this broker serves differ. Others who want to change the name, or to know what becomes of it, wait for that.
    """

    def __init__(self) -> None:
        self._held: dict[str, anyio.Event] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held

    async def wait(self, names: Collection[str]) -> None:
        """Return when each of ``names`` was free at some moment since the call. Others get their turns meanwhile."""
        async for name in in_portions(names, _NAMES):
            while (held := self._held.get(name)) is not None:
                await held.wait()

    async def hold(self, names: Collection[str]) -> None:
        """Take all of ``names`` as soon as all are free. A cancelled call takes none."""
        await self.wait(names)
        while not self._held.keys().isdisjoint(names):
            await self.wait(names)
        done = anyio.Event()  # nothing is awaited from here on, so nobody comes between
        for name in names:
            self._held[name] = done

    def release(self, names: Iterable[str]) -> None:
        """The change that took them is over."""
        for name in names:
            done = self._held.pop(name, None)
            if done is not None:
                done.set()
