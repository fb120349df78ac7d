"""When the garbage collector runs in a process that is a broker.

The broker makes no reference cycles per request, but libraries do, and bugs may; a cycle can hold megabytes. Python
decides by the number of objects alone: a few large cycles wait for ever in a broker that does little, and one that
caches many small records stops again and again to look through all of them. So here the young generations are small,
and the full pass goes by time and by the memory that nobody accounts for.

A full pass looks at what came since the one before, since what it leaves is frozen: it takes longer where more is
new, not where the broker is larger (200 ms of ten thousand topics). What was in use then and is garbage since waits
for a *whole* pass, which is rare.
"""

from __future__ import annotations

__all__ = ("Collector", "CollectorStatistics")

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from penstock.spi.statistics import counter, gauge
from penstock.work.periodic import JobStatistics, PeriodicJob

logger = logging.getLogger("penstock.broker")

#: Objects in the young generation, and young passes before a middle one, so that one looks at 1,500. In a pass nobody
#: is served, whichever thread it is in: of 2,000 objects it takes 0.4 ms among a broker's other work and a middle one
#: 1.1, nine times a second beside a reader of old data, which was most of p99 of producing. Smaller generations cost
#: no more: each object is looked at twice with either. What becomes garbage after that waits for a full pass.
_YOUNG_OBJECTS: Final = 500
_YOUNG_PASSES: Final = 1
#: Never by count: full passes are decided here.
_NEVER: Final = 1_000_000
_TICK_S: Final = 1.0
#: Ticks between middle passes; a cycle with an object from before the tick ends with one of these.
_MIDDLE_TICKS: Final = 10
#: Unaccounted memory that has come since the last full pass makes another one due.
_GROWTH_BYTES: Final = 24 * 1024 * 1024
_FULL_AFTER_S: Final = 300.0
#: The next full pass is a whole one when so much has come since the last whole pass; when it's so long ago, and what
#: makes a full pass due has come since; or after so long.
_WHOLE_GROWTH_BYTES: Final = 4 * _GROWTH_BYTES
_WHOLE_GROWTH_S: Final = 300.0
_WHOLE_AFTER_S: Final = 3600.0
#: A full pass takes at most this part of the time.
_FULL_PART: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorStatistics:
    """The work of the garbage collector since the start."""

    full_passes: Annotated[int, counter("passes", "Passes over all objects that came since the pass before.")]
    whole_passes: Annotated[
        int, counter("passes", "Those of them that were over all objects that there are.")
    ]
    full_ms_last: Annotated[float, gauge("ms", "How long the last full pass took.")]
    full_ms_max: Annotated[float, gauge("ms", "How long the longest took.")]
    collected: Annotated[int, counter("objects", "Objects that only the collector could free.")]
    job: JobStatistics


class Collector:
    """Takes the collector over with ``start``; ``run`` ticks until it is cancelled.

    ``unaccounted_bytes`` says how much memory the process has that is on nobody's account.
    """

    def __init__(
        self,
        unaccounted_bytes: Callable[[], int],
        *,
        clock: Callable[[], float] = time.perf_counter,
        collect: Callable[[int], int] = gc.collect,
        freeze: Callable[[], None] = gc.freeze,
        unfreeze: Callable[[], None] = gc.unfreeze,
    ) -> None:
        self._unaccounted_bytes = unaccounted_bytes
        self._clock = clock
        self._collect = collect
        self._freeze, self._unfreeze = freeze, unfreeze
        self._ticks = 0
        self._full_passes = self._whole_passes = 0
        self._full_s = self._whole_s = 0.0
        self._full_s_max = 0.0
        self._collected = 0
        self._full_at = self._whole_at = clock()
        self._base_bytes = self._whole_base_bytes = unaccounted_bytes()
        self._job = PeriodicJob("garbage collection", self.tick, _TICK_S, logger=logger)

    def start(self) -> None:
        """Leave what is there now, a start's objects, out of the passes, and set the young generations' sizes."""
        gc.collect()
        self._freeze()
        gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_PASSES, _NEVER)
        self._base_bytes = self._whole_base_bytes = self._unaccounted_bytes()

    async def run(self) -> None:
        """Tick once a second."""
        await self._job.run()

    def tick(self) -> None:
        """Do the pass that is due. Young passes are bounded; a full one stops everything for its time."""
        self._ticks += 1
        if self._is_full_due():
            self._run_full()
        else:
            self._collected += self._collect(1 if self._ticks % _MIDDLE_TICKS == 0 else 0)

    def _is_full_due(self) -> bool:
        passed_s = self._clock() - self._full_at
        if passed_s < self._full_s / _FULL_PART:
            return False
        unaccounted = self._unaccounted_bytes()
        self._base_bytes = min(self._base_bytes, unaccounted)
        self._whole_base_bytes = min(self._whole_base_bytes, unaccounted)
        return passed_s >= _FULL_AFTER_S or unaccounted - self._base_bytes >= _GROWTH_BYTES

    def _is_whole_due(self) -> bool:
        passed_s = self._clock() - self._whole_at
        if passed_s < self._whole_s / _FULL_PART:
            return False
        growth = self._unaccounted_bytes() - self._whole_base_bytes
        return (
            passed_s >= _WHOLE_AFTER_S
            or growth >= _WHOLE_GROWTH_BYTES
            or (passed_s >= _WHOLE_GROWTH_S and growth >= _GROWTH_BYTES)
        )

    def _run_full(self) -> None:
        is_whole = self._is_whole_due()
        started = self._clock()
        if is_whole:
            self._unfreeze()
        self._collected += self._collect(2)
        self._freeze()
        self._full_at = self._clock()
        self._full_s = self._full_at - started
        self._full_s_max = max(self._full_s_max, self._full_s)
        self._full_passes += 1
        # what a pass couldn't free is in use: it is no reason for the next one
        self._base_bytes = self._unaccounted_bytes()
        if is_whole:
            self._whole_passes += 1
            self._whole_at, self._whole_s = self._full_at, self._full_s
            self._whole_base_bytes = self._base_bytes

    def statistics(self) -> CollectorStatistics:
        """A snapshot."""
        return CollectorStatistics(
            full_passes=self._full_passes,
            whole_passes=self._whole_passes,
            full_ms_last=round(self._full_s * 1000, 1),
            full_ms_max=round(self._full_s_max * 1000, 1),
            collected=self._collected,
            job=self._job.statistics(),
        )
