"""Fair shares of the event loop's time: who goes on at once, and who lets others go first.

Pure: the clock is handed in, nothing waits here. A *member* is one connection; members belong to an *address*, and
there to the *kind* of work that they asked for last, a number of the caller's. The time that the loop computes for a
member is added to it, window by window (``WINDOW_S``). Members have a *name*, too, which clients choose
themselves.

1. **Who asks for little is served at once.** While the loop isn't busy, and while nobody asks for little, everybody
   goes on as fast as it can: a lone client may use all of the loop.
2. **Shares are max-min fair.** When a busy window ends, ``BUSY_PART`` of the next one is divided between the
   addresses: who used less than an equal part keeps what it used, the others share the rest equally. The part of an
   address is divided between kinds of work in the same way, the part of a kind between the names of those who ask for
   it, and the part of a name between its members: so a hundred connections that ask for one kind don't push aside the
   one that asks for another, nor a hundred of one program another program's. Who used more than its part, or was made
   to wait, is *limited* to it.
3. **A limit is a pace.** A limited member goes on as soon as what it used in this window is no more than its part of
   the time that has passed, so it waits a little often, not long once. What it used beyond its part counts in the
   next ones, up to ``DEBT_S_MAX``: one long piece of work keeps nobody waiting for a minute.
4. **What is left is for who asks one thing at a time.** A limited member that doesn't keep requests waiting goes on
   at once, too, as long as all together use no more than ``SPARE_PART`` of the time that has passed; else when they
   don't any more, and, of those who wait for that, whoever came first (``penstock.server.turns``).
5. **Limits last while somebody profits by them**: somebody who asks for little was served within ``QUIET_S``. That is
   less than ``LITTLE_PART`` of what those use on average who want more than their parts. Equals use about as much as
   each other; some of them are always a little below their part, and none the better for it if the others wait.
"""

from __future__ import annotations

__all__ = (
    "BUSY_PART",
    "DEBT_S_MAX",
    "LITTLE_PART",
    "NAMES",
    "QUIET_S",
    "SPARE_PART",
    "WINDOW_S",
    "TimeMember",
    "TimeShares",
)

import math
from collections.abc import Iterable
from typing import Final
from zlib import crc32

#: What is used is added up, and parts are made, once per window.
WINDOW_S: Final = 0.1
#: Names count as so many different ones at most: who makes up names by the thousand is no more than these.
NAMES: Final = 64
#: The loop is busy when more than this part of a window was used, and so much is divided. A flood's throughput is the
#: same with 0.6 (threads that write the log wait less for the interpreter), and falls by a twentieth at 0.35.
BUSY_PART: Final = 0.4
#: Who is limited and asks one thing at a time uses the loop up to this part of a window. The rest stays idle, so that
#: threads get the interpreter and what comes in is seen at once.
SPARE_PART: Final = 0.8
#: At the start of a window nothing of its time has passed; so much counts as if it had.
_SPARE_AHEAD_S: Final = WINDOW_S / 20
#: As long as less than this part of a window was used, and nobody is limited, the time that passed stands for the
#: processor time: readings of the processor's clock are system calls, and parts are made of busy windows only.
_MEASURED_S: Final = WINDOW_S * BUSY_PART / 2
#: What was used beyond a part keeps nobody waiting for longer. Where others use the processors too, a part is some
#: microseconds, and one long piece of work was as much as a minute of them.
DEBT_S_MAX: Final = 2.0
#: Clients with the same load differ by a fourth from one window to the next.
LITTLE_PART: Final = 0.5
#: Limits end when nobody was served who asks for little, for so long.
QUIET_S: Final = 1.0
#: How fast the loop gets on where others use the processors too: a mean of about so many windows, and at least this.
_SPEED_WINDOWS: Final = 4
_SPEED_MIN: Final = 0.01


class _Use:
    """What one member, or one address, used in this window."""

    __slots__ = ("debt_s", "is_limited", "part_s", "used_s", "waited", "window")

    def __init__(self) -> None:
        self.window = -1
        self.used_s = 0.0
        #: What it used beyond its part in the window before.
        self.debt_s = 0.0
        #: It would have used more.
        self.waited = False
        #: Whether it may use no more than ``part_s`` per window.
        self.is_limited = False
        self.part_s = 0.0

    def enter(self, window: int) -> bool:
        """Begin to count in this window; False if it does already."""
        if self.window == window:
            return False
        self.used_s = self.debt_s if self.window == window - 1 else 0.0
        self.window, self.debt_s, self.waited = window, 0.0, False
        return True

    def limit(self, part_s: float) -> None:
        self.is_limited, self.part_s = True, part_s

    def is_hungry(self, part_s: float) -> bool:
        return self.waited or self.used_s > part_s

    def ready_at(self, begin: float) -> float:
        """When it may go on: a window's end is soon enough to look again."""
        return begin + min(1.0, self.used_s / self.part_s) * WINDOW_S if self.is_limited else 0.0


