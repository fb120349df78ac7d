"""The write-ahead log: joins group commit, the writer and the log in the store."""

from __future__ import annotations

__all__ = ("CAPABILITIES", "ObjectWal", "open_wal")

import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import anyio
import anyio.lowlevel

from penstock.errors import (
    CapabilityError,
    CorruptError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
)
from penstock.spi import Buffer, Services
from penstock.spi.object_store import ObjectStore
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics
from penstock.threads import run_in_thread
from penstock.wal import Cursor, Group, GroupCommit, GroupWriter, encode_group
from penstock_wal_s3._format import HEADER_BYTES, NONCE_BYTES, Header, Key, Kind
from penstock_wal_s3._log import ObjectLog, Survey, folder_of
from penstock_wal_s3._puts import Puts
from penstock_wal_s3._settings import Settings

logger = logging.getLogger("penstock.wal.s3")

CAPABILITIES = WalCapabilities(
    durability_domain="region",
    shareable=True,
    fencing=True,
    seal=True,
    identity=True,
    expected_latency_ms_p50=60.0,
)
#: A group of more entries is laid out in a thread.
_ENTRIES_INLINE = 500
#: A seal outlives its slot by so long: see ``_puts``.
_SEAL_KEPT_S = 3600.0
_NOTE_TIMEOUT_S = 5.0
_DELETE_KEYS_MAX = 1000


class _Flight(NamedTuple):
    """A group on its way; not with its bytes, which must not outlive the put."""

    key: Key
    end_position: int
    #: The start that its header tells.
    start: Key


class _Stored(NamedTuple):
    """A group in the store."""

    position: int
    end_position: int
    key: Key


