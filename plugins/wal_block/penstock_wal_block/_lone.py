"""Whether the event loop writes a lone small group itself, or a thread does. Pure.

A hand-over to a thread and back costs more than the group: two wake-ups, and the interpreter passes hands at each
system call. On a quick disk the loop is done sooner than the thread would have begun. But it serves nobody meanwhile.
So it writes only what would have been written alone, or is written so soon that company waits less than a thread
would take to begin; and only while the disk has been quick for long.
"""

from __future__ import annotations

__all__ = ("LONE_BYTES_MAX", "SOON_BYTES_MAX", "LoneWrites")

from typing import Final

#: Longer groups take the medium's time, not that of the hand-over: of one that is quick, and of one that writes as
#: soon as a thread would begin.
LONE_BYTES_MAX: Final = 2**16
SOON_BYTES_MAX: Final = 2**17
#: Of the last ``_SEEN`` groups that threads wrote, so many have to be good before the loop writes one. A slow one
#: wipes them all out, which bounds, too, how often the loop meets a disk that stalls: once in so many groups.
#: Who produces at a steady rate meets itself now and then, a fourth of the time at 1,000 requests a second, and is
#: better served by the loop; of two clients that wait for their answers, two of three groups and more have company.
_RUN: Final = 32
_SEEN: Final = 48
_ALL_SEEN: Final = (1 << _SEEN) - 1
#: A group written so soon is worth no hand-over, with company, too: a thread's waits for the interpreter would take
#: longer than what whoever comes meanwhile waits for.
_SOON_US: Final = 250
#: Only threads see whether groups have company, so a thread writes one after so many that the loop wrote: fewer if
#: the last one wasn't good. It takes several times as long, so it is less than one group in a hundred.
_LOOK_AGAIN: Final = 256
_LOOK_SOON: Final = 16
#: What counts as quick: half of what a handler may take in one go. A thread's time has in it how long it waited for
#: the interpreter, twice and more, which says nothing of the disk.
_QUICK_US: Final = 1000
_QUICK_IN_THREAD_US: Final = 4000


class LoneWrites:
    """Told of each group that was written, says whether the loop may write the next one."""

    __slots__ = ("_good", "_since_thread", "_soon")

    def __init__(self) -> None:
        #: A bit for each of the last groups that threads wrote, the newest lowest: nothing came meanwhile.
        self._good = 0
        #: Groups that the loop wrote since.
        self._since_thread = 0
        #: A bit for each of the last groups that tell how soon the medium writes: all that the loop wrote, and those
        #: that threads wrote soon. Of a thread that took longer nobody knows what it waited for.
        self._soon = 0

    def on_loop(self, group_bytes: int) -> bool:
        """Whether the loop may write a group of that size while nothing else is in flight."""
        if self._soon.bit_count() >= _RUN:
            return group_bytes <= SOON_BYTES_MAX
        if group_bytes > LONE_BYTES_MAX or self._good.bit_count() < _RUN:
            return False
        return self._since_thread < (_LOOK_AGAIN if self._good & 1 else _LOOK_SOON)

    def wrote_on_loop(self, elapsed_us: int) -> None:
        """The loop wrote a group."""
        self._since_thread += 1
        if elapsed_us > _QUICK_US:
            self._good = self._soon = 0
        else:
            self._soon = _pushed(self._soon, elapsed_us <= _SOON_US)

    def wrote_in_thread(self, elapsed_us: int, *, alone: bool) -> None:
        """A thread wrote a group; ``alone``: nothing came before it was written."""
        self._since_thread = 0
        if elapsed_us > _QUICK_IN_THREAD_US:
            self._good = self._soon = 0
            return
        self._good = _pushed(self._good, alone)
        if elapsed_us <= _SOON_US:
            self._soon = _pushed(self._soon, True)


def _pushed(seen: int, is_so: bool) -> int:
    return (seen << 1 | is_so) & _ALL_SEEN