class _Kind(_Use):
    """The members of one address that asked for one kind of work."""

    __slots__ = ("active", "address", "names", "own_s")

    def __init__(self, address: _Address) -> None:
        super().__init__()
        self.address = address
        self.names: dict[int, _Name] = {}
        #: What each of its names may use.
        self.own_s = 0.0
        self.active: list[_Name] = []

    def name(self, number: int) -> _Name:
        found = self.names.get(number)
        if found is None:
            found = self.names[number] = _Name(self)
        return found


class _Name(_Use):
    """The members of one kind that have a name in common."""

    __slots__ = ("active", "kind", "own_s")

    def __init__(self, kind: _Kind) -> None:
        super().__init__()
        self.kind = kind
        #: What each of its members may use, whatever the others used: newcomers too.
        self.own_s = 0.0
        self.active: list[TimeMember] = []

    @property
    def may_wait(self) -> bool:
        """Whether it, its kind or its address is limited."""
        kind = self.kind
        return self.is_limited or kind.is_limited or kind.address.is_limited


class _Address(_Use):
    __slots__ = ("active", "kinds", "members", "name", "own_s")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.members = 0
        self.kinds: dict[int, _Kind] = {}
        #: What each of its kinds may use.
        self.own_s = 0.0
        self.active: list[_Kind] = []

    def kind(self, number: int) -> _Kind:
        found = self.kinds.get(number)
        if found is None:
            found = self.kinds[number] = _Kind(self)
        return found


class TimeMember(_Use):
    """One connection. Its caller sets ``kind`` to the number of the kind of work that it asks for; there are few."""

    __slots__ = ("among", "kind", "name")

    def __init__(self, address: _Address) -> None:
        super().__init__()
        self.kind = 0
        #: The number of its name.
        self.name = 0
        #: Those that it's counted with in this window: of its address, of its kind and name when the window began.
        self.among: _Name = address.kind(0).name(0)

    def set_name(self, name: str) -> None:
        """Count it among those of its address that call themselves so, from the next window on."""
        self.name = crc32(name.encode(errors="replace")) % NAMES

    @property
    def address(self) -> str:
        """Where its client is."""
        return self.among.kind.address.name

    @property
    def is_crowded(self) -> bool:
        """Whether it is limited, or all of its name together are, whatever it used itself."""
        return self.is_limited or self.among.is_limited

    @property
    def may_wait(self) -> bool:
        """Whether it, or what it's counted with, is limited."""
        return self.is_limited or self.among.may_wait


