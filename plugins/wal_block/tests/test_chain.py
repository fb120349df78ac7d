"""From the append to what recovery returns, on real files: random payloads at random addresses, sizes and trims."""

from __future__ import annotations

import mmap
import random
import tempfile
from collections import deque
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import BLOCK_BYTES
from penstock_wal_block._headers import Owner
from penstock_wal_block._log import BlockLog
from tests.depth import examples

from penstock.checksum import checksum
from penstock.direct_io import LARGE_BYTES, filler_bytes
from penstock.errors import FullError
from penstock.spi import Buffer
from penstock.wal import GROUP_HEADER_BYTES, GroupCommit

CAPACITY_BYTES = 2**20
RING_BYTES = CAPACITY_BYTES - 8192
GROUP_BYTES_MAX = 2**17
ENTRY_BYTES_MAX = RING_BYTES // 4
WINDOW_BYTES = ENTRY_BYTES_MAX + 4 * BLOCK_BYTES

Sync: TypeAlias = Literal["auto", "fdatasync", "dsync"]

SIZES = st.one_of(
    st.integers(1, 6000),
    st.integers(LARGE_BYTES - 2, LARGE_BYTES + 2),
    st.integers(LARGE_BYTES, ENTRY_BYTES_MAX),
    st.integers(ENTRY_BYTES_MAX - 2, ENTRY_BYTES_MAX),
    st.integers(GROUP_BYTES_MAX - 4300, GROUP_BYTES_MAX),
)
ENTRIES = st.tuples(
    SIZES,
    st.integers(0, BLOCK_BYTES - 1),  # where in a page the payload begins
    st.integers(0, 60),  # bytes of it in a buffer before it
    st.sampled_from(["view", "bytes"]),  # whose address is known, or not
    st.booleans(),  # its checksum is known
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), ENTRIES),
        st.tuples(st.just("append"), ENTRIES),
        st.tuples(st.just("write"), st.none()),
        st.tuples(st.just("trim"), st.integers(0, 4)),
        st.tuples(st.just("reopen"), st.booleans()),
    ),
    max_size=40,
)
#: Memory that payloads are cut from, anywhere in a page; nobody writes to it.
MEMORY = memoryview(mmap.mmap(-1, 2**21))
MEMORY[:] = random.Random(1).randbytes(2**21)


def payload(number: int, entry: tuple[int, int, int, str, bool]) -> list[Buffer]:
    size, in_page, header_bytes, kind, _ = entry
    header_bytes = min(header_bytes, size - 1)
    start = number * 7 % 256 * BLOCK_BYTES + in_page
    view = MEMORY[start : start + size - header_bytes]
    head = (b"%d." % number * 60)[:header_bytes]
    return [head, view if kind == "view" else bytes(view)]


