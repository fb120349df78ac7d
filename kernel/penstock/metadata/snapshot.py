"""A snapshot of the image as bytes: cut at one moment, encoded piece by piece while the image changes on."""

from __future__ import annotations

__all__ = ("Cut", "decode_snapshot")

from collections import Counter
from collections.abc import Iterator
from copy import copy
from typing import Any

import msgspec

from penstock.errors import CorruptError, NewerVersionError
from penstock.metadata.commands import refuse_newer
from penstock.metadata.ranges import Ranges
from penstock.metadata.rows import IMAGE_VERSION, ImageData

#: What a snapshot encodes in one go: a millisecond or so on the event loop.
CUT_ROWS = 500
#: The parts of it that a cut encodes piece by piece; what is in them changes in place.
_TABLES = ("topics", "streams", "objects")


def _to_stored(value: Any) -> bytes:
    assert isinstance(value, Ranges), type(value)
    return value.to_bytes()


def _from_stored(kind: type, value: Any) -> Any:
    assert kind is Ranges, kind
    return Ranges.of(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_stored)
_decoder = msgspec.msgpack.Decoder(ImageData, dec_hook=_from_stored)


def _map_header(count: int) -> bytes:
    """MessagePack's header of a map, as the encoder would write it."""
    if count < 16:
        return bytes((0x80 | count,))
    if count < 2**16:
        return b"\xde" + count.to_bytes(2, "big")
    return b"\xdf" + count.to_bytes(4, "big")


class Cut:
    """The image as it is now, encoded piece by piece while entries are folded into the image.

    A row (topic, stream, object) that changes before it is encoded is copied first. Leave the context when the
    pieces aren't wanted any more: until then, folding pays for the copies.
    """

    def __init__(self, data: ImageData, cuts: list[Cut]) -> None:
        self.index = data.index
        self._cuts = cuts
        #: Rows that aren't encoded yet, by their table in the image.
        self._rows: dict[str, dict[Any, Any]] = {name: dict(getattr(data, name)) for name in _TABLES}
        self._fields = [
            (_encoder.encode(name), None if name in _TABLES else self._encode(data, name))
            for name in ImageData.__struct_fields__
        ]
        cuts.append(self)

    @staticmethod
    def _encode(data: ImageData, name: str) -> bytes:
        return _encoder.encode(getattr(data, name))

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *_: object) -> None:
        self._cuts.remove(self)

    def before(self, table: str, key: Any, row: Any) -> None:
        """``row`` of the image is about to change."""
        rows = self._rows[table]
        if rows.get(key) is row:
            rows[key] = copy(row)

    def pieces(self) -> Iterator[bytes]:
        """The snapshot, in pieces that each take about a millisecond; entries may be folded between them."""
        yield _map_header(len(self._fields))
        for name, (key, value) in zip(ImageData.__struct_fields__, self._fields, strict=True):
            yield key
            if value is not None:
                yield value
            else:
                yield from self._table(self._rows[name])

    def _table(self, rows: dict[Any, Any]) -> Iterator[bytes]:
        keys = list(rows)
        yield _map_header(len(keys))
        for first in range(0, len(keys), CUT_ROWS):
            some = {key: rows.pop(key) for key in keys[first : first + CUT_ROWS]}
            yield _encoder.encode(some)[len(_map_header(len(some))) :]


def decode_snapshot(data: bytes) -> ImageData:
    """What a snapshot holds, an older one's in the present form.

    Raises CorruptError if it can't be read, NewerVersionError.
    """
    try:
        image = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        refuse_newer(data, "a metadata snapshot", f"bytes={len(data)}", known=IMAGE_VERSION)
        raise CorruptError(f"metadata snapshot can't be read: reason={error}") from error
    if image.version > IMAGE_VERSION:
        raise NewerVersionError.of(
            "a metadata snapshot", f"index={image.index}", version=image.version, known=IMAGE_VERSION
        )
    if image.version < 2:
        live = Counter(
            object_id for stream in image.streams.values() for object_id in stream.ranges.object_ids
        )
        for object_id, held in image.objects.items():
            held.live_ranges = live[object_id]
    if image.version < 3:
        owners = {stream.node_id for stream in image.streams.values()}
        for node in image.nodes.values():
            # what wasn't recorded may hold something
            node.wal_in_use = node.wal_in_use or (not node.wal and node.node_id in owners)
    image.version = IMAGE_VERSION
    return image