class TimeShares:
    """The account of one event loop."""

    def __init__(self) -> None:
        self._addresses: dict[str, _Address] = {}
        self._active: list[_Address] = []
        self._limited: list[_Use] = []
        self._window = 0
        self._begin = -math.inf
        self._end = -math.inf
        #: Processor time of the loop in this window, and how long that took: others may have the processor meanwhile.
        self._used_s = self._clock_s = 0.0
        self._speed = 1.0
        #: Whether what is used is to be told in processor time; else in time that passed.
        self.is_measured = False
        #: When a busy window ended last in which somebody was served who asks for little.
        self._served = -math.inf

    def join(self, address: str) -> TimeMember:
        """A new member."""
        found = self._addresses.get(address)
        if found is None:
            found = self._addresses[address] = _Address(address)
        found.members += 1
        return TimeMember(found)

    def leave(self, member: TimeMember) -> None:
        """Remove a member. What its address used in this window stays used."""
        address = member.among.kind.address
        address.members -= 1
        self._forget(address)

    def _forget(self, address: _Address) -> None:
        if address.members or address.window == self._window:
            return
        if (
            self._addresses.get(address.name) is address
        ):  # not one that came since, while work for this one ended
            del self._addresses[address.name]

    def used(self, member: TimeMember, processor_s: float, clock_s: float, now: float) -> None:
        """The loop computed for ``member`` until ``now``: so much processor time, which took so long."""
        if now >= self._end:
            self._roll(now)
        if member.window != self._window:
            self._enter(member)
        name = member.among
        kind = name.kind
        member.used_s += processor_s
        name.used_s += processor_s
        kind.used_s += processor_s
        kind.address.used_s += processor_s
        self._used_s += processor_s
        self._clock_s += clock_s
        if self._clock_s > _MEASURED_S:
            self.is_measured = True

    def ready_at(self, member: TimeMember, now: float, *, is_greedy: bool = True) -> float:
        """When ``member`` may go on; not after ``now`` if at once. Notes that it waits, if it has to.

        One that isn't greedy has asked for one thing, and keeps no others waiting.
        """
        if now >= self._end:
            self._roll(now)
        if not member.may_wait:
            return 0.0
        self._enter(member)
        name = member.among
        kind = name.kind
        address = kind.address
        ready = member.ready_at(self._begin)
        if member.used_s > name.own_s:
            ready = max(ready, name.ready_at(self._begin))
            if name.used_s > kind.own_s:
                ready = max(ready, kind.ready_at(self._begin))
                if kind.used_s > address.own_s:
                    ready = max(ready, address.ready_at(self._begin))
        if ready > now:
            member.waited = True
            name.waited = name.waited or name.is_limited
            kind.waited = kind.waited or kind.is_limited
            address.waited = address.waited or address.is_limited
            if not is_greedy:
                return min(ready, self._spare_at())
        return ready

    def describe(self, member: TimeMember) -> str:
        """What ``member`` used and may use, for the log."""
        used_ms, part_ms = 1000 * member.used_s, 1000 * member.part_s
        return f"is_limited={member.is_limited} used_ms={used_ms:.2f} part_ms={part_ms:.2f} speed={self._speed:.2f}"

    def _spare_at(self) -> float:
        """When less is used of this window than may be, if nobody uses more until then."""
        return self._begin - _SPARE_AHEAD_S + self._used_s / (SPARE_PART * max(self._speed, _SPEED_MIN))

    def _enter(self, member: TimeMember) -> None:
        if not member.enter(self._window):
            return
        address = member.among.kind.address
        kind = address.kind(member.kind)
        name = member.among = kind.name(member.name)
        if address.enter(self._window):
            address.active = []
            self._active.append(address)
        if kind.enter(self._window):
            kind.active = []
            address.active.append(kind)
        if name.enter(self._window):
            name.active = []
            kind.active.append(name)
        name.active.append(member)

    # -- when a window ends ---------------------------------------------------------------------------

    def _roll(self, now: float) -> None:
        """Divide the next window by what was used in this one."""
        active, self._active = self._active, []
        for use in self._limited:
            if use.window == self._window:
                debt_s = max(0.0, use.used_s - use.part_s)
                use.debt_s = min(debt_s, use.part_s * DEBT_S_MAX / WINDOW_S)
            use.is_limited = False
        was_limited, self._limited = bool(self._limited), []
        self._window += 1
        if self.is_measured and self._clock_s > 0.0:
            self._speed += (min(1.0, self._used_s / self._clock_s) - self._speed) / _SPEED_WINDOWS
        if was_limited or self._clock_s > BUSY_PART * WINDOW_S:
            self._divide(active, now)
        for address in active:
            for kind in address.active:
                for name in kind.active:
                    name.active = []
                kind.active = []
            address.active = []
            self._forget(address)
        # a loop that was busy is measured from the start of the next window
        self.is_measured = self._clock_s > _MEASURED_S or bool(self._limited)
        self._begin, self._end = now, now + WINDOW_S
        self._used_s = self._clock_s = 0.0

    def _divide(self, active: list[_Address], now: float) -> None:
        whole = BUSY_PART * WINDOW_S * max(self._speed, _SPEED_MIN)
        part = _fair_part(active, whole)
        some_profit = _some_profit(active, part)
        hungry: list[tuple[_Use, float]] = []
        for address in active:
            is_over = address.is_hungry(part)
            if is_over:
                hungry.append((address, part))
            room = part if is_over else whole
            share = address.own_s = _fair_part(address.active, room)
            for kind in address.active:
                is_kind_over = kind.is_hungry(share)
                if is_kind_over:
                    hungry.append((kind, share))
                room_s = share if is_kind_over else room
                own = kind.own_s = _fair_part(kind.active, room_s)
                for name in kind.active:
                    is_name_over = name.is_hungry(own)
                    if is_name_over:
                        hungry.append((name, own))
                    each = name.own_s = _fair_part(name.active, own if is_name_over else room_s)
                    hungry += [(member, each) for member in name.active if member.is_hungry(each)]
                    if len(active) == 1 and is_name_over:
                        some_profit = some_profit or _some_profit(name.active, each)
                if len(active) == 1 and is_kind_over:
                    some_profit = some_profit or _some_profit(kind.active, own)
            if len(active) == 1 and is_over:
                some_profit = some_profit or _some_profit(address.active, share)
        if some_profit:
            self._served = now
        if now - self._served <= QUIET_S:
            for use, size in hungry:
                use.limit(size)
                self._limited.append(use)


def _some_profit(uses: Iterable[_Use], part: float) -> bool:
    """Whether one asks for little, beside others who want more than ``part``."""
    hungry = [use.used_s for use in uses if use.is_hungry(part)]
    others = [use.used_s for use in uses if not use.is_hungry(part)]
    return bool(hungry and others) and min(others) < LITTLE_PART * sum(hungry) / len(hungry)


def _fair_part(uses: Iterable[_Use], whole: float) -> float:
    """The greatest part that nobody has more than, if ``whole`` is divided by max-min fairness."""
    hungry = list(uses)
    left = whole
    while hungry:
        part = left / len(hungry)
        still = [use for use in hungry if use.is_hungry(part)]
        if len(still) == len(hungry):
            return part
        left -= sum(use.used_s for use in hungry if not use.is_hungry(part))
        hungry = still
    return math.inf
