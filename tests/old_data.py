"""Data that an older Penstock wrote, to be opened by the one of today.

    python -m tests.old_data CHECKOUT tests/integration/old_data/NAME.tar.xz

CHECKOUT is one of the older version, with a virtual environment in ``.venv``. A broker of it is started twice on one
data directory: what it was told first is uploaded, and in a snapshot of metadata; then it is killed, so the newest is
in the write-ahead log only. All of it follows from numbers, so that :func:`batch` says what has to be found.
"""

from __future__ import annotations

__all__ = ("BATCHES", "COMMITTED", "GROUP", "PARTITIONS", "TIME_MS", "TOPIC", "TRIMMED", "batch", "send")

import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

import anyio
from tests.integration.raw_client import connect
from tests.patience import HANG_S
from tests.unit.server.harness import Client

from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.delete_topics import DeleteTopicsRequest
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.records import build_batch

TOPIC: Final = "kept"
DELETED: Final = "deleted"
PARTITIONS: Final = 2
#: Of each partition; each has three records, so the first offset of one is three times its number.
BATCHES: Final = 20
#: So many of them are uploaded.
UPLOADED: Final = 12
#: Partition 1 begins here.
TRIMMED: Final = 4
GROUP: Final = "readers"
#: By partition.
COMMITTED: Final = {0: 31, 1: 17}
TIME_MS: Final = 1_763_900_000_000


def batch(partition: int, number: int, producer_id: int) -> bytes:
    """One of an idempotent producer, in each codec by turns."""
    records = [
        (
            None if at == 1 else b"key-%d" % number,
            b"%d/%d/%d " % (partition, number, at) * (1 + number % 5 * 40),
            [("part", b"%d" % at)],
            TIME_MS + number,
        )
        for at in range(3)
    ]
    return bytes(
        build_batch(
            records,
            producer_id=producer_id,
            producer_epoch=0,
            base_sequence=3 * number,
            codec=number % 5,
        )
    )


async def send(client: Client, partition: int, data: bytes) -> tuple[int, int]:
    """Produce one batch to the topic: the error code, and the offset."""
    one = PartitionProduceData(index=partition, records=memoryview(data))
    request = ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=20_000,
        topic_data=[TopicProduceData(name=TOPIC, partition_data=[one])],
    )
    answer = (await client.call(ApiKey.PRODUCE, 9, request)).responses[0].partition_responses[0]
    return answer.error_code, answer.base_offset


async def _write_first(address: str) -> int:
    """Topics, and what is uploaded; the id of the producer."""
    async with await connect(address) as client:
        configs = [CreatableTopicConfig(name="retention.ms", value="-1")]
        for name in (TOPIC, DELETED):
            made = CreatableTopic(
                name=name, num_partitions=PARTITIONS, replication_factor=1, configs=configs, assignments=[]
            )
            created = await client.call(
                ApiKey.CREATE_TOPICS, 5, CreateTopicsRequest(topics=[made], timeout_ms=20_000)
            )
            assert created.topics[0].error_code == 0
        given = await client.call(
            ApiKey.INIT_PRODUCER_ID, 2, InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=0)
        )
        for partition in range(PARTITIONS):
            for number in range(UPLOADED):
                sent = await send(client, partition, batch(partition, number, given.producer_id))
                assert sent == (0, 3 * number)
        await _commit(client, {0: 5, 1: 6})
        gone = await client.call(
            ApiKey.DELETE_TOPICS, 4, DeleteTopicsRequest(topic_names=[DELETED], timeout_ms=20_000)
        )
        assert gone.responses[0].error_code == 0
        producer_id: int = given.producer_id
        return producer_id


async def _write_rest(address: str, producer_id: int) -> None:
    """What the write-ahead log alone has."""
    async with await connect(address) as client:
        cut = DeleteRecordsPartition(partition_index=1, offset=TRIMMED)
        request = DeleteRecordsRequest(
            topics=[DeleteRecordsTopic(name=TOPIC, partitions=[cut])], timeout_ms=20_000
        )
        trimmed = await client.call(ApiKey.DELETE_RECORDS, 2, request)
        assert trimmed.topics[0].partitions[0].error_code == 0
        for partition in range(PARTITIONS):
            for number in range(UPLOADED, BATCHES):
                sent = await send(client, partition, batch(partition, number, producer_id))
                assert sent == (0, 3 * number)
        await _commit(client, COMMITTED)


async def _commit(client: Client, offsets: dict[int, int]) -> None:
    places = [
        OffsetCommitRequestPartition(
            partition_index=partition, committed_offset=offset, committed_metadata=f"note {partition}"
        )
        for partition, offset in offsets.items()
    ]
    request = OffsetCommitRequest(
        group_id=GROUP,
        generation_id_or_member_epoch=-1,
        topics=[OffsetCommitRequestTopic(name=TOPIC, partitions=places)],
    )
    while True:
        answer = await client.call(ApiKey.OFFSET_COMMIT, 7, request)
        codes = {one.error_code for one in answer.topics[0].partitions}
        if codes != {ErrorCode.COORDINATOR_LOAD_IN_PROGRESS}:
            assert codes == {0}, codes
            return


def _serve(checkout: Path, folder: Path, address: str) -> subprocess.Popen[bytes]:
    """A broker of the older version, once it takes connections."""
    config = folder / "penstock.toml"
    config.write_text(
        f'[broker]\ndata_dir = "{folder / "data"}"\n[listener]\nbind = "{address}"\n[wal]\ncapacity = "8MiB"\n'
        '[memory]\nlimit = "256MiB"\n[groups]\noffsets_partitions = 2\n'
    )
    process = subprocess.Popen([checkout / ".venv/bin/penstock", "serve", "-c", config], cwd=folder)
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), HANG_S).close()
        except ConnectionRefusedError:
            assert process.poll() is None, "the broker ended"
        else:
            return process


def main(checkout: Path, out: Path) -> None:
    """Write the archive."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = _serve(checkout, folder, address)
        producer_id: Any = anyio.run(_write_first, address)
        assert producer_id == 1, "it is the first one that asked"
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
        process = _serve(checkout, folder, address)
        anyio.run(_write_rest, address, producer_id)
        process.kill()
        process.wait(HANG_S)
        with tarfile.open(out, "w:xz") as archive:
            archive.add(folder / "data", "data")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
