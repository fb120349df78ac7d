"""`__consumer_offsets` as codecs that were written by hand left it is read, and the same history writes the same."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog, settle
from tests.unit.coordinator.test_group_service import REQUEST, SETTINGS, Calls, stable

from penstock.coordinator.group_types import CommittedOffset, LeaveMember, OffsetAndMetadata

pytestmark = pytest.mark.anyio

#: One record a line: partition, offset, key and value in hex digits, `-` for a tombstone. Written by `history`
#: with the coordinator of 26 November 2026, whose codecs were written by hand.
RECORDED = Path(__file__).with_name("recorded_consumer_offsets.txt")


async def history(log: MemoryLog, clock: FakeClock) -> None:
    """Members, static members, offsets of every kind, deletions and checkpoints, in a fixed order."""
    ids = itertools.count(1)
    settings = replace(SETTINGS, checkpoint_records=12, append_bytes_max=400)
    async with LedService(log, settings, clock, lambda: str(next(ids))) as service:
        await settle()
        member = await stable(service, clock)
        static = await stable(service, clock, "static", group_instance_id="instance \u00e4")
        clock_ms = clock.now_ms()
        for number in range(12):
            offsets = {
                ("t", number % 3): OffsetAndMetadata(number, number % 2 - 1, f"note {number} \u20ac"),
                ("other-topic", 2**31 - 1): OffsetAndMetadata(2**63 - 1),
            }
            await service.commit_offsets("g", offsets, member_id=member, generation_id=1)
            await service.commit_offsets(f"simple-{number % 4}", {("u", number): OffsetAndMetadata(number)})
            await clock.advance(1)
        await service.commit_offsets("expiring", {("t", 7): OffsetAndMetadata(5, 3, "m")}, retention_ms=10**9)
        await service.commit_offsets("", {("t", 0): OffsetAndMetadata(9)})
        await service.delete_offsets("simple-1", [("u", 1)])
        await service.delete_groups(["simple-2"])
        left = await stable(service, clock, "left")
        await service.leave("left", [LeaveMember(left)])
        async with anyio.create_task_group() as tasks:
            again = Calls(tasks)
            again.start("join", service.join("static", replace(REQUEST, group_instance_id="instance \u00e4")))
            await settle()
        assert again.results["join"].error == 0
        assert again.results["join"].member_id != static
        assert clock.now_ms() >= clock_ms
        await settle()


def lines(log: MemoryLog) -> list[str]:
    return [
        f"{partition} {offset} {key.hex()} {'-' if value is None else value.hex()}"
        for partition, records in enumerate(log.records)
        for offset, (key, value) in records
    ]


async def test_the_same_history_writes_the_same_bytes_as_before(clock: FakeClock, log: MemoryLog) -> None:
    await history(log, clock)
    assert lines(log) == RECORDED.read_text().splitlines()


def recorded() -> MemoryLog:
    """A log that holds what was recorded."""
    log = MemoryLog()
    for line in RECORDED.read_text().splitlines():
        partition, offset, key, value = line.split(" ")
        record = (bytes.fromhex(key), None if value == "-" else bytes.fromhex(value))
        log.records[int(partition)].append((int(offset), record))
        log.ends[int(partition)] = int(offset) + 1
    return log


async def test_what_was_recorded_is_read_as_the_state_that_it_was(clock: FakeClock) -> None:
    async with LedService(recorded(), SETTINGS, clock) as service:
        await settle()
        described = {
            one.group_id: one
            for one in await service.describe(["g", "static", "left", "expiring", "simple-2"])
        }
        assert [str(one.state) for one in described.values()] == [
            "Stable",
            "Stable",
            "Empty",
            "Empty",
            "Dead",
        ]
        (member,) = described["g"].members
        assert (member.member_id, member.client_host) == ("client-1", "/127.0.0.1")
        assert (member.metadata, member.assignment) == (REQUEST.protocols[0][1], b"all")
        (static,) = described["static"].members
        assert (static.member_id, static.group_instance_id) == ("instance \u00e4-4", "instance \u00e4")
        listed = {one.group_id for one in (await service.list_groups())[1]}
        simple = {"", "simple-0", "simple-1", "simple-3"}
        assert listed == {"g", "static", "left", "expiring"} | simple
        offsets = {
            group_id: (await service.fetch_offsets(group_id))[1] for group_id in ["g", *sorted(listed)]
        }
    assert offsets["g"] == {
        ("t", 0): CommittedOffset(9, 0, "note 9 \u20ac", 1_006_009),
        ("t", 1): CommittedOffset(10, -1, "note 10 \u20ac", 1_006_010),
        ("t", 2): CommittedOffset(11, 0, "note 11 \u20ac", 1_006_011),
        ("other-topic", 2**31 - 1): CommittedOffset(2**63 - 1, -1, "", 1_006_011),
    }
    assert offsets["expiring"] == {("t", 7): CommittedOffset(5, -1, "m", 1_006_012, 1_001_006_012)}
    assert offsets[""] == {("t", 0): CommittedOffset(9, -1, "", 1_006_012)}
    assert set(offsets["simple-1"]) == {("u", 5), ("u", 9)}
