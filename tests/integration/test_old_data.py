"""What older versions wrote, and were killed in the midst of, opens unchanged (``tests/old_data.py`` made it)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import anyio
import pytest
from tests.integration.raw_client import connect
from tests.old_data import BATCHES, COMMITTED, GROUP, PARTITIONS, TOPIC, TRIMMED, batch, send
from tests.patience import HANG_S
from tests.unit.server.harness import Client

from penstock import Broker
from penstock.broker import _broker
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.metadata import MetadataRequest
from penstock.wire.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestTopic
from penstock.wire.records import iter_batches, iter_records

ARCHIVES = sorted((Path(__file__).parent / "old_data").glob("*.tar.xz"))
PRODUCER_ID = 1

Row = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]


def rows(batches: bytes | memoryview) -> list[Row]:
    found: list[Row] = []
    view = memoryview(batches)
    for start, header in iter_batches(view):
        for record in iter_records(view[start : start + header.size_bytes]):
            key, value = (None if part is None else bytes(part) for part in (record.key, record.value))
            headers = tuple((name, None if data is None else bytes(data)) for name, data in record.headers)
            found.append((record.offset, record.timestamp_ms, key, value, headers))
    return found


def written(partition: int) -> list[Row]:
    """What was acknowledged, with the offsets that it was given."""
    found = []
    for number in range(BATCHES):
        of_batch = rows(batch(partition, number, PRODUCER_ID))
        found += [(3 * number + at, *row[1:]) for at, row in enumerate(of_batch)]
    return found


async def fetched(client: Client, partition: int, start: int) -> list[Row]:
    found: list[Row] = []
    while True:
        offset = found[-1][0] + 1 if found else start
        wanted = FetchPartition(partition=partition, fetch_offset=offset, partition_max_bytes=2**20)
        request = FetchRequest(
            max_wait_ms=0,
            min_bytes=0,
            max_bytes=2**24,
            session_epoch=-1,
            topics=[FetchTopic(topic=TOPIC, partitions=[wanted])],
        )
        answer = (await client.call(ApiKey.FETCH, 11, request)).responses[0].partitions[0]
        assert answer.error_code == 0
        if offset == answer.high_watermark:
            return found
        found += [row for row in rows(answer.records) if row[0] >= offset]


async def committed(client: Client) -> dict[int, tuple[int, str]]:
    request = OffsetFetchRequest(
        group_id=GROUP,
        topics=[OffsetFetchRequestTopic(name=TOPIC, partition_indexes=list(range(PARTITIONS)))],
    )
    while True:
        answer = await client.call(ApiKey.OFFSET_FETCH, 7, request)
        if answer.error_code != ErrorCode.COORDINATOR_LOAD_IN_PROGRESS:
            return {
                one.partition_index: (one.committed_offset, one.metadata)
                for one in answer.topics[0].partitions
            }


async def check(address: str) -> None:
    async with await connect(address) as client:
        described = await client.call(ApiKey.METADATA, 9, MetadataRequest(topics=None))
        assert {one.name for one in described.topics} == {TOPIC, "__consumer_offsets"}
        for partition, start in enumerate((0, TRIMMED)):
            assert await fetched(client, partition, start) == written(partition)[start:]
        assert await committed(client) == {at: (offset, f"note {at}") for at, offset in COMMITTED.items()}
        # their producer is known: what it sends again isn't written twice, nor is anything left out
        for partition in range(PARTITIONS):
            last = BATCHES - 1
            assert await send(client, partition, batch(partition, last, PRODUCER_ID)) == (0, 3 * last)
            code, _ = await send(client, partition, batch(partition, BATCHES + 1, PRODUCER_ID))
            assert code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
            sent = await send(client, partition, batch(partition, BATCHES, PRODUCER_ID))
            assert sent == (0, 3 * BATCHES)


def test_there_are_data_of_several_versions() -> None:
    assert len(ARCHIVES) >= 3


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def test_data_of_an_older_version_open_unchanged(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
        last_s = max(member.mtime for member in packed)
    # shortly after, as producers and groups are forgotten some day
    monkeypatch.setattr(_broker, "now_ms", lambda: int(last_s * 1000) + 60_000)

    async def main() -> None:
        overrides = {
            "broker.data_dir": str(tmp_path / "data"),
            "listener.bind": "127.0.0.1:0",
            "wal.capacity": "8MiB",
        }
        with anyio.fail_after(HANG_S):
            async with Broker(overrides=overrides) as broker:
                await check(broker.bootstrap_servers)
            async with Broker(overrides=overrides) as broker:  # what is written today is read, too
                async with await connect(broker.bootstrap_servers) as client:
                    found = await fetched(client, 0, 0)
                    assert found[:-3] == written(0)
                    assert len(found) == 3 * (BATCHES + 1)

    anyio.run(main)
