"""A plain write-ahead log of numbered objects, which broken ones are made of."""

from __future__ import annotations

__all__ = ("StoreWal", "open_store_wal")

import os
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import ClassVar

import anyio

from penstock.errors import (
    AlreadyExistsError,
    CorruptError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer, Services
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics
from penstock.wal import (
    Cursor,
    DamageError,
    DecodedGroup,
    Group,
    GroupCommit,
    GroupWriter,
    decode_group,
    encode_group,
    parse_group_header,
)
from penstock_conformance.reference._wal import WAL_CAPABILITIES

#: Epoch and nonce of who put the object; what follows is a group, or nothing in the seal of a takeover.
_HEAD = struct.Struct(">Q8s")
_LOG_ID = 1


class StoreWal:
    """See ``penstock.spi.wal.WriteAheadLog``. An object for each group; a takeover takes the next number.

    What it puts there stays for ever: the owner before may sleep until everything else is trimmed, and goes on there.
    """

    #: Puts at the same time.
    writes_max: ClassVar[int] = 1
    capabilities: WalCapabilities = replace(WAL_CAPABILITIES, bounded=False, seal=False, identity=False)
    location = "numbered objects"

    def __init__(self, store: ObjectStore, epoch: int) -> None:
        self._store = store
        self._epoch = epoch
        self._nonce = os.urandom(8)
        self._commit = GroupCommit(group_bytes_max=64 * 1024, entry_bytes_max=2**20)
        self.writer = GroupWriter(
            self._commit,
            begin=self._begin,
            write=self._write,
            writes_max=self.writes_max,
            linger_s=0.001,
            close_timeout_s=2.0,
        )
        self._slot = 0
        self._digest = 0
        #: Numbers and ends of the groups that are there.
        self._kept: deque[tuple[int, int]] = deque()
        #: Numbers of objects that are to be deleted.
        self._undropped: list[int] = []

    # -- taking over and reading ---------------------------------------------------------------------------

    async def take_over(self) -> None:
        """Put a seal at the first vacant number. Raises FencedError if a newer owner is there."""
        while True:
            slots = await self._slots()
            if slots:
                epoch, _ = _HEAD.unpack_from(await self._store.get(self._key(slots[-1])))
                if epoch >= self._epoch:
                    raise FencedError(
                        f"a newer owner holds the log, or this epoch was used before: epoch={epoch} own={self._epoch}"
                    )
            self._slot = slots[-1] + 1 if slots else 0
            try:
                await self._put(self._slot, [])
            except FencedError:
                continue  # another owner was faster, old or new
            self._slot += 1
            return

    async def _slots(self) -> list[int]:
        return [int(info.key.rpartition("/")[2]) async for info in self._store.list("wal/")]

    async def recover(self) -> AsyncIterator[WalEntry]:
        cursor = Cursor()
        wanted = -1
        for slot in await self._slots():
            if (
                wanted not in (-1, slot) and cursor != Cursor()
            ):  # behind seals alone what is missing was trimmed
                raise CorruptError(f"an object is missing: slot={wanted} position={cursor.position}")
            wanted = slot + 1
            body = memoryview(await self._body(slot, cursor))[_HEAD.size :]
            if not body:
                continue
            if cursor == Cursor() and (first := parse_group_header(body)) is not None:
                cursor = Cursor(first.position, first.sequence, first.previous_digest)
            try:
                group = decode_group(body, cursor, log_id=_LOG_ID)
            except DamageError as damage:
                raise CorruptError(
                    f"an object is damaged: slot={slot} position={damage.position}"
                ) from damage
            cursor = self._after(group)
            self._kept.append((slot, cursor.position))
            for entry in group.entries:
                yield entry
        self._digest = cursor.digest
        self._commit.start(cursor.position, cursor.sequence)

    async def _body(self, slot: int, cursor: Cursor) -> Buffer:
        try:
            return await self._store.get(self._key(slot))
        except NotFoundError as error:
            raise CorruptError(f"an object is missing: slot={slot} position={cursor.position}") from error

    @staticmethod
    def _after(group: DecodedGroup) -> Cursor:
        found = group.header
        return Cursor(found.position + found.length, found.sequence + 1, found.digest)

    # -- writing -------------------------------------------------------------------------------------------

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = self._commit.append(data, checksum)
        self.writer.wake()
        return append

    async def _begin(self, group: Group) -> tuple[int, list[Buffer]]:
        slot = self._slot
        self._slot += 1
        parts, self._digest = encode_group(
            log_id=_LOG_ID,
            cursor=Cursor(group.position, group.sequence, self._digest),
            epoch=self._epoch,
            confirmed_position=self._commit.confirmed_position,
            appends=group.appends,
            payloads=group.payloads,
        )
        self._kept.append((slot, group.end_position))
        return slot, parts

    async def _write(self, begun: tuple[int, list[Buffer]]) -> None:
        await self._put(*begun)

    async def _put(self, slot: int, parts: list[Buffer]) -> None:
        """Wait for a store that is away. Raises FencedError if another owner has the number."""
        body = [_HEAD.pack(self._epoch, self._nonce), *parts]
        while True:
            try:
                await self._put_once(slot, body)
                return
            except UnavailableError:
                await anyio.sleep(0.005)

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        try:
            await self._store.put_if_absent(self._key(slot), body)
        except AlreadyExistsError:
            found = await self._store.get(self._key(slot), 0, _HEAD.size)
            if bytes(found) != body[0]:
                raise FencedError(f"another owner has the number: slot={slot}") from None

    @staticmethod
    def _key(slot: int) -> str:
        return f"wal/{slot:012}"

    async def trim(self, position: int) -> None:
        kept = self._kept
        confirmed = min(position, self._commit.confirmed_position)
        gone = []
        while len(kept) > 1 and kept[0][1] <= confirmed:
            gone.append(kept.popleft()[0])
        await self._drop(gone)

    async def _drop(self, slots: list[int]) -> None:
        """From the first on, those that couldn't be deleted before included, so that there is never a hole."""
        self._undropped = sorted({*self._undropped, *slots})
        while self._undropped:
            slot = self._undropped[0]
            try:
                await self._store.delete([self._key(slot)])
            except UnavailableError:
                return  # it stays, and so does what is behind it
            self._undropped = [
                other for other in self._undropped if other != slot
            ]  # another trim may be at it

    async def seal(self) -> None:
        raise InvalidRequestError("this log can't be sealed")

    def statistics(self) -> WalStatistics:
        return self._commit.statistics()


@asynccontextmanager
async def open_store_wal(
    make: Callable[[ObjectStore, int], StoreWal], services: Services
) -> AsyncIterator[StoreWal]:
    """Open a log of the class ``make`` as ``services`` say."""
    assert services.object_store is not None, "the suite serves logs with an object store"
    wal = make(services.object_store, services.epoch)
    try:
        await wal.take_over()
        async with wal.writer:
            yield wal
    except OSError as error:
        raise UnavailableError(f"the store failed: {error}") from error
