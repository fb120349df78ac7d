"""A snapshot of the image as bytes: cut at one moment, encoded piece by piece while the image changes on."""

from __future__ import annotations

__all__ = ("Cut", "decode_snapshot")

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from penstock.errors import CorruptError
from penstock.metadata.ranges import Ranges
from penstock.metadata.state import State
from penstock.metadata.stored import ImageData, upgrade
from penstock.metadata.table import RowCut
from penstock.metadata.versions import METADATA_VERSION, refuse_newer, version_of
from penstock.work.pieces import pieces

#: What a snapshot encodes in one go: a millisecond or so on the event loop.
CUT_ROWS = 500
#: The tables that a cut encodes piece by piece; there are too many of their rows for one go.
_TABLES: Final = ("topics", "streams", "objects")


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

    def __init__(self, image: State) -> None:
        self.index = image.index
        self._image = image
        small = ImageData(
            version=METADATA_VERSION,
            index=image.index,
            cluster_id=image.cluster_id,
            controller=image.controller,
            next_stream_id=image.streams.next_id,
            next_object_id=image.objects.next_id,
            next_producer_id=image.producer_ids.next_id,
            nodes={node.node_id: node for node in image.nodes.all()},
        )
        self._fields = [
            (_encoder.encode(name), None if name in _TABLES else _encoder.encode(getattr(small, name)))
            for name in ImageData.__struct_fields__
        ]
        self._topics = image.topics.cut()
        self._streams = image.streams.cut()
        self._objects = image.objects.cut()

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *_: object) -> None:
        self._image.topics.uncut(self._topics)
        self._image.streams.uncut(self._streams)
        self._image.objects.uncut(self._objects)

    def pieces(self) -> Iterator[bytes]:
        """The snapshot, in pieces that each take about a millisecond; entries may be folded between them."""
        tables: dict[str, RowCut[Any, Any]] = {
            "topics": self._topics,
            "streams": self._streams,
            "objects": self._objects,
        }
        yield _map_header(len(self._fields))
        for name, (key, value) in zip(ImageData.__struct_fields__, self._fields, strict=True):
            yield key
            if value is not None:
                yield value
            else:
                yield from _table(tables[name].rows)


def _table(rows: dict[Any, Any]) -> Iterator[bytes]:
    keys = list(rows)
    yield _map_header(len(keys))
    for piece in pieces(keys, CUT_ROWS):
        chunk = {key: rows.pop(key) for key in piece}
        yield _encoder.encode(chunk)[len(_map_header(len(chunk))) :]


def decode_snapshot(data: bytes) -> ImageData:
    """What a snapshot holds, an older one's in the present form.

    Raises CorruptError if it can't be read, NewerVersionError.
    """
    try:
        image = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        refuse_newer(version_of(data), "a metadata snapshot", f"bytes={len(data)}")
        raise CorruptError(f"metadata snapshot can't be read: reason={error}") from error
    refuse_newer(image.version, "a metadata snapshot", f"index={image.index}")
    upgrade(image)
    return image
