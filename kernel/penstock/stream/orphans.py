"""Orphan sweep: deletes objects in the store that metadata doesn't know (I6).

An object becomes an orphan when its put lands late: its writer died or gave up, and metadata forgot its id before.

Why deleting is safe, whenever it happens and however old the image is: metadata gives out each object id once, in
order. An id below ``next_object_id`` that isn't in the image was forgotten, and what was forgotten is never
prepared or committed again. An id that a live writer holds, or gets later, is in the image or not below
``next_object_id``. So the grace time is no part of the proof: it only keeps the sweep away from what happens now.
One node of a cluster is enough to sweep; it doesn't matter which.
"""

from __future__ import annotations

__all__ = ("OrphanStatistics", "OrphanSweeper", "is_orphan", "object_id_of")

import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Annotated

import anyio

from penstock.bus import EventBus
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService
from penstock.spi.events import ObjectsDestroyed
from penstock.spi.object_store import RESERVED_PREFIXES, ObjectInfo, ObjectStore
from penstock.spi.statistics import counter, gauge
from penstock.stream.object_format import object_key
from penstock.work.periodic import PeriodicJob
from penstock.work.retry import doubling

logger = logging.getLogger("penstock.stream.orphans")

(PREFIX,) = RESERVED_PREFIXES
#: The first sweep comes so long after a start, or after the interval if that is shorter.
FIRST_DELAY_MS = 60_000
#: Pause after a sweep that failed; it doubles with each further failure, up to the interval.
RETRY_MS = 10_000
#: Orphans deleted with one call.
DELETE_BATCH_MAX = 500
#: After so many listed objects others get their turn: 10,000 objects a second at most, whatever the store gives.
PAGE_OBJECTS = 100
PAGE_PAUSE_S = 0.01
#: With more objects than this, the store is listed by first digits: a directory is sorted whole, in one go.
LISTED_WHOLE_MAX = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanStatistics:
    """Counts since the start; ``unknown_objects`` of the last sweep have ids that metadata never gave out."""

    sweeps: Annotated[int, counter("sweeps", "Sweeps that were finished.")]
    failures: Annotated[int, counter("sweeps", "Sweeps that failed, and went on later.")]
    listed_objects: Annotated[int, counter("objects", "Objects that were listed.")]
    deleted_objects: Annotated[int, counter("objects", "Objects that were deleted.")]
    deleted_bytes: Annotated[int, counter("bytes", "Their bytes.")]
    unknown_objects: Annotated[
        int, gauge("objects", "Of the last sweep, with ids that were never given out.")
    ]


def object_id_of(key: str) -> int | None:
    """The id of an object's key; None if it isn't the key of an object of ours."""
    try:
        object_id = int(key.removeprefix(PREFIX)[::-1], 16)
    except ValueError:
        return None
    return object_id if object_id > 0 and object_key(object_id) == key else None


def is_orphan(image: Image, object_id: int) -> bool:
    """Whether metadata forgot the id; once true, it is true for every later image as well."""
    return image.objects.is_forgotten(object_id)


class _Sweep:
    """One pass over the store; it outlives failures, and goes on where it was."""

    __slots__ = (
        "deleted",
        "deleted_bytes",
        "listed",
        "now_ms",
        "position",
        "settled",
        "unknown",
        "unknown_id",
    )

    def __init__(self, now_ms: int, settled: int) -> None:
        self.now_ms = now_ms
        #: Ids below this were given out before the grace time began.
        self.settled = settled
        #: Objects up to this key are done.
        self.position = PREFIX
        self.listed = 0
        self.deleted = 0
        self.deleted_bytes = 0
        self.unknown = 0
        self.unknown_id = 0


