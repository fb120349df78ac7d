"""A log that several hosts have open: who is stopped and wakes up later acknowledges nothing and destroys nothing."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_wal_block._format import (
    BLOCK_BYTES,
    HEADER_AREA_BYTES,
    SHARED_AREA_BYTES,
    Header,
)
from penstock_wal_block._headers import Owner
from penstock_wal_block._log import BlockLog, Flight
from penstock_wal_block._place import find_header
from penstock_wal_block._ring import RingMap, Section, Zone
from tests.depth import examples, seeds
from tests.patience import HANG_S

from penstock.errors import FencedError, FullError
from penstock.spi import Buffer
from penstock.wal import Cursor, Group, GroupCommit

RING_BYTES = 128 * BLOCK_BYTES
#: As the settings have it: groups are a sixteenth of the ring.
GROUP_BYTES = 8 * BLOCK_BYTES
WINDOW_BYTES = GROUP_BYTES + 4 * BLOCK_BYTES


class Medium:
    """A device that a read of sees every write that ended before. The claims of its host's openers are locks."""

    capacity_bytes = SHARED_AREA_BYTES + RING_BYTES
    shareable = in_place = is_linked = True
    seat = b"s" * 16

    def __init__(self) -> None:
        self.data = bytearray(self.capacity_bytes)
        self.held: set[int] = set()


