"""The log as it is in the store: finding its end, taking it over, reading it.

Who holds a log is whoever sealed the objects of the owner before. A slot is created with put-if-absent, so of an
owner that puts there and a successor that seals there exactly one succeeds. The old owner acknowledges in slot order,
so nothing from the seal on was, and never will be. What it had on its way to later slots may land there: such
*strays* are told from the log by being behind a seal.
"""

from __future__ import annotations

__all__ = ("ObjectLog", "Survey", "folder_of")

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from penstock.errors import (
    AlreadyExistsError,
    CorruptError,
    FencedError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.spi import Buffer, Services
from penstock.spi.object_store import ObjectStore
from penstock.wal import Cursor, DamageError, DecodedGroup, decode_group, parse_group_header
from penstock_wal_s3._format import BIRTH, HEADER_BYTES, NONCE_BYTES, Header, Key, Kind, parse_key
from penstock_wal_s3._settings import WRITES_MAX, Settings

#: Objects are read ahead up to these amounts.
_READS_MAX = 16
_READ_BYTES_MAX = 16 * 2**20
#: Seals at once, at most: more than a busy owner gets done in the time of one.
_WIDTH_MAX = 4 * WRITES_MAX
_SURVEYS_MAX = 10
#: A store that takes no seal is tried so often, after pauses that grow by this.
_SEALS_MAX = 5
_PAUSE_S = 0.1


def folder_of(settings: Settings, services: Services) -> str:
    """What the keys of the node's log begin with; the same whoever opens it."""
    return f"{settings.prefix}{services.node_id}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The log as a listing, and a few headers, show it."""

    #: Every object that is there, with its size.
    sizes: dict[Key, int] = field(default_factory=dict)
    log_id: int
    sealed: bool = False
    start: Key = BIRTH
    trim_position: int = 0
    #: The first vacant place, where the next object of the owner ``end.epoch`` goes, or the seal of its successor.
    end: Key = BIRTH
    first_slot: int = 0
    #: The seal by which that owner took over, if it has put nothing since.
    seal: Header | None = None


class ObjectLog:
    """One node's log in a store."""

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self._store = store
        self.folder = folder
        #: The end of the newest group that was read.
        self.cursor = Cursor()

    @property
    def location(self) -> str:
        """For people."""
        return f"{self._store.location.rstrip('/')}/{self.folder}"

    # -- where it ends -------------------------------------------------------------------------------------

    async def survey(self) -> Survey | None:
        """Find the end of the log; None if there is no log. Raises CorruptError where something is missing."""
        missing: PenstockError | None = None
        for _ in range(_SURVEYS_MAX):
            try:
                return await self._survey()
            except (
                NotFoundError
            ) as error:  # an owner that lives deleted it since the listing, or went on in it
                missing = kept(error)
        assert missing is not None
        raise UnavailableError(f"the wal changes faster than it can be read: wal={self.location} {missing}")

    async def _survey(self) -> Survey | None:
        sizes = {parse_key(self.folder, info.key): info.size async for info in self._store.list(self.folder)}
        if not sizes:
            return None
        newest = await self._newest(sizes)
        epoch, first_slot, seal = newest.key.epoch, newest.first_slot, None
        slot = max(first_slot, newest.start.slot) if newest.start.epoch == epoch else first_slot
        while True:
            end = slot
            while Key(epoch, end) in sizes:
                end += 1
            found = await self._find_seal(epoch, slot, end)
            if found is None:
                break
            seal, epoch, slot = found, found.writer, found.key.slot + 1
            first_slot = slot
        await self._check_behind(sizes, Key(epoch, end))
        return Survey(
            sizes=sizes,
            log_id=newest.log_id,
            sealed=newest.sealed,
            start=newest.start,
            trim_position=newest.trim_position,
            end=Key(epoch, end),
            first_slot=first_slot,
            seal=seal,
        )

    async def _newest(self, sizes: dict[Key, int]) -> Header:
        """The newest object that knows what was before it."""
        for key in sorted(sizes, reverse=True):
            header = await self.header(key)
            if header.kind is not Kind.BARRIER:
                return header
        raise CorruptError(f"the wal has barriers only, the log is missing: wal={self.location} position=0")

    async def _find_seal(self, epoch: int, slot: int, end: int) -> Header | None:
        """The seal that ends the owner ``epoch``, whose objects from ``slot`` up to ``end`` follow each other."""
        if slot == end:
            return None
        last = await self.header(Key(epoch, end - 1))
        # what was confirmed is no seal, so few are left: what its owner had on its way
        low = max(slot, last.confirmed_slot + 1)
        headers = [*await self._headers([Key(epoch, each) for each in range(low, end - 1)]), last]
        return next((header for header in headers if header.kind.ends_owner), None)

    async def _check_behind(self, sizes: dict[Key, int], end: Key) -> None:
        """What is behind the end must not tell that the end was confirmed."""
        behind = [key for key in sizes if key > end]
        for header in await self._headers(behind):
            if header.key.epoch > end.epoch or header.confirmed_slot >= end.slot:
                if await self._is_there(end):  # a listing needn't tell what is put while it goes on
                    raise NotFoundError(f"a listing didn't tell of an object: key={end.under(self.folder)!r}")
                raise self.hole(end, f"{header.key.under(self.folder)} says that it was there")

    async def _is_there(self, key: Key) -> bool:
        try:
            await self.header(key)
        except NotFoundError:
            return False
        return True

    def hole(self, key: Key, why: str) -> CorruptError:
        """The object at ``key`` must be there."""
        return CorruptError(
            f"the wal lost acknowledged entries, so recovery stops; restore the missing object: "
            f"key={key.under(self.folder)!r} position={self.cursor.position} reason={why!r}"
        )

    # -- taking over ---------------------------------------------------------------------------------------

    async def take_over(self, epoch: int) -> Survey:
        """Seal the log, or create it, as the owner ``epoch``; how it is then.

        Raises FencedError if a newer owner holds it, or this epoch was used before.
        """
        nonce = os.urandom(NONCE_BYTES)
        width, failures = 1, 0
        while True:
            found = await self.survey() or Survey(log_id=int.from_bytes(os.urandom(8), "big"))
            owner = max([found.end.epoch, *(key.epoch for key in found.sizes)])
            if owner == epoch and found.seal is not None and found.seal.nonce == nonce:
                return found
            if owner >= epoch:
                raise FencedError(
                    f"a newer owner holds the wal: wal={self.location} owner_epoch={owner} epoch={epoch}"
                )
            try:
                await self._seal(found, epoch, nonce, width)
                width = min(2 * width, _WIDTH_MAX)
            except (
                UnavailableError
            ):  # it may be there: the next survey tells, as it does of a seal that is taken
                failures += 1
                if failures == _SEALS_MAX:
                    raise
                await anyio.sleep(_PAUSE_S * failures)

    async def _seal(self, found: Survey, epoch: int, nonce: bytes, width: int) -> None:
        """Put a seal at the end. An owner that is busy may be faster: so put barriers behind it, more each time."""

        async def put(kind: Kind, slot: int) -> None:
            header = Header(
                kind=kind,
                sealed=found.sealed,
                log_id=found.log_id,
                key=Key(found.end.epoch, slot),
                writer=epoch,
                first_slot=found.first_slot,
                confirmed_slot=max(0, found.end.slot - 1),
                start=found.start,
                trim_position=found.trim_position,
                nonce=nonce,
            )
            try:
                await self._store.put_if_absent(header.key.under(self.folder), [header.encode()])
            except AlreadyExistsError:
                pass  # of the owner, of another successor, or ours after a lost reply: the next survey tells
            except PenstockError as error:
                errors.append(kept(error))

        errors: list[PenstockError] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, Kind.SEAL, found.end.slot)
            for ahead in range(1, width):
                tasks.start_soon(put, Kind.BARRIER, found.end.slot + ahead)
        if errors:
            raise again(errors[0])

    # -- reading -------------------------------------------------------------------------------------------

    async def read(
        self, found: Survey, *, live: bool = False
    ) -> AsyncIterator[tuple[Header, DecodedGroup | None]]:
        """The objects of the log from its start to its end, with their groups where they hold data.

        Raises CorruptError where one is missing or damaged; of a log that is ``live``, of which objects may be
        deleted meanwhile, UnavailableError if one was.
        """
        wanted = found.start
        keys = sorted(key for key in found.sizes if found.start <= key < found.end)
        for window in _windows(keys, found.sizes):
            for key, body in zip(window, await self._bodies(window, live=live), strict=True):
                if key < wanted:
                    continue  # a stray
                if key > wanted:
                    raise self.hole(wanted, "it isn't listed")
                try:
                    header = Header.decode(body, key, key.under(self.folder))
                except CorruptError as error:
                    raise CorruptError(f"{error} position={self.cursor.position}") from error
                if header.log_id != found.log_id:
                    raise self.hole(key, "an object of another log is in its place")
                wanted = Key(header.writer if header.kind.ends_owner else key.epoch, key.slot + 1)
                yield header, self._group(header, memoryview(body)) if header.kind is Kind.DATA else None
        if wanted != found.end:
            raise self.hole(wanted, "it isn't listed")

    def _group(self, header: Header, body: memoryview) -> DecodedGroup:
        data = body[HEADER_BYTES:]
        if self.cursor == Cursor() and (first := parse_group_header(data)) is not None:
            self.cursor = Cursor(first.position, first.sequence, first.previous_digest)  # the start
        try:
            group = decode_group(data, self.cursor, log_id=header.log_id)
        except DamageError as damage:
            raise CorruptError(
                f"an object of the wal is damaged, so recovery stops; restore it from a copy: "
                f"key={header.key.under(self.folder)!r} position={damage.position} reason={damage.reason!r}"
            ) from damage
        found = group.header
        self.cursor = Cursor(found.position + found.length, found.sequence + 1, found.digest)
        return group

    async def header(self, key: Key) -> Header:
        """The header of the object at ``key``. Raises CorruptError, NewerVersionError, NotFoundError."""
        where = key.under(self.folder)
        return Header.decode(await self._store.get(where, 0, HEADER_BYTES), key, where)

    async def _headers(self, keys: Sequence[Key]) -> list[Header]:
        found: dict[Key, Header] = {}

        async def read(key: Key) -> None:
            found[key] = await self.header(key)

        await _for_each(keys, read)
        return [found[key] for key in keys]

    async def _bodies(self, keys: Sequence[Key], *, live: bool) -> list[Buffer]:
        found: dict[Key, Buffer] = {}

        async def read(key: Key) -> None:
            try:
                found[key] = await self._store.get(key.under(self.folder))
            except NotFoundError:
                if live:
                    raise UnavailableError(
                        f"the wal was trimmed while it was read, read it again: wal={self.location}"
                    ) from None
                raise self.hole(key, "it is listed, and can't be read") from None

        await _for_each(keys, read)
        return [found[key] for key in keys]


def _windows(keys: Sequence[Key], sizes: Mapping[Key, int]) -> list[list[Key]]:
    """The keys in runs that are read at once."""
    windows: list[list[Key]] = []
    room = 0
    for key in keys:
        if not windows or sizes[key] > room or len(windows[-1]) == _READS_MAX:
            windows.append([])
            room = _READ_BYTES_MAX
        windows[-1].append(key)
        room -= sizes[key]
    return windows


async def _for_each(keys: Sequence[Key], read: Callable[[Key], Awaitable[None]]) -> None:
    """Some at a time. Raises the first error, when all have ended."""
    errors: list[PenstockError] = []
    limiter = anyio.CapacityLimiter(_READS_MAX)

    async def one(key: Key) -> None:
        async with limiter:
            try:
                await read(key)
            except PenstockError as error:
                errors.append(kept(error))

    async with anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(one, key)
    if errors:
        raise again(errors[0])
