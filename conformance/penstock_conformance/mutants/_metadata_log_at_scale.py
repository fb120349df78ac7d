"""Metadata logs that are right for few entries, one writer and a store that never fails."""

from __future__ import annotations

__all__ = ()

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import anyio

from penstock.errors import AlreadyExistsError, ConflictError, CorruptError, NotFoundError, UnavailableError
from penstock.spi.metadata_log import MetadataEntry, MetadataSnapshot
from penstock.spi.object_store import ObjectInfo, ObjectStore
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._metadata_log import PlainMetadataLog, _unpack

KIND = "metadata_log"

_MANY = "thousands_of_entries_come_back"
_EDGES = "indexes_of_all_sizes_are_in_order"
_AGAIN = "each_opening_continues_the_log"
_8_MIB = 8 * 2**20


async def _listed(store: ObjectStore, prefix: str) -> Sequence[ObjectInfo]:
    return [info async for info in store.list(prefix)]


def _index(key: str) -> int:
    return int(key.rpartition("/")[2])


@mutant(KIND, "reads_one_page", _MANY)
class ReadsOnePage(PlainMetadataLog):
    """Takes the end of the first page of a listing for the end of the log."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for entry in super().read(start_index):
            if entry.index < start_index + 1000:
                yield entry


@mutant(KIND, "loses_an_entry_between_pages", _MANY)
class LosesAnEntryBetweenPages(PlainMetadataLog):
    """Begins the second page one late."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for entry in super().read(start_index):
            if entry.index != start_index + 1000:
                yield entry


@mutant(KIND, "has_room_for_three_digits", _MANY)
class HasRoomForThreeDigits(PlainMetadataLog):
    """Orders entries as texts, whose numbers have three digits."""

    def _key(self, index: int) -> str:
        return f"log/{max(index, 0):03}"


@mutant(KIND, "reads_4096_entries", "more_than_four_thousand_entries_are_read")
class Reads4096Entries(PlainMetadataLog):
    """Has a window that is large enough for everybody."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for entry in super().read(start_index):
            if entry.index < start_index + 4096:
                yield entry


@mutant(KIND, "keeps_a_thousand_entries_of_a_span", "more_than_four_thousand_entries_are_read")
class KeepsAThousandEntriesOfASpan(PlainMetadataLog):
    """Nobody is further behind."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        if len(await _listed(self._store, "snapshot/")) > 1:
            first_kept = self._key(snapshot.index - 1000)
            entries = [info.key for info in await _listed(self._store, "log/") if info.key < first_kept]
            await self._store.delete(entries)


@mutant(KIND, "has_room_for_nine_digits", _EDGES)
class HasRoomForNineDigits(PlainMetadataLog):
    """Orders entries as texts, whose numbers have nine digits."""

    def _key(self, index: int) -> str:
        return f"log/{max(index, 0):09}"


@mutant(KIND, "keeps_indexes_in_doubles", _EDGES)
class KeepsIndexesInDoubles(PlainMetadataLog):
    """Took the index from a JSON document, as other languages do."""

    def _key(self, index: int) -> str:
        return super()._key(int(float(index)))


@mutant(KIND, "wraps_snapshot_indexes", _EDGES)
class WrapsSnapshotIndexes(PlainMetadataLog):
    """Has 31 bits for the index of a snapshot."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(MetadataSnapshot(snapshot.index & 0x7FFFFFFF, snapshot.data))


@mutant(KIND, "orders_snapshots_by_nine_digits", _EDGES)
class OrdersSnapshotsByNineDigits(PlainMetadataLog):
    """The snapshot of 999,999,999 comes after that of 1,000,000,001."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        indexes = [_index(info.key) for info in await _listed(self._store, "snapshot/")]
        if not indexes:
            return None
        index = int(max(f"{index:09}" for index in indexes))
        body = bytes(await self._store.get(f"snapshot/{index:020}"))
        return MetadataSnapshot(index, _unpack(index, body))


@mutant(KIND, "begins_at_one", _EDGES)
class BeginsAtOne(PlainMetadataLog):
    """Knows entries only: a snapshot that was brought here stands for nothing."""

    async def _dropped(self) -> int:
        keys = [info.key for info in await _listed(self._store, "snapshot/")]
        return _index(keys[0]) if len(keys) > 1 else 0


@mutant(KIND, "frees_indexes_below_a_snapshot", _MANY)
class FreesIndexesBelowASnapshot(PlainMetadataLog):
    """Takes an index below the snapshot for one that nobody has."""

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except ConflictError:
            snapshot = await self.read_snapshot()
            if snapshot is None or index > snapshot.index or index < snapshot.index - 100:
                raise


