"""Upserts and changes of random histories: each snapshot of the table equals a replay of the log to its positions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock_iceberg_compactor._stamp import Stamp
from pyiceberg.table import Table
from tests.depth import how_many
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records

from penstock.errors import PenstockError

pytestmark = pytest.mark.anyio

#: 20,000 by hand.
RECORDS = how_many("lake_records")
PARTITIONS = 3
KEYS = max(30, RECORDS // 20)

#: Of each key, what the table has of it: the offset that it came with, and its other columns.
State = dict[tuple[object, ...], tuple[int, object]]
#: One record of the log, key and value, with what becomes of which key by it.
Event = tuple[bytes, bytes | None, list[tuple[tuple[object, ...], object | None]]]


def plain(rng: random.Random) -> Iterator[Event]:
    """Values that replace, and records without value that delete; of keys of two columns."""
    for number in range(RECORDS):
        key = (rng.randrange(KEYS), f"a{rng.randrange(3)}")
        body = json.dumps({"id": key[0], "area": key[1]}).encode()
        if rng.random() < 0.25:
            yield body, None, [(key, None)]
        else:
            row = {"id": key[0], "area": key[1], "n": number}
            yield body, json.dumps(row).encode(), [(key, number)]


def debezium(rng: random.Random) -> Iterator[Event]:
    """What Debezium writes: a snapshot, inserts, updates, changed keys, deletes with tombstones, truncates."""
    rows: dict[int, int] = {}
    number = 0

    def event(op: str, at: int, before: int | None, after: int | None) -> Event:
        images = [None if n is None else {"id": at, "n": n} for n in (before, after)]
        envelope = {"before": images[0], "after": images[1], "op": op, "ts_ms": 1, "source": {"table": "t"}}
        body = json.dumps({"schema": {}, "payload": envelope} if rng.random() < 0.3 else envelope).encode()
        return json.dumps({"id": at}).encode(), body, [((at,), after)]

    while number < RECORDS:
        at = rng.randrange(KEYS)
        number += 1
        before = rows.get(at)
        if before is None:
            rows[at] = number
            yield event("r" if number < KEYS else "c", at, None, number)
        elif (chance := rng.random()) < 0.5:
            rows[at] = number
            yield event("u", at, before, number)
        elif chance < 0.9:
            del rows[at]
            yield event("d", at, before, None)
            yield json.dumps({"id": at}).encode(), None, [((at,), None)]
            if chance < 0.7:  # an update that changed the key
                other = next(free for free in range(KEYS * 2) if free not in rows)
                rows[other] = number
                yield event("c", other, None, number)
        else:
            envelope = {"before": None, "after": None, "op": "t", "ts_ms": 1, "source": {"table": "t"}}
            yield b"{}", json.dumps(envelope).encode(), []


@pytest.mark.parametrize("history", [plain, debezium])
async def test_at_every_snapshot_the_table_equals_a_replay_of_the_log(
    tmp_path: Path, history: Callable[[random.Random], Iterator[Event]]
) -> None:
    """Over several partitions, restarts, maintenance, and attempts that fail at any step."""
    rng = random.Random(history.__name__)
    names = ("id", "area") if history is plain else ("id",)
    configs = {"value_format": "json", "key_format": "json", "key_columns": ",".join(names)}
    if history is plain:
        configs |= {"mode": "upsert", "partition_by": "bucket(2, area)"}
    else:
        configs |= {"mode": "cdc", "envelope": "debezium", "on_bad_record": "dead_letter"}
    log: list[list[Event]] = [[] for _ in range(PARTITIONS)]
    for event in history(rng):
        # a key is always in the same partition
        log[hash(json.loads(event[0]).get("id", 0)) % PARTITIONS].append(event)
    wanted = topic(**configs)
    async with opened(tmp_path) as compactor:
        fails_at = 0

        def step(name: str) -> None:
            nonlocal fails_at
            fails_at -= 1
            if fails_at == 0:
                raise OSError(f"cut off after: {name}")

        compactor.watch(step)
        for epoch in range(1, 1000):
            fails_at = rng.choice((0, 0, rng.randrange(1, 12)))
            try:
                async with compactor.open_table(wanted, epoch) as table:
                    positions = dict.fromkeys(range(PARTITIONS), 0) | dict(await table.positions())
                    for _ in range(3):
                        for partition in rng.sample(range(PARTITIONS), rng.randrange(1, PARTITIONS + 1)):
                            await _write(table, log, partition, positions, rng)
                        await table.commit(positions)
                    fails_at = 0
                    if rng.random() < 0.2:
                        await table.maintain()
            except PenstockError:
                continue
            if all(positions[each] == len(log[each]) for each in range(PARTITIONS)):
                break
        now = load(compactor)
        compared = compare_all(now, log, names)
        assert compared >= 3
        truncates = sum(not outcome for events in log for _, _, outcome in events)
        if truncates:
            assert load(compactor, "orders__dead_letter").scan().to_arrow().num_rows == truncates


async def _write(
    table: Any, log: list[list[Event]], partition: int, positions: dict[int, int], rng: random.Random
) -> None:
    start = positions[partition]
    end = min(len(log[partition]), start + rng.randrange(1, max(20, RECORDS // 100)))
    if end == start:
        return
    events = log[partition][start:end]
    keys, values = [key for key, _, _ in events], [value for _, value, _ in events]
    await table.write(lake_records(values, keys=keys, partition=partition, start=start))
    positions[partition] = end


def compare_all(table: Table, log: list[list[Event]], names: tuple[str, ...]) -> int:
    """Compare at each snapshot; how many there are that have a stamp."""
    compared = 0
    for snapshot in table.metadata.snapshots:
        stamp = Stamp.parse(snapshot.summary or {}, "orders")
        assert stamp is not None
        expected: State = {}
        for partition, events in enumerate(log):
            for offset, (_, _, outcomes) in enumerate(events[: stamp.positions.get(partition, 0)]):
                for key, value in outcomes:
                    expected.pop(key, None)
                    if value is not None:
                        expected[key] = (offset, value)
        rows = table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().to_pylist()
        found = {tuple(row[name] for name in names): (row["_kafka"]["offset"], row["n"]) for row in rows}
        assert len(found) == len(rows), "a key is there once"
        assert found == expected
        compared += 1
    return compared
