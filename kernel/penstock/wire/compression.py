"""The five codecs of a Kafka record batch, with bounded output.

A compressed batch comes from outside, so every ``decompress`` names the most bytes it may produce; a
bomb costs at most that. Libraries load on first use: a broker passes batches through and may never
need most of them. Nothing here is shared between threads: zstandard objects live in a thread-local,
because one compressor used by two threads at once crashes the interpreter.
"""

from __future__ import annotations

__all__ = (
    "CODEC_GZIP",
    "CODEC_LZ4",
    "CODEC_NAMES",
    "CODEC_NONE",
    "CODEC_SNAPPY",
    "CODEC_ZSTD",
    "Buffer",
    "CompressionError",
    "InflateLimitError",
    "UnknownCodecError",
    "check_readable",
    "codec_id",
    "compress",
    "decompress",
)

import contextlib
import struct
import threading
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from penstock.errors import InvalidRequestError, PenstockError
from penstock.spi.buffers import Buffer

if TYPE_CHECKING:
    import zstandard

CODEC_NONE: Final = 0
CODEC_GZIP: Final = 1
CODEC_SNAPPY: Final = 2
CODEC_LZ4: Final = 3
CODEC_ZSTD: Final = 4

#: The values of the topic setting ``compression.type``, at their codec ids.
CODEC_NAMES: Final = ("none", "gzip", "snappy", "lz4", "zstd")

# Framing of the xerial snappy library that the Java client writes: magic, version, oldest reader;
# then blocks of a big-endian length and raw snappy.
_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = _XERIAL_MAGIC + struct.pack(">ii", 1, 1)
_XERIAL_BLOCK_BYTES: Final = 32 * 1024
_INT32: Final = struct.Struct(">i")

# An lz4 frame: magic and flags; its other fields are a block size, lengths if flags say so, and a checksum.
_LZ4_MAGIC: Final = 0x184D2204
_LZ4_START: Final = struct.Struct("<IB")
_LZ4_BLOCK: Final = struct.Struct("<I")
_LZ4_HEADER_BYTES: Final = 7
_LZ4_CONTENT_CHECKSUM: Final = 0x04
_LZ4_CONTENT_SIZE: Final = 0x08
_LZ4_BLOCK_CHECKSUMS: Final = 0x10
_LZ4_INDEPENDENT: Final = 0x20
_LZ4_UNKNOWN: Final = 0x03  # a dictionary's id, and a reserved bit
_LZ4_UNCOMPRESSED_BLOCK: Final = 1 << 31

_GZIP_WBITS: Final = 31  # zlib's way to say: gzip header and trailer
_FIRST_GUESS_BYTES: Final = 64 * 1024
_ZSTD_RLE_BLOCK: Final = 1
_ZSTD_SKIPPABLE: Final = struct.Struct("<II")  # magic number, length
_ZSTD_SKIPPABLE_MAGIC: Final = 0x184D2A50
_ZSTD_SKIPPABLE_KINDS: Final = 0x0F
_ZSTD_LEVELS_MAX: Final = 4  # compressors kept per thread: those of high levels are megabytes
_GUESS_RATIO: Final = 8  # text compresses 3 to 6 times; a wrong guess only costs another turn


class CompressionError(PenstockError):
    """The compressed bytes are not what their codec id says: refuse the batch, a retry won't help."""


class InflateLimitError(CompressionError):
    """The bytes inflate to more than the caller allows: refuse the batch."""


class UnknownCodecError(CompressionError):
    """The codec id is none of 0 to 4: refuse the batch."""


def codec_id(name: str) -> int:
    """The codec id of a name as in ``compression.type``.

    Raises:
        InvalidRequestError: the name is no codec's.
    """
    try:
        return CODEC_NAMES.index(name)
    except ValueError:
        raise InvalidRequestError(
            f"no such codec, use one of {', '.join(CODEC_NAMES)}: name={name}"
        ) from None


