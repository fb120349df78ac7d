"""Object lifecycle: gives up uncommitted objects past their deadline, deletes what nothing refers to (I6)."""

from __future__ import annotations

__all__ = ("ObjectLifecycle",)

import logging
from collections.abc import Callable

from penstock.bus import EventBus
from penstock.metadata.commands.objects import AbandonObjects, ForgetObjects
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService
from penstock.spi.block_cache import BlockCache
from penstock.spi.events import ObjectsDestroyed
from penstock.spi.object_store import ObjectStore
from penstock.stream.object_format import object_key
from penstock.work.periodic import PeriodicJob
from penstock.work.pieces import pieces

logger = logging.getLogger("penstock.stream.lifecycle")

#: Objects deleted, and forgotten in metadata, in one go.
DELETE_BATCH_MAX = 500
#: A time so much later than any can be is of a clock that was set back since.
CLOCK_SLACK_MS = 3_600_000


def due_objects(
    image: Image, now_ms: int, delete_delay_ms: int, prepare_deadline_ms: int
) -> tuple[list[int], list[int]]:
    """(prepared objects past their deadline, destroyed ones past the delay that readers are given).

    Those of a future that can't be are due as well, or they would stay until it comes: who still puts one puts it
    again, and who still reads one looks again.
    """
    expired = []
    deletable = []
    latest_ms = now_ms + CLOCK_SLACK_MS
    for held in image.objects.all():
        at_ms = held.at_ms
        if held.state == "prepared" and (at_ms <= now_ms or at_ms > latest_ms + prepare_deadline_ms):
            expired.append(held.object_id)
        elif held.state == "destroyed" and (at_ms + delete_delay_ms <= now_ms or at_ms > latest_ms):
            deletable.append(held.object_id)
    return expired, deletable


class ObjectLifecycle:
    """Deletes what is due: :attr:`job` does :meth:`sweep` on an interval."""

    def __init__(
        self,
        metadata: MetadataService,
        store: ObjectStore,
        block_cache: BlockCache,
        *,
        now_ms: Callable[[], int],
        interval_ms: int,
        delete_delay_ms: int,
        prepare_deadline_ms: int,
        bus: EventBus,
    ) -> None:
        self._metadata = metadata
        self._store = store
        self._block_cache = block_cache
        self._now_ms = now_ms
        self._delete_delay_ms = delete_delay_ms
        self._prepare_deadline_ms = prepare_deadline_ms
        self._bus = bus
        #: Sweeps; what fails is tried again at the next turn.
        self.job = PeriodicJob(
            "object deletion",
            lambda: self.sweep(),  # noqa: PLW0108 # whatever it is at the time
            interval_ms / 1000,
            logger=logger,
        )

    async def sweep(self) -> int:
        """Delete what is due; the number of objects deleted. Raises UnavailableError."""
        expired, deletable = due_objects(
            self._metadata.image, self._now_ms(), self._delete_delay_ms, self._prepare_deadline_ms
        )
        if expired:
            logger.warning("giving up %d uncommitted objects past their deadline", len(expired))
            await self._metadata.submit(AbandonObjects(expired))
        for batch in pieces(deletable, DELETE_BATCH_MAX):
            await self._store.delete([object_key(object_id) for object_id in batch])
            for object_id in batch:
                self._block_cache.forget_object(object_id)
            await self._metadata.submit(ForgetObjects(list(batch)))
            self._bus.publish(ObjectsDestroyed(object_ids=tuple(batch)))
        return len(deletable)
