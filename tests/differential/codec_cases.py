"""What a codec's format allows and not every client reads: lz4 frames of all kinds, zstd for old versions."""

from __future__ import annotations

__all__ = ("CODEC_CASES",)

from collections.abc import Callable
from typing import Any, Final

import lz4.frame
import msgspec
from tests.differential.compare import Pair
from tests.differential.corner_cases import ask, make
from tests.differential.odd_requests import TIME_MS

from penstock.wire import ApiKey
from penstock.wire.compression import CODEC_LZ4, CODEC_ZSTD, compress
from penstock.wire.record_batch import read_header, seal_batch
from penstock.wire.record_builder import build_batch
from penstock.wire.record_walk import plain_records

#: Longer than a block of 64 KiB, so that blocks can be linked.
_SAMPLE: Final = memoryview(
    build_batch([(b"key", b"%d" % at * 40_000, (), TIME_MS) for at in range(2)], codec=CODEC_LZ4)
)


def _batch(body: bytes) -> bytes:
    """The sample with ``body`` for its records."""
    return bytes(seal_batch(read_header(_SAMPLE), body))


def _packed(data: bytes, **settings: Any) -> bytes:
    chosen = {"block_size": lz4.frame.BLOCKSIZE_MAX64KB, "block_linked": False, **settings}
    packed: bytes = lz4.frame.compress(data, **chosen)
    return packed


def lz4_frames(pair: Pair) -> None:
    """Java reads one frame, of blocks that stand alone."""
    make(pair, "lz4-frames")
    plain = bytes(plain_records(_SAMPLE, read_header(_SAMPLE)))
    half = len(plain) // 2
    for label, body in (
        ("sizes and checksums", _packed(plain, store_size=True, content_checksum=True, block_checksum=True)),
        ("nothing but blocks", _packed(plain, store_size=False)),
        ("one large block", _packed(plain, block_size=lz4.frame.BLOCKSIZE_MAX4MB)),
        ("linked blocks", _packed(plain, block_linked=True)),
        ("two frames", _packed(plain[:half]) + _packed(plain[half:])),
        ("a frame to skip", b"\x50\x2a\x4d\x18\x01\0\0\0x" + _packed(plain)),
    ):
        data = {"name": "lz4-frames", "partition_data": [{"index": 0, "records": _batch(body)}]}
        ask(pair, label, ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5000, topic_data=[data])


def zstd_frames(pair: Pair) -> None:
    """One frame or several, and some to skip."""
    make(pair, "zstd-frames")
    plain = bytes(plain_records(_SAMPLE, read_header(_SAMPLE)))
    half = len(plain) // 2
    packed, *halves = (compress(CODEC_ZSTD, data) for data in (plain, plain[:half], plain[half:]))
    skipped = b"\x5a\x2a\x4d\x18\x01\0\0\0x"
    header = msgspec.structs.replace(read_header(_SAMPLE), attributes=CODEC_ZSTD)
    for label, body in (
        ("two frames", b"".join(halves)),
        ("a frame to skip, first", skipped + packed),
        ("a frame to skip, in between", skipped.join(halves)),
        ("a frame to skip, last", packed + skipped),
        ("an empty frame", packed + compress(CODEC_ZSTD, b"")),
    ):
        batch = bytes(seal_batch(header, body))
        data = {"name": "zstd-frames", "partition_data": [{"index": 0, "records": batch}]}
        ask(pair, label, ApiKey.PRODUCE, 9, acks=-1, timeout_ms=5000, topic_data=[data])


def zstd_of_old(pair: Pair) -> None:
    """Versions of Fetch before zstd came (KIP-110), from a topic that is zstd."""
    make(pair, "zstd-of-old")
    change = {"name": "compression.type", "value": "zstd"}
    resource = {"resource_type": 2, "resource_name": "zstd-of-old", "configs": [change]}
    ask(pair, "now zstd", ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, resources=[resource])
    for version in (4, 9, 10):
        partition = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}
        ask(
            pair,
            f"fetched by version {version}",
            ApiKey.FETCH,
            version,
            max_wait_ms=0,
            min_bytes=0,
            max_bytes=1 << 20,
            topics=[{"topic": "zstd-of-old", "partitions": [partition]}],
        )


#: By name.
CODEC_CASES: Final[dict[str, Callable[[Pair], None]]] = {
    "lz4 frames": lz4_frames,
    "zstd frames": zstd_frames,
    "zstd of old": zstd_of_old,
}
