"""Fair shares of a bounded number of bytes: who may take some, who waits, who loses its place.

Pure: the clock is handed in, nothing waits here. A *member* is one connection; members belong to an *address*. What a
member holds are bytes that are in its hands: of a request that isn't whole, or of a response that isn't taken.

1. **Bytes count when they are there, not when they are announced.** That is the caller's part: it takes a share for
   what it is about to receive or send.
2. **Trust is earned.** Each member has a credit, which begins small and grows by an eighth of what it moved. What all
   hold beyond their credit is at most half of the limit, and a member an eighth of what the others leave of that. So
   a thousand newcomers that never move anything hold little, and leave room for one more.
3. **Room is left for who comes next.** A member may hold as much as it leaves free, the members of one address
   together eight times as much: a lone address gets 8/9 of the limit, two get 8/17 each. Who is alone may take
   everything, and even more than the limit.
4. **Who finds no room waits.** Addresses are served in turn, and in an address who needs least and fits. If nobody
   fits, one becomes the *elder*, for whom rules 2 and 3 don't hold: of the address whose turn it is who waits
   longest, and every other time who has moved most, so that a crowd of newcomers can't keep others from their turn.
5. **Who doesn't move loses its place first**, and only while somebody finds no room: a member that holds bytes, waits
   for nothing of ours, and moved nothing in the last second, or less than ``PACE_MIN`` bytes a second, or less than
   would move what it holds within a minute. If that isn't enough, who holds eight times what another needs, all of it
   beyond its credit, gives way too.

Rules 2 and 3 bound each by what is left, as Choudhury and Hahne's dynamic thresholds (1998) do: no state, no number
of clients to know.
"""

from __future__ import annotations

__all__ = ("GRACE_S", "PACE_MIN", "Member", "Shares", "address_of")

from collections import deque
from ipaddress import IPv6Address
from itertools import islice
from typing import Any, Final

#: A member that moves nothing for so long is stuck; also the shortest time that a pace is measured over.
GRACE_S: Final = 1.0
#: Bytes per second below which a member is stuck.
PACE_MIN: Final = 16 * 1024
#: A member that would need more seconds than this to move what it holds is stuck.
_DRAIN_S: Final = 64
#: All members together may hold this part of the limit beyond their credit, each this part of what is left of that.
_AHEAD_PART: Final = 2
_AHEAD_MEMBER_PART: Final = 8
#: The members of an address may hold so many times what they leave free.
_ADDRESS_PARTS: Final = 8
#: Credit grows by this part of what was moved.
_CREDIT_PART: Final = 8
#: Who holds so many times what another needs, beyond its credit, gives way to it.
_HOARD_PARTS: Final = 8
#: How many of an address's waiters are looked at for one that fits.
_LOOK_MAX: Final = 64


