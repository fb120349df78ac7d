"""Fair shares of a bounded number of bytes: who may take some, who waits, who loses its place.

Pure: the clock is handed in, nothing waits here. A *member* is one connection; members belong to an *address*. What a
member holds are bytes that are in its hands: of a request that isn't whole, or of a response that isn't taken.

1. **Bytes count when they are there, not when they are announced.** That is the caller's part: it takes a share for
   what it is about to receive or send.
2. **Trust is earned.** Each member has a credit, which begins small and grows by an eighth of what it moved. What all
   hold beyond what they have *earned* is at most half of the limit: a member may hold an eighth of what the others
   leave of that, an address eight times what it leaves, and a member of it begins only while that is no more than it
   leaves, so that who has begun finds room to go on. Who needs at most half of what each of those does that have
   begun and wait begins before they go on; a sixteenth of what is left may be taken when they have their eight parts.
   The last quarter is for those whose whole need is at most a sixteenth of what is left: many addresses, each within
   its part, would leave nothing. So a crowd that never moves anything leaves room for one more address, for who needs
   much less, and half of the limit for those who have moved something.
3. **Room is left for who comes next.** A member may hold as much as it leaves free, the members of one address
   together eight times as much: a lone address gets 8/9 of the limit, two get 8/17 each. Who is alone may take
   everything, and even more than the limit.
4. **Who finds no room waits.** Addresses are served in turn. In an address those come first who have begun, or have
   earned what they want; of these who has earned it, then who needs least until it is done: it gives back what it
   holds soonest. In turn, who has begun may hold what its address may (rule 2). If nobody fits, one becomes the
   *elder*, for whom rules 2 and 3 don't hold: of the address whose turn it is, and there of those who come first, who
   had to wait first for what it is at, though it may have got on since, and every other time who has moved most, so
   that a crowd of newcomers can't keep others from their turn.
5. **Who doesn't move loses its place first**, and only while somebody finds no room: a member that holds bytes, waits
   for nothing of ours, and moved nothing in the last second, or less than ``PACE_MIN`` bytes a second, or less than
   would move what it holds within a minute. While others of its address wait, who holds more than it has earned has
   only a quarter of a second. If that isn't enough, who holds eight times what another needs, all of it unearned,
   gives way too. What it held is free at once; the caller ends its connection at a pace of its own, as those who
   mean harm come again at once.

Rules 2 and 3 bound each by what is left, as Choudhury and Hahne's dynamic thresholds (1998) do: no state, no number
of clients to know.
"""

from __future__ import annotations

__all__ = ("GRACE_S", "GRACE_SHORT_S", "PACE_MIN", "Member", "Shares", "address_of")

import sys
from bisect import bisect_left, insort
from collections.abc import Iterator
from ipaddress import IPv6Address
from itertools import islice
from typing import Any, Final

#: A member that moves nothing for so long is stuck; also the shortest time that a pace is measured over.
GRACE_S: Final = 1.0
#: The same for who holds more than it has earned, while others of its address wait: more than the pauses within a
#: request on a slow link, and short enough that a newcomer waits no longer than people notice.
GRACE_SHORT_S: Final = 0.25
#: Bytes per second below which a member is stuck.
PACE_MIN: Final = 16 * 1024
#: A member that would need more seconds than this to move what it holds is stuck.
_DRAIN_S: Final = 64
#: All members together may hold this part of the limit unearned, each this part of what is left of that.
_AHEAD_PART: Final = 2
_AHEAD_MEMBER_PART: Final = 8
#: The members of an address may hold so many times what they leave free.
_ADDRESS_PARTS: Final = 8
#: The same of what they hold unearned, while a member begins: who has begun is to find room to go on.
_BEGIN_PARTS: Final = 1
#: Who needs so many times less than all who have begun and wait begins before they go on.
_LESS_PARTS: Final = 2
#: Who needs this part of what is left until it is done needs little: it may have what is kept, and in turn it finds
#: room as long as its address holds as many.
_SMALL_PARTS: Final = 16
#: This part of what may be held unearned is kept for those who need a small part of what is left until they are done.
_KEPT_PARTS: Final = 4
#: Credit grows by this part of what was moved.
_CREDIT_PART: Final = 8
#: Who holds unearned so many times what another needs gives way to it.
_HOARD_PARTS: Final = 8
#: How many of an address's waiters are looked at for one that fits.
_LOOK_MAX: Final = 16