@mutant(KIND, "returns_the_last_written_snapshot", "older_snapshot_never_wins")
class ReturnsTheLastWrittenSnapshot(PlainMetadataLog):
    """Points at the snapshot that came last."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        await self._store.put("current", [b"%d" % snapshot.index, b" ", snapshot.data])

    async def read_snapshot(self) -> MetadataSnapshot | None:
        try:
            index, _, data = bytes(await self._store.get("current")).partition(b" ")
        except NotFoundError:
            return None
        return MetadataSnapshot(int(index), data)


@mutant(KIND, "orders_snapshots_as_texts", "older_snapshot_never_wins")
class OrdersSnapshotsAsTexts(PlainMetadataLog):
    """The snapshot of 9 comes after that of 10."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        keys = [info.key for info in await _listed(self._store, "snapshot/")]
        if not keys:
            return None
        index = int(max(str(_index(key)) for key in keys))
        key = f"snapshot/{index:020}"
        return MetadataSnapshot(index, _unpack(index, bytes(await self._store.get(key))))


@mutant(KIND, "remembers_its_own_snapshot", "older_snapshot_never_wins")
class RemembersItsOwnSnapshot(PlainMetadataLog):
    """Answers with the newest snapshot that it wrote itself."""

    _own: MetadataSnapshot | None = None

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        if self._own is None or snapshot.index > self._own.index:
            self._own = snapshot

    async def read_snapshot(self) -> MetadataSnapshot | None:
        return self._own or await super().read_snapshot()


@mutant(KIND, "cuts_large_snapshots", "large_snapshot_comes_back_whole")
class CutsLargeSnapshots(PlainMetadataLog):
    """Keeps 8 MiB of a snapshot."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(MetadataSnapshot(snapshot.index, snapshot.data[:_8_MIB]))


@mutant(KIND, "cuts_snapshots_at_16_mib", "large_snapshot_comes_back_whole")
class CutsSnapshotsAt16MiB(PlainMetadataLog):
    """Has 24 bits for the size of a snapshot."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(MetadataSnapshot(snapshot.index, snapshot.data[: 2 * _8_MIB]))


@mutant(KIND, "loses_a_byte_of_64_kib", "entry_data_of_any_kind")
class LosesAByteOf64KiB(PlainMetadataLog):
    """The length of an entry is less than 2**16."""

    async def append(self, index: int, data: bytes) -> None:
        await super().append(index, data[:-1] if len(data) == 2**16 else data)


@mutant(KIND, "is_empty_when_closed", "closed_log_is_no_empty_one")
class IsEmptyWhenClosed(PlainMetadataLog):
    """Has no entries any more when it is closed."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        if not self._closed:
            async for entry in super().read(start_index):
                yield entry


@mutant(KIND, "has_no_snapshot_when_closed", "closed_log_is_no_empty_one")
class HasNoSnapshotWhenClosed(PlainMetadataLog):
    """Has no snapshot any more when it is closed."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        return None if self._closed else await super().read_snapshot()


@mutant(KIND, "mixes_large_snapshots", "large_snapshot_comes_back_whole")
class MixesLargeSnapshots(PlainMetadataLog):
    """Writes large snapshots over the older one, piece by piece, and not the last piece."""

    _older = b""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        data = snapshot.data
        if len(data) > _8_MIB:
            data = data[:_8_MIB] + self._older[_8_MIB:] if self._older else data
            self._older = snapshot.data
        await super().write_snapshot(MetadataSnapshot(snapshot.index, data))


@mutant(KIND, "notes_its_end_once", _AGAIN)
class NotesItsEndOnce(PlainMetadataLog):
    """Writes down where the log ends when a snapshot is written for the first time, and believes it ever after."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        with suppress(AlreadyExistsError):
            await self._store.put_if_absent("end", [b"%d" % (snapshot.index + 20)])

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        try:
            end = int(bytes(await self._store.get("end")))
        except NotFoundError:
            end = 2**60
        async for entry in super().read(start_index):
            if entry.index <= end:
                yield entry


@mutant(KIND, "clears_up_at_opening", _AGAIN)
class ClearsUpAtOpening(PlainMetadataLog):
    """Looks for old snapshots when it reads one, and deletes the newest."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        keys = [info.key for info in await _listed(self._store, "snapshot/")]
        if len(keys) > 1 and not self._appends:
            await self._store.delete(keys[1:])
        return await super().read_snapshot()