class ObjectWal:
    """A WAL of numbered objects. Everything lives on the event loop."""

    def __init__(
        self, log: ObjectLog, store: ObjectStore, found: Survey, settings: Settings, services: Services
    ) -> None:
        self._log = log
        self._store = store
        self._found = found
        self._services = services
        self._capabilities = replace(
            CAPABILITIES,
            durability_domain=cast("Any", store.capabilities.durability_domain),
            shareable=store.capabilities.durability_domain != "process",
            entry_bytes_max=settings.entry_bytes_max,
        )
        self._commit = GroupCommit(
            group_bytes_max=settings.object_bytes_max, entry_bytes_max=settings.entry_bytes_max
        )
        self.writer = GroupWriter(
            self._commit,
            begin=self._begin,
            write=self._write,
            failed=lambda error: logger.error("the wal stops: %s", error),
            writes_max=settings.writes_max,
            linger_s=settings.linger / 1000,
            clock=services.clock,
        )
        self._puts = Puts(
            store,
            hedge_after_ms=settings.hedge_after,
            clock=services.clock,
            still_owner=self._check_owner,
        )
        self._nonce = os.urandom(NONCE_BYTES)
        self._recovery_started = False
        self._recovered = False
        self._sealed = self._is_seal_stored = found.sealed
        #: What seals the log, as long as it isn't known to be in the store.
        self._unkept_seal: Header | None = None
        self._next_slot = found.end.slot
        self._confirmed_slot = found.end.slot - 1
        self._digest = 0
        self._flights: deque[_Flight] = deque()
        #: Groups in the store from the start on, confirmed; at least one if there ever was one.
        self._stored: deque[_Stored] = deque()
        #: Where a recovery is to begin, and where the newest confirmed object says so.
        self._start = self._durable_start = found.start
        #: To be deleted once the durable start is behind them; seals, and what may be one, later and one by one. What
        #: is larger than a header holds data.
        leftovers = sorted(key for key in found.sizes if key < found.start)
        self._superfluous = [key for key in leftovers if found.sizes[key] > HEADER_BYTES]
        self._late = [key for key in leftovers if found.sizes[key] <= HEADER_BYTES]
        self._opened_at = services.clock()

    @property
    def capabilities(self) -> WalCapabilities:
        """See ``WriteAheadLog.capabilities``."""
        return self._capabilities

    @property
    def location(self) -> str:
        """See ``WriteAheadLog.location``."""
        return self._log.location

    async def recover(self) -> AsyncIterator[WalEntry]:
        """See ``WriteAheadLog.recover``."""
        if self._recovery_started:
            raise InvalidRequestError("recover runs once, open the wal again to read it again")
        self._recovery_started = True
        found, log = self._found, self._log
        in_log: set[Key] = set()
        try:
            async for header, group in log.read(found):
                in_log.add(header.key)
                if group is None:
                    (self._late if header.kind.ends_owner else self._superfluous).append(header.key)
                    continue
                end = log.cursor.position
                self._stored.append(_Stored(group.header.position, end, header.key))
                for entry in group.entries:
                    if entry.next_position > found.trim_position:
                        yield entry
        except CorruptError:
            await self._check_overtaken()  # a successor deletes what it has trimmed
            raise
        self._superfluous += found.sizes.keys() - in_log - {*self._late, *self._superfluous}  # strays
        self._recovered = True
        cursor = log.cursor
        self._digest = cursor.digest
        start = self._stored[0].position if self._stored else cursor.position
        self._commit.start(
            cursor.position, cursor.sequence, start_position=start, trimmed=found.trim_position
        )
        if self._sealed:
            self.writer.fail(self._is_sealed())

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        """See ``WriteAheadLog.append``."""
        append = self._commit.append(data, checksum)
        self.writer.wake()
        return append

    async def trim(self, position: int) -> None:
        """See ``WriteAheadLog.trim``. The next object tells of it, the next trim deletes; or the end does both."""
        if not self._recovered:
            raise InvalidRequestError("recover the wal to its end before trimming")
        position = min(
            position, self._commit.confirmed_position
        )  # what is there now, nothing that comes later
        await anyio.lowlevel.checkpoint()
        if position <= self._commit.trimmed_position:
            return
        self._settle()
        stored = self._stored
        while len(stored) > 1 and stored[0].end_position <= position:
            self._superfluous.append(stored.popleft().key)
        if stored:
            self._start = max(self._start, stored[0].key)
        self._commit.release(stored[0].position if stored else 0, position)
        await self._delete()

    async def seal(self) -> None:
        """See ``WriteAheadLog.seal``. Appends that were on their way before are acknowledged."""
        if not self._recovered:
            raise InvalidRequestError("recover the wal to its end before sealing it")
        try:
            await self.writer.hold()
            if self._commit.state == "open" and not self._sealed:
                self._sealed = True
                self._settle()
                self._unkept_seal = self._header(Kind.NOTE)
            elif not self._sealed:
                self._commit.check_open()  # who was fenced, or has failed, seals nothing
            await self._keep_seal()
        except FencedError as error:
            self.writer.fail(error)
            raise
        finally:
            if self._sealed:
                # also after an error, or a cancellation: the slot may be sealed, or vacant, so nothing goes behind it
                self.writer.fail(self._is_sealed())
            self.writer.resume()

    def statistics(self) -> WalStatistics:
        """See ``WriteAheadLog.statistics``."""
        return self._commit.statistics(last_group_us=self.writer.last_write_us)

    async def close(self) -> None:
        """Write what was appended, note how far the log is trimmed, answer everybody."""
        await self.writer.close()
        if not self._recovered or not (self._commit.state == "closed" or self._is_seal_stored):
            return  # nothing goes behind a slot that may be a successor's, which reads what is before it
        self._settle()
        if self._start > self._durable_start and not self._flights:
            with anyio.move_on_after(_NOTE_TIMEOUT_S, shield=True):
                try:
                    await self._note()
                    await self._delete()
                except PenstockError as error:  # the next start only has more to read
                    logger.warning("the wal's trim wasn't noted: wal=%s error=%s", self.location, error)

    # -- writing -------------------------------------------------------------------------------------------

    def _header(self, kind: Kind) -> Header:
        key = Key(self._services.epoch, self._next_slot)
        self._next_slot += 1
        return Header(
            kind=kind,
            sealed=self._sealed,
            log_id=self._found.log_id,
            key=key,
            writer=self._services.epoch,
            first_slot=self._found.first_slot,
            confirmed_slot=self._confirmed_slot,
            start=self._start,
            trim_position=self._commit.trimmed_position,
            nonce=self._nonce,
        )

    async def _begin(self, group: Group) -> tuple[Key, list[Buffer]]:
        self._settle()
        header = self._header(Kind.DATA)
        encode = partial(
            encode_group,
            log_id=header.log_id,
            cursor=Cursor(group.position, group.sequence, self._digest),
            epoch=header.writer,
            confirmed_position=self._commit.confirmed_position,
            appends=group.appends,
            payloads=group.payloads,
            checksums=group.checksums,
        )
        many = len(group.entries) > _ENTRIES_INLINE
        parts, self._digest = await run_in_thread(encode) if many else encode()
        self._flights.append(_Flight(header.key, group.end_position, header.start))
        return header.key, [header.encode(), *parts]

    async def _write(self, begun: tuple[Key, list[Buffer]]) -> None:
        key, body = begun
        charge = None
        if self._services.allocator is not None:  # stores over a network make one piece of it
            charge = self._services.allocator.charge_anyway(sum(map(len, body)), "wal")
        try:
            await self._puts.create(key.under(self._log.folder), body)
        finally:
            if charge is not None:
                charge.release()

    def _settle(self) -> None:
        """Take into account which groups were confirmed meanwhile."""
        while self._flights and self._flights[0].end_position <= self._commit.confirmed_position:
            flight = self._flights.popleft()
            position = self._stored[-1].end_position if self._stored else 0
            self._stored.append(_Stored(position, flight.end_position, flight.key))
            self._confirmed_slot = flight.key.slot
            self._durable_start = flight.start

    async def _note(self) -> None:
        """Put an object that holds no entries, with nothing in flight."""
        self._settle()
        await self._keep(self._header(Kind.NOTE))

    async def _keep_seal(self) -> None:
        """Put the seal where it was to be, also if that was given up: nothing counts behind a vacant slot."""
        if (seal := self._unkept_seal) is not None:
            await self._keep(seal)
            self._unkept_seal = None
            self._is_seal_stored = True

    async def _keep(self, note: Header) -> None:
        await self._puts.create(note.key.under(self._log.folder), [note.encode()])
        if note.key.slot > self._confirmed_slot:  # two may have put the same seal
            self._confirmed_slot = note.key.slot
            self._durable_start = note.start
            self._superfluous.append(note.key)

    async def _check_overtaken(self) -> None:
        """Raise FencedError if the log has a newer owner by now."""
        found = await self._log.survey()
        if found is not None and found.end.epoch > self._services.epoch:
            raise FencedError(
                f"a newer owner took the wal over: wal={self._log.location} owner_epoch={found.end.epoch} "
                f"epoch={self._services.epoch}"
            )

    async def _check_owner(self) -> None:
        """Raise FencedError if a newer owner deleted what this one never deletes: its newest object."""
        while True:
            self._settle()
            slot = self._confirmed_slot
            key = Key(self._services.epoch, slot)
            if slot < self._found.first_slot:
                assert self._found.seal is not None, "an owner knows its seal"
                key = self._found.seal.key
            try:
                await self._store.head(key.under(self._log.folder))
                return
            except NotFoundError:
                self._settle()
                if self._confirmed_slot == slot:
                    raise FencedError(f"a newer owner took the wal over: wal={self.location}") from None

    def _is_sealed(self) -> FencedError:
        return FencedError(f"the wal is sealed, it takes no appends any more: wal={self.location}")

    # -- deleting ------------------------------------------------------------------------------------------

    async def _delete(self) -> None:
        """Delete what no recovery needs: what is before the start that a confirmed object tells.

        Nothing in flight tells of an older start then, and neither does anything behind a successor's seal. A seal
        goes last of all, when whoever it ended has long noticed, and after the objects before it.
        """
        start = self._durable_start
        due = [key for key in self._superfluous if key < start]
        late: list[Key] = []
        if self._services.clock() - self._opened_at > _SEAL_KEPT_S:
            late = [key for key in self._late if key < start]
        batches = [due[at : at + _DELETE_KEYS_MAX] for at in range(0, len(due), _DELETE_KEYS_MAX)]
        try:
            for batch in [*batches, *([key] for key in late)]:
                await self._store.delete([key.under(self._log.folder) for key in batch])
        except PenstockError as error:
            logger.debug("objects of the wal weren't deleted, the next trim does it: %s", error)
            return
        gone = {*due, *late}
        self._superfluous = [key for key in self._superfluous if key not in gone]
        self._late = [key for key in self._late if key not in gone]


@asynccontextmanager
async def open_wal(settings: Settings, services: Services) -> AsyncIterator[ObjectWal]:
    """Open, or create, the log of ``services.node_id``, and fence its older owners.

    Raises CapabilityError, FencedError, CorruptError, UnavailableError with a sentence for people.
    """
    store = services.object_store
    if store is None or not store.capabilities.put_if_absent:
        raise CapabilityError(
            "wal_s3 needs an object store with put_if_absent, choose another store or wal.plugin"
        )
    log = ObjectLog(store, folder_of(settings, services))
    found = await log.take_over(services.epoch)
    wal = ObjectWal(log, store, found, settings, services)
    async with wal.writer:
        try:
            yield wal
        finally:
            await wal.close()