def compress(codec: int, data: Buffer, level: int | None = None) -> bytes:
    """``data`` compressed by ``codec`` (0 to 4), framed as Kafka's Java client frames it.

    ``level`` is the codec's own (gzip -1..9, lz4 0..17, zstd -131072..22) and ignored by the others; None
    is the library's default. Releases the GIL on large inputs.

    Raises:
        UnknownCodecError: ``codec`` is out of range.
    """
    if codec == CODEC_NONE:
        return bytes(data)
    if codec == CODEC_GZIP:
        packer = zlib.compressobj(-1 if level is None else level, zlib.DEFLATED, _GZIP_WBITS)
        return packer.compress(data) + packer.flush()
    if codec == CODEC_SNAPPY:
        return _compress_snappy(data)
    if codec == CODEC_LZ4:
        import lz4.frame

        # Independent 64 KiB blocks without content size: what the Java client reads and writes.
        packed: bytes = lz4.frame.compress(
            data,
            compression_level=level or 0,
            block_size=lz4.frame.BLOCKSIZE_MAX64KB,
            block_linked=False,
            store_size=False,
        )
        return packed
    if codec == CODEC_ZSTD:
        return _zstd_compressor(3 if level is None else level).compress(data)
    raise UnknownCodecError(f"unknown compression codec, kafka knows 0 to 4 codec={codec}")


def decompress(codec: int, data: Buffer, max_bytes: int) -> bytes:
    """The plain bytes of ``data``, at most ``max_bytes`` (> 0) of them.

    Takes what clients write: gzip with several members, snappy raw (librdkafka) and xerial-framed
    (Java), lz4 frames of any block size with or without content size, zstd frames with and without
    content size, and skippable ones. Memory in use stays near ``max_bytes`` whatever the input says.

    Raises:
        InflateLimitError: there are more bytes than ``max_bytes``.
        UnknownCodecError: ``codec`` is out of range.
        CompressionError: the input is damaged, cut or of another codec.
    """
    if max_bytes <= 0:
        raise InvalidRequestError(f"max_bytes must be positive max_bytes={max_bytes}")
    if codec == CODEC_NONE:
        if len(data) > max_bytes:
            raise _too_large("plain", max_bytes)
        return bytes(data)
    inflate = _INFLATERS.get(codec)
    if inflate is None:
        raise UnknownCodecError(f"unknown compression codec, kafka knows 0 to 4 codec={codec}")
    return inflate(data, max_bytes)


def check_readable(codec: int, data: Buffer) -> None:
    """Refuse what ``decompress`` takes and Java's client can't read, so that no consumer stops at it.

    That is lz4 of more than one frame, or of blocks that need the one before (KIP-57).

    Raises:
        CompressionError: ``data`` is such.
    """
    if codec != CODEC_LZ4:
        return
    try:
        magic, flags = _LZ4_START.unpack_from(data)
        if magic != _LZ4_MAGIC or flags & (_LZ4_INDEPENDENT | _LZ4_UNKNOWN) != _LZ4_INDEPENDENT:
            raise _damaged("lz4", "it isn't one frame of independent blocks")
        pos = _LZ4_HEADER_BYTES + (8 if flags & _LZ4_CONTENT_SIZE else 0)
        checksum_bytes = 4 if flags & _LZ4_BLOCK_CHECKSUMS else 0
        while True:
            (length,) = _LZ4_BLOCK.unpack_from(data, pos)
            pos += 4
            if not length:
                break
            pos += (length & ~_LZ4_UNCOMPRESSED_BLOCK) + checksum_bytes
    except struct.error as error:
        raise _damaged("lz4", "the frame is cut") from error
    pos += 4 if flags & _LZ4_CONTENT_CHECKSUM else 0
    if pos != len(data):
        raise _damaged("lz4", "it goes on behind its frame")


def _too_large(name: str, max_bytes: int) -> InflateLimitError:
    return InflateLimitError(f"{name} data inflates beyond the limit max_bytes={max_bytes}")


