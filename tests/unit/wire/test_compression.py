"""Codecs: round trips, what each client writes, and bounded output whatever the input says."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cramjam
import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples

from penstock.errors import InvalidRequestError
from penstock.wire.compression import (
    CODEC_GZIP,
    CODEC_LZ4,
    CODEC_NAMES,
    CODEC_NONE,
    CODEC_SNAPPY,
    CODEC_ZSTD,
    CompressionError,
    InflateLimitError,
    UnknownCodecError,
    check_readable,
    codec_id,
    compress,
    decompress,
)

CODECS = [pytest.param(codec, id=name) for codec, name in enumerate(CODEC_NAMES)]
PACKING = CODECS[1:]
TEXT = b"".join(b"2026-11-23 level=info request=%d path=/orders/%d\n" % (i, i * 7) for i in range(4000))


def _zstd_streamed(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.binary(max_size=2000), repeat=st.integers(1, 100), kind=st.sampled_from([bytes, bytearray]))
@settings(max_examples=examples(40), deadline=None)
def test_round_trip(codec: int, data: bytes, repeat: int, kind: type[bytes]) -> None:
    plain = data * repeat
    packed = memoryview(compress(codec, kind(plain)))
    assert decompress(codec, packed, max(1, len(plain))) == plain


@pytest.mark.parametrize("codec", PACKING)
def test_text_gets_smaller(codec: int) -> None:
    assert len(compress(codec, TEXT)) < len(TEXT) / 2


@pytest.mark.parametrize("codec", CODECS)
def test_the_limit_is_exact(codec: int) -> None:
    packed = compress(codec, TEXT)
    assert decompress(codec, packed, len(TEXT)) == TEXT
    with pytest.raises(InflateLimitError, match=f"max_bytes={len(TEXT) - 1}"):
        decompress(codec, packed, len(TEXT) - 1)


@pytest.mark.parametrize(
    ("codec", "packed"),
    [
        pytest.param(CODEC_GZIP, gzip.compress(TEXT, 1), id="gzip_with_mtime"),
        pytest.param(CODEC_GZIP, gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]), id="gzip_members"),
        pytest.param(CODEC_SNAPPY, bytes(cramjam.snappy.compress_raw(TEXT)), id="snappy_raw_librdkafka"),
        pytest.param(
            CODEC_SNAPPY,
            compress(CODEC_SNAPPY, TEXT[:9]) + compress(CODEC_SNAPPY, TEXT[9:]),
            id="xerial_joined",
        ),
        pytest.param(CODEC_LZ4, lz4.frame.compress(TEXT), id="lz4_linked_with_size"),
        pytest.param(
            CODEC_LZ4,
            lz4.frame.compress(TEXT, content_checksum=True, block_checksum=True, store_size=False),
            id="lz4_checksums",
        ),
        pytest.param(CODEC_LZ4, lz4.frame.compress(TEXT[:5]) + lz4.frame.compress(TEXT[5:]), id="lz4_frames"),
        pytest.param(CODEC_ZSTD, _zstd_streamed(TEXT), id="zstd_without_size"),
        pytest.param(CODEC_ZSTD, _zstd_streamed(TEXT[:7]) + _zstd_streamed(TEXT[7:]), id="zstd_frames"),
        pytest.param(
            CODEC_ZSTD, zstandard.ZstdCompressor(write_checksum=True).compress(TEXT), id="zstd_checksum"
        ),
        pytest.param(
            CODEC_ZSTD,
            b"\x50\x2a\x4d\x18\x01\0\0\0x%b\x5f\x2a\x4d\x18\0\0\0\0" % compress(CODEC_ZSTD, TEXT),
            id="zstd_skippable",
        ),
    ],
)
def test_takes_what_clients_write(codec: int, packed: bytes) -> None:
    assert decompress(codec, packed, len(TEXT)) == TEXT
    with pytest.raises(InflateLimitError):
        decompress(codec, packed, len(TEXT) - 1)


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(lz4.frame.compress(TEXT, block_linked=True), id="linked"),
        pytest.param(compress(CODEC_LZ4, TEXT[:5]) + compress(CODEC_LZ4, TEXT[5:]), id="two_frames"),
        pytest.param(b"\x50\x2a\x4d\x18\x01\0\0\0x" + compress(CODEC_LZ4, TEXT), id="skippable_first"),
        pytest.param(compress(CODEC_LZ4, TEXT) + b"\x50\x2a\x4d\x18\x01\0\0\0x", id="skippable_last"),
    ],
)
def test_lz4_that_java_cannot_read_is_known(packed: bytes) -> None:
    assert decompress(CODEC_LZ4, packed, len(TEXT)) == TEXT
    with pytest.raises(CompressionError, match="not decodable as lz4: it "):
        check_readable(CODEC_LZ4, packed)


@pytest.mark.parametrize("size", [False, True])
@pytest.mark.parametrize("content_checksum", [False, True])
@pytest.mark.parametrize("block_checksum", [False, True])
def test_lz4_that_java_reads_is_known(size: bool, content_checksum: bool, block_checksum: bool) -> None:
    packed: bytes = lz4.frame.compress(
        TEXT,
        block_linked=False,
        store_size=size,
        content_checksum=content_checksum,
        block_checksum=block_checksum,
    )
    check_readable(CODEC_LZ4, packed)
    for cut in (0, 4, 5, 6, 7, 8, len(packed) // 2, len(packed) - 1):
        with pytest.raises(CompressionError):
            check_readable(CODEC_LZ4, packed[:cut])


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_cut_frame_to_skip_is_noticed(cut: int) -> None:
    packed = compress(CODEC_ZSTD, TEXT) + b"\x50\x2a\x4d\x18\x03\0\0\0xyz"
    with pytest.raises(CompressionError):
        decompress(CODEC_ZSTD, packed[:-cut], len(TEXT))


def test_xerial_framing_is_javas() -> None:
    packed = compress(CODEC_SNAPPY, b"a" * 40_000)
    assert packed[:16] == b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
    (first,) = struct.unpack_from(">i", packed, 16)
    assert cramjam.snappy.decompress_raw_len(packed[20 : 20 + first]) == 32 * 1024


@pytest.mark.parametrize("ratio", ["little", "much"])
@pytest.mark.parametrize("codec", PACKING)
def test_every_cut_is_noticed(codec: int, ratio: str) -> None:
    # Xerial frames don't say how many blocks come, so only one block is cut here.
    packed = compress(codec, TEXT[:600] if ratio == "little" else b"a" * 30_000)
    for size in range(len(packed)):
        with pytest.raises(CompressionError):
            decompress(codec, packed[:size], 1 << 20)


def test_cut_streamed_zstd_is_noticed() -> None:
    packed = _zstd_streamed(b"a" * 300_000)
    for size in range(len(packed)):
        with pytest.raises(CompressionError):
            decompress(CODEC_ZSTD, packed[:size], 1 << 20)


@pytest.mark.parametrize("codec", PACKING)
@given(noise=st.binary(max_size=200), prefix=st.integers(0, 40))
@settings(max_examples=examples(150), deadline=None)
def test_noise_gives_only_compression_errors(codec: int, noise: bytes, prefix: int) -> None:
    packed = compress(codec, TEXT[:300])[:prefix] + noise
    try:
        plain = decompress(codec, packed, 10_000)
    except CompressionError:
        return
    assert len(plain) <= 10_000


@pytest.mark.parametrize(
    ("codec", "pack"),
    [
        pytest.param(CODEC_GZIP, gzip.compress, id="gzip"),
        pytest.param(CODEC_LZ4, partial(lz4.frame.compress, store_size=False), id="lz4"),
        pytest.param(CODEC_ZSTD, _zstd_streamed, id="zstd"),
        pytest.param(CODEC_ZSTD, zstandard.ZstdCompressor().compress, id="zstd_with_size"),
        pytest.param(
            CODEC_SNAPPY, lambda _: b"\xff\xff\xff\xff\x0f" + b"\x00" * 40, id="snappy_lying_preamble"
        ),
    ],
)
def test_a_bomb_is_refused(codec: int, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(bytes(32 << 20))
    with pytest.raises(InflateLimitError):
        decompress(codec, packed, 1 << 20)


@pytest.mark.parametrize("codec", [-1, 5, 7])
def test_unknown_codec(codec: int) -> None:
    with pytest.raises(UnknownCodecError):
        decompress(codec, b"", 1)
    with pytest.raises(UnknownCodecError):
        compress(codec, b"")


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(InvalidRequestError):
        decompress(CODEC_NONE, b"", 0)


def test_names() -> None:
    assert [codec_id(name) for name in ("none", "gzip", "snappy", "lz4", "zstd")] == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidRequestError, match="name=brotli"):
        codec_id("brotli")


@pytest.mark.parametrize("codec", [CODEC_GZIP, CODEC_ZSTD])
def test_levels_are_used(codec: int) -> None:
    assert len(compress(codec, TEXT, 9)) < len(compress(codec, TEXT, 1))


def test_threads_do_not_share_codec_objects() -> None:
    def both_ways(codec: int) -> bool:
        return decompress(codec, compress(codec, TEXT), len(TEXT)) == TEXT

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(both_ways, list(range(5)) * 20))