class Host:
    """The medium as an opener sees it, who may be stopped (SIGSTOP) before any operation on it."""

    shareable = in_place = is_linked = True

    def __init__(self, medium: Medium, *, seat: bytes = b"s" * 16) -> None:
        self._medium = medium
        self._stops_in = -1
        self.seat = seat
        self.stopped = threading.Event()
        self.awake = threading.Event()
        self.capacity_bytes = self.extent_bytes = medium.capacity_bytes

    def stop_after(self, operations: int) -> None:
        self._stops_in = operations

    def _step(self) -> None:
        if self._stops_in == 0:
            self._stops_in = -1
            self.stopped.set()
            assert self.awake.wait(HANG_S), "nobody woke the owner"
        self._stops_in -= 1

    def find_header(self, location: str) -> Header | None:
        area = self.read_header_area(0, SHARED_AREA_BYTES)
        return find_header(area, HEADER_AREA_BYTES, self._read, location, is_block_device=False)

    def _read(self, offset: int, size: int) -> bytes:
        self._step()
        return bytes(self._medium.data[offset : offset + size])

    def read_header_area(self, offset: int, size: int) -> bytes:
        return self._read(offset, size)

    def read(self, offset: int, size: int) -> memoryview:
        return memoryview(self._read(offset, size))

    def write_header_slot(self, index: int, slot: bytes) -> None:
        self._step()
        self._medium.data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] = slot

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        data = b"".join(parts).ljust(-(-length // BLOCK_BYTES) * BLOCK_BYTES, b"\0")
        assert SHARED_AREA_BYTES <= offset <= offset + len(data) <= self.capacity_bytes
        middle = len(data) // 2 // 512 * 512  # it may be stopped, or be torn, between the halves
        self._step()
        self._medium.data[offset : offset + middle] = data[:middle]
        self._step()
        self._medium.data[offset + middle : offset + len(data)] = data[middle:]

    def sync(self) -> None:
        self._step()

    def sync_all(self) -> None:
        self._step()

    def claim(self, epoch: int) -> bool:
        self._medium.held.add(epoch)
        return True

    def is_free(self, epoch: int) -> bool:
        return epoch not in self._medium.held

    devices = stripe_bytes = 0

    def label(self, log_id: int) -> None: ...

    def reserve(self, epoch: int, earlier: Sequence[int]) -> frozenset[int]:
        return frozenset()

    def header_lock(self) -> AbstractContextManager[None]:
        raise AssertionError("a lock that a stopped owner may hold")

    data_lock = header_lock


class Life:
    """One owner."""

    def __init__(
        self, medium: Medium, epoch: int, *, seat: bytes = b"s" * 16, host: Host | None = None
    ) -> None:
        self.host = host or Host(medium, seat=seat)
        owner = Owner(cluster_id="c", node_id=1, epoch=epoch, incarnation=os.urandom(16), log_id=epoch)
        self.log = BlockLog(self.host, owner, location="shared", window_bytes=WINDOW_BYTES, shared=True)

    def recover(self) -> list[tuple[int, bytes]]:
        found = [
            (entry.next_position, bytes(entry.data)) for group in self.log.scan() for entry in group.entries
        ]
        self.log.settle()
        self.commit = GroupCommit(
            alignment=BLOCK_BYTES,
            group_bytes_max=GROUP_BYTES,
            entry_bytes_max=GROUP_BYTES,
            capacity_bytes=RING_BYTES,
        )
        cursor = self.log.cursor
        self.commit.start(
            cursor.position,
            cursor.sequence,
            start_position=self.log.header.start.position - self.log.left_bytes,
        )
        return found

    def begin(self, data: bytes) -> tuple[Group, Flight]:
        self.commit.append([data])
        group = self.commit.take()
        assert group is not None
        return group, self.log.begin(group)

    def write(self, data: bytes) -> int:
        """Acknowledged on return; its end."""
        group, flight = self.begin(data)
        end = group.appends[-1].next_position
        self.log.put(flight)
        self.commit.finish(group)
        return end

    def trim(self, position: int) -> None:
        self.commit.release(self.log.trim(position) - self.log.left_bytes, position)


class Zombie:
    """An owner that is stopped in the midst of something."""

    def __init__(self, host: Host, work: Callable[[], object], operations: int) -> None:
        self._host = host
        self.error: BaseException | None = None
        self.must_be_fenced = False
        host.stop_after(operations)
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert host.stopped.wait(HANG_S)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the test judges it
            self.error = error
        self._host.stopped.set()

    def wake(self) -> None:
        self._host.awake.set()
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()


class SlowTaker(Zombie):
    """Takes the log over and writes; is stopped somewhere on the way."""

    def __init__(self, medium: Medium, epoch: int, operations: int) -> None:
        self.wrote: list[tuple[int, bytes]] = []
        self._medium, self._epoch = medium, epoch
        host = Host(medium)
        super().__init__(host, lambda: self._take_over(host), operations)

    def _take_over(self, host: Host) -> None:
        life = Life(self._medium, self._epoch, host=host)
        life.recover()
        for number in range(3):
            data = b"of the slow one %d.%d" % (self._epoch, number)
            self.wrote.append((life.write(data), data))


class Model:
    """What was acknowledged, and what of it may have been trimmed."""

    def __init__(self, rng: random.Random) -> None:
        self.acked: list[tuple[int, bytes]] = []
        self.trimmed = 0
        self._rng = rng
        self._number = 0

    def body(self) -> bytes:
        self._number += 1
        return (b"%d." % self._number) * self._rng.choice((1, 500, 2500))

    def check(self, found: list[tuple[int, bytes]]) -> None:
        """All that was acknowledged is there, at its place and in order; behind it only what was in flight."""
        must = [one for one in self.acked if one[0] > self.trimmed]
        if must:
            first = found.index(must[0])
            assert found[first : first + len(must)] == must, "acknowledged before the fence, and lost"
            found = found[first + len(must) :]
        else:
            found = [one for one in found if one not in self.acked]
        self.acked += found

    def some_end(self) -> int:
        """The end of one of the last entries."""
        return self._rng.choice(self.acked[-3:])[0]


@pytest.mark.parametrize("seed", seeds("zombie_seeds"))
def test_an_owner_that_wakes_up_acknowledges_nothing_and_destroys_nothing(seed: int) -> None:
    """Stopped before any operation of groups in flight or a trim; woken at once, or laps and owners later."""
    rng = random.Random(seed)
    medium = Medium()
    model = Model(rng)
    zombies: list[Zombie] = []
    for epoch in range(1, 9):
        life = Life(medium, epoch)
        wake_some(zombies, rng, 0.3)
        model.check(life.recover())
        if model.acked and rng.random() < 0.8:
            model.trimmed = model.acked[-1][0]
            life.trim(model.trimmed)
        for _ in range(rng.choice((0, 3, 30, 150))):
            wake_some(zombies, rng, 0.02)
            data = model.body()
            try:
                model.acked.append((life.write(data), data))
            except FullError:
                model.trimmed = max(model.trimmed, model.some_end())
                life.trim(model.trimmed)
        zombies.append(stop_in_the_midst(life, rng, model))
    model.check(Life(medium, 9).recover())
    wake_some(zombies, rng, 1)
    model.check(Life(medium, 10).recover())


def wake_some(zombies: list[Zombie], rng: random.Random, share: float) -> None:
    for zombie in list(zombies):
        if rng.random() < share:
            zombies.remove(zombie)
            zombie.wake()
            if zombie.must_be_fenced:
                assert isinstance(zombie.error, FencedError), f"the old owner isn't fenced: {zombie.error!r}"


def stop_in_the_midst(life: Life, rng: random.Random, model: Model) -> Zombie:
    """Of a trim, or of putting groups in flight, in whichever order."""
    if model.acked and rng.random() < 0.3:
        end = model.some_end()
        model.trimmed = max(model.trimmed, end)
        return Zombie(life.host, lambda: life.log.trim(end), rng.randrange(6))
    flights: list[tuple[int, bytes, Flight]] = []
    for _ in range(3):
        data = model.body()
        try:
            group, flight = life.begin(data)
        except FullError:
            break
        flights.append((group.appends[0].next_position, data, flight))
        if life.commit.span_bytes + len(data) > GROUP_BYTES:
            break
    landed: set[int] = set()

    def put() -> None:
        for end, _, flight in rng.sample(flights, len(flights)):
            life.log.put(flight)
            landed.add(end)

    zombie = Zombie(life.host, put, rng.randrange(5 * len(flights) + 1))
    for end, data, _ in flights:  # acknowledged in order
        if end not in landed:
            zombie.must_be_fenced = True
            break
        model.acked.append((end, data))
    return zombie


@pytest.mark.parametrize("seed", range(12))
def test_two_takers_at_once_never_both_get_an_acknowledgement_that_the_next_one_does_not_find(
    seed: int,
) -> None:
    """One is stopped in the midst of its take-over, and goes on when the other one owns the log."""
    rng = random.Random(seed)
    medium = Medium()
    model = Model(rng)
    for start in range(1, 20, 3):
        first = Life(medium, start)
        model.check(first.recover())
        if model.acked:
            model.trimmed = model.acked[-1][0]
            first.trim(model.trimmed)
        for _ in range(3):
            data = model.body()
            model.acked.append((first.write(data), data))
        epochs = [start + 1, start + 2]
        rng.shuffle(epochs)
        slow = SlowTaker(medium, epochs[0], rng.randrange(14))
        try:
            other = Life(medium, epochs[1])
            model.check(other.recover())
            for _ in range(rng.randrange(5)):
                data = model.body()
                model.acked.append((other.write(data), data))
        except FencedError:
            pass
        slow.wake()
        model.acked = sorted(model.acked + slow.wrote)
    model.check(Life(medium, 99).recover())


@settings(max_examples=examples(60), deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(("write", "trim", "take")), st.integers(1, 40)), max_size=40),
)
def test_nothing_is_written_over_what_is_kept_or_to_what_an_earlier_owner_may_write(
    steps: list[tuple[str, int]],
) -> None:
    ring = RingMap(RING_BYTES)
    start = end = 0
    window = 8 * BLOCK_BYTES
    for name, blocks in steps:
        if name == "write":
            end = max(end, min(end + blocks * BLOCK_BYTES, start + ring.room_bytes))
        elif name == "trim":
            start = min(end, start + blocks * BLOCK_BYTES)
            ring = ring.trimmed(start)
        else:
            last = min(end + window, start + ring.usable_bytes)
            later = ring
            if last > end:
                later = ring.around(end, end, last, epoch=len(ring.zones) + blocks, kept=3)
            if later.room_bytes >= 2 * window:
                ring = later
        kept = bytes_of(ring, start, end)
        assert len(set(kept)) == len(kept), "two positions at one place"
        room = bytes_of(ring, end, max(end, start + ring.room_bytes))
        assert not set(kept) & set(room), "the room is where something is kept"
        assert len(set(room)) == len(room)
        newest = ring.sections[-1]
        left = {
            block
            for zone in ring.zones[newest.first : newest.last]
            for block in range(zone.offset, zone.offset + zone.length, BLOCK_BYTES)
        }
        assert not left & set(room), "the room is where an earlier owner may write"


