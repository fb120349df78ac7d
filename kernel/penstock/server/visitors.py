"""Who pays for clients that come and go: one member of each address, as a kind of work of its own. Pure."""

from __future__ import annotations

__all__ = ("Visitors",)

from collections.abc import Callable
from typing import Final

from penstock.time_shares import TimeMember

#: Coming and going is no request: a kind besides those that ``penstock.server.connection`` has for these.
_VISITING: Final = -1


class Visitors:
    """The account of who comes and goes, by address, as long as somebody of the address is there."""

    def __init__(self, join: Callable[[str], TimeMember], leave: Callable[[TimeMember], None]) -> None:
        self._join = join
        self._leave = leave
        self._members: dict[str, tuple[TimeMember, int]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def enter(self, address: str) -> TimeMember:
        """Somebody comes; ``leave`` when it's gone. What pays for both."""
        found = self._members.get(address)
        if found is None:
            member = self._join(address)
            member.kind = _VISITING
            self._members[address] = member, 1
            return member
        member, count = found
        self._members[address] = member, count + 1
        return member

    def member(self, address: str) -> TimeMember:
        """What pays for those of ``address``, of whom one is there."""
        return self._members[address][0]

    def leave(self, address: str) -> None:
        """Somebody is gone."""
        member, count = self._members[address]
        if count > 1:
            self._members[address] = member, count - 1
        else:
            del self._members[address]
            self._leave(member)
