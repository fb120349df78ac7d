"""Whether the event loop writes a lone small group itself, or a thread does. Pure.

A hand-over to a thread and back costs more than the group: two wake-ups, and the interpreter passes hands at each
system call. On a quick disk the loop is done sooner than the thread would have begun. But it serves nobody meanwhile.
So it writes only what would have been written alone, and only while the disk has been quick for long.
"""

from __future__ import annotations

__all__ = ("LONE_BYTES_MAX", "LoneWrites")

from typing import Final

#: Longer groups take the medium's time, not that of the hand-over.
LONE_BYTES_MAX: Final = 2**16
#: So many groups in a row were alone, and quick, before the loop writes one. It bounds, too, how often the loop meets
#: a disk that stalls: once in so many groups.
_RUN: Final = 32
#: What counts as quick: half of what a handler may take in one go. A thread's time has in it how long it waited for
#: the interpreter, twice and more, which says nothing of the disk.
_QUICK_US: Final = 1000
_QUICK_IN_THREAD_US: Final = 4000


class LoneWrites:
    """Told of each group that was written, says whether the loop may write the next one.

    Some groups must go on being written by threads: only they find out that others would be written beside them.
    """

    __slots__ = ("_run",)

    def __init__(self) -> None:
        self._run = 0

    @property
    def on_loop(self) -> bool:
        """Whether the loop may write a group that is small and alone."""
        return self._run >= _RUN

    def wrote_on_loop(self, elapsed_us: int) -> None:
        """The loop wrote a group."""
        self._run = self._run + 1 if elapsed_us <= _QUICK_US else 0

    def wrote_in_thread(self, elapsed_us: int, *, alone: bool) -> None:
        """A thread wrote a group; ``alone``: nothing came before it was written."""
        self._run = self._run + 1 if alone and elapsed_us <= _QUICK_IN_THREAD_US else 0