class OrphanSweeper:
    """Deletes what is due: :attr:`job` does :meth:`sweep` on an interval."""

    def __init__(
        self,
        metadata: MetadataService,
        store: ObjectStore,
        *,
        now_ms: Callable[[], int],
        interval_ms: int,
        grace_ms: int,
        bus: EventBus,
    ) -> None:
        self._metadata = metadata
        self._store = store
        self._now_ms = now_ms
        self._grace_ms = grace_ms
        self._bus = bus
        self._current: _Sweep | None = None
        #: (when, next object id then): tells the age of ids where the store doesn't tell the age of objects.
        self._noted: tuple[int, int] | None = None
        self._settled = 0
        self._warned = False
        self._sweeps = 0
        #: Sweeps; one that failed goes on after a pause.
        self.job = PeriodicJob(
            "orphan sweep",
            lambda: self.sweep(),  # noqa: PLW0108 # whatever it is at the time
            interval_ms / 1000,
            first_s=min(interval_ms, FIRST_DELAY_MS) / 1000,
            retry_s=doubling(RETRY_MS / 1000, interval_ms / 1000),
            logger=logger,
        )
        self._listed = 0
        self._deleted = 0
        self._deleted_bytes = 0
        self._unknown = 0

    async def sweep(self) -> int:
        """Delete orphans older than the grace time; how many. Goes on where a failed one was.

        Raises UnavailableError.
        """
        if self._current is None:
            now_ms = self._now_ms()
            self._current = _Sweep(now_ms, self._settled_below(now_ms))
        sweep = self._current
        image = self._metadata.image
        digits = [""] if len(image.objects) <= LISTED_WHOLE_MAX else "0123456789abcdef"
        for digit in digits:
            prefix = PREFIX + digit
            if sweep.position[: len(prefix)] <= prefix:
                await self._sweep_prefix(sweep, prefix)
        self._current = None
        self._finish(sweep)
        return sweep.deleted

    def statistics(self) -> OrphanStatistics:
        """A snapshot of the state."""
        return OrphanStatistics(
            sweeps=self._sweeps,
            failures=self.job.statistics().failures,
            listed_objects=self._listed,
            deleted_objects=self._deleted,
            deleted_bytes=self._deleted_bytes,
            unknown_objects=self._unknown,
        )

    def _settled_below(self, now_ms: int) -> int:
        """Every id below this was given out at least the grace time ago, in this process's sight."""
        next_object_id = self._metadata.image.objects.next_id
        if not self._grace_ms:
            return next_object_id
        if self._noted is None or now_ms < self._noted[0]:  # the clock was set back: begin again
            self._noted = (now_ms, next_object_id)
        elif self._noted[0] + self._grace_ms <= now_ms:
            self._settled = self._noted[1]
            self._noted = (now_ms, next_object_id)
        return self._settled

    async def _sweep_prefix(self, sweep: _Sweep, prefix: str) -> None:
        found: list[tuple[int, ObjectInfo]] = []
        ordered = self._store.capabilities.ordered_listing
        # without an order there is no way on from the middle: one that failed looks at all of the prefix again
        listing = self._store.list(prefix, sweep.position if ordered else "")
        last = sweep.position
        listed = 0
        try:
            async for info in listing:
                listed += 1
                last = info.key
                if listed % PAGE_OBJECTS == 0:
                    await anyio.sleep(PAGE_PAUSE_S)
                object_id = object_id_of(info.key)
                if object_id is None:
                    continue
                if object_id >= self._metadata.image.objects.next_id:
                    sweep.unknown += 1
                    sweep.unknown_id = max(sweep.unknown_id, object_id)
                elif is_orphan(self._metadata.image, object_id) and self._is_old(sweep, object_id, info):
                    found.append((object_id, info))
                if len(found) >= DELETE_BATCH_MAX:
                    await self._delete(sweep, found)
                    sweep.position = last if ordered else sweep.position
                    found.clear()
            await self._delete(sweep, found)
            sweep.position = last if ordered else sweep.position
        finally:
            sweep.listed += listed
            if isinstance(listing, AsyncGenerator):
                await listing.aclose()

    def _is_old(self, sweep: _Sweep, object_id: int, info: ObjectInfo) -> bool:
        if 0 < info.modified_ms <= sweep.now_ms + self._grace_ms:
            return info.modified_ms + self._grace_ms <= sweep.now_ms
        return object_id < sweep.settled  # the store tells no time, or one that can't be

    async def _delete(self, sweep: _Sweep, found: list[tuple[int, ObjectInfo]]) -> None:
        # the listing took its time: what counts is the image now
        image = self._metadata.image
        orphans = [(object_id, info) for object_id, info in found if is_orphan(image, object_id)]
        if not orphans:
            return
        await self._store.delete([info.key for _, info in orphans])
        sweep.deleted += len(orphans)
        sweep.deleted_bytes += sum(info.size for _, info in orphans)
        self._bus.publish(ObjectsDestroyed(object_ids=tuple(object_id for object_id, _ in orphans)))

    def _finish(self, sweep: _Sweep) -> None:
        self._sweeps += 1
        self._listed += sweep.listed
        self._deleted += sweep.deleted
        self._deleted_bytes += sweep.deleted_bytes
        self._unknown = sweep.unknown
        logger.log(
            logging.INFO if sweep.deleted else logging.DEBUG,
            "orphan sweep: listed %d objects, deleted %d that metadata doesn't know, %d bytes",
            sweep.listed,
            sweep.deleted,
            sweep.deleted_bytes,
        )
        # known by now if another node prepared it while we listed
        if not self._warned and sweep.unknown_id >= self._metadata.image.objects.next_id:
            self._warned = True
            logger.warning(
                "the object store has %d objects with ids that metadata never gave out; they are left alone, find "
                "out whether metadata is older than the store, or another cluster writes here: "
                "greatest=%s next_id=%d",
                sweep.unknown,
                object_key(sweep.unknown_id),
                self._metadata.image.objects.next_id,
            )