def _damaged(name: str, what: object) -> CompressionError:
    return CompressionError(f"not decodable as {name}: {what}")


def _inflate_gzip(data: Buffer, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    room = max_bytes
    rest: Buffer = data
    while True:
        member = zlib.decompressobj(_GZIP_WBITS)
        try:
            chunk = member.decompress(rest, room + 1)
        except zlib.error as error:
            raise _damaged("gzip", error) from error
        room -= len(chunk)
        if room < 0:
            raise _too_large("gzip", max_bytes)
        if not member.eof:
            raise _damaged("gzip", "the stream is cut")
        rest = member.unused_data
        if not chunks and not rest:
            return chunk
        chunks.append(chunk)
        if not rest:
            return b"".join(chunks)


def _compress_snappy(data: Buffer) -> bytes:
    import cramjam

    parts = [_XERIAL_HEADER]
    view = memoryview(data)
    for start in range(0, len(view) or 1, _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (_INT32.pack(len(block)), block)
    return b"".join(parts)


def _inflate_snappy(data: Buffer, max_bytes: int) -> bytes:
    view = memoryview(data)
    if bytes(view[:8]) != _XERIAL_MAGIC:
        return _inflate_snappy_raw(view, max_bytes)
    chunks: list[bytes] = []
    room = max_bytes
    pos, size = 0, len(view)
    while pos < size:
        if bytes(view[pos : pos + 8]) == _XERIAL_MAGIC:  # streams may be joined, each with its header
            pos += len(_XERIAL_HEADER)
            if pos >= size:
                raise _damaged("snappy", "a header without blocks")
            continue
        if size - pos < 4:
            raise _damaged("snappy", "a block length is cut")
        (length,) = _INT32.unpack_from(view, pos)
        pos += 4
        if not 0 < length <= size - pos:
            raise _damaged("snappy", f"a block leaves its frame block_bytes={length}")
        chunk = _inflate_snappy_raw(view[pos : pos + length], max_bytes, room)
        room -= len(chunk)
        chunks.append(chunk)
        pos += length
    return b"".join(chunks)


def _inflate_snappy_raw(view: memoryview, max_bytes: int, room: int | None = None) -> bytes:
    import cramjam

    try:
        # The preamble says the length: look at it before any memory is taken.
        if cramjam.snappy.decompress_raw_len(view) > (max_bytes if room is None else room):
            raise _too_large("snappy", max_bytes)
        return bytes(cramjam.snappy.decompress_raw(view))
    except cramjam.DecompressionError as error:
        raise _damaged("snappy", error) from error


def _inflate_lz4(data: Buffer, max_bytes: int) -> bytes:
    import lz4.frame

    chunks: list[bytes] = []
    room = max_bytes
    rest: Buffer = data
    step = max(_FIRST_GUESS_BYTES, len(data) * _GUESS_RATIO)
    decoder = lz4.frame.LZ4FrameDecompressor()
    while True:
        try:
            chunk: bytes = decoder.decompress(rest, max_length=min(step, room + 1))
        except (RuntimeError, EOFError, ValueError) as error:
            raise _damaged("lz4", error) from error
        room -= len(chunk)
        if room < 0:
            raise _too_large("lz4", max_bytes)
        chunks.append(chunk)
        if decoder.eof:
            rest = decoder.unused_data or b""
            if not rest:
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            decoder = lz4.frame.LZ4FrameDecompressor()
        elif decoder.needs_input or not chunk:
            raise _damaged("lz4", "the frame is cut")
        else:
            rest = b""
            step *= 2


class _ZstdContexts(threading.local):
    """One decompressor and the compressors in use, per thread."""

    def __init__(self) -> None:
        import zstandard

        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}


_contexts: _ZstdContexts | None = None


def _zstd_contexts() -> _ZstdContexts:
    global _contexts  # noqa: PLW0603 - the library loads on first use; losing the race costs one object
    contexts = _contexts
    if contexts is None:
        contexts = _contexts = _ZstdContexts()
    return contexts


def _zstd_compressor(level: int) -> zstandard.ZstdCompressor:
    import zstandard

    compressors = _zstd_contexts().compressors
    if level not in compressors:
        if len(compressors) >= _ZSTD_LEVELS_MAX:
            compressors.clear()
        compressors[level] = zstandard.ZstdCompressor(level=level)
    return compressors[level]


def _inflate_zstd(data: Buffer, max_bytes: int) -> bytes:
    view = memoryview(data)
    chunks: list[bytes] = []
    room = max_bytes
    pos, size = _after_skippable_frames(view, 0), len(view)
    while pos < size or not chunks:
        end = _zstd_frame_end(view, pos)
        chunk = _inflate_zstd_frame(view[pos:end], room)
        room -= len(chunk)
        if room < 0:
            raise _too_large("zstd", max_bytes)
        chunks.append(chunk)
        pos = _after_skippable_frames(view, end)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _after_skippable_frames(view: memoryview, pos: int) -> int:
    """Where the next frame of data is (RFC 8878, 3.1.2)."""
    while len(view) - pos >= _ZSTD_SKIPPABLE.size:
        magic, length = _ZSTD_SKIPPABLE.unpack_from(view, pos)
        if magic & ~_ZSTD_SKIPPABLE_KINDS != _ZSTD_SKIPPABLE_MAGIC:
            break
        pos += _ZSTD_SKIPPABLE.size + length
    if pos > len(view):
        raise _damaged("zstd", "the frame is cut")
    return pos


def _zstd_frame_end(view: memoryview, pos: int) -> int:
    """Where the frame at ``pos`` ends (RFC 8878, 3.1.1); the library doesn't tell for streamed frames.

    A walk over block headers, one per 128 KiB of output.
    """
    import zstandard

    try:
        frame = zstandard.get_frame_parameters(view[pos:])
        end = pos + zstandard.frame_header_size(view[pos:])
        last = 0
        while not last:
            block = view[end] | view[end + 1] << 8 | view[end + 2] << 16
            last = block & 1
            end += 3 + (1 if block >> 1 & 3 == _ZSTD_RLE_BLOCK else block >> 3)
    except (zstandard.ZstdError, IndexError) as error:
        raise _damaged("zstd", error) from error
    end += 4 if frame.has_checksum else 0
    if end > len(view):
        raise _damaged("zstd", "the frame is cut")
    return end


def _inflate_zstd_frame(frame: memoryview, room: int) -> bytes:
    """The plain bytes of one whole frame; if there are more than ``room``, some number beyond it."""
    import zstandard

    decompressor = _zstd_contexts().decompressor
    try:
        if zstandard.frame_content_size(frame) > room:  # -1: a streamed frame doesn't say
            raise _too_large("zstd", room)
        # The library takes the bound as what to allocate, so a modest guess comes first.
        guess = max(_FIRST_GUESS_BYTES, len(frame) * _GUESS_RATIO)
        for bound in (guess, room + 1) if guess < room else (room + 1,):
            with contextlib.suppress(zstandard.ZstdError):
                return decompressor.decompress(frame, max_output_size=bound)
        # Too much, or damaged? A reader tells.
        with decompressor.stream_reader(frame) as reader:
            start = reader.read(room + 1)
    except zstandard.ZstdError as error:
        raise _damaged("zstd", error) from error
    if len(start) <= room:
        raise _damaged("zstd", "the frame doesn't end where its blocks do")
    return start


_INFLATERS: Final[dict[int, Callable[[Buffer, int], bytes]]] = {
    CODEC_GZIP: _inflate_gzip,
    CODEC_SNAPPY: _inflate_snappy,
    CODEC_LZ4: _inflate_lz4,
    CODEC_ZSTD: _inflate_zstd,
}