class _Address:
    __slots__ = ("ahead", "beginners", "begun", "by_credit", "held", "members", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = 0
        #: Of that, what members hold beyond what they have earned.
        self.ahead = 0
        self.members = 0
        #: Whether its last elder was chosen for what it had moved.
        self.by_credit = True
        #: Members that wait, in the order in which they began to.
        self.waiting: dict[Member, None] = {}
        #: The same in the order in which they are served: those that hold some already, or have earned what they
        #: want, and the others.
        self.begun = _Queue()
        self.beginners = _Queue()

    def queue_of(self, member: Member) -> _Queue:
        """Where it is to wait."""
        return self.begun if member.held or member.wants <= member.earned else self.beginners


class _Queue:
    """Waiters of an address, who needs least to be done first. Looked at some at a time."""

    __slots__ = ("_looked", "_order")

    def __init__(self) -> None:
        self._order: list[tuple[int, int, int, Member]] = []
        #: So many of the first were looked at in vain.
        self._looked = 0

    def add(self, member: Member) -> None:
        insort(self._order, (*member._turn, member))

    def remove(self, member: Member) -> None:
        del self._order[bisect_left(self._order, member._turn)]
        self._looked = 0

    def least(self) -> int:
        """What the first of them needs until it is done; 0 if nobody waits here."""
        return self._order[0][1] if self._order else 0

    def look(self) -> Iterator[Member]:
        """Some of them, the next ones the next time."""
        order = self._order
        begin = self._looked if self._looked < len(order) else 0
        self._looked = begin + _LOOK_MAX
        return (turn[-1] for turn in islice(order, begin, begin + _LOOK_MAX))


class Member:
    """One connection. ``owner`` is whatever the caller wants to find again when the member loses its place.

    It is None once the member has left: it leads to the connection, which leads here, and what has left is to be
    freed at once, not when the garbage collector comes.
    """

    __slots__ = (
        "_address",
        "_ahead",
        "_given",
        "_last",
        "_moved",
        "_number",
        "_queue",
        "_since",
        "_slow",
        "_turn",
        "busy",
        "credit",
        "held",
        "owner",
        "wants",
    )

    def __init__(self, address: _Address, owner: Any, credit: int, now: float, *, earned: int) -> None:
        self._address = address
        self.owner = owner
        #: Bytes that it holds.
        self.held = 0
        #: Bytes that it waits for, 0 when it doesn't wait.
        self.wants = 0
        #: Bytes that it may hold ahead of moving them.
        self.credit = credit
        #: The part of it that it hasn't earned.
        self._given = credit - earned
        #: It waits for us: that it doesn't move is not its doing.
        self.busy = False
        #: Bytes that it holds beyond what it has earned.
        self._ahead = 0
        #: Its number among those that began to wait, by its first wait for what it is at; 0 before that.
        self._number = 0
        #: Its place among those that wait; no two that wait have the same.
        self._turn = (False, 0, 0)
        #: Where it waits, from when it began to: meanwhile it may give back all it holds, or earn what it wants.
        self._queue: _Queue | None = None
        self._moved = 0
        self._slow = False
        self._since = self._last = now

    @property
    def address(self) -> str:
        """The name of the address that the member belongs to."""
        return self._address.name

    @property
    def earned(self) -> int:
        """The part of its credit that it has earned."""
        return self.credit - self._given

    @property
    def last_moved(self) -> float:
        """The time at which the member moved bytes last, or from which on it could (``rested``)."""
        return self._last

    @property
    def until_done(self) -> int:
        """Bytes that it needs until it is done, while it waits."""
        return self._turn[1]

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
        is_pressed = self.held > self.earned and bool(self._address.waiting)
        if now - self._last >= (GRACE_SHORT_S if is_pressed else GRACE_S):
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
        #: Everybody begins with all the credit there is: nobody has to earn any.
        self._is_trusting = credit >= credit_max
        self._credit_max = credit_max
        self._passes_elder = passes_elder
        self._addresses: dict[str, _Address] = {}
        #: Addresses with waiters, the next one first.
        self._turns: dict[str, _Address] = {}
        self._holders: dict[Member, None] = {}
        self._elder: Member | None = None
        #: Members that wait.
        self.waiting = 0
        #: So many have begun to wait.
        self._number = 0
        #: Bytes that members hold beyond what they have earned.
        self._ahead = 0

    def join(self, address: str, owner: Any, now: float) -> Member:
        """A new member."""
        found = self._addresses.get(address)
        if found is None:
            found = self._addresses[address] = _Address(address)
        found.members += 1
        return Member(found, owner, self._credit, now, earned=self._credit if self._is_trusting else 0)

    def leave(self, member: Member) -> None:
        """Remove a member: what it holds is free, what it waited for is withdrawn."""
        self.withdraw(member)
        self.give(member, member.held)
        address = member._address
        address.members -= 1
        if not address.members:
            self._addresses.pop(address.name, None)
        member.owner = None

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

    def fits(
        self, member: Member, size: int, rest: int = 0, *, in_turn: bool = False, begins: bool = False
    ) -> bool:
        """Whether ``member`` may take ``size`` bytes more now; ``in_turn``, up to the end of rule 2.

        ``rest`` is what it needs after that until it's done, which is known of who waits. ``begins``: as if it had
        begun.
        """
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
        ahead = member.held + size - member.earned
        if ahead <= 0:
            return True
        more = ahead - member._ahead
        room = self.limit // _AHEAD_PART
        left = room - self._ahead - more
        until_done = member.until_done if member.wants else size + rest
        if left * _KEPT_PARTS < room and (member.held + until_done) * _SMALL_PARTS > left:
            return False
        together = member._address.ahead + more
        parts = _ADDRESS_PARTS if member.held or begins else _BEGIN_PARTS
        if in_turn and until_done * _SMALL_PARTS <= left:
            parts = _SMALL_PARTS
        if together > parts * left:
            return False
        return (in_turn and member.held > 0) or ahead * _AHEAD_MEMBER_PART <= left

    def _reckon(self, member: Member) -> None:
        """Note what it holds beyond what it has earned; the elder's is nobody's concern."""
        ahead = max(0, member.held - member.earned)
        if member is self._elder and self._passes_elder:
            ahead = 0
        more = ahead - member._ahead
        if more:
            self._ahead += more
            member._address.ahead += more
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
            if not member.wants:  # else it waits on, by the number that it has
                member._number = 0
                if self._elder is member:
                    self._elder = None

    def earn(self, member: Member, size: int) -> None:
        """``member`` has moved ``size`` bytes that it held, to the end."""
        member.credit = min(self._credit_max, member.credit + size // _CREDIT_PART)
        self._reckon(member)

    def allowance(self, member: Member) -> int:
        """Bytes that are sensible to give ``member`` at once: its credit, and less where little is free."""
        return min(member.credit, max(0, self.limit - self.used) // _ADDRESS_PARTS)

    # -- waiting --------------------------------------------------------------------------------------

    def wait(self, member: Member, size: int, rest: int = 0) -> None:
        """Put ``member`` in its address's queue. It waits for one thing at a time.

        ``rest`` is what it needs after that until it's done.
        """
        assert not member.wants, "it waits already"
        assert size > 0
        member.wants = size
        self.waiting += 1
        if not member._number:
            self._number += 1
            member._number = self._number
        member._turn = (member.held + size > member.earned, size + rest, member._number)
        address = member._address
        address.waiting[member] = None
        member._queue = address.queue_of(member)
        member._queue.add(member)
        self._turns.setdefault(address.name, address)

    def withdraw(self, member: Member) -> None:
        """``member`` waits no longer, if it did."""
        if not member.wants:
            return
        self._unqueue(member)
        if self._elder is member and not member.held:
            self._elder = None

    def serve(self, now: float, count_max: int = sys.maxsize) -> list[Member]:
        """Let waiters take what is there, ``count_max`` of them at most; those that have it now, in order."""
        served: list[Member] = []
        while self.waiting and len(served) < count_max:
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
        assert member._queue is not None, "who waits is in a queue"
        member._queue.remove(member)
        member._queue = None
        del address.waiting[member]
        member.wants = 0
        self.waiting -= 1
        if not address.waiting:
            del self._turns[address.name]

    def _next(self, now: float) -> Member | None:
        if self._elder is not None and self._elder.wants and self.fits(self._elder, self._elder.wants):
            return self._elder
        for address in self._turns.values():
            found = self._fitting(address)
            if found is not None:
                # the others come first from now on
                self._turns[address.name] = self._turns.pop(address.name)
                return found
        elder = self._elder
        if elder is not None and (elder.wants or not elder.is_stuck(now)):
            return None
        self._elder = chosen = self._new_elder()
        for one in (elder, chosen):
            if one is not None:
                self._reckon(one)
        return chosen if self.fits(chosen, chosen.wants) else None

    def _fitting(self, address: _Address) -> Member | None:
        """Whose turn it is in the address, if there is room for anybody."""
        least = address.begun.least()
        begun, beginners = list(address.begun.look()), list(address.beginners.look())
        for member in begun:
            if member.wants > member.earned - member.held:
                break  # those who have earned it are the first
            if self.fits(member, member.wants):
                return member
        for member in beginners:
            if member.until_done * _LESS_PARTS > least:
                break
            if self.fits(member, member.until_done, in_turn=True, begins=True):
                return member
        for member in begun:
            if self.fits(member, member.wants, in_turn=True):
                return member
        for member in beginners:
            if self.fits(member, member.wants):
                return member
        return None

    def _new_elder(self) -> Member:
        """Of the address whose turn it is, who had to wait first, and every other time who has moved most."""
        address = next(iter(self._turns.values()))
        self._turns[address.name] = self._turns.pop(address.name)
        address.by_credit = not address.by_credit
        begun = list(address.begun.look())
        waiting = begun or list(islice(address.waiting, _LOOK_MAX))
        if address.by_credit:
            return max(waiting, key=lambda member: member.credit)
        return min(waiting, key=lambda member: member._number)

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
        """Members that hold, unearned, many times what a waiter needs; the greatest first (rule 5).

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
