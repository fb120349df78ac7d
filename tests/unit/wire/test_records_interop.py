"""Batches of the clients' own builders read by ours, and ours by their readers, for every codec."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from tests.unit.wire.whole_batch import validate_produce_batch

from penstock.wire import compression
from penstock.wire.records import (
    BatchBuilder,
    assign_offsets,
    build_batch,
    iter_records,
    read_header,
    set_log_append_time,
)
from penstock.wire.validation import BatchRules

with warnings.catch_warnings():
    # kafka-python reads its schemas by a deprecated function, at import only.
    warnings.simplefilter("ignore", DeprecationWarning)
    from aiokafka.record.default_records import DefaultRecordBatch as AiokafkaBatch
    from aiokafka.record.default_records import DefaultRecordBatchBuilder as AiokafkaBuilder
    from kafka.record.default_records import DefaultRecordBatch as KafkaPythonBatch
    from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder
    from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

NOW = 1_700_000_000_000
Raw: TypeAlias = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]], int]

RECORDS: list[Raw] = []
RECORDS += [
    (b"order-%d" % i, b"level=info path=/orders/%d " % i * (i % 9), [("trace", b"%d" % i)], NOW + i % 5)
    for i in range(300)
]
RECORDS += [
    (None, b"no key", [], NOW),
    (b"tombstone", None, [], NOW - 70),
    (b"", b"", [("empty", b""), ("null", None), ("\u00fcml\u00e4ut", b"x")], NOW + 9000),
    (b"large", b"z" * 70_000, [], NOW),
]

BUILDERS = [
    pytest.param(KafkaPythonBuilder, id="kafka_python"),
    pytest.param(AiokafkaBuilder, id="aiokafka"),
]
READERS = [pytest.param(KafkaPythonBatch, id="kafka_python"), pytest.param(AiokafkaBatch, id="aiokafka")]
CODECS = [pytest.param(codec, id=name) for codec, name in enumerate(compression.CODEC_NAMES)]


def skip_without_snappy(client: type, codec: int) -> None:
    if codec == compression.CODEC_SNAPPY and client.__module__.startswith("kafka."):
        pytest.importorskip("snappy", reason="kafka-python needs python-snappy for this codec")


def ours(batch: bytes | bytearray) -> list[Raw]:
    return [
        (
            None if record.key is None else bytes(record.key),
            None if record.value is None else bytes(record.value),
            record.headers,
            record.timestamp_ms,
        )
        for record in iter_records(memoryview(batch))
    ]


def theirs(reader: Callable[[bytes], Any], batch: bytes | bytearray) -> list[Raw]:
    parsed = reader(bytes(batch))
    assert parsed.validate_crc()
    return [(record.key, record.value, list(record.headers), record.timestamp) for record in parsed]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_their_batches_are_valid_and_read_the_same(builder: Any, codec: int) -> None:
    skip_without_snappy(builder, codec)
    building = builder(
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=4711,
        producer_epoch=3,
        base_sequence=17,
        batch_size=1 << 20,
    )
    for offset, (key, value, headers, timestamp) in enumerate(RECORDS):
        assert building.append(offset, timestamp=timestamp, key=key, value=value, headers=headers)
    batch = bytearray(building.build())
    header = validate_produce_batch(
        memoryview(batch), BatchRules(max_message_bytes=1 << 20), produce_version=9, now_ms=NOW
    )
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (4711, 3, 17)
    assert (header.codec, header.count, header.max_timestamp) == (codec, len(RECORDS), NOW + 9000)
    assert ours(batch) == RECORDS


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("reader", READERS)
def test_our_batches_are_read_by_them(reader: Any, codec: int) -> None:
    skip_without_snappy(reader, codec)
    batch = build_batch(RECORDS, codec=codec, producer_id=1, producer_epoch=2, base_sequence=3)
    assert theirs(reader, batch) == RECORDS
    assign_offsets(batch, 1_000_000, 5)
    parsed = reader(bytes(batch))
    assert parsed.base_offset == 1_000_000
    assert [record.offset for record in parsed] == list(range(1_000_000, 1_000_000 + len(RECORDS)))


@pytest.mark.parametrize("reader", READERS)
def test_log_append_time_is_seen_by_them(reader: Any) -> None:
    batch = build_batch(RECORDS[:5])
    set_log_append_time(batch, NOW + 123_456)
    assert {record[3] for record in theirs(reader, batch)} == {NOW + 123_456}


def test_our_plain_batch_is_theirs_byte_for_byte() -> None:
    building = KafkaPythonBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers, timestamp) in enumerate(RECORDS):
        building.append(offset, timestamp=timestamp, key=key, value=value, headers=headers)
    assert build_batch(RECORDS, leader_epoch=read_header(building.build()).leader_epoch) == building.build()


def test_several_of_our_batches_make_their_memory_records() -> None:
    builder = BatchBuilder(bytes_max=4096)
    buffer = bytearray()
    offset = 0
    for key, value, headers, timestamp in RECORDS:
        if builder.append(key, value, headers, timestamp) is None:
            buffer += builder.build(base_offset=offset)
            offset += len(builder)
            builder.clear()
            assert builder.append(key, value, headers, timestamp) == 0
    buffer += builder.build(base_offset=offset)
    memory = MemoryRecords(bytes(buffer))
    seen = []
    while memory.has_next():
        seen += [(record.offset, record.value) for record in memory.next_batch()]
    assert seen == [(index, record[1]) for index, record in enumerate(RECORDS)]


def test_their_memory_records_are_one_batch() -> None:
    building = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=1 << 20)
    for key, value, headers, timestamp in RECORDS:
        building.append(timestamp=timestamp, key=key, value=value, headers=headers)
    building.close()
    assert ours(building.buffer()) == RECORDS


# Batches as clients put them on the wire, recorded once: the readers above may change, these may not.
RECORDED = {
    "none_librdkafka": (
        "00000000000000000000013600000000023cf3f9550000000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff00000003aa01000000046b30900170656e73746f636b2070656e73746f636b2070656e73746f63"
        "6b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b2002"
        "02680230aa01000202046b31900170656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f63"
        "6b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b200202680231aa01000404"
        "046b32900170656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f63"
        "6b2070656e73746f636b2070656e73746f636b2070656e73746f636b200202680232"
    ),
    "gzip_librdkafka": (
        "0000000000000000000000760000000002c302081f0001000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff000000031f8b08000000000000035bc5c8c0c0c0926d3081b12035afb8243f395b814206135306"
        "93c12a46062626966c43ea1a6b083496858525db88bac61a0100571ddc6b05010000"
    ),
    "snappy_librdkafka": (
        "0000000000000000000000700000000002680f44c30002000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff00000003850248aa01000000046b30900170656e73746f636b20fa0900300202680230aa010002"
        "02046b31fe57003657002031aa01000404046b32fe57003657000032"
    ),
    "lz4_librdkafka": (
        "00000000000000000000007c0000000002f3ae3aae0003000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff0000000304224d186040823c000000ff04aa01000000046b30900170656e73746f636b2009002c"
        "df0202680230aa01000202046b3157003b9f31aa01000404046b3257003750020268023200000000"
    ),
    "zstd_librdkafka": (
        "000000000000000000000071000000000223abe6c30004000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff0000000328b52ffd0058bd0100a402aa01000000046b30900170656e73746f636b200202680230"
        "aa01000202046b3131aa01000404046b323203000be8b15a407f522a61"
    ),
    "none_kafka_python": (
        "00000000000000000000013600000000023cf3f9550000000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff00000003aa01000000046b30900170656e73746f636b2070656e73746f636b2070656e73746f63"
        "6b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b2002"
        "02680230aa01000202046b31900170656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f63"
        "6b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b200202680231aa01000404"
        "046b32900170656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f636b2070656e73746f63"
        "6b2070656e73746f636b2070656e73746f636b2070656e73746f636b200202680232"
    ),
    "gzip_kafka_python": (
        "00000000000000000000007600000000029747cf540001000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff000000031f8b08002d6a046b02ff5bc5c8c0c0c0926d3081b12035afb8243f395b814206135306"
        "93c12a46062626966c43ea1a6b083496858525db88bac61a0100571ddc6b05010000"
    ),
    "snappy_aiokafka": (
        "000000000000000000000084ffffffff02b0f1118c0002000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff0000000382534e415050590000000001000000010000003f850248aa01000000046b3090017065"
        "6e73746f636b20fa0900300202680230aa01000202046b31fe57003657002031aa01000404046b32fe57003657000032"
    ),
    "lz4_aiokafka": (
        "000000000000000000000080ffffffff0235342e830003000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff0000000304224d187040ad3c000000ff04aa01000000046b30900170656e73746f636b2009002c"
        "df0202680230aa01000202046b3157003b9f31aa01000404046b32570037500202680232991aa54900000000"
    ),
    "zstd_kafka_python": (
        "0000000000000000000000720000000002716cfcdd0004000000020000018bcfe568000000018bcfe56802ffffffffff"
        "ffffffffffffffffff0000000328b52ffd600500bd0100a402aa01000000046b30900170656e73746f636b2002026802"
        "30aa01000202046b3131aa01000404046b323203000be8b15a407f522a61"
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_batches_still_read(name: str) -> None:
    batch = bytearray.fromhex(RECORDED[name])
    header = validate_produce_batch(
        memoryview(batch), BatchRules(max_message_bytes=1 << 20), produce_version=9, now_ms=NOW
    )
    assert header.codec == compression.codec_id(name.split("_", maxsplit=1)[0])
    assert ours(batch) == [(b"k%d" % i, b"penstock " * 8, [("h", b"%d" % i)], NOW + i) for i in range(3)]