class Life:
    """One file, opened again and again; what is written and not trimmed."""

    def __init__(self, path: Path, io: str, sync: Sync) -> None:
        self.path, self.io, self.sync = path, io, sync
        self.epoch = 0
        self.number = 0
        #: Appended, in groups that aren't written.
        self.pending: deque[tuple[int, bytes]] = deque()
        self.written: list[tuple[int, bytes]] = []
        self.trimmed = 0
        self.open()

    def open(self) -> None:
        self.epoch += 1
        self.device = FileDevice(
            self.path,
            capacity_bytes=CAPACITY_BYTES,
            io="direct" if self.io == "direct" else "buffered",
            sync=self.sync,
            buffer_bytes=GROUP_BYTES_MAX,
        )
        owner = Owner(cluster_id="c", node_id=1, epoch=self.epoch, incarnation=bytes(16), log_id=7)
        self.log = BlockLog(self.device, owner, location="wal", window_bytes=WINDOW_BYTES)
        found = [
            (entry.next_position, bytes(entry.data)) for group in self.log.scan() for entry in group.entries
        ]
        expected = [entry for entry in self.written if entry[0] > self.trimmed]
        assert found[len(found) - len(expected) :] == expected
        assert all(position <= self.trimmed for position, _ in found[: len(found) - len(expected)])
        self.log.settle()
        self.commit = GroupCommit(
            alignment=BLOCK_BYTES,
            group_bytes_max=GROUP_BYTES_MAX,
            entry_bytes_max=ENTRY_BYTES_MAX,
            capacity_bytes=self.log.ring_bytes,
            filler_bytes=filler_bytes if self.device.direct else None,
        )
        cursor = self.log.cursor
        self.commit.start(
            cursor.position,
            cursor.sequence,
            start_position=self.log.header.start.position,
            trimmed=self.trimmed,
        )

    def append(self, entry: tuple[int, int, int, str, bool]) -> None:
        self.number += 1
        data = payload(self.number, entry)
        whole = b"".join(data)
        try:
            append = self.commit.append(data, checksum(whole) if entry[4] else None)
        except FullError:
            used = self.commit.statistics().used_bytes
            assert used > 0, "an empty log has room for every entry"
            return
        self.pending.append((append.next_position, whole))

    def write(self) -> None:
        while (group := self.commit.take()) is not None:
            assert group.end_position - self.log.header.start.position <= RING_BYTES
            if len(group.appends) > 1:
                assert group.length <= GROUP_BYTES_MAX
            assert group.length < GROUP_HEADER_BYTES + max(GROUP_BYTES_MAX, ENTRY_BYTES_MAX) + 2 * BLOCK_BYTES
            count = len(group.appends)
            self.log.write(group)
            self.commit.finish(group)
            self.written += [self.pending.popleft() for _ in range(count)]
        self.log.rest()
        assert not self.pending

    def trim(self, back: int) -> None:
        if len(self.written) > back:
            self.trimmed = max(self.trimmed, self.written[-1 - back][0])
            self.commit.release(self.log.trim(self.trimmed), self.trimmed)

    def reopen(self, clean: bool) -> None:
        """Also without writing what is pending: the process died."""
        if clean:
            self.write()
            self.log.close()
        self.pending.clear()
        self.device.close()
        self.open()


@pytest.mark.parametrize("sync", ["auto", "fdatasync", "dsync"])
@pytest.mark.parametrize("io", ["direct", "buffered"])
@settings(max_examples=examples(40), deadline=None)
@given(operations=OPERATIONS)
def test_what_is_written_comes_back(io: str, sync: Sync, operations: list[tuple[str, object]]) -> None:
    """Byte by byte, over any number of laps of the ring and openings."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            life = Life(Path(directory) / "wal", io, sync)
        except OSError:
            pytest.skip("this file system takes no O_DIRECT")
        for name, argument in operations:
            getattr(life, name)(*(() if argument is None else (argument,)))
        life.write()
        life.reopen(clean=False)
        life.device.close()


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(ENTRIES, min_size=1, max_size=12),
    st.integers(0, RING_BYTES // BLOCK_BYTES - 1),
)
def test_fillers_never_reach_over_the_capacity(
    entries: list[tuple[int, int, int, str, bool]], start_block: int
) -> None:
    """What is accepted tiles whole blocks within the ring, and an entry that doesn't fit changes nothing."""
    commit = GroupCommit(
        alignment=BLOCK_BYTES,
        group_bytes_max=GROUP_BYTES_MAX,
        entry_bytes_max=ENTRY_BYTES_MAX,
        capacity_bytes=RING_BYTES,
        filler_bytes=filler_bytes,
    )
    start = start_block * BLOCK_BYTES
    commit.start(start, 0)
    accepted = []
    for number, entry in enumerate(entries):
        before = commit.statistics()
        try:
            accepted.append(commit.append(payload(number, entry)))
        except FullError:
            assert commit.statistics() == before
            # with room for a group of its own, filler and all, it would have been accepted
            assert start + RING_BYTES - accepted[-1].next_position < entry[0] + 3 * BLOCK_BYTES
    end = start
    while (group := commit.take()) is not None:
        assert group.position == end
        at = group.position + GROUP_HEADER_BYTES
        for append in group.appends:
            gap = append.position - at
            assert gap == 0 or 24 <= gap < BLOCK_BYTES + 24
            at = append.next_position
        assert group.position + group.length == at
        end = group.end_position
    assert end <= start + RING_BYTES
