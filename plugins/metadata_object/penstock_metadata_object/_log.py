"""The metadata log on an object store."""

from __future__ import annotations

__all__ = ("ObjectMetadataLog", "open_log")

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    AlreadyExistsError,
    CapabilityError,
    ClosedError,
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.spi.metadata_log import (
    MetadataEntry,
    MetadataLog,
    MetadataLogCapabilities,
    MetadataLogStatistics,
    MetadataSnapshot,
)
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock_metadata_object._format import (
    ENTRY_MAGIC,
    NONCE_BYTES,
    decode,
    encode_header,
    entry_index,
    entry_key,
)
from penstock_metadata_object._settings import Settings
from penstock_metadata_object._snapshots import Snapshots

#: Reads of entries that are in flight at once.
_READS_MAX = 16


@asynccontextmanager
async def open_log(settings: Settings, services: Services) -> AsyncIterator[MetadataLog]:
    """Open the log; costs no request. Raises CapabilityError without a store that has put-if-absent."""
    store = services.object_store
    if store is None or not store.capabilities.put_if_absent:
        raise CapabilityError(
            "metadata_object needs an object store with put_if_absent, choose another store"
        )
    log = ObjectMetadataLog(settings, store)
    try:
        yield log
    finally:
        log.close()


class ObjectMetadataLog:
    """See ``penstock.spi.metadata_log.MetadataLog`` for the contract of every method."""

    def __init__(self, settings: Settings, store: ObjectStore) -> None:
        self._settings = settings
        self._store = store
        self._prefix = settings.prefix
        self._snapshots = Snapshots(store, settings.prefix, settings.snapshots_kept)
        self._last_index = 0
        self._news = anyio.Event()
        self._closed = False
        self._appends = 0
        self._conflicts = 0
        self._interval_ms = settings.follow_interval_ms_min

    @property
    def capabilities(self) -> MetadataLogCapabilities:
        """Shareable if it looks for other brokers' entries in a store that outlives a host."""
        apart = self._store.capabilities.durability_domain not in {"process", "host"}
        return MetadataLogCapabilities(
            shareable=self._settings.follow and apart, entry_bytes_max=self._settings.entry_bytes_max
        )

    @property
    def location(self) -> str:
        """The store's location and the prefix."""
        return f"{self._store.location.rstrip('/')}/{self._prefix}"

    def close(self) -> None:
        """Answer every waiter with ClosedError."""
        self._closed = True
        self._news.set()

    def statistics(self) -> MetadataLogStatistics:
        """See ``MetadataLog.statistics``."""
        return MetadataLogStatistics(
            appends=self._appends,
            conflicts=self._conflicts,
            last_index=self._last_index,
            snapshot_index=self._snapshots.newest_index,
        )

    # --- append ----------------------------------------------------------------------------------------

    async def append(self, index: int, data: bytes) -> None:
        """See ``MetadataLog.append``."""
        self._check_open()
        if len(data) > self._settings.entry_bytes_max:
            raise InvalidRequestError(
                f"the metadata entry is too large, split it: index={index} bytes={len(data)} "
                f"entry_bytes_max={self._settings.entry_bytes_max}"
            )
        try:
            await self._check_next(index)
            await self._create(index, data)
        except ConflictError:
            self._conflicts += 1
            raise
        self._appends += 1
        self._learn(index)

    async def _check_next(self, index: int) -> None:
        """Raise unless ``index`` may be vacant and the entry before it exists, or a snapshot of it."""
        if index < 1:
            raise InvalidRequestError(f"metadata indexes start at 1: index={index}")
        if index <= self._last_index:
            await checkpoint()
            raise self._conflict(index)
        if index - 1 > self._last_index and not await self._exists(index - 1):
            is_dropped = False
            try:
                await self._snapshots.assert_not_dropped(index - 1)
            except NotFoundError:
                is_dropped = True
            if self._snapshots.newest_index == index - 1:
                return  # the snapshot has that entry
            if is_dropped:
                raise self._conflict(index)  # what is dropped was followed by entries, or a snapshot
            raise InvalidRequestError(
                f"the metadata entry would leave a gap, append the one before it first: index={index}"
            )

    async def _create(self, index: int, data: bytes) -> None:
        key = entry_key(self._prefix, index)
        header = encode_header(ENTRY_MAGIC, index, data, secrets.token_bytes(NONCE_BYTES))
        try:
            await self._store.put_if_absent(key, [header, data])
        except (AlreadyExistsError, UnavailableError) as error:
            await self._resolve(index, key, header + data, error)
        try:
            await self._snapshots.assert_not_dropped(index)
        except NotFoundError:
            # The key was vacant because the real entry had been dropped: this writer was away for long.
            await self._store.delete([key])
            raise self._conflict(index) from None

    async def _resolve(self, index: int, key: str, own: bytes, error: PenstockError) -> None:
        """Return if our own entry is there; the nonce in its header makes it unmistakable."""
        try:
            stored = await self._store.get(key)
        except NotFoundError:
            if isinstance(error, UnavailableError):
                raise again(error) from None
            raise self._conflict(index) from None  # taken, and dropped since
        if stored != own:
            self._learn(index)
            raise self._conflict(index) from None

    def _conflict(self, index: int) -> ConflictError:
        return ConflictError(f"another metadata entry has this index, catch up and try again: index={index}")

    # --- read ------------------------------------------------------------------------------------------

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        """See ``MetadataLog.read``. Windows of entries are read concurrently and given out in order."""
        self._check_open()
        if start_index < 1:
            raise InvalidRequestError(f"metadata indexes start at 1: start_index={start_index}")
        end = await self._listed_end(start_index)
        if end == start_index and (not self._last_index or self._last_index < start_index - 1):
            await self._snapshots.assert_not_dropped(start_index)  # nothing is known of what came before
        for first in range(start_index, end, _READS_MAX):
            indexes = range(first, min(first + _READS_MAX, end))
            window = await self._read_window(indexes)
            await self._snapshots.assert_not_dropped(first)
            self._learn(indexes[-1])
            for entry in window:
                yield entry

    async def _listed_end(self, start_index: int) -> int:
        """One past the newest entry at or after ``start_index``.

        Only the end counts: a listing may miss an entry that is created meanwhile and show the one after it.
        """
        end = start_index
        after = entry_key(self._prefix, start_index - 1)
        async for info in self._store.list(f"{self._prefix}log/", after):
            end = entry_index(self._prefix, info.key) + 1
        return end

    async def _read_window(self, indexes: Sequence[int]) -> list[MetadataEntry]:
        results: dict[int, MetadataEntry | PenstockError] = {}

        async def read_one(index: int) -> None:
            try:
                results[index] = await self._read_entry(index)
            except PenstockError as error:
                results[index] = kept(error)

        if len(indexes) == 1:
            await read_one(indexes[0])
        else:
            async with anyio.create_task_group() as tasks:
                for index in indexes:
                    tasks.start_soon(read_one, index)
        window: list[MetadataEntry] = []
        for index in indexes:
            result = results[index]
            if isinstance(result, PenstockError):
                raise again(result)
            window.append(result)
        return window

    async def _read_entry(self, index: int) -> MetadataEntry:
        key = entry_key(self._prefix, index)
        try:
            stored = await self._store.get(key)
        except NotFoundError:
            await self._snapshots.assert_not_dropped(index)
            raise CorruptError(
                f"a metadata entry is missing though later ones exist, restore it from a backup: "
                f"key={key!r} index={index}"
            ) from None
        return MetadataEntry(index, decode(ENTRY_MAGIC, index, key, stored))

    async def _exists(self, index: int) -> bool:
        try:
            await self._store.head(entry_key(self._prefix, index))
        except NotFoundError:
            return False
        self._learn(index)
        return True

    # --- news ------------------------------------------------------------------------------------------

    async def wait_for_news(self, after_index: int) -> None:
        """See ``MetadataLog.wait_for_news``.

        Without ``follow`` this costs no request: only appends and reads of this process wake it. With it, the
        next key is looked up, soon after news and ever more seldom when there is none.
        """
        await checkpoint()
        while True:
            self._check_open()
            if self._last_index > after_index:
                return
            news = self._news
            if not self._settings.follow:
                await news.wait()
                continue
            with anyio.move_on_after(self._interval_ms / 1000):
                await news.wait()
            if news.is_set():
                continue
            self._interval_ms = min(self._interval_ms * 2, self._settings.follow_interval_ms_max)
            if await self._next_exists(after_index):
                self._interval_ms = self._settings.follow_interval_ms_min
                return

    async def _next_exists(self, after_index: int) -> bool:
        try:
            if await self._exists(after_index + 1):
                return True
            # The next entry may have come and gone; only a new snapshot can tell.
            await self._snapshots.assert_not_dropped(after_index + 1)
        except NotFoundError:
            return True
        except UnavailableError:
            pass  # looked up again after the next interval
        return False

    def _learn(self, index: int) -> None:
        if index > self._last_index:
            self._last_index = index
            self._news.set()
            self._news = anyio.Event()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the metadata log is closed: location={self.location}")

    # --- snapshots -------------------------------------------------------------------------------------

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        """See ``MetadataLog.write_snapshot``. If a newer snapshot is there already, nothing is written."""
        self._check_open()
        index = snapshot.index
        begins = index > self._last_index and not await self._exists(index)
        if index < 1 or (begins and not await self._is_empty()):
            raise InvalidRequestError(f"a metadata snapshot is of an entry that exists: index={index}")
        await self._snapshots.write(snapshot, secrets.token_bytes(NONCE_BYTES), begins=begins)

    async def _is_empty(self) -> bool:
        return await self._listed_end(1) == 1 and await self._snapshots.read() is None

    async def read_snapshot(self) -> MetadataSnapshot | None:
        """See ``MetadataLog.read_snapshot``."""
        self._check_open()
        return await self._snapshots.read()