class _Address:
    __slots__ = ("by_credit", "held", "members", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = 0
        self.members = 0
        #: Whether its last elder was chosen for what it had moved.
        self.by_credit = True
        self.waiting: deque[Member] = deque()


class Member:
    """One connection. ``owner`` is whatever the caller wants to find again when the member loses its place."""

    __slots__ = (
        "_address",
        "_ahead",
        "_last",
        "_moved",
        "_since",
        "_slow",
        "busy",
        "credit",
        "held",
        "owner",
        "wants",
    )

    def __init__(self, address: _Address, owner: Any, credit: int, now: float) -> None:
        self._address = address
        self.owner = owner
        #: Bytes that it holds.
        self.held = 0
        #: Bytes that it waits for, 0 when it doesn't wait.
        self.wants = 0
        #: Bytes that it may hold ahead of moving them.
        self.credit = credit
        #: It waits for us: that it doesn't move is not its doing.
        self.busy = False
        #: Bytes that it holds beyond its credit.
        self._ahead = 0
        self._moved = 0
        self._slow = False
        self._since = self._last = now

    @property
    def address(self) -> str:
        """The name of the address that the member belongs to."""
        return self._address.name

    @property
    def last_moved(self) -> float:
        """The time at which the member moved bytes last, or from which on it could (``rested``)."""
        return self._last

    def moved(self, size: int, now: float) -> None:
        """Count ``size`` bytes that the peer sent or took just now: its pace is measured by them."""
        self._moved += size
        self._last = now
        elapsed = now - self._since
        if elapsed >= GRACE_S:
            self._slow = self._moved < self._pace_min() * elapsed
            self._since = now
            self._moved = 0

    def rested(self, now: float) -> None:
        """Begin to measure the pace anew: until now the member waited for us, and couldn't move."""
        self._since = self._last = now
        self._moved = 0
        self._slow = False

    def is_stuck(self, now: float) -> bool:
        """Whether the member holds bytes and doesn't move them (rule 5), so that it may lose its place."""
        if self.busy or self.wants or not self.held:
            return False
        if now - self._last >= GRACE_S:
            return True
        elapsed = now - self._since
        return self._slow if elapsed < GRACE_S else self._moved < self._pace_min() * elapsed

    def _pace_min(self) -> float:
        return max(PACE_MIN, self.held / _DRAIN_S)


class Shares:
    """The account. Whoever changes it calls ``serve`` afterwards and tells those that it returns.

    With ``passes_elder`` the elder passes at once, beyond the limit if need be: there is one at a time, so the
    account exceeds its limit by what one member may hold. That is for members that take in pieces and can't give back
    before they have all of them.
    """

    def __init__(self, limit: int, *, credit: int, credit_max: int, passes_elder: bool = False) -> None:
        self.limit = limit
        self.used = 0
        self._credit = min(credit, credit_max)
        self._credit_max = credit_max
        self._passes_elder = passes_elder
        self._addresses: dict[str, _Address] = {}
        #: Addresses with waiters, the next one first.
        self._turns: dict[str, _Address] = {}
        self._holders: dict[Member, None] = {}
        self._elder: Member | None = None
        #: Members that wait.
        self.waiting = 0
        #: Bytes that members hold beyond their credit.
        self._ahead = 0

    def join(self, address: str, owner: Any, now: float) -> Member:
        """A new member."""
        found = self._addresses.get(address)
        if found is None:
            found = self._addresses[address] = _Address(address)
        found.members += 1
        return Member(found, owner, self._credit, now)

    def leave(self, member: Member) -> None:
        """Remove a member: what it holds is free, what it waited for is withdrawn."""
        self.withdraw(member)
        self.give(member, member.held)
        address = member._address
        address.members -= 1
        if not address.members:
            self._addresses.pop(address.name, None)

    def held_by(self, address: str) -> int:
        """Bytes in the hands of an address."""
        found = self._addresses.get(address)
        return 0 if found is None else found.held

    def members_of(self, address: str) -> int:
        """Members of an address."""
        found = self._addresses.get(address)
        return 0 if found is None else found.members

    @property
    def is_short(self) -> bool:
        """Whether somebody waits, or more is held than there is."""
        return self.waiting > 0 or self._common > self.limit

    @property
    def _common(self) -> int:
        """Bytes that are held, without those of an elder that may go beyond the limit."""
        elder = self._elder
        return self.used - elder.held if elder is not None and self._passes_elder else self.used

    # -- taking and giving ----------------------------------------------------------------------------

    def fits(self, member: Member, size: int) -> bool:
        """Whether ``member`` may take ``size`` bytes more now."""
        if self.used == member.held:
            return True  # alone
        free = self.limit - self._common - size
        elder = self._elder
        if elder is not None:
            if elder is member:
                return self._passes_elder or free >= 0
            if not self._passes_elder:
                free -= elder.wants
        if member.held + size > free or member._address.held + size > _ADDRESS_PARTS * free:
            return False
        ahead = member.held + size - member.credit
        if ahead <= 0:
            return True
        left = self.limit // _AHEAD_PART - (self._ahead - member._ahead) - ahead
        return ahead * _AHEAD_MEMBER_PART <= left

    def _reckon(self, member: Member) -> None:
        """Note what it holds beyond its credit; the elder's is nobody's concern."""
        ahead = max(0, member.held - member.credit)
        if member is self._elder and self._passes_elder:
            ahead = 0
        self._ahead += ahead - member._ahead
        member._ahead = ahead

    def take(self, member: Member, size: int, now: float) -> None:
        """Count ``size`` bytes for ``member``, whether they fit or not."""
        if not size:
            return
        if not member.held:
            member.rested(now)
            self._holders[member] = None
        member.held += size
        member._address.held += size
        self.used += size
        self._reckon(member)

    def give(self, member: Member, size: int) -> None:
        """``size`` bytes are out of its hands."""
        if not size:
            return
        assert size <= member.held, "more is given back than was taken"
        member.held -= size
        member._address.held -= size
        self.used -= size
        self._reckon(member)
        if not member.held:
            del self._holders[member]
            if self._elder is member and not member.wants:
                self._elder = None

    def earn(self, member: Member, size: int) -> None:
        """``member`` has moved ``size`` bytes that it held, to the end."""
        member.credit = min(self._credit_max, member.credit + size // _CREDIT_PART)
        self._reckon(member)

    def allowance(self, member: Member) -> int:
        """Bytes that are sensible to give ``member`` at once: its credit, and less where little is free."""
        return min(member.credit, max(0, self.limit - self.used) // _ADDRESS_PARTS)

    # -- waiting --------------------------------------------------------------------------------------

    def wait(self, member: Member, size: int) -> None:
        """Put ``member`` at the end of its address's queue. It waits for one thing at a time."""
        assert not member.wants, "it waits already"
        assert size > 0
        member.wants = size
        self.waiting += 1
        address = member._address
        address.waiting.append(member)
        self._turns.setdefault(address.name, address)

    def withdraw(self, member: Member) -> None:
        """``member`` waits no longer, if it did."""
        if not member.wants:
            return
        self._unqueue(member)
        if self._elder is member and not member.held:
            self._elder = None

    def serve(self, now: float) -> list[Member]:
        """Let waiters take what is there; those that have it now, in order."""
        served: list[Member] = []
        while self.waiting:
            member = self._next(now)
            if member is None:
                break
            size = member.wants
            self._unqueue(member)
            self.take(member, size, now)
            member.rested(now)
            served.append(member)
        return served

    def _unqueue(self, member: Member) -> None:
        address = member._address
        address.waiting.remove(member)
        member.wants = 0
        self.waiting -= 1
        if not address.waiting:
            del self._turns[address.name]

    def _next(self, now: float) -> Member | None:
        if self._elder is not None and self._elder.wants and self.fits(self._elder, self._elder.wants):
            return self._elder
        for address in self._turns.values():
            fitting = [m for m in islice(address.waiting, _LOOK_MAX) if self.fits(m, m.wants)]
            if fitting:
                # the others come first from now on
                self._turns[address.name] = self._turns.pop(address.name)
                return min(fitting, key=_need)
            if len(address.waiting) > _LOOK_MAX:
                address.waiting.rotate(-_LOOK_MAX)
        elder = self._elder
        if elder is not None and (elder.wants or not elder.is_stuck(now)):
            return None
        self._elder = chosen = self._new_elder()
        for one in (elder, chosen):
            if one is not None:
                self._reckon(one)
        return chosen if self.fits(chosen, chosen.wants) else None

    def _new_elder(self) -> Member:
        """Of the address whose turn it is, who waits longest, and every other time who has moved most."""
        address = next(iter(self._turns.values()))
        self._turns[address.name] = self._turns.pop(address.name)
        address.by_credit = not address.by_credit
        if not address.by_credit:
            return address.waiting[0]
        return max(islice(address.waiting, _LOOK_MAX), key=lambda member: member.credit)

    # -- losing one's place ---------------------------------------------------------------------------

    @property
    def holders(self) -> tuple[Member, ...]:
        """All members that hold bytes, in the order in which they began to."""
        return tuple(self._holders)

    def victims(self, now: float, *, spare: Member | None = None) -> list[Member]:
        """Members that are stuck (rule 5), without ``spare``; the greatest holder of the greatest address first."""
        stuck = [member for member in self._holders if member is not spare and member.is_stuck(now)]
        stuck.sort(key=lambda member: (-member._address.held, -member.held))
        return stuck

    def hoarders(self) -> list[Member]:
        """Members that hold, beyond their credit, many times what a waiter needs; the greatest first (rule 5).

        They may be waiting for more, or moving. Without that whoever came first would keep what it got.
        """
        if not self.waiting:
            return []
        least = min(
            _need(member) for address in self._turns.values() for member in islice(address.waiting, _LOOK_MAX)
        )
        hoarders = [
            member
            for member in self._holders
            if member._ahead >= _HOARD_PARTS * least and (member.wants or not member.busy)
        ]
        hoarders.sort(key=lambda member: -member._ahead)
        return hoarders


def _need(member: Member) -> int:
    """Bytes that the member would hold with what it waits for."""
    return member.held + member.wants


def address_of(host: str) -> str:
    """The address that a peer at ``host`` counts for: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in host:
        return host
    address = IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> 64 << 64))
