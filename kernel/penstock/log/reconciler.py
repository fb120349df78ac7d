"""Makes what is marked be as metadata say: in one pass for many marks, and again until it works."""

from __future__ import annotations

__all__ = ("Reconciler",)

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

import anyio
from anyio.abc import TaskGroup

from penstock.errors import ClosedError, FencedError, PenstockError, again, kept
from penstock.work.retry import Backoff, doubling

logger = logging.getLogger("penstock.log")

#: Pauses between attempts at what fails.
_PAUSES_S = doubling(0.1, 30.0)


class Reconciler:
    """Calls ``reconcile`` with ids that were marked; it makes them so, and returns the error of each that failed.

    All that is marked in one turn of the event loop goes into one pass. An id is in one pass at a time; marked
    meanwhile, it comes again. What failed comes again after a pause. An error that ``reconcile`` raises concerns all
    ids of the pass. Who is fenced, or closed, tries nothing again.
    """

    def __init__(
        self,
        reconcile: Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, PenstockError]]],
        tasks: TaskGroup,
    ) -> None:
        self._reconcile = reconcile
        self._tasks = tasks
        self._due: dict[bytes, None] = {}
        self._busy: set[bytes] = set()
        self._errors: dict[bytes, PenstockError] = {}
        self._backoffs: dict[bytes, Backoff] = {}
        self._passed = anyio.Event()
        self._beginning = False
        self._ended = False

    def mark(self, ids: Iterable[bytes]) -> None:
        """Metadata say something new of these."""
        if self._ended:
            return
        for one in ids:
            self._due[one] = None
            self._errors.pop(one, None)
        self._begin()

    def unmark(self, ids: Iterable[bytes]) -> None:
        """Whoever reconciles these looks at them from here on: what marked them before needs no pass of its own."""
        for one in ids:
            self._due.pop(one, None)

    def end(self) -> None:
        """Begin no other pass, and pay no heed to marks."""
        self._ended = True
        self._due.clear()
        self._tell()

    async def settled(self, ids: Collection[bytes]) -> None:
        """Return when what was marked of these is so. Raises the error of the first attempt if that fails.

        Raises ClosedError at the end.
        """
        for one in ids:
            while True:
                error = self._errors.get(one)
                if error is not None:
                    raise again(error)
                if self._ended:
                    raise ClosedError("the broker is stopping")
                if one not in self._due and one not in self._busy:
                    break
                await self._passed.wait()

    def _begin(self) -> None:
        if not self._beginning and not self._ended and self._due:
            self._beginning = True
            self._tasks.start_soon(self._pass)

    async def _pass(self) -> None:
        self._beginning = False
        ids = [one for one in self._due if one not in self._busy]
        if not ids:
            return
        for one in ids:
            del self._due[one]
        self._busy.update(ids)
        errors: Mapping[bytes, PenstockError] = {}
        try:
            errors = await self._reconcile(ids)
        except PenstockError as error:
            errors = dict.fromkeys(ids, kept(error))
        finally:
            self._busy.difference_update(ids)
            self._note(ids, errors)
            self._tell()
            self._begin()

    def _note(self, ids: Sequence[bytes], errors: Mapping[bytes, PenstockError]) -> None:
        """Who waits is told what failed, and that is tried again."""
        for one in ids:
            if one not in errors:
                self._backoffs.pop(one, None)
        self._errors.update(errors)
        failed = [one for one, error in errors.items() if not isinstance(error, ClosedError | FencedError)]
        if not failed or self._ended:
            return
        pause_s = 0.0
        is_news = False
        for one in failed:
            backoff = self._backoffs.setdefault(one, Backoff(_PAUSES_S, told_every=30))
            pause_s = max(pause_s, backoff.failed())
            is_news = is_news or backoff.is_news
        logger.log(
            logging.WARNING if is_news else logging.DEBUG,
            "%d topics aren't yet what metadata say, trying again in %d ms: %s",
            len(failed),
            pause_s * 1000,
            errors[failed[0]],
        )
        self._tasks.start_soon(self._mark_later, failed, pause_s)

    async def _mark_later(self, ids: Sequence[bytes], pause_s: float) -> None:
        await anyio.sleep(pause_s)
        self.mark(ids)

    def _tell(self) -> None:
        passed, self._passed = self._passed, anyio.Event()
        passed.set()
