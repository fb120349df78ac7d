"""Retry with back-off: what a failing medium holds up is tried again, less and less often, and told of at times."""

from __future__ import annotations

__all__ = ("Backoff", "doubling", "retry")

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from penstock.errors import PenstockError

T = TypeVar("T")


def doubling(first: float, last: float) -> tuple[float, ...]:
    """Pauses from ``first`` on, each twice the one before it, up to ``last``."""
    pauses = [min(first, last)]
    while 0 < pauses[-1] < last:
        pauses.append(min(pauses[-1] * 2, last))
    return tuple(pauses)


class Backoff:
    """The pauses between attempts: one after the other, the last one again and again, from the start after a success.

    ``jitter`` spreads them: 0.2 is up to a fifth more or less, as ``random``, a number below 1, says.
    """

    def __init__(
        self,
        pauses: Sequence[float],
        *,
        told_every: int = 20,
        jitter: float = 0.0,
        random: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self._pauses = pauses
        self._told_every = told_every
        self._jitter = jitter
        self._random = random
        #: Attempts that failed since the last success.
        self.failures = 0

    def failed(self) -> float:
        """An attempt failed; the pause before the next one, in the unit of ``pauses``."""
        pause = self._pauses[min(self.failures, len(self._pauses) - 1)]
        self.failures += 1
        return pause * (1 + self._jitter * (2 * self._random() - 1))

    def succeeded(self) -> None:
        """Begin with the first pause again."""
        self.failures = 0

    @property
    def is_news(self) -> bool:
        """Whether people are to be told of the last failure: the first, the fifth, and every so many."""
        return self.failures in (1, 5) or self.failures % self._told_every == 0


async def retry(
    what: str,
    step: Callable[[], Awaitable[T]],
    pauses_s: Sequence[float],
    *,
    logger: logging.Logger,
    on_failure: Callable[[PenstockError], None] = lambda error: None,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> T:
    """Do ``step`` until it succeeds, with a pause after each failure; raises only what can't be retried."""
    backoff = Backoff(pauses_s)
    while True:
        try:
            result = await step()
        except PenstockError as error:
            if not error.retryable:
                raise
            on_failure(error)
            pause_s = backoff.failed()
            if backoff.is_news:
                logger.warning("%s failed %d times, trying again: %s", what, backoff.failures, error)
            await sleep(pause_s)
        else:
            if backoff.failures:
                logger.warning("%s works again after %d failures", what, backoff.failures)
            return result