def bytes_of(ring: RingMap, start: int, end: int) -> list[int]:
    """The blocks of [start, end)."""
    pieces = ring.pieces(start, end - start)
    return [block for at, size in pieces for block in range(at, at + size, BLOCK_BYTES)]


def test_a_header_of_a_shared_log_comes_back_whole() -> None:
    ring = RingMap(
        RING_BYTES, (Zone(0, 4096, 3), Zone(8192, 4096, 9)), (Section(0, 0, 0, 1), Section(40960, 8192, 0, 2))
    )
    header = Header(
        sequence=7, log_id=1, cluster_id="c", node_id=2, epoch=9, incarnation=b"i" * 16, ring_bytes=RING_BYTES,
        trim_position=0, start=Cursor(), confirmed_position=4096, window_bytes=4096, shared=True, claim=True,
        generation=11, seat=b"s" * 16, devices=3, stripe_bytes=65536, zoned=ring,
    )  # fmt: skip
    slot = header.encode()
    found = Header.decode(slot, "here")
    assert found == header
    assert (found.ring.zones, found.ring.sections) == (ring.zones, ring.sections)
    for at in (300, 4000):
        assert Header.decode(slot[:at] + b"\1" + slot[at + 1 :], "here") is None


def test_who_is_gone_or_closed_leaves_the_whole_ring() -> None:
    medium = Medium()
    Life(medium, 1).recover()
    medium.held.clear()
    life = Life(medium, 2)
    life.recover()
    assert life.log.left_bytes == 0, "its process has ended, on this host"
    life.log.close()
    life = Life(medium, 3, seat=b"another host    ")
    life.recover()
    assert life.log.left_bytes == 0, "it had ended cleanly"
    medium.held.clear()
    life = Life(medium, 4)
    life.recover()
    assert life.log.left_bytes == WINDOW_BYTES, "on another host, it may only be stopped"


def test_the_same_epoch_never_opens_a_shared_log_twice() -> None:
    medium = Medium()
    Life(medium, 3)
    for epoch in (2, 3):
        with pytest.raises(FencedError):
            Life(medium, epoch)
