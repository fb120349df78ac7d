"""Gathering for O_DIRECT: what was added is written, in whole aligned blocks, and from its place where that fits."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples

from penstock.direct_io import (
    BLOCK_BYTES,
    LARGE_BYTES,
    DirectGather,
    ReadBuffers,
    filler_bytes,
    write_vectors,
)

MIB = 2**20

PIECES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 9000), st.integers(LARGE_BYTES, LARGE_BYTES + 300_000)),  # bytes
        st.integers(0, BLOCK_BYTES - 1),  # where in a page they begin
        st.booleans(),  # laid out with filler
    ),
    max_size=8,
)


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def placed(size: int, offset: int, fill: int) -> memoryview:
    """``size`` bytes that begin ``offset`` bytes into a page."""
    memory = mmap.mmap(-1, offset + size + 1)
    view = memoryview(memory)[offset : offset + size]
    view[:] = bytes([fill]) * size
    return view


@settings(max_examples=examples(150), deadline=None)
@given(PIECES, st.sampled_from([1, 2, 7, 64]), st.sampled_from([0, BLOCK_BYTES, 20 * BLOCK_BYTES]))
def test_vectors_are_aligned_and_add_up(
    pieces: list[tuple[int, int, bool]], bounce_blocks: int, write_bytes: int
) -> None:
    written = bytearray()

    def write(vectors: Sequence[memoryview]) -> None:
        for vector in vectors:
            assert len(vector) % BLOCK_BYTES == 0
            assert address(vector) % BLOCK_BYTES == 0
            written.extend(vector)

    gather = DirectGather(bounce_blocks * BLOCK_BYTES, write, write_bytes=write_bytes)
    expected = bytearray()
    for number, (size, offset, filled) in enumerate(pieces):
        data = placed(size, offset, number + 1)
        if filled:
            zeros = bytes(filler_bytes(len(expected), [data]))
            gather.add(zeros)
            expected += zeros
        gather.add(data)
        expected += data
    rest = bytes(gather.flush())
    assert len(rest) < BLOCK_BYTES
    assert written + rest == expected
    gather.pad()
    gather.flush()
    assert written == expected.ljust(len(written), b"\0")
    assert len(written) - len(expected) < BLOCK_BYTES
    gather.close()


@pytest.mark.parametrize("native", [True, False])
@settings(max_examples=examples(60), deadline=None)
@given(pieces=PIECES, bounce_blocks=st.sampled_from([1, 2, 7, 64]), groups=st.integers(1, 4))
def test_many_buffers_at_once_are_written_as_one_by_one(
    native: bool, pieces: list[tuple[int, int, bool]], bounce_blocks: int, groups: int
) -> None:
    """With native code, which copies many in one go, and without."""
    buffers = [placed(size, offset, number + 1) for number, (size, offset, _) in enumerate(pieces)]

    def gathered(add: Callable[[DirectGather, list[memoryview]], None]) -> bytes:
        written = bytearray()
        gather = DirectGather(bounce_blocks * BLOCK_BYTES, lambda vectors: written.extend(b"".join(vectors)))
        for first in range(groups):
            add(gather, buffers[first::groups])
        gather.pad()
        gather.flush()
        gather.close()
        return bytes(written)

    def one_by_one(gather: DirectGather, some: list[memoryview]) -> None:
        for buffer in some:
            gather.add(buffer)

    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr("penstock.native.copy", None)
        assert gathered(DirectGather.add_all) == gathered(one_by_one)


def test_a_large_buffer_behind_its_filler_is_written_from_its_place() -> None:
    data = placed(LARGE_BYTES, 123, 7)
    vectors: list[tuple[int, int]] = []
    gather = DirectGather(BLOCK_BYTES, lambda some: vectors.extend((address(v), len(v)) for v in some))
    gather.add(b"header")
    gather.add(bytes(filler_bytes(len(b"header"), [data])))
    gather.add(data)
    gather.pad()
    gather.flush()
    first_page = address(data) - 123 + BLOCK_BYTES
    assert (first_page, LARGE_BYTES - BLOCK_BYTES) in vectors
    assert sum(size for _, size in vectors) == LARGE_BYTES + BLOCK_BYTES, (
        "the ends come from the bounce buffer"
    )


def test_small_and_unaddressable_buffers_ask_for_no_filler() -> None:
    assert filler_bytes(1, [b"x" * 100, placed(LARGE_BYTES - 1, 5, 1)]) == 0
    assert filler_bytes(1, [bytes(LARGE_BYTES)]) == 0


def test_the_filler_counts_what_stands_before_the_large_buffer() -> None:
    data = placed(LARGE_BYTES, 500, 1)
    size = filler_bytes(10_000, [b"x" * 41, data])
    assert (10_000 + 41 + size) % BLOCK_BYTES == 500


def test_reset_forgets_what_was_not_written() -> None:
    written = bytearray()
    gather = DirectGather(4 * BLOCK_BYTES, lambda vectors: written.extend(b"".join(vectors)))
    gather.add(b"lost")
    gather.reset()
    gather.add(b"kept")
    gather.pad()
    gather.flush()
    assert written == b"kept".ljust(BLOCK_BYTES, b"\0")


def test_partial_writes_go_on_where_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    calls = []

    def short(fd: int, vectors: Sequence[memoryview], position: int, flags: int = 0) -> int:
        data = b"".join(vectors)[:5]
        calls.append(len(data))
        return real(fd, [data], position, flags)

    monkeypatch.setattr(os, "pwritev", short)
    partial: list[int] = []
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        parts = [memoryview(b"abc"), memoryview(b""), memoryview(b"defgh"), memoryview(b"ijkl")]
        write_vectors(file.fileno(), parts, 2, on_partial=lambda: partial.append(1))
        assert file.read() == b"\0\0abcdefghijkl"
    assert calls == [5, 5, 2]
    assert len(partial) == 2


def test_a_medium_that_takes_nothing_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with (tmp_path / "file").open("w+b", buffering=0) as file, pytest.raises(OSError, match="takes no more"):
        write_vectors(file.fileno(), [memoryview(b"abc")], 0)


def test_what_is_small_is_put_together_whole_and_leaves_nothing_behind() -> None:
    written: list[bytes] = []
    gather = DirectGather(2 * BLOCK_BYTES, lambda vectors: written.extend(map(bytes, vectors)))
    gather.add(b"x" * (2 * BLOCK_BYTES))
    gather.flush()
    whole = gather.whole([b"head", memoryview(b"payload")], 11)
    assert whole is not None
    assert bytes(whole) == b"headpayload".ljust(BLOCK_BYTES, b"\0")
    assert address(whole) % BLOCK_BYTES == 0
    assert gather.whole([bytes(2 * BLOCK_BYTES), b"x"], 2 * BLOCK_BYTES + 1) is None
    gather.add(b"y" * BLOCK_BYTES)
    gather.flush()
    assert written == [b"x" * (2 * BLOCK_BYTES), b"y" * BLOCK_BYTES]


def test_memory_for_reads_is_used_again_once_nobody_sees_it_and_never_before() -> None:
    buffers = ReadBuffers(4 * MIB)
    first = buffers.take(MIB + 1)
    assert len(first) == MIB + 1
    assert address(first) % BLOCK_BYTES == 0
    first[:] = b"a" * len(first)
    part = first[10:20].toreadonly()
    place = address(first)
    del first
    other = buffers.take(MIB)
    assert address(other) != place, "a part of it is still seen"
    other[:] = b"b" * MIB
    assert part == b"a" * 10
    del part
    again = buffers.take(MIB)
    assert address(again) == place
    assert address(buffers.take(MIB)) not in {place, address(other)}


def test_of_memory_for_reads_so_many_bytes_wait_and_they_fit() -> None:
    buffers = ReadBuffers(2 * MIB)
    many = [buffers.take(MIB) for _ in range(5)]
    places = {address(view) for view in many}
    del many
    assert [len(memory) for memory in buffers._kept] == [MIB, MIB]
    assert not buffers._loans
    assert len(buffers.take(3 * MIB)) == 3 * MIB, "of a larger piece nothing is kept"
    assert [len(memory) for memory in buffers._kept] == [MIB, MIB]
    assert address(buffers.take(MIB - 70_000)) in places
    assert [len(memory) for memory in buffers._kept] == [MIB, MIB]
    part = buffers.take(MIB * 7 // 8)
    assert memoryview(part.obj).nbytes == len(part), "a cache would copy what keeps an eighth more alive"


def test_of_memory_for_reads_the_closest_fit_is_used_and_the_oldest_goes() -> None:
    buffers = ReadBuffers(2 * MIB)
    longer, closest = buffers.take(MIB), buffers.take(MIB - 32 * 1024)
    places = address(longer), address(closest)
    del longer
    del closest
    view = buffers.take(MIB - 40_000)
    assert address(view) == places[1]
    del view
    assert [len(memory) for memory in buffers._kept] == [MIB, MIB - 32 * 1024]
    buffers.take(MIB // 4)
    assert [len(memory) for memory in buffers._kept] == [MIB - 32 * 1024, MIB // 4]


@pytest.mark.skipif(sys.platform != "linux", reason="the system makes no memory longer")
@pytest.mark.parametrize("size", [MIB // 2 + BLOCK_BYTES, MIB * 3 // 2])
def test_memory_for_reads_is_made_longer_or_shorter_and_what_was_in_it_is_no_longer_fresh(size: int) -> None:
    buffers = ReadBuffers(4 * MIB)
    view = buffers.take(MIB)
    view[:] = b"x" * MIB
    del view
    view = buffers.take(size)
    assert not buffers._kept
    assert len(view) == memoryview(view.obj).nbytes == size
    common = min(size, MIB)
    assert view[:common] == b"x" * common, "pages that were touched are used again"
    view[-1:] = b"y"
    del view
    assert [len(memory) for memory in buffers._kept] == [size]


def test_memory_for_reads_that_cant_be_made_longer_yet_is_left_for_fresh() -> None:
    """Another thread may have let the last view go, and not have come to its end."""
    buffers = ReadBuffers(4 * MIB)
    view = buffers.take(MIB)
    del view
    with memoryview(buffers._kept[0]):
        assert len(buffers.take(MIB * 3 // 2)) == MIB * 3 // 2


def test_memory_for_reads_that_is_of_quite_another_length_is_left_alone() -> None:
    buffers = ReadBuffers(4 * MIB)
    view = buffers.take(MIB)
    del view
    other = [buffers.take(MIB // 2 - BLOCK_BYTES), buffers.take(2 * MIB + 1)]
    assert [len(memory) for memory in buffers._kept] == [MIB]
    del other


def test_memory_for_reads_that_isnt_kept_is_given_back_by_who_takes_the_next_not_by_who_lets_go() -> None:
    """Who lets go may be the event loop, which would stand still for it: 0.3 ms for a mebibyte."""
    buffers = ReadBuffers(4 * MIB)
    many = [buffers.take(MIB) for _ in range(7)]
    while many:
        many.pop()
    assert len(buffers._kept) == 4
    assert [len(memory) for memory in buffers._surplus] == [MIB], "a quarter of what is kept at most"
    gone = weakref.ref(buffers._surplus[0])
    buffers.take(MIB)
    assert not buffers._surplus
    assert gone() is None


def test_memory_for_reads_that_ends_in_the_middle_of_another_call_is_kept_by_the_next() -> None:
    buffers = ReadBuffers(MIB)
    view = buffers.take(MIB)
    place = address(view)
    with buffers._lock:  # whoever lets go may be inside a call, interrupted by the garbage collector
        del view
    assert not buffers._kept
    assert address(buffers.take(MIB)) == place


def test_memory_for_reads_comes_from_any_thread_whole() -> None:
    buffers = ReadBuffers(MIB)
    faults: list[str] = []

    def use(fill: int) -> None:
        for _ in range(200):
            views = [buffers.take(64 * 1024) for _ in range(3)]
            for view in views:
                view[:] = bytes([fill]) * len(view)
            faults.extend("shared" for view in views if view != bytes([fill]) * len(view))

    threads = [threading.Thread(target=use, args=(fill,)) for fill in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert buffers._kept_bytes == sum(map(len, buffers._kept)) <= MIB
