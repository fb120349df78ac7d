"""A context in a task of its own is left to its end, whoever enters and leaves it, and however he is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

from penstock.broker._own_task import OwnTask

pytestmark = pytest.mark.anyio


class Place:
    """A context with a task group, whose opening and closing take several iterations, the closing behind a shield."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fail = anyio.Event()

    @asynccontextmanager
    async def context(self) -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fail_when_told)
            self.steps.append("begun")
            try:
                for _ in range(5):
                    await checkpoint()
                self.steps.append("open")
                yield "value"
            finally:
                with anyio.CancelScope(shield=True):
                    for _ in range(5):
                        await checkpoint()
                    self.steps.append("closed")
                tasks.cancel_scope.cancel()

    async def _fail_when_told(self) -> None:
        await self.fail.wait()
        raise LookupError("what it stands on is gone")


async def test_it_is_entered_in_one_task_and_left_in_another() -> None:
    place = Place()
    own = OwnTask(place.context(), name="place")
    assert await asyncio.create_task(own.__aenter__()) == "value"
    await asyncio.create_task(own.__aexit__(None, None, None))
    assert place.steps == ["begun", "open", "closed"]


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("times", [1, 3])
async def test_who_is_cancelled_by_asyncio_waits_until_it_is_closed(after: int, times: int) -> None:
    place = Place()

    async def use() -> None:
        async with OwnTask(place.context(), name="place"):
            pass

    task = asyncio.create_task(use())
    for _ in range(after):
        await checkpoint()
    for _ in range(times):
        task.cancel()
        await checkpoint()
    with suppress(asyncio.CancelledError):
        await task
    assert not place.steps or place.steps[-1] == "closed"
    assert not {one.get_name() for one in asyncio.all_tasks()} & {"place"}


async def test_a_timeout_of_asyncio_is_told_as_one() -> None:
    place = Place()
    with pytest.raises(TimeoutError):
        await _until_a_timeout(place)
    assert place.steps[-1] == "closed"


async def _until_a_timeout(place: Place) -> None:
    async with asyncio.timeout(0), OwnTask(place.context(), name="place"):
        await anyio.sleep_forever()


async def test_a_scope_that_is_cancelled_ends_the_body_and_closes_it() -> None:
    place = Place()
    with anyio.CancelScope() as scope:
        async with OwnTask(place.context(), name="place"):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert place.steps == ["begun", "open", "closed"]


@pytest.mark.parametrize("body", ["waits", "waits in a group", "goes on", "swallows", "raises"])
async def test_when_it_fails_the_body_is_cancelled_and_its_error_raised_once(body: str) -> None:
    place = Place()

    async def use() -> None:
        async with OwnTask(place.context(), name="place"):
            place.fail.set()
            if body == "waits":
                await anyio.sleep_forever()
            elif body == "waits in a group":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep_forever)
            elif body == "swallows":
                with suppress(asyncio.CancelledError):
                    await anyio.sleep_forever()
            elif body == "raises":
                raise ValueError("of the body")

    with pytest.raises(LookupError, match="what it stands on is gone") as caught:
        await use()
    assert isinstance(caught.value.__context__, ValueError) == (body == "raises")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await checkpoint()  # and no cancellation is left over
    assert place.steps[-1] == "closed"


async def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    place = Place()
    with pytest.raises(ValueError, match="of the body"):
        async with OwnTask(place.context(), name="place"):
            raise ValueError("of the body")
    assert place.steps == ["begun", "open", "closed"]


async def test_what_cannot_be_entered_raises_why() -> None:
    @asynccontextmanager
    async def refusing() -> AsyncIterator[None]:
        async with anyio.create_task_group():
            raise LookupError("not today")
        yield

    with pytest.raises(LookupError, match="not today"):
        async with OwnTask(refusing(), name="refusing"):
            pytest.fail("it was entered")
