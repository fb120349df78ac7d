"""Clauses of ``penstock.spi.metadata_log``, all at once: random histories, held against a model of the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    ConflictError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from penstock.spi.metadata_log import MetadataEntry, MetadataLogStatistics, MetadataSnapshot
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, given_up, raises, together
from penstock_conformance._faults import FaultyStore, error_of
from penstock_conformance._figures import Figures
from penstock_conformance._growth import grows_nothing, kept_bytes
from penstock_conformance._medium import flip_in_files
from penstock_conformance._steps import Steps

KIND = "metadata_log"

_LIVES = 5
_STEPS = 39
_APPENDS = 30
#: Entries of so many bytes, and how many at a time, until they are more than a log may keep.
_LARGE, _LARGE_COUNT = 2**16, 160
_KEPT_BYTES_MAX = 64 * 2**20
#: Then come so many snapshots at a time, each of so many bytes.
_SNAPSHOTS, _SNAPSHOT_BYTES = 4, 2**21
_REQUESTS = 6
_WAIT_S = 0.5
#: A look each twentieth of a second, of two requests.
_WAIT_REQUESTS = 20
_READ = ("get", "get", "list", "head")
_WRITE = ("put", "put_if_absent")
_ASKED = (*_READ, *_WRITE, "delete")


class _Owner:
    """One of those who have the log open, and what its figures must tell."""

    def __init__(self, log: Any, store: FaultyStore | None) -> None:
        self.log = log
        self.store = store
        self.appends = 0
        self.conflicts = 0
        self.conflicts_with_others = 0
        #: Attempts that were cut off, or of which nobody knows what came of them.
        self.unknown = 0
        #: The newest index and snapshot that it surely knows.
        self.known = 0
        self.snapshot = 0
        self.figures = Figures(MetadataLogStatistics)


class _Model:
    """What a log must hold. Of what was dropped, cancelled or failed, what it may hold."""

    def __init__(self, env: Env) -> None:
        self._random = env.random
        self.steps = Steps()
        self._entries: list[bytes] = []
        self._writers: dict[int, _Owner] = {}
        #: What may be the entry of an index, because an attempt was cut off or its outcome is unknown.
        self._maybe: defaultdict[int, list[bytes]] = defaultdict(list)
        #: Where the newest attempt failed, and a read found nothing.
        self._failed = 0
        self._snapshots: dict[int, bytes] = {}
        self._maybe_snapshots: dict[int, bytes] = {}
        self._owners: Sequence[_Owner] = ()
        #: Entries as they were read, and copies from then.
        self._got: list[tuple[MetadataEntry, bytes]] = []

    async def live(self, owners: Sequence[_Owner], steps: int) -> None:
        """Open, and some random steps."""
        self._owners = owners
        every: Sequence[Callable[[_Owner], Awaitable[None]]] = (
            *(self._append,) * 4,
            *(self._read,) * 3,
            *(self._write_snapshot,) * 2,
            self._take_a_taken_index,
            self._leave_a_gap,
            self._race,
            self._read_together,
            self._give_up,
            self._follow,
            self._append_beside_a_snapshot,
        )
        with self.steps.told():
            for owner in owners:
                await self._check_snapshot(owner)
                await self._read(owner)
            if not self._entries:
                await self._begin(*owners)
            for _ in range(steps):
                await self._random.choice(every)(self._random.choice(owners))
                self._check_figures()
            for owner in owners:
                await self._check_read(owner, self._floor() + 1)
                owner.figures.end()
            for entry, copy in self._got:
                assert entry.data == copy, f"an entry changed after it was read: index={entry.index}"

    async def _begin(self, owner: _Owner, other: _Owner) -> None:
        """A snapshot after a newer one, one that fails, and an entry of another where an append failed."""
        for _ in range(4):
            await self._append(owner)
        for index, fails in ((self._end - 2, ()), (self._end - 3, ()), (self._end - 1, _WRITE)):
            await self._write_snapshot(owner, index, fails)
            self._check_figures()
        await self._append(owner, fails=_WRITE)
        self._check_figures()
        await self._plain_append(other)
        await self._take_a_taken_index(owner)

    @property
    def _end(self) -> int:
        """The index of the next entry."""
        return len(self._entries) + 1

    def _floor(self) -> int:
        """Entries up to here may be dropped: all but those that the newest but one snapshot lacks."""
        indexes = sorted({*self._snapshots, *self._maybe_snapshots})
        return indexes[-2] if len(indexes) > 1 else 0

    def _data(self) -> bytes:
        """Entries that end in what texts end in, have nothing in them, or are the same; and others."""
        choice = self._random.choice
        head = self._random.randbytes(choice((0, 8, 60, 3000)))
        return choice((b"", b"same", head + b"\0\0", head + b"\r\n", b" " + head + b" ", head))

    async def _or_unavailable(
        self,
        owner: _Owner,
        attempt: Awaitable[None],
        asked: Sequence[str] = _ASKED,
        fails: Sequence[str] = (),
    ) -> bool:
        """Whether it was done; an outage that the suite made may be told instead."""
        failed = 0
        if owner.store is not None and fails:
            for method in fails:
                owner.store.fail(method)
        elif owner.store is not None and self._random.random() < 0.4:
            method, times = self._random.choice(asked), self._random.choice((1, 1, 3))
            self.steps.note(f"{method} fails")
            if self._random.random() < 0.4:
                owner.store.lose_reply(method, times=times)
            else:
                owner.store.fail(method, times=times, skip=self._random.choice((0, 0, 1, 2)))
            failed = owner.store.failed
        try:
            await attempt
        except UnavailableError as error:
            if owner.store is None or owner.store.failed == failed:
                raise AssertionError(f"an outage that wasn't there was told: {error}") from error
            return False
        finally:
            if owner.store is not None:
                owner.store.heal()
        return True

    # --- entries

    async def _append(self, owner: _Owner, fails: Sequence[str] = ()) -> None:
        index, data = self._end, self._data()
        self.steps.note(f"append {index}")
        try:
            done = await self._or_unavailable(owner, owner.log.append(index, data), fails=fails)
        except ConflictError:
            await self._expect_maybe(owner, index)
            return
        if done:
            self._appended(owner, index, data)
        else:
            self._maybe[index].append(data)
            await self._check_read(owner, self._floor() + 1)
            if self._end > index:
                owner.unknown += 1
            else:  # it isn't there, and no figure tells of it
                self._failed = index

    def _appended(self, owner: _Owner, index: int, data: bytes) -> None:
        assert index == self._end, f"an entry {index} was appended where {self._end} was to come"
        self._entries.append(data)
        self._writers[index] = owner
        owner.appends += 1
        owner.known = max(owner.known, index)

    async def _expect_maybe(self, owner: _Owner, index: int) -> None:
        """A free index was refused: an earlier attempt must have come through after all."""
        owner.conflicts += 1
        await self._check_read(owner, self._floor() + 1)
        assert self._end > index, f"the index {index} was free, and told to be taken"

    async def _take_a_taken_index(self, owner: _Owner) -> None:
        """Also with the very bytes that are there."""
        if not self._entries:
            return
        index = self._random.choice((1, self._end - 1, self._random.randrange(1, self._end)))
        data = self._random.choice((self._entries[index - 1], b"another"))
        self.steps.note(f"append {index} again")
        error = await error_of(owner.log.append(index, data))
        assert isinstance(error, ConflictError), (
            f"the index {index} is taken, and an append ended by {error!r}"
        )
        owner.conflicts += 1
        owner.conflicts_with_others += self._writers.get(index) not in (owner, None)

    async def _leave_a_gap(self, owner: _Owner) -> None:
        index = self._end + self._random.choice((1, 2, 1000))
        self.steps.note(f"append {index}, behind a gap")
        if index - 1 not in self._maybe:
            with raises(InvalidRequestError):
                await owner.log.append(index, b"x")

    async def _race(self, _: _Owner) -> None:
        """Of many attempts at one index exactly one returns, though all are of the same bytes."""
        index, same = self._end, self._data()
        racers = [self._random.choice(self._owners) for _ in range(self._random.choice((2, 5, 12)))]
        datas = [same if self._random.random() < 0.5 else b"%d" % number for number in range(len(racers))]
        won: list[int] = []
        self.steps.note(f"{len(racers)} race for {index}")

        async def append(number: int) -> None:
            try:
                await racers[number].log.append(index, datas[number])
            except ConflictError:
                racers[number].conflicts += 1
            else:
                won.append(number)

        await together([call(append, number) for number in range(len(racers))])
        if not won and index in self._maybe:
            await self._check_read(racers[0], self._floor() + 1)
            return
        assert len(won) == 1, f"{len(won)} of {len(racers)} writers won the index {index}"
        self._appended(racers[won[0]], index, datas[won[0]])

    async def _give_up(self, owner: _Owner) -> None:
        """A cancelled append is there or not, and harms nothing."""
        index, data = self._end, b"cancelled %d" % self._random.randrange(10**9)
        self.steps.note(f"give up to append {index}")
        owner.unknown += 1
        owner.conflicts += index in self._maybe
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(error_of, owner.log.append(index, data))
            for _ in range(self._random.randrange(12)):
                await checkpoint()
            tasks.cancel_scope.cancel()
        self._maybe[index].append(data)
        await self._check_read(owner, self._floor() + 1)

    async def _read(self, owner: _Owner) -> None:
        end = self._end
        start = self._random.choice((1, self._floor() + 1, end - 1, end, end + 1, end + 70, None))
        await self._check_read(owner, start or self._random.randrange(1, end + 1))

    async def _check_read(self, owner: _Owner, start: int) -> None:
        start = max(start, 1)
        leave = self._random.choice((None, None, 1, 3))
        self.steps.note(f"read from {start}" + (f", {leave} entries" if leave else ""))
        got: list[MetadataEntry] = []

        async def read() -> None:
            entries = owner.log.read(start)
            async for entry in entries:
                got.append(entry)
                self._got.append((entry, bytes(entry.data)))
                if len(got) == leave:
                    break
            if hasattr(entries, "aclose"):
                await entries.aclose()

        try:
            whole = await self._or_unavailable(owner, read(), _READ) and len(got) != leave
        except NotFoundError:
            floor = self._floor()
            assert start <= floor, f"a read from {start} found nothing, only {floor} may be dropped"
            whole = False
        self._check_entries(owner, start, got, whole)
        if leave or not whole:  # what isn't known yet, it tells now
            again = [entry async for entry in owner.log.read(self._floor() + 1)]
            self._check_entries(owner, self._floor() + 1, again, True)

    def _check_entries(self, owner: _Owner, start: int, got: Sequence[MetadataEntry], whole: bool) -> None:
        indexes = [entry.index for entry in got]
        wanted = list(range(start, start + len(got)))
        assert indexes == wanted, f"a read from {start} gave {indexes[:3]}...{indexes[-3:]}"
        for entry in got:
            if entry.index == self._end and entry.data in self._maybe.get(entry.index, ()):
                self._entries.append(bytes(entry.data))
            assert entry.index < self._end, f"a read from {start} gave {entry.index}, which nobody appended"
            same = entry.data == self._entries[entry.index - 1]
            assert same, f"other bytes than were appended: index={entry.index}"
            owner.known = max(owner.known, entry.index)
        until = start + len(got)
        assert not whole or until >= self._end, f"a read from {start} ended before {until} of {self._end - 1}"

    async def _read_together(self, _: _Owner) -> None:
        """Readers of one log that are at different places."""
        owner, floor = self._random.choice(self._owners), self._floor()
        starts = [self._random.randrange(floor, self._end) + 1 for _ in range(4)]
        self.steps.note(f"read from {starts} at once")

        async def read(start: int) -> None:
            got: list[MetadataEntry] = []
            async for entry in owner.log.read(start):
                got.append(entry)
                await checkpoint()
            self._check_entries(owner, start, got, True)

        await together([call(read, start) for start in starts])

    async def _follow(self, owner: _Owner) -> None:
        """Everybody who waits for an index up to the newest hears of it, also by what somebody else read here."""
        last = self._end - 1
        by_reading = self._random.random() < 0.4
        writer = self._random.choice(self._owners) if by_reading else owner
        news = self._random.choice((1, 3))
        self.steps.note(f"wait for news after {last}, {news} come")

        async def wait(after: int) -> None:
            while owner.log.statistics().last_index <= after:
                await owner.log.wait_for_news(after)
                await checkpoint()

        waits = [self._random.randrange(max(0, last - 1), last + news) for _ in range(5)]
        gone = anyio.CancelScope()

        async def give_up() -> None:
            with gone:
                await owner.log.wait_for_news(last + news + 5)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(give_up)
            for after in waits:
                tasks.start_soon(wait, after)
            for _ in range(4):
                await checkpoint()
            if self._snapshots and self._random.random() < 0.5:
                newest = max(self._snapshots)
                await owner.log.write_snapshot(MetadataSnapshot(newest, self._snapshots[newest]))
            gone.cancel()
            while self._end <= last + news:
                await self._plain_append(writer)
            if by_reading:
                got = [entry async for entry in owner.log.read(last + 1)]
                self._check_entries(owner, last + 1, got, True)

    async def _plain_append(self, owner: _Owner) -> None:
        index, data = self._end, self._data()
        try:
            await owner.log.append(index, data)
        except ConflictError:
            await self._expect_maybe(owner, index)
        else:
            self._appended(owner, index, data)

    # --- snapshots

    async def _write_snapshot(
        self, owner: _Owner, index: int | None = None, fails: Sequence[str] = ()
    ) -> None:
        """The newest one counts, whichever was written last."""
        if not self._entries:
            return
        # not of what may be dropped: whether a log knows of it any more is its own affair
        if index is None:
            index = self._random.choice((self._end - 1, self._random.randrange(self._floor(), self._end)))
        if index == self._floor() or index in self._snapshots or index in self._maybe_snapshots:
            return
        data = self._data()
        self.steps.note(f"snapshot of {index}")
        self._maybe_snapshots[index] = data
        writing = owner.log.write_snapshot(MetadataSnapshot(index, data))
        if await self._or_unavailable(owner, writing, fails=fails):
            self._wrote(owner, index)
        for reader in self._owners:
            await self._check_snapshot(reader)

    def _wrote(self, owner: _Owner, index: int) -> None:
        data = self._maybe_snapshots.pop(index)
        self._snapshots[index] = data
        if index == max(self._snapshots):  # an older one may be passed over
            owner.snapshot = index

    async def _check_snapshot(self, owner: _Owner) -> None:
        self.steps.note("read the snapshot")
        found = await owner.log.read_snapshot()
        newest = max(self._snapshots, default=0)
        if found is not None and found.index in self._maybe_snapshots:
            self._snapshots[found.index] = self._maybe_snapshots.pop(found.index)
            newest = max(self._snapshots)
        if not newest:
            assert found is None, f"a snapshot that nobody wrote: index={found.index}"
            return
        assert found is not None, f"no snapshot came back, the newest is of {newest}"
        assert found.index == newest, f"the snapshot of {found.index} came back, the newest is of {newest}"
        same = bytes(found.data) == self._snapshots[newest]
        assert same, f"other bytes than were written: snapshot of {newest}"

    async def _append_beside_a_snapshot(self, owner: _Owner) -> None:
        """What is appended while a snapshot is written is none of its business."""
        if not self._entries or self._end - 1 in self._snapshots or self._end - 1 in self._maybe_snapshots:
            return
        index, data = self._end - 1, self._data()
        self._maybe_snapshots[index] = data
        self.steps.note(f"snapshot of {index} beside appends")

        async def append() -> None:
            for _ in range(3):
                await self._plain_append(self._random.choice(self._owners))

        async def write() -> None:
            await owner.log.write_snapshot(MetadataSnapshot(index, data))
            self._wrote(owner, index)

        await together([append, write])
        for reader in self._owners:
            await self._check_snapshot(reader)
            await self._check_read(reader, self._floor() + 1)

    # --- figures

    def _check_figures(self) -> None:
        for owner in self._owners:
            told = owner.figures.look(owner.log.statistics())
            assert owner.appends <= told.appends <= owner.appends + owner.unknown, (
                f"{owner.appends} entries were appended here: {told}"
            )
            assert owner.conflicts_with_others <= told.conflicts <= owner.conflicts, (
                f"{owner.conflicts} indexes were taken by another: {told}"
            )
            newest = max(self._snapshots, default=0)  # all were looked for since an attempt failed
            assert owner.known <= told.last_index, f"{owner.known} is known here: {told}"
            may_be = self._maybe.get(self._end) and self._failed != self._end
            assert told.last_index < self._end or may_be, f"{self._end} isn't there: {told}"
            assert owner.snapshot <= told.snapshot_index <= newest, (
                f"the newest snapshot, written here, is of {owner.snapshot}: {told}"
            )


async def test_random_histories_agree_with_a_model(env: Env) -> None:
    """An entry never changes, and one attempt at each index wins, whatever two owners do in five lives."""
    model = _Model(env)
    for life in range(1, _LIVES + 1):
        async with env.open(epoch=life) as log, env.open(node_id=2, epoch=life) as other:
            await model.live([_Owner(log, None), _Owner(other, None)], _STEPS)


@clause(level=4)
async def test_random_histories_with_outages_agree_with_a_model(env: Env) -> None:
    """An outage is told or overcome, and what was acknowledged is there: nothing else comes of it."""
    model = _Model(env)
    for life in range(1, _LIVES + 1):
        stores = [FaultyStore(env.plain_store()) for _ in range(2)]
        async with (
            env.open(epoch=life, object_store=stores[0]) as log,
            env.open(node_id=2, epoch=life, object_store=stores[1]) as other,
        ):
            await model.live([_Owner(log, stores[0]), _Owner(other, stores[1])], _STEPS)
        if not any(store.calls for store in stores):
            not_applicable("the plugin doesn't ask its object store")


@clause(level=4)
async def test_acknowledged_entries_are_stored(env: Env) -> None:
    """Make ``data`` the entry, durably: of whatever size, and the hundredth, too, it returns when it is stored."""
    store = FaultyStore(env.plain_store())
    async with env.open(object_store=store) as log:
        for index in range(1, 131):
            data = env.random.randbytes(env.random.choice((0, 1, 30, 200, 5000)))
            store.hold("put", "put_if_absent")
            done = False

            async def append(index: int = index, data: bytes = data) -> None:
                nonlocal done
                await log.append(index, data)
                done = True

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append)
                for _ in range(30):
                    await checkpoint()
                early = done
                store.hold()
                store.release()
            if not store.calls["put"] + store.calls["put_if_absent"]:
                not_applicable("the plugin doesn't write its entries to the object store")
            assert not early, f"the entry {index} was acknowledged before it was stored: {len(data)} bytes"


@clause(level=4)
async def test_snapshot_that_goes_while_it_is_read(env: Env) -> None:
    """The newest whole snapshot: there is one all the time, though newer ones take its place during the read."""
    store = FaultyStore(env.plain_store())
    async with env.open() as log, env.open(node_id=2, object_store=store) as reader:
        for index in range(1, 20):
            await log.append(index, b"x")
        await log.write_snapshot(MetadataSnapshot(1, b"at 1"))
        for newest in (5, 11, 17):
            store.hold("get")
            found: list[MetadataSnapshot | None] = []

            async def read(found: list[MetadataSnapshot | None] = found) -> None:
                found.append(await reader.read_snapshot())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                while not store.held and not found:
                    await checkpoint()
                if not store.held:
                    not_applicable("the plugin reads no snapshot from the object store")
                for index in range(newest - 3, newest + 1):
                    await log.write_snapshot(MetadataSnapshot(index, b"at %d" % index))
                store.hold()
                store.release()
            assert found[0] is not None, "no snapshot came back, while there was one all the time"
            assert found[0].data == b"at %d" % found[0].index, f"other bytes than were written: {found[0]}"


@clause(level=3)
async def test_damage_of_any_entry_is_reported(env: Env) -> None:
    """Every durable byte is checksummed (I11): also of the first entry, of large ones, of what was read before."""
    sizes = (90, 300, 100_000, 40)
    for victim, size in enumerate(sizes, start=1):
        place = env.elsewhere(f"damaged-{victim}")
        datas = [make_body(victim, number, each) for number, each in enumerate(sizes)]
        async with place.open() as log:
            for index, data in enumerate(datas, start=1):
                await log.append(index, data)
            assert [bytes(entry.data) async for entry in log.read(1)] == datas, (
                "other bytes than were appended"
            )
            flip_in_files(place.data_dir, datas[victim - 1], env.random)
            await _told_or_right(log, datas, f"damage of {size} bytes that were read before")
        async with place.open(epoch=2) as log:
            told = await _told_or_right(log, datas, f"damage of {size} bytes")
        assert told, f"damage of {size} bytes was passed over: index={victim}"


async def _told_or_right(log: Any, datas: Sequence[bytes], what: str) -> bool:
    """Whether damage was told; bytes that aren't right mustn't come back."""
    try:
        async for entry in log.read(1):
            if entry.data != datas[entry.index - 1]:  # an assertion would show both
                raise AssertionError(f"{what} came back as an entry: index={entry.index}")
    except CorruptError:
        return True
    return False


@clause(level=3)
async def test_damage_of_a_large_snapshot_is_reported(env: Env) -> None:
    """Raises CorruptError if the newest fails its checksum, however large it is."""
    body = make_body(0, 1, 3 * 2**20)
    async with env.open() as log:
        await log.append(1, b"x")
        await log.write_snapshot(MetadataSnapshot(1, body))
    flip_in_files(env.data_dir, body, env.random)
    async with env.open(epoch=2) as log:
        with raises(CorruptError):
            await log.read_snapshot()


@clause(level=5)
async def test_appends_and_waits_ask_the_store_little(env: Env) -> None:
    """An append takes a few requests, however long the log is; who waits for news takes next to none."""
    store = FaultyStore(env.plain_store())
    async with env.open(object_store=store) as log:

        async def append(start: int) -> int:
            before = store.calls.total()
            for index in range(start, start + _APPENDS):
                await log.append(index, b"x")
            return store.calls.total() - before

        few = [await append(1), await append(1 + _APPENDS)]
        if not store.calls:
            not_applicable("the plugin doesn't ask its object store")
        assert max(few) <= _REQUESTS * _APPENDS, f"{_APPENDS} entries took {few} requests to append"
        before = store.calls.total()
        with anyio.move_on_after(_WAIT_S):
            await log.wait_for_news(1000)
        waited = store.calls.total() - before
        assert waited <= _WAIT_REQUESTS, f"who waited for {_WAIT_S:g} s made {waited} requests"


@clause(level=5)
async def test_long_use_grows_nothing(env: Env) -> None:
    """Conflicts, reads that are left half-way and waits that are given up cost nothing that stays."""
    async with env.open() as log:
        for index in range(1, 4):
            await log.append(index, b"x")

        async def cycle(number: int) -> None:
            with raises(ConflictError):
                await log.append(2, b"another %d" % number)
            async for _entry in log.read(1):
                break
            await given_up(3 + number % 4, lambda: log.wait_for_news(10))

        await grows_nothing(cycle)


@clause(level=5)
async def test_entries_take_no_memory(env: Env) -> None:
    """What was appended, read, or in a snapshot stays in memory up to a bound of 64 MiB, and no longer."""
    async with env.open() as log:
        if log.capabilities.entry_bytes_max < _LARGE:
            not_applicable("entries are small: what a plugin may keep of them can't be told from all")
        index, appended, kept = 1, 0, 0
        async with kept_bytes() as grown:
            while 2 * kept >= appended:  # until most of it is known to have gone
                first, end = index, index + _LARGE_COUNT
                for index in range(first, end):
                    await log.append(index, bytes(_LARGE))
                index, appended = end, appended + _LARGE_COUNT * _LARGE
                kept = _check_bound(grown(), appended, "appended")
                for _ in range(2):
                    async for entry in log.read(first):
                        assert len(entry.data) == _LARGE
                        del entry
                kept = max(kept, _check_bound(grown(), appended, "read"))
            written, kept, before = 0, 0, grown()
            while 2 * kept >= written:
                for _ in range(_SNAPSHOTS):
                    await log.append(index, b"small")
                    await log.write_snapshot(MetadataSnapshot(index, bytes(_SNAPSHOT_BYTES)))
                    assert await log.read_snapshot() is not None, "a snapshot was written, and there is none"
                    index += 1
                written += _SNAPSHOTS * _SNAPSHOT_BYTES
                kept = _check_bound(grown(), written, "in snapshots") - before


def _check_bound(kept: int, entries_bytes: int, what: str) -> int:
    assert kept <= _KEPT_BYTES_MAX + _LARGE_COUNT * _LARGE, (
        f"{entries_bytes} bytes were {what}, and {kept} are in memory"
    )
    return kept
