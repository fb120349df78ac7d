"""Is this the metadata log that the WAL and the objects were written with, and is it all there?

A log that lost its newest entries looks like one that never had them: what was acknowledged is rolled back, ids are
given again. A log that isn't there looks like a new cluster. Others know better: the WAL has marks
(``penstock.stream.marks``), and the store has objects under ids that were given out. They are asked before anything
is written.
"""

from __future__ import annotations

__all__ = ("Loss", "MetadataCheck", "give_up_entries")

import logging
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from penstock.broker._wal import identify_wal, wal_spec
from penstock.errors import ConfigError, CorruptError, NotFoundError
from penstock.metadata.commands.cluster import SkipLost
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService, follow
from penstock.plugins import Selection
from penstock.spi.kinds import WAL
from penstock.spi.metadata_log import MetadataLog
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock.stream.marks import Evidence, collect_evidence
from penstock.stream.object_format import object_key
from penstock.stream.orphans import PREFIX as OBJECTS_PREFIX
from penstock.stream.orphans import object_id_of
from penstock.stream.replay import rolled_back

logger = logging.getLogger("penstock.broker")

#: So many ids after the last one given out are looked for in the store. They are given out in order, so if any was
#: given out by a lost entry, the first ones were, and most of those became objects.
PROBED_IDS = 16
#: About so many of the known objects are listed besides: retention may have deleted what became of those ids.
LISTED_OBJECTS = 1000
#: Stream and producer ids that lost entries may have given out are passed over in one large step.
SKIPPED_IDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Loss:
    """Entries up to the index ``reached`` are gone; object ids up to ``object_id``, 0 if unknown, were given out."""

    reached: int
    object_id: int

    @property
    def name(self) -> str:
        """The value of ``broker.accept_lost_metadata`` that gives this loss up, and no later one."""
        return f"{self.reached}+{self.object_id}" if self.object_id else str(self.reached)


