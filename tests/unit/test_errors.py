"""Errors that are stored, shared and raised again."""

from __future__ import annotations

import traceback
import weakref

import pytest
from tests.garbage import nothing_to_collect

from penstock.errors import PenstockError, UnavailableError, again, kept
from penstock.log.errors import KafkaError
from penstock.threads import run_in_thread
from penstock.wal import WriterThread
from penstock.wire.records import BatchError

pytestmark = pytest.mark.anyio


class Payload(bytearray):
    """Can be referred to weakly."""


def failing(payload: Payload) -> None:
    copy = bytes(payload)
    raise UnavailableError(f"no place for it: size={len(copy)}") from OSError(28, "full")


def test_a_kept_error_holds_no_frames_nor_do_its_causes() -> None:
    payload = Payload(b"x")
    seen = weakref.ref(payload)
    try:
        failing(payload)
    except UnavailableError as error:
        stored = kept(error)
    del payload
    assert seen() is None
    assert stored.__traceback__ is None
    assert isinstance(stored.__cause__, OSError)


def test_a_kept_bug_says_as_text_where_it_was_raised() -> None:
    try:
        int("[][1]")
    except ValueError as error:
        stored = kept(error)
    assert 'int("[][1]")' in "".join(traceback.format_exception(again(stored)))


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("gone: place=1"),
        KafkaError(87, "invalid: record=1"),
        BatchError("bad: record=1", 87),
        OSError(28, "No space left on device", "file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_raised_again_is_a_copy_that_says_the_same(error: Exception) -> None:
    error.__cause__ = ValueError("why")
    copy = again(error)
    assert copy is not error
    assert (type(copy), str(copy), copy.args) == (type(error), str(error), error.args)
    assert (copy.__dict__, copy.__cause__) == (error.__dict__, error.__cause__)
    if isinstance(error, OSError):
        assert isinstance(copy, OSError)
        assert copy.errno == error.errno


async def test_work_that_fails_in_a_thread_leaves_nothing_to_collect() -> None:
    async def once() -> None:
        try:
            await run_in_thread(failing, Payload(10_000))
        except UnavailableError as error:
            frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            assert frames[-1] == "failing", "the lines stay for the log"

    await once()
    with nothing_to_collect():
        for _ in range(4):
            await once()


async def test_work_that_fails_in_a_thread_gives_its_memory_back_with_its_error() -> None:
    payload = Payload(10_000)
    seen = weakref.ref(payload)
    try:
        await run_in_thread(failing, payload)
    except UnavailableError:
        del payload
    await run_in_thread(int)  # the thread has let go of the work when it takes the next
    assert seen() is None


async def test_jobs_that_fail_leave_nothing_to_collect() -> None:
    async with WriterThread("test-writer") as thread:

        async def once() -> None:
            payload = Payload(10_000)
            with pytest.raises(PenstockError):
                await thread.run(lambda: failing(payload))

        await once()
        with nothing_to_collect():
            for _ in range(4):
                await once()
