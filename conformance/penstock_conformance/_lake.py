"""Records of lake tables as the kernel hands them over, and tables held against what they must say of themselves."""

from __future__ import annotations

__all__ = (
    "check_table",
    "columns",
    "feed_until_killed",
    "look_at",
    "made",
    "row",
    "spec_of",
    "topic_of",
)

import os
import signal
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from penstock.errors import NotFoundError
from penstock.spi.lake import (
    BinaryColumn,
    HeaderColumn,
    LakeCompactorSpec,
    LakeRecord,
    LakeRecords,
    LakeTopic,
)
from penstock_conformance._body import make_body
from penstock_conformance._env import Env

TOPIC_ID = "5a1c9d20-0000-4000-8000-000000000001"


def spec_of(env: Env) -> LakeCompactorSpec[Any]:
    """The registration of the plugin under test."""
    spec = env.spec()
    assert isinstance(spec, LakeCompactorSpec)
    return spec


def topic_of(
    env: Env,
    configs: Mapping[str, str] | None = None,
    *,
    name: str = "orders",
    topic_id: str = TOPIC_ID,
    table: str = "",
    partitions: int = 2,
) -> LakeTopic:
    """A topic with a raw table, unless ``configs`` say otherwise; what they don't say is at its default."""
    spec = spec_of(env)
    defaults = {config.name: config.default for config in spec.topic_configs}
    own = spec.raw_configs if configs is None else configs
    return LakeTopic(
        name=name, topic_id=topic_id, partition_count=partitions, configs=defaults | dict(own), table=table
    )


def row(partition: int, offset: int, size: int = 60) -> LakeRecord:
    """The record that a partition has at an offset, the same each time that it is asked for."""
    key = None if offset % 7 == 3 else f"key {offset % 5}".encode()
    value = None if offset % 11 == 5 else b"" if offset % 13 == 4 else make_body(partition, offset, size)
    headers = tuple((f"h{i}".encode(), None if i == 1 else b"x" * i) for i in range(offset % 4))
    return LakeRecord(
        partition, offset, -1 if offset % 9 == 8 else 1_700_000_000_000 + offset, key, value, headers
    )


def made(partition: int, start: int, stop: int, size: int = 60) -> LakeRecords:
    """The records [start, stop) of a partition."""
    return columns(partition, [row(partition, offset, size) for offset in range(start, stop)], start, stop)


def columns(partition: int, rows: Sequence[LakeRecord], start_offset: int, next_offset: int) -> LakeRecords:
    """``rows`` as columns in writable memory, as the kernel makes them."""
    headers = [header for one in rows for header in one.headers]
    starts = [0]
    for one in rows:
        starts.append(starts[-1] + len(one.headers))
    return LakeRecords(
        partition=partition,
        offsets=_numbers("q", [one.offset for one in rows]),
        timestamps=_numbers("q", [one.timestamp for one in rows]),
        keys=_column([one.key for one in rows]),
        values=_column([one.value for one in rows]),
        headers=HeaderColumn(
            starts=_numbers("i", starts),
            names=_column([name for name, _ in headers]),
            values=_column([value for _, value in headers]),
        ),
        start_offset=start_offset,
        next_offset=next_offset,
    )


def _numbers(kind: Literal["i", "q"], values: Sequence[int]) -> memoryview:
    return memoryview(bytearray(array(kind, values).tobytes())).cast(kind)


def _column(items: Sequence[bytes | None]) -> BinaryColumn:
    offsets, valid = [0], bytearray((len(items) + 7) // 8)
    for index, item in enumerate(items):
        offsets.append(offsets[-1] + len(item or b""))
        if item is not None:
            valid[index >> 3] |= 1 << (index & 7)
    data = bytearray(b"".join(item or b"" for item in items))
    return BinaryColumn(data=data, offsets=_numbers("i", offsets), valid=valid if None in items else None)


async def look_at(compactor: Any, topic: LakeTopic) -> tuple[dict[int, int], list[LakeRecord]]:
    """Positions and rows of a table, by who only looks; nothing where there is no table."""
    try:
        async with compactor.open_table(topic, 0) as table:
            positions = dict(await table.positions())
            rows = [found async for found in table.rows()]
    except NotFoundError:
        return {}, []
    return positions, sorted(rows, key=lambda found: (found.partition, found.offset))


async def check_table(
    compactor: Any, topic: LakeTopic, expected: Mapping[int, int] | None = None, size: int = 60
) -> dict[int, int]:
    """Hold a table against its positions: each record below them once, none above. Returns the positions."""
    positions, rows = await look_at(compactor, topic)
    if expected is not None:
        assert positions == dict(expected), (
            f"positions aren't those of the last commit: {positions} {expected}"
        )
    wanted = [
        row(partition, offset, size)
        for partition in sorted(positions)
        for offset in range(positions[partition])
    ]
    places = [(found.partition, found.offset) for found in rows]
    assert len(set(places)) == len(places), "a record is in the table twice"
    missing = {(one.partition, one.offset) for one in wanted} - set(places)
    assert not missing, f"records below the positions are missing, the first is {min(missing)}"
    above = set(places) - {(one.partition, one.offset) for one in wanted}
    assert not above, f"records are in the table that its positions don't cover, the first is {min(above)}"
    for found, one in zip(rows, wanted, strict=True):
        assert found == one, f"a row isn't the record: got {found} wanted {one}"
    return positions


async def feed_until_killed(env: Env, tell: Any, hear: Any, *, epoch: int, step: int, commits: int) -> None:
    """Child process: go on with a table, and die at the ``step``-th thing that is done on a medium.

    With ``commits`` 0 each commit is done when the parent says so.
    """
    left = step

    def count(name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async with env.open() as compactor:
        watch = spec_of(env).watch
        if watch is not None and step:
            watch(compactor, count)
        async with compactor.open_table(topic_of(env), epoch) as table:
            positions = dict(await table.positions())
            tell("ready")
            for _ in range(commits or 1000):
                if not commits and await hear() is None:
                    return
                for partition in (0, 1):
                    start = positions.get(partition, 0)
                    await table.write(made(partition, start, start + 7))
                    positions[partition] = start + 7
                await table.commit(positions)
                tell([positions[0], positions[1]])