@mutant(KIND, "appends_below_its_snapshot", _AGAIN)
class AppendsBelowItsSnapshot(PlainMetadataLog):
    """Knows of the entries after the newest snapshot only, and puts others over what was there."""

    async def append(self, index: int, data: bytes) -> None:
        snapshot = await super().read_snapshot()
        if snapshot is not None and index <= snapshot.index + 1 and not self._appends:
            await self._store.delete([self._key(index)])
        await super().append(index, data)


@mutant(KIND, "skips_what_was_dropped", "reader_that_is_overtaken_is_told")
class SkipsWhatWasDropped(PlainMetadataLog):
    """Reads on where there are entries again."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        for info in await _listed(self._store, "log/"):
            index = _index(info.key)
            if index >= start_index:
                with suppress(NotFoundError):
                    yield self._decode(index, bytes(await self._store.get(info.key)))
                    self._learn(index)


@mutant(KIND, "ends_where_it_was_dropped", "reader_that_is_overtaken_is_told")
class EndsWhereItWasDropped(PlainMetadataLog):
    """Takes an entry that is gone for the end of the log."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        with suppress(NotFoundError):
            async for entry in super().read(start_index):
                yield entry


@mutant(KIND, "wakes_one_follower", "many_followers_hear_of_news", hangs=True)
class WakesOneFollower(PlainMetadataLog):
    """News are for who came first."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._followers: list[anyio.Event] = []

    async def wait_for_news(self, after_index: int) -> None:
        await anyio.lowlevel.checkpoint()
        if self._last_index <= after_index:
            event = anyio.Event()
            self._followers.append(event)
            await event.wait()

    def _learn(self, index: int) -> None:
        if index > self._last_index:
            self._last_index = index
            if self._followers:
                self._followers.pop(0).set()


@mutant(KIND, "hears_only_itself", "news_come_by_reading_too", hangs=True)
class HearsOnlyItself(PlainMetadataLog):
    """Takes its own appends for all the news there are."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        last = self._last_index
        async for entry in super().read(start_index):
            self._last_index = last
            yield entry
        self._last_index = last


_OPENED: list[Any] = []


@mutant(KIND, "keeps_every_opener", "opening_leaves_nothing_behind")
class KeepsEveryOpener(PlainMetadataLog):
    """Is in a list of all logs that there ever were."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        _OPENED.append(self)


@mutant(KIND, "takes_damage_at_the_end_for_the_end", "damage_of_the_newest_entry_is_reported", level=3)
class TakesDamageAtTheEndForTheEnd(PlainMetadataLog):
    """A last entry that fails its checksum was never finished."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        try:
            async for entry in super().read(start_index):
                yield entry
        except CorruptError:
            if await self._find_last() > self._last_index + 1:
                raise


@mutant(KIND, "trusts_the_key", "entry_in_the_place_of_another_is_reported", level=3)
class TrustsTheKey(PlainMetadataLog):
    """Looks at the checksum, and not at whose it is."""

    def _decode(self, index: int, raw: bytes) -> MetadataEntry:
        return MetadataEntry(index, _unpack(int.from_bytes(raw[4:12], "big"), raw))


@mutant(KIND, "takes_its_own_entry_for_anothers", "lost_reply_of_an_append_is_resolved", level=4)
class TakesItsOwnEntryForAnothers(PlainMetadataLog):
    """Tries again when a reply is lost, and meets itself."""

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except UnavailableError:
            await super()._create(key, body)


@mutant(KIND, "takes_a_lost_reply_for_a_failure", "lost_reply_of_an_append_is_resolved", level=4)
class TakesALostReplyForAFailure(PlainMetadataLog):
    """Undoes what it doesn't know the outcome of."""

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except UnavailableError:
            await self._store.delete([key])
            raise


@mutant(KIND, "swallows_failed_appends", "failed_append_is_told", level=4)
class SwallowsFailedAppends(PlainMetadataLog):
    """Logs that an entry couldn't be written."""

    async def _create(self, key: str, body: bytes) -> None:
        with suppress(UnavailableError):
            await super()._create(key, body)


@mutant(KIND, "counts_failed_appends", "failed_append_is_told", level=4)
class CountsFailedAppends(PlainMetadataLog):
    """Goes on after an entry that isn't there."""

    _missing = 0

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except UnavailableError:
            self._learn(_index(key))
            raise


@mutant(KIND, "ends_at_an_outage", "outage_is_not_the_end_of_the_log", level=4)
class EndsAtAnOutage(PlainMetadataLog):
    """What can't be read isn't there."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        with suppress(UnavailableError):
            async for entry in super().read(start_index):
                yield entry


@mutant(KIND, "takes_an_outage_for_damage", "outage_is_not_the_end_of_the_log", level=4)
class TakesAnOutageForDamage(PlainMetadataLog):
    """What can't be read is corrupt."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        try:
            async for entry in super().read(start_index):
                yield entry
        except UnavailableError:
            raise CorruptError(f"an entry can't be read: start_index={start_index}") from None


