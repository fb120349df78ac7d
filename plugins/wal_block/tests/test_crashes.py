"""I1, I4 and I10 over crashes: a simulated device loses and tears whatever wasn't synced."""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES, Header, newest_header
from penstock_wal_block._headers import Owner
from penstock_wal_block._log import BlockLog, Flight
from penstock_wal_block._place import find_header
from penstock_wal_block._stripe import StripedDevice
from tests.depth import examples

from penstock.errors import CorruptError, FencedError, FullError, NewerVersionError
from penstock.spi import Buffer
from penstock.spi.wal import WalAppend
from penstock.wal import Group, GroupCommit

SECTOR_BYTES = 512
RING_BYTES = 16 * BLOCK_BYTES
GROUP_BYTES_MAX = 2 * BLOCK_BYTES
ENTRY_BYTES_MAX = 4 * BLOCK_BYTES


class Crash(Exception):  # noqa: N818 - it is no error of the code under test
    """The power went."""


class SimulatedDevice:
    """Writes reach the medium at ``sync``; at a crash any subset of the sectors of unsynced writes is on it."""

    capacity_bytes = extent_bytes = HEADER_AREA_BYTES + RING_BYTES
    shareable = True

    def __init__(self, *, syncs_all: bool = True) -> None:
        self.medium = bytearray(self.capacity_bytes)
        #: A sync makes every write durable (fdatasync), or only what was written since the last try (RWF_DSYNC).
        self._syncs_all = syncs_all
        self._own = 0
        self._unsynced: list[tuple[int, bytes]] = []
        self._steps_left = -1

    def crash_after(self, steps: int) -> None:
        """The operation after ``steps`` more dies half-way."""
        self._steps_left = steps

    def power_off(self, rng: random.Random) -> None:
        """Lose what isn't durable, at random."""
        for offset, data in self._unsynced:
            persisted = rng.random()
            for start in range(0, len(data), SECTOR_BYTES):
                if rng.random() < persisted:
                    sector = data[start : start + SECTOR_BYTES]
                    self.medium[offset + start : offset + start + len(sector)] = sector
        self._unsynced.clear()
        self._steps_left = -1

    def _step(self) -> None:
        if self._steps_left == 0:
            self._own = 0  # whoever wrote that never comes to sync
            raise Crash
        self._steps_left -= 1

    def _current(self) -> bytearray:
        image = bytearray(self.medium)
        for offset, data in self._unsynced:
            image[offset : offset + len(data)] = data
        return image

    in_place = is_linked = True

    def find_header(self, location: str) -> Header | None:
        size = len(self.medium) if any(self.medium[HEADER_AREA_BYTES:]) else HEADER_AREA_BYTES
        area = self.read_header_area(0, HEADER_AREA_BYTES)
        return find_header(area, size, self.read, location, is_block_device=False)  # type: ignore[arg-type]

    def read_header_area(self, offset: int, size: int) -> bytes:
        return bytes(self._current()[offset : offset + size])

    def write_header_slot(self, index: int, slot: bytes) -> None:
        self._unsynced.append((index * BLOCK_BYTES, slot))
        self._step()
        self.medium[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] = slot
        self._unsynced.pop()

    def read(self, offset: int, size: int) -> memoryview:
        return memoryview(bytes(self._current()[offset : offset + size]))

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        data = b"".join(parts)
        assert len(data) == length
        assert offset >= HEADER_AREA_BYTES
        assert offset + length <= self.capacity_bytes
        self._unsynced.append((offset, data.ljust(-(-length // BLOCK_BYTES) * BLOCK_BYTES, b"\0")))
        self._own += 1
        self._step()

    def sync(self) -> None:
        self._step()
        if self._syncs_all:
            self._make_durable()
        while self._own and self._unsynced:
            self._own -= 1
            offset, data = self._unsynced.pop()
            for older in list(self._unsynced):
                if older[0] < offset + len(data) and offset < older[0] + len(older[1]):
                    self._unsynced.remove(older)
                    self.medium[older[0] : older[0] + len(older[1])] = older[1]
            self.medium[offset : offset + len(data)] = data

    def sync_all(self) -> None:
        self._step()
        self._make_durable()

    def _make_durable(self) -> None:
        self.medium = self._current()
        self._unsynced.clear()
        self._own = 0

    def claim(self, epoch: int) -> bool:
        return True

    seat = bytes(16)

    devices = stripe_bytes = 0

    def label(self, log_id: int) -> None: ...

    def reserve(self, epoch: int, earlier: Sequence[int]) -> frozenset[int]:
        return frozenset()

    def is_free(self, epoch: int) -> bool:
        return False

    @contextmanager
    def header_lock(self) -> Iterator[None]:
        yield

    @contextmanager
    def data_lock(self) -> Iterator[None]:
        yield


class Run:
    """One life of an owner, driven without an event loop, and the model of what must come back."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.epoch = 0
        self.incarnation = b""
        self.written = 0
        #: The payloads in the log, oldest first; those before ``must_end`` may never be lost again.
        self.history: list[tuple[int, bytes]] = []
        self.must_end = 0
        self.trimmed = 0

    def open(self) -> None:
        self.epoch += 1
        owner = Owner(
            cluster_id="c",
            node_id=1,
            epoch=self.epoch,
            incarnation=self.incarnation.ljust(16, b"\0"),
            log_id=7,
        )
        self.log = BlockLog(
            self.device, owner, location="simulated", window_bytes=ENTRY_BYTES_MAX + 2 * BLOCK_BYTES
        )

    def recover(self) -> None:
        found = [(e.next_position, bytes(e.data)) for group in self.log.scan() for e in group.entries]
        self.check(found)
        self.log.settle()
        self.must_end = len(self.history)
        self.commit = GroupCommit(
            alignment=BLOCK_BYTES,
            group_bytes_max=GROUP_BYTES_MAX,
            entry_bytes_max=ENTRY_BYTES_MAX,
            capacity_bytes=RING_BYTES,
        )
        cursor = self.log.cursor
        self.commit.start(
            cursor.position, cursor.sequence, start_position=self.log.header.start.position, trimmed=0
        )

    def check(self, found: list[tuple[int, bytes]]) -> None:
        """What was found is one run of the history: from the trim point or before, to the acked end or past it."""
        if found:
            first = self.history.index(found[0])
            assert self.history[first : first + len(found)] == found
            end = first + len(found)
        else:
            first = end = max(self.must_end, len([p for p, _ in self.history if p <= self.trimmed]))
        assert all(position <= self.trimmed for position, _ in self.history[:first])
        assert end >= self.must_end
        self.history = self.history[:end]

    def append(self, size: int, entries: int) -> None:
        for _ in range(entries):
            self.written += 1
            data = b"%d." % self.written
            data = (data * (size // len(data) + 1))[: max(size, len(data))]
            try:
                append = self.commit.append([data])
            except FullError:
                break
            self.history.append((append.next_position, data))
        while (group := self.commit.take()) is not None:
            self.write(group)
            self.commit.finish(group)
            self.must_end += len(group.appends)

    def write(self, group: Group) -> None:
        """As a writer thread does, or as the event loop does a lone group where it can."""
        if self.written % 2 == 0 or (outcome := self.log.write_at_once(group)) is None:
            self.log.write(group)
        elif outcome[1] is not None:
            raise outcome[1]

    def fly(self, steps: int, size: int, rng: random.Random, *, window: int = 5) -> None:
        """So many steps of threads that write groups at the same time; then the power goes, in the midst of it.

        A step begins a group, or writes and syncs one in flight, whichever, or trims. Some writers get stuck: one
        has written a part and doesn't come to sync; others go on.
        """
        flights: list[tuple[Group, Flight, list[WalAppend]]] = []
        appends: deque[WalAppend] = deque()
        for _ in range(steps):
            if len(flights) < window and rng.random() < 0.6:
                self.written += 1
                data = (b"%d." % self.written) * (size // 4 + 1)
                try:
                    append = self.commit.append([data])
                except FullError:
                    self.trim(0)
                    continue
                self.history.append((append.next_position, data))
                appends.append(append)
                group = self.commit.take()
                assert group is not None
                flights.append((group, self.log.begin(group), [append]))
            elif flights:
                group, flight, _ = flights.pop(rng.randrange(len(flights)))
                self.device.crash_after(rng.choice([0, 1, -1, -1, -1]))
                try:
                    self.log.put(flight)
                    self.commit.finish(group)
                except Crash:
                    window -= 1  # that thread is stuck
                self.device.crash_after(-1)
            while appends and appends[0].done:
                appends.popleft()
                self.must_end += 1
            if rng.random() < 0.1:
                self.trim(rng.randrange(3))
        self.log.rest()

    def trim(self, back: int) -> None:
        if self.must_end > back:
            position = self.history[self.must_end - 1 - back][0]
            if position > self.log.header.trim_position:
                self.trimmed = max(self.trimmed, position)
                self.commit.release(self.log.trim(position), position)


_SIZES = st.sampled_from([1, 100, 4000, 4096, 9000, ENTRY_BYTES_MAX - 20])
_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), _SIZES, st.integers(1, 4)),
        st.tuples(st.just("trim"), st.integers(0, 6)),
        st.tuples(st.just("close")),
        st.tuples(st.just("crash"), st.integers(0, 5), _SIZES),
    ),
    max_size=40,
)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=_OPERATIONS, seed=st.integers(0, 2**32))
def test_no_crash_loses_an_acked_entry_or_revives_a_lost_one(
    operations: list[tuple[str, ...]], seed: int
) -> None:
    rng = random.Random(seed)
    device = SimulatedDevice()
    device.shareable = rng.random() < 0.5  # else not every group looks at the header
    run = Run(device)
    run.open()
    run.recover()
    for name, *arguments in operations:
        values = [int(value) for value in arguments]
        if name == "append":
            run.append(*values)
        elif name == "trim":
            run.trim(*values)
        elif name == "close":
            run.log.close()
            run.open()
            run.recover()
        else:
            _crash(run, rng, *values)


def _crash(run: Run, rng: random.Random, steps: int, size: int) -> None:
    """Die within the next operations, then recover, possibly dying in that as well."""
    run.device.crash_after(steps)
    try:
        for _ in range(steps + 2):
            run.append(size, 2)
            run.trim(0)
    except Crash:
        _end(run, rng)
    run.device.crash_after(rng.randrange(6))
    try:
        run.open()
        run.recover()
    except Crash:
        _end(run, rng)
        run.open()
        run.recover()
    run.device.crash_after(-1)


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lives=st.lists(st.tuples(st.integers(1, 40), _SIZES), min_size=1, max_size=8),
    syncs_all=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_no_crash_with_groups_in_flight_loses_an_acked_entry_or_revives_a_lost_one(
    lives: list[tuple[int, int]], syncs_all: bool, seed: int
) -> None:
    """Whatever of a window of groups is on the medium, whole, torn or not at all, and in whatever order it came."""
    rng = random.Random(seed)
    run = Run(SimulatedDevice(syncs_all=syncs_all))
    run.open()
    run.recover()
    for steps, size in lives:
        run.fly(steps, size, rng)
        _end(run, rng)
        run.device.crash_after(rng.choice([-1, rng.randrange(6)]))
        try:
            run.open()
            run.recover()
        except Crash:
            _end(run, rng)
            run.open()
            run.recover()
        run.device.crash_after(-1)


def test_a_hole_within_the_window_ends_the_log_and_what_is_behind_it_is_never_found_again() -> None:
    """Three groups were in flight. The first didn't reach the medium, so the others were not acknowledged."""
    run = Run(SimulatedDevice(syncs_all=False))
    run.open()
    run.recover()
    run.append(10, 1)
    flights = []
    for data in (b"hole", b"second", b"third"):
        run.commit.append([data])
        group = run.commit.take()
        assert group is not None
        flights.append(run.log.begin(group))
    run.log.put(flights[2])
    run.log.put(flights[1])
    run.open()
    run.recover()
    assert len(run.history) == 1
    run.append(4, 1)  # as long as the one that is missing, in its place
    run.open()
    run.recover()
    assert [data for _, data in run.history] == [run.history[0][1], b"2.2."]


def test_a_group_behind_a_lost_one_that_was_confirmed_makes_it_a_loss() -> None:
    """I10: of the two in flight the first was confirmed when a third began."""
    run = Run(SimulatedDevice(syncs_all=False))
    run.open()
    run.recover()
    flights = []
    for data in (b"first", b"second", b"third"):
        run.commit.append([data])
        group = run.commit.take()
        assert group is not None
        flights.append(run.log.begin(group))
        if data == b"second":
            run.log.put(flights[0])
    run.log.put(flights[2])
    run.device.medium[HEADER_AREA_BYTES + 100] ^= 1
    run.open()
    with pytest.raises(CorruptError, match="lost acknowledged entries"):
        list(run.log.scan())


class FailingSync(SimulatedDevice):
    """One sync fails and loses all that wasn't durable, in the midst of another thread's write."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] | None = None
        self.fails = False

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        super().write(offset, parts, length)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def sync(self) -> None:
        if self.fails:
            self.fails = False
            self._unsynced.clear()
            raise OSError(errno.EIO, "the disk failed")
        super().sync()


class FailingStripes(FailingSync):
    """Several devices, which make durable what they write."""

    devices = 2
    stripe_bytes = 2**16

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        super().write(offset, parts, length)
        super().sync()

    def sync(self) -> None:
        """Nothing is left to do."""


@pytest.mark.parametrize("kind", [FailingSync, FailingStripes])
def test_a_group_isnt_acknowledged_that_another_ones_failed_sync_may_have_lost(
    kind: type[FailingSync],
) -> None:
    """The system tells one caller that a sync failed; the next one finds nothing to do, and succeeds."""
    device = kind()
    run = Run(device)
    run.open()
    run.recover()
    flights = []
    for data in (b"first", b"second"):
        run.commit.append([data])
        group = run.commit.take()
        assert group is not None
        flights.append(run.log.begin(group))

    def put_second() -> None:
        device.fails = True
        with pytest.raises(OSError, match="the disk failed"):
            run.log.put(flights[1])

    device.meanwhile = put_second
    with pytest.raises(OSError, match="a sync beside it failed"):
        run.log.put(flights[0])
    for flight in flights:
        run.log.put(flight)
    device.power_off(random.Random(1))
    run.open()
    found = [bytes(entry.data) for group in run.log.scan() for entry in group.entries]
    assert found == [b"first", b"second"]


def _end(run: Run, rng: random.Random) -> None:
    """The power goes; or only the process dies, and the system keeps what it wrote, until the power goes."""
    if rng.random() < 0.7:
        run.device.power_off(rng)
    run.device.crash_after(-1)


@settings(max_examples=examples(150), deadline=None)
@given(
    sizes=st.lists(_SIZES.filter(lambda size: size < 9000), min_size=1, max_size=8),
    place=st.floats(0, 1, exclude_max=True),
    mask=st.integers(1, 255),
    clean=st.booleans(),
)
def test_no_damaged_byte_goes_unnoticed(sizes: list[int], place: float, mask: int, clean: bool) -> None:
    """After a flip anywhere recovery returns all entries (padding, the older header) or raises.

    Without a clean end nothing tells the very last group, damaged, from one that was being written.
    """
    run = Run(SimulatedDevice())
    run.open()
    run.recover()
    last_group_entries = 0
    for size in sizes:
        run.append(size, 1)
        last_group_entries = 1
    if clean:
        run.log.close()
    used = HEADER_AREA_BYTES + run.log.cursor.position
    run.device.medium[int(place * used)] ^= mask
    expected = [data for _, data in run.history]
    try:
        run.open()
        found = [bytes(entry.data) for group in run.log.scan() for entry in group.entries]
    except NewerVersionError:
        assert int(place * used) % BLOCK_BYTES in (8, 9), "only the version of a header slot looks like that"
        return
    except CorruptError:
        return
    if clean:
        assert found == expected
    else:
        assert found in (expected, expected[:-last_group_entries])


def test_a_second_opening_with_the_same_epoch_is_refused_even_without_locks() -> None:
    device = SimulatedDevice()
    run, other = Run(device), Run(device)
    run.incarnation, other.incarnation = b"first", b"second"
    run.open()
    run.recover()
    with pytest.raises(FencedError, match="open it with a newer one"):
        other.open()
    run.append(1, 1)


def test_an_owner_that_was_overtaken_in_its_recovery_is_fenced_by_what_the_newer_one_wrote() -> None:
    """It would take a newer owner's marks of metadata for a loss. Found by the simulation (wal_block, seed 172)."""
    device = SimulatedDevice()
    slow, newer = Run(device), Run(device)
    slow.open()
    slow.recover()
    slow.open()
    newer.epoch = slow.epoch
    newer.open()
    newer.recover()
    newer.append(10, 1)
    with pytest.raises(FencedError, match="a newer owner took over the wal"):
        list(slow.log.scan())


def test_no_thread_writes_after_another_one_found_that_the_owner_changed() -> None:
    """The second one comes to write before the first has told anybody why it failed."""
    device = SimulatedDevice()
    device.shareable = False  # so not every group looks at the header
    run = Run(device)
    run.open()
    run.recover()
    run.append(10, 1)
    run.log.rest()
    flights = []
    for data in (b"first", b"second"):
        run.commit.append([data])
        group = run.commit.take()
        assert group is not None
        flights.append(run.log.begin(group))
    successor = Run(device)
    successor.epoch = run.epoch
    successor.open()
    before = bytes(device.medium)
    for flight in flights:
        with pytest.raises(FencedError):
            run.log.put(flight)
    assert bytes(device.medium) == before


def test_a_group_that_a_recovery_did_not_return_never_comes_back() -> None:
    """The lost group reaches the medium late, when its successor wrote nothing in its place."""
    device = SimulatedDevice()
    run = Run(device)
    run.open()
    run.recover()
    run.append(10, 1)
    place = HEADER_AREA_BYTES + run.log.cursor.position
    run.commit.append([b"lost"])
    group = run.commit.take()
    assert group is not None
    run.log.write(group)
    late = bytes(device.medium[place : place + BLOCK_BYTES])
    device.medium[place : place + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    run.open()
    run.recover()
    device.medium[place : place + BLOCK_BYTES] = late
    run.open()
    run.recover()
    assert len(run.history) == 1


def test_a_group_of_an_abandoned_future_never_joins_its_successor() -> None:
    """Two groups were written and not synced; only the second reached the medium, and the log went on without."""
    device = SimulatedDevice()
    run = Run(device)
    run.open()
    run.recover()
    run.append(10, 1)
    for data in (b"lost", b"stale"):
        run.commit.append([data])
        group = run.commit.take()
        assert group is not None
        run.log.write(group)
    device.medium[HEADER_AREA_BYTES + BLOCK_BYTES : HEADER_AREA_BYTES + BLOCK_BYTES + 72] = bytes(72)
    header = newest_header(device.medium[:HEADER_AREA_BYTES], "medium")
    assert header is not None
    run.open()
    # Damage is told from an unwritten group because the second group says what was confirmed.
    with pytest.raises(CorruptError, match="lost acknowledged entries"):
        list(run.log.scan())
    # Had the first one never been confirmed, the second one would just not count.
    stale_at = HEADER_AREA_BYTES + 2 * BLOCK_BYTES
    stale = bytes(device.medium[stale_at : stale_at + BLOCK_BYTES])
    device.medium[stale_at : stale_at + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    run.open()
    run.recover()
    run.append(10, 1)
    device.medium[stale_at : stale_at + BLOCK_BYTES] = stale
    run.open()
    assert len([entry for group in run.log.scan() for entry in group.entries]) == 2


class StripedSimulation(StripedDevice):
    """Simulated devices, which die one by one and lose power together."""

    shareable = True

    def __init__(self, count: int, *, syncs_all: bool, rng: random.Random) -> None:
        self.simulated = [SimulatedDevice(syncs_all=syncs_all) for _ in range(count)]
        for one in self.simulated:
            one.capacity_bytes = HEADER_AREA_BYTES + RING_BYTES // count
            one.direct = one.is_block_device = False  # type: ignore[attr-defined]
        super().__init__(
            cast("list[FileDevice]", self.simulated),
            [f"device {number}" for number in range(count)],
            area_bytes=HEADER_AREA_BYTES,
            writers=1,
            stripe_bytes=BLOCK_BYTES,
        )
        self._rng = rng

    def crash_after(self, steps: int) -> None:
        for one in self.simulated:
            one.crash_after(-1)
        self._rng.choice(self.simulated).crash_after(steps)

    def power_off(self, rng: random.Random) -> None:
        for one in self.simulated:
            one.power_off(rng)

    def end(self) -> None:
        for pool in self._pools:
            pool.shutdown()


@settings(max_examples=examples(100), deadline=None)
@given(
    lives=st.lists(
        st.tuples(st.integers(1, 40), _SIZES),
        min_size=1,
        max_size=6,
    ),
    syncs_all=st.booleans(),
    count=st.sampled_from([2, 4]),
    seed=st.integers(0, 2**32),
)
def test_no_crash_of_any_device_loses_an_acked_entry_or_revives_a_lost_one(
    lives: list[tuple[int, int]], syncs_all: bool, count: int, seed: int
) -> None:
    """Whatever of a group is on whichever of its devices."""
    rng = random.Random(seed)
    device = StripedSimulation(count, syncs_all=syncs_all, rng=rng)
    run = Run(cast("SimulatedDevice", device))
    run.open()
    run.recover()
    for steps, size in lives:
        run.fly(steps, size, rng)
        _end(run, rng)
        device.crash_after(rng.choice([-1, rng.randrange(6)]))
        try:
            run.open()
            run.recover()
        except Crash:
            _end(run, rng)
            run.open()
            run.recover()
        device.crash_after(-1)
    device.end()
