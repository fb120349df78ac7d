"""Requests that nobody answers are told in the log, once each, with where they wait."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeClock, FakeLogs, make_batch
from tests.unit.server.harness import produce, serving, until

from penstock.server.overdue import PATIENCE_S, Overdue, Pending
from penstock.server.slots import Slot
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.fetch import FetchRequest
from penstock.wire.messages.join_group import JoinGroupRequest
from penstock.wire.messages.sync_group import SyncGroupRequest

BETWEEN_LOOKS = 5.0


class One:
    """A connection."""

    def __init__(self, what: object, asked_s: float = 0.0) -> None:
        self.pending: Pending | None = Pending(what, asked_s)


class Looks:
    """Looks every few seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.told: list[One] = []
        self.overdue = Overdue[One](lambda one, _: self.told.append(one))

    def look(self, seconds: float, *connections: One) -> None:
        for _ in range(int(seconds / BETWEEN_LOOKS)):
            self.now += BETWEEN_LOOKS
            for _ in self.overdue.look(connections, self.now):
                pass


def test_a_request_is_told_once_when_it_has_had_no_answer_for_longer_than_it_asked_for() -> None:
    looks = Looks()
    short, long = One("a"), One("b", asked_s=60.0)
    looks.look(PATIENCE_S, short, long)
    assert looks.told == []
    looks.look(PATIENCE_S, short, long)
    assert looks.told == [short]
    looks.look(60.0, short, long)
    assert looks.told == [short, long]


def test_who_gets_on_or_waits_for_nothing_of_ours_is_not_told() -> None:
    looks = Looks()
    one, other = One(0), One(0)
    for number in range(20):
        one.pending = Pending(object(), 0.0)
        other.pending = Pending("same", 0.0) if number % 4 else None
        looks.look(BETWEEN_LOOKS, one, other)
    assert looks.told == []


def test_a_process_that_stood_still_tells_nothing() -> None:
    looks = Looks()
    one = One("a")
    looks.look(PATIENCE_S / 2, one)
    looks.now += 1000.0
    looks.look(PATIENCE_S / 2, one)
    assert looks.told == []


@pytest.mark.parametrize(
    ("key", "message", "asked_ms"),
    [
        (ApiKey.FETCH, FetchRequest(max_wait_ms=500), 500),
        (ApiKey.JOIN_GROUP, JoinGroupRequest(session_timeout_ms=6, rebalance_timeout_ms=70_000), 70_000),
        (ApiKey.SYNC_GROUP, SyncGroupRequest(), 300_000),
        (ApiKey.PRODUCE, None, 0),
    ],
)
def test_a_request_says_for_how_long_it_may_wait(key: ApiKey, message: object, asked_ms: int) -> None:
    assert Slot(0, 1, 2, api_key=key, message=message).asked_ms == asked_ms


@pytest.mark.anyio
async def test_a_produce_that_waits_for_room_beyond_its_time_is_told_with_what_it_waits_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logs = FakeLogs()
    logs.add("t", 2)
    clock = FakeClock()
    async with serving(logs, clock=clock) as harness, await harness.connect() as client:
        logs.room = 0
        await client.send(ApiKey.PRODUCE, 9, produce(make_batch(), timeout_ms=10_000))
        await until(lambda: harness.server.core.waiting_for_room)
        for _ in range(10):
            clock.now_s += BETWEEN_LOOKS
            harness.server.connections.sweep()
    lines = [record.message for record in caplog.records if "no answer yet" in record.message]
    assert len(lines) == 1
    assert "api_key=0 waits=NOT_NOW phase=OPEN unanswered=1" in lines[0]