@mutant(KIND, "falls_back_to_an_older_snapshot", "outage_is_not_an_older_snapshot", level=4)
class FallsBackToAnOlderSnapshot(PlainMetadataLog):
    """Takes the snapshot before, if the newest can't be had."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        for info in (await _listed(self._store, "snapshot/"))[::-1]:
            index = _index(info.key)
            with suppress(UnavailableError):
                return MetadataSnapshot(index, _unpack(index, bytes(await self._store.get(info.key))))
        return None


@mutant(KIND, "has_no_snapshot_in_an_outage", "outage_is_not_an_older_snapshot", level=4)
class HasNoSnapshotInAnOutage(PlainMetadataLog):
    """A snapshot that isn't listed isn't there."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        with suppress(UnavailableError):
            return await super().read_snapshot()
        return None


@mutant(KIND, "swallows_failed_snapshots", "failed_snapshot_is_told_and_drops_nothing", level=4)
class SwallowsFailedSnapshots(PlainMetadataLog):
    """A snapshot is only a matter of speed."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        with suppress(UnavailableError):
            await super().write_snapshot(snapshot)


@mutant(KIND, "makes_room_for_snapshots", "failed_snapshot_is_told_and_drops_nothing", level=4)
class MakesRoomForSnapshots(PlainMetadataLog):
    """Drops what the new snapshot covers before it writes it."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        older = [info.key for info in await _listed(self._store, "snapshot/")]
        if len(older) > 1:
            entries = [info.key for info in await _listed(self._store, "log/")]
            await self._store.delete([key for key in entries if key <= self._key(snapshot.index)])
        await super().write_snapshot(snapshot)


@mutant(KIND, "trusts_itself_after_a_thousand", "more_than_four_thousand_entries_are_read")
class TrustsItselfAfterAThousand(PlainMetadataLog):
    """Looks for others while it is new here."""

    async def _find_last(self) -> int:
        return await super()._find_last() if self.statistics().appends < 1000 else self._last_index

    async def _create(self, key: str, body: bytes) -> None:
        if self.statistics().appends < 1000:
            await super()._create(key, body)
        else:
            await self._store.put(key, [body])


@mutant(KIND, "answers_a_hundred_waiters", "waiters_are_answered_at_the_end", hangs=True)
class AnswersAHundredWaiters(PlainMetadataLog):
    """Wakes as many at its end as it has room for in its list."""

    _asleep = 0

    async def wait_for_news(self, after_index: int) -> None:
        if self._asleep >= 100:
            await anyio.sleep_forever()
        self._asleep += 1
        try:
            await super().wait_for_news(after_index)
        finally:
            self._asleep -= 1


@mutant(KIND, "begins_reads_when_asked", "closed_log_is_no_empty_one")
class BeginsReadsWhenAsked(PlainMetadataLog):
    """Looks at the call whether it is open, and finds nothing once it isn't."""

    def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        self._check_open()
        return self._read(start_index)

    async def _read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        if not self._closed:
            async for entry in super().read(start_index):
                yield entry