class MetadataCheck:
    """Call it with the image that was read; afterwards, ``loss`` is what was accepted to be lost."""

    def __init__(
        self,
        log: MetadataLog,
        store: ObjectStore,
        selection: Selection,
        services: Callable[[Image], Services],
        accepted: str | None,
    ) -> None:
        """``services(image)`` are those of the WAL, for looking into it."""
        self._log = log
        self._store = store
        self._selection = selection
        self._services_of = services
        self._accepted = accepted
        self.loss: Loss | None = None

    async def __call__(self, image: Image) -> None:
        """Raise ConfigError or CorruptError if the log isn't the right one, or not all of it; nothing is changed.

        Brings the image up to date. Raises UnavailableError of log, store and WAL.
        """
        self._services = self._services_of(image)
        evidence = await self._read_wal()
        if evidence.foreign:
            raise ConfigError(
                f"what the WAL holds wasn't appended by a broker, nothing was changed; is it one replica of a WAL "
                f"that is in several places? set [wal] back to that WAL, or to a place of its own: "
                f"plugin={self._selection.names[WAL.name]} data_dir={self._services.data_dir} "
                f"reason={evidence.foreign}"
            )
        if not image.index:
            await self._check_new(evidence)
            return
        if evidence.cluster_id and evidence.cluster_id != image.cluster_id:
            raise ConfigError(
                f"the WAL is of another cluster than the metadata log, nothing was changed; point wal.path or "
                f"broker.data_dir, or object_store.url, to where they belong: wal_cluster={evidence.cluster_id} "
                f"cluster={image.cluster_id} metadata_log={self._log.location} data_dir={self._services.data_dir}"
            )
        await self._check_wal_end(image, evidence)
        loss = await self._find_loss(image, evidence)
        if loss is not None:
            # Whoever has the WAL now may have written since the image was read, and goes on: so what was found is
            # looked at again, not what there is by now. An object's id is given out before it is written.
            await follow(self._log, image)
            loss = _loss(image, evidence, loss.object_id)
        if loss is not None and loss.name != self._accepted:
            raise self._refusal(image, evidence, loss)
        if loss is None and self._accepted:
            logger.warning(
                "broker.accept_lost_metadata isn't needed, take it out: accept_lost_metadata=%s",
                self._accepted,
            )
        self.loss = loss

    async def _read_wal(self) -> Evidence:
        read = wal_spec(self._selection).read
        return (
            Evidence()
            if read is None
            else await collect_evidence(read(self._selection.settings[WAL.name], self._services))
        )

    async def _check_wal_end(self, image: Image, evidence: Evidence) -> None:
        """Refuse a WAL that ends before the newest mark which metadata say is durable in it: it was rolled back.

        The WAL was read after the image, so it can't be behind. One without any entry is left to recovery, which
        knows how far it was trimmed.
        """
        identity = await identify_wal(self._selection, self._services)
        for node in image.nodes.all():
            if node.wal_in_use and identity and node.wal == identity and 0 < evidence.end < node.wal_end:
                raise rolled_back(node, evidence.end, node.wal_location, ", and nothing was changed")

    async def _check_new(self, evidence: Evidence) -> None:
        """Refuse to begin a metadata log where a WAL or objects are: ids from the first on would overwrite them."""
        identity = await identify_wal(self._selection, self._services)
        if identity or evidence.records or evidence.index:
            raise ConfigError(
                f"there is a WAL, but the metadata log that it was written with isn't here, nothing was changed; is "
                f"the store mounted, and object_store.url right? for a new cluster, point broker.data_dir or "
                f"wal.path to a place of its own: metadata_log={self._log.location} "
                f"data_dir={self._services.data_dir} wal={identity or 'unnamed'} "
                f"wal_cluster={evidence.cluster_id or 'unknown'} reached={evidence.index}"
            )
        async for info in self._store.list(OBJECTS_PREFIX):
            if object_id_of(info.key) is not None:
                raise ConfigError(
                    "the object store holds objects, but the metadata log that knows them isn't here, nothing was "
                    "changed; point metadata_log.prefix back to it, or restore it, or set object_store.url to a "
                    f"place of its own for a new cluster: object={info.key} object_store={self._store.location} "
                    f"metadata_log={self._log.location}"
                )

    async def _find_loss(self, image: Image, evidence: Evidence) -> Loss | None:
        first = image.objects.next_id
        return _loss(
            image, evidence, await self._probe(first) or await self._sample(first, len(image.objects))
        )

    async def _probe(self, first: int) -> int:
        """The greatest of the first ids that weren't given out of which there is an object; 0 if there is none."""
        found = [0]

        async def look(object_id: int) -> None:
            try:
                await self._store.head(object_key(object_id))
            except NotFoundError:
                return
            found.append(object_id)

        async with anyio.create_task_group() as tasks:
            for object_id in range(first, first + PROBED_IDS):
                tasks.start_soon(look, object_id)
        return max(found)

    async def _sample(self, first: int, known: int) -> int:
        """The greatest id from ``first`` on of some of the objects that are there, 0 if none has such an id.

        Keys begin with the last digit of an id, so those with the same first digits are of all times.
        """
        digits = 0
        while known >> 4 * digits > LISTED_OBJECTS:
            digits += 1
        found = 0
        async for info in self._store.list(OBJECTS_PREFIX + "0" * digits):
            object_id = object_id_of(info.key) or 0
            found = max(found, object_id if object_id >= first else 0)
        return found

    def _refusal(self, image: Image, evidence: Evidence, loss: Loss) -> CorruptError:
        if evidence.index > image.index:
            what = "the newest metadata entries are lost, the WAL says that there were more"
        else:
            what = (
                "the newest metadata entries are lost, or another cluster writes here: objects have ids that were "
                "never given out"
            )
        unknown = f" object={object_key(loss.object_id)}" if loss.object_id else ""
        return CorruptError(
            f"{what}; nothing was changed: restore what follows the last entry (from a copy, or from versions that "
            f"the store keeps), or give up what was acknowledged with it by broker.accept_lost_metadata={loss.name}: "
            f"metadata_log={self._log.location} found={image.index} reached={loss.reached}{unknown}"
        )


async def give_up_entries(metadata: MetadataService, store: ObjectStore, loss: Loss) -> None:
    """Go on without the lost entries, and give no index and no id again that they may have given out."""
    logger.error(
        "METADATA ENTRIES WERE GIVEN UP, as broker.accept_lost_metadata demands: what was acknowledged with them is "
        "lost; take the key out now: found=%d reached=%d",
        metadata.image.index,
        loss.reached,
    )
    last = loss.object_id
    if last:
        async for info in store.list(OBJECTS_PREFIX):
            last = max(last, object_id_of(info.key) or 0)
    await metadata.submit(SkipLost(last + 1, SKIPPED_IDS))
    while metadata.image.index < loss.reached:
        await metadata.submit(SkipLost(0, 0))


def _loss(image: Image, evidence: Evidence, object_id: int) -> Loss | None:
    """What the image lacks of the entries that the WAL knows of, and of the one that gave ``object_id`` out."""
    if object_id < image.objects.next_id:
        object_id = 0
    if evidence.index <= image.index and not object_id:
        return None
    return Loss(max(evidence.index, image.index), object_id)
