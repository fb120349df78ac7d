"""Frames between a broker and the process of its compactor: a pickled message, and buffers behind it as they are.

Both ends are one installation of one version, started by one another, on a socket pair that nobody else has.
"""

from __future__ import annotations

__all__ = (
    "Connection",
    "Failed",
    "error_of",
    "failed_of",
    "packed",
    "receive",
    "records_of",
    "send",
    "taken_apart",
)

import pickle
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock import errors
from penstock.errors import CorruptError, PenstockError
from penstock.spi.lake import BinaryColumn, HeaderColumn, LakeRecords
from penstock.spi.plugin import Buffer

#: The size of the message, and the number of buffers, whose sizes follow.
_HEAD = struct.Struct("<QI")
_SIZE = struct.Struct("<Q")


class Connection(Protocol):
    """What frames come from: a socket, or whoever listens to one."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Fill a part of ``buffer``, from its beginning; how much of it, 0 at the end."""
        ...


def send(connection: socket.socket, message: object, buffers: Sequence[Buffer] = ()) -> None:
    """Send a frame. Blocking; raises OSError."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    connection.sendall(packed(message, [view.nbytes for view in views]))
    for view in views:
        connection.sendall(view)


def packed(message: object, sizes: Sequence[int] = ()) -> bytes:
    """The frame as far as buffers of these sizes."""
    body = pickle.dumps(message)
    return _HEAD.pack(len(body), len(sizes)) + b"".join(_SIZE.pack(size) for size in sizes) + body


def receive(connection: Connection, size_max: int | None = None) -> tuple[Any, list[memoryview]]:
    """The next message and its buffers. Blocking; raises EOFError at the end, OSError.

    With ``size_max``, a frame that says to be larger is a CorruptError, and has no buffers.
    """
    size, count = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if size_max is not None and (size > size_max or count):
        raise CorruptError(f"the frame is larger than any: size={size} buffers={count}")
    sizes = _exactly(connection, _SIZE.size * count)
    body = _exactly(connection, size)
    buffers = [_exactly(connection, one) for (one,) in _SIZE.iter_unpack(sizes)]
    return pickle.loads(body), buffers  # noqa: S301 - see the module


def _exactly(connection: Connection, size: int) -> memoryview:
    found = memoryview(bytearray(size))
    at = 0
    while at < size:
        count = connection.recv_into(found[at:])
        if not count:
            raise EOFError
        at += count
    return found


def taken_apart(records: LakeRecords) -> tuple[tuple[int, ...], list[Buffer]]:
    """Numbers and buffers that say it all; bitmaps that aren't there are empty buffers."""
    buffers: list[Buffer] = [records.offsets, records.timestamps, records.headers.starts]
    for column in (records.keys, records.values, records.headers.names, records.headers.values):
        buffers += (column.data, column.offsets, column.valid or b"")
    return (records.partition, records.start_offset, records.next_offset), buffers


def records_of(numbers: tuple[int, ...], buffers: Sequence[memoryview]) -> LakeRecords:
    """What was ``taken_apart``."""
    partition, start_offset, next_offset = numbers
    offsets, timestamps, starts = buffers[:3]
    keys, values, names, header_values = (
        BinaryColumn(data=data, offsets=ends.cast("i"), valid=valid if valid.nbytes else None)
        for data, ends, valid in zip(buffers[3::3], buffers[4::3], buffers[5::3], strict=True)
    )
    return LakeRecords(
        partition=partition,
        offsets=offsets.cast("q"),
        timestamps=timestamps.cast("q"),
        keys=keys,
        values=values,
        headers=HeaderColumn(starts=starts.cast("i"), names=names, values=header_values),
        start_offset=start_offset,
        next_offset=next_offset,
    )


@dataclass(frozen=True, slots=True)
class Failed:
    """An error in words: not every error survives a pickle."""

    #: Of Penstock's errors, else empty.
    kind: str
    text: str


def failed_of(error: BaseException) -> Failed:
    """The error in words."""
    if isinstance(error, PenstockError):
        for kind in type(error).__mro__:  # a plugin's own kind of one of them is that one
            if getattr(errors, kind.__name__, None) is kind:
                return Failed(kind.__name__, str(error))
    return Failed("", f"{type(error).__name__}: {error}")


def error_of(failed: Failed) -> Exception:
    """An error that says the same."""
    kind = getattr(errors, failed.kind, None) if failed.kind else None
    return kind(failed.text) if kind is not None else RuntimeError(failed.text)