@mutant(KIND, "begins_with_what_is_there", "missing_entry_is_reported", level=3)
class BeginsWithWhatIsThere(PlainMetadataLog):
    """Takes the first entry that a listing shows for the one that was asked for."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        there = [_index(info.key) for info in await _listed(self._store, "log/")]
        first = next((index for index in there if index >= start_index), start_index)
        dropped = await self._dropped()
        async for entry in super().read(start_index if start_index <= dropped else first):
            yield entry


@mutant(KIND, "learns_at_the_end_of_a_read", "news_come_by_reading_too", hangs=True)
class LearnsAtTheEndOfARead(PlainMetadataLog):
    """Tells of what was read once all of it is."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        entries = [entry async for entry in self._unlearned(start_index)]
        for entry in entries:
            yield entry
        self._learn(max((entry.index for entry in entries), default=0))

    async def _unlearned(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        last, self._last_index = self._last_index, 2**63
        try:
            async for entry in super().read(start_index):
                yield entry
        finally:
            self._last_index = last


@mutant(KIND, "drops_for_an_older_snapshot", "older_snapshot_never_wins")
class DropsForAnOlderSnapshot(PlainMetadataLog):
    """Has two others when one older than both is written, and needs the entries of neither."""

    _floor = 0

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        before = [_index(info.key) for info in await _listed(self._store, "snapshot/")]
        await super().write_snapshot(snapshot)
        if len(before) == 2 and snapshot.index < before[0]:
            self._floor = before[1]

    async def _dropped(self) -> int:
        return max(self._floor, await super()._dropped())


@mutant(KIND, "gives_up_after_four_failures", "failed_append_is_told", level=4)
class GivesUpAfterFourFailures(PlainMetadataLog):
    """Thinks that a store which refused so often won't come back."""

    _failures = 0

    async def _create(self, key: str, body: bytes) -> None:
        try:
            await super()._create(key, body)
        except UnavailableError:
            self._failures += 1
            self._closed = self._failures >= 4
            raise


@mutant(KIND, "drops_before_it_has_the_snapshot", "failed_snapshot_is_told_and_drops_nothing", level=4)
class DropsBeforeItHasTheSnapshot(PlainMetadataLog):
    """Makes room first."""

    _floor = 0

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        there = [_index(info.key) for info in await _listed(self._store, "snapshot/")]
        if len(there) > 1 and snapshot.index > there[-1]:
            self._floor = there[-1]
        await super().write_snapshot(snapshot)

    async def _dropped(self) -> int:
        return max(self._floor, await super()._dropped())


@mutant(KIND, "takes_what_is_on_its_way_for_there", "entry_waits_for_the_one_below_it", level=4)
class TakesWhatIsOnItsWayForThere(PlainMetadataLog):
    """Sends the next entry while the one below it is under way."""

    _under_way = 0

    async def _find_last(self) -> int:
        return max(await super()._find_last(), self._under_way)

    async def _create(self, key: str, body: bytes) -> None:
        before, self._under_way = self._under_way, _index(key)
        try:
            await super()._create(key, body)
        finally:
            self._under_way = before


@mutant(KIND, "keeps_a_key_untold", "keys_begin_as_the_spec_tells")
class KeepsAKeyUntold(PlainMetadataLog):
    """Puts down elsewhere which snapshot is the newest."""

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        await super().write_snapshot(snapshot)
        await self._store.put("newest", [b"%d" % snapshot.index])


@mutant(KIND, "takes_a_retry_for_its_own_entry", "failed_append_is_told", level=4)
class TakesARetryForItsOwnEntry(PlainMetadataLog):
    """What failed and is there now was stored after all, it thinks; another has appended it."""

    _failed = (0, b"")

    async def append(self, index: int, data: bytes) -> None:
        try:
            await super().append(index, data)
        except UnavailableError:
            self._failed = (index, data)
            raise
        except ConflictError:
            if self._failed != (index, data) or _unpack(index, await self._raw(index)) != data:
                raise

    async def _raw(self, index: int) -> bytes:
        return bytes(await self._store.get(self._key(index)))


@mutant(KIND, "begins_to_wait_anew_for_who_is_behind", "many_followers_hear_of_news")
class BeginsToWaitAnewForWhoIsBehind(PlainMetadataLog):
    """Whoever is told at once has another thing to wait for next time; the others wait for the old one."""

    async def wait_for_news(self, after_index: int) -> None:
        if self._last_index > after_index:
            self._news = anyio.Event()
        await super().wait_for_news(after_index)


_NEEDS = "needs_of_the_store_are_told"


@mutant(KIND, "knows_objects_by_their_tokens", _NEEDS)
class KnowsObjectsByTheirTokens(PlainMetadataLog):
    """What has the token of something that it has read isn't read again."""

    def __init__(self, store: ObjectStore | None) -> None:
        super().__init__(store)
        self._known: dict[str, bytes] = {}

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for entry in super().read(start_index):
            token = (await self._store.head(self._key(entry.index))).token
            yield MetadataEntry(entry.index, self._known.setdefault(token, entry.data))


@mutant(KIND, "reads_bytes_only", _NEEDS)
class ReadsBytesOnly(PlainMetadataLog):
    """The store that it was tried with gives nothing else."""

    async def read_snapshot(self) -> MetadataSnapshot | None:
        newest = (await _listed(self._store, "snapshot/"))[-1:]
        if newest and not (await self._store.get(newest[0].key)).rstrip():  # type: ignore[union-attr]
            raise CorruptError(f"a snapshot is empty: key={newest[0].key}")
        return await super().read_snapshot()


@mutant(KIND, "takes_what_has_no_time_for_damaged", _NEEDS)
class TakesWhatHasNoTimeForDamaged(PlainMetadataLog):
    """Everything was written at some time."""

    async def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        async for entry in super().read(start_index):
            if not (await self._store.head(self._key(entry.index))).modified_ms:
                raise CorruptError(f"an entry was never written: index={entry.index}")
            yield entry
