"""What usual Produce requests have in front of their records, so that it is decoded once and not with each request.

A producer sends the same bytes again and again: its client id, acks, the time-out, the topic, the partition. Up to
the length of the records only the correlation id differs. These bytes are a request's *head*.

A head is learned from what the codec made of a request, and only if the codec would write the very same bytes again.
So nothing is read in a second way: equal bytes mean an equal request. Whatever isn't known goes through the codec.
"""

from __future__ import annotations

__all__ = ("FLEXIBLE_VERSION", "HEAD_BYTES_MAX", "HEAD_START", "ProduceHead", "ProduceHeads")

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from penstock.api.produce_response import TEMPLATE_VERSION_MIN, AnswerTemplate
from penstock.errors import PenstockError
from penstock.spi.plugin import Buffer
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceRequest
from penstock.wire.registry import encode_request

#: From these versions on a request has tagged fields (KIP-482), and topics have ids in place of names (KIP-516).
FLEXIBLE_VERSION: Final = 9
_TOPIC_IDS: Final = 13
#: Heads kept. Where more are in use, one in ``_REPLACED_PART`` that aren't known takes the place of the oldest.
_HEADS_MAX: Final = 4096
_REPLACED_PART: Final = 16
#: A longer one isn't learned: client ids may have 32 KiB, of which the heads of one client would keep 256 MiB.
HEAD_BYTES_MAX: Final = 1024

#: A head begins with the client id; before it are API key, version and correlation id.
HEAD_START: Final = 8
_LENGTH_BYTES: Final = 4
_TOPIC_ID_BYTES: Final = 16

_unpack_int16 = struct.Struct(">h").unpack_from
_unpack_int32 = struct.Struct(">i").unpack_from


class ProduceHead(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A request of one batch for one partition, but for correlation id and records; and its answer's bytes.

    It takes the bytes of a frame up to ``end``. ``topic`` is empty where the request has the topic's id.
    """

    end: int
    client_id: str | None
    topic: str
    topic_id: bytes
    index: int
    answer: AnswerTemplate


class ProduceHeads:
    """The heads that connections of a server have sent, by version and bytes. Bounded."""

    __slots__ = ("_unknown", "known")

    def __init__(self) -> None:
        #: By version and the bytes from ``HEAD_START`` to ``ProduceHead.end``.
        self.known: dict[tuple[int, bytes], ProduceHead] = {}
        self._unknown = 0

    def __len__(self) -> int:
        return len(self.known)

    def find(self, frame: memoryview, version: int) -> ProduceHead | None:
        """The head of ``frame``, if it is known; for who doesn't know where it ends."""
        end = _head_end(frame, version)
        return self.known.get((version, bytes(frame[HEAD_START:end])))

    def learn(self, frame: memoryview, client_id: str | None, version: int, request: ProduceRequest) -> None:
        """Keep the head of ``request``, which was decoded from ``frame``, if it is a usual one."""
        if version < TEMPLATE_VERSION_MIN or not _is_usual(request):
            return
        end = _head_end(frame, version)
        if end > HEAD_BYTES_MAX:
            return
        if self.find(frame, version) is not None:  # its records are unusual
            return
        if len(self.known) >= _HEADS_MAX:
            self._unknown += 1
            if self._unknown % _REPLACED_PART:
                return
        (correlation_id,) = _unpack_int32(frame, 4)
        try:
            written = encode_request(ApiKey.PRODUCE, version, correlation_id, client_id, request)
        except (PenstockError, UnicodeEncodeError):
            return
        if not _is_written(frame, written, request.topic_data[0].partition_data[0].records):
            return
        if len(self.known) >= _HEADS_MAX:
            del self.known[next(iter(self.known))]
        topic = request.topic_data[0]
        topic_id, index = bytes(topic.topic_id), topic.partition_data[0].index
        self.known[version, bytes(frame[HEAD_START:end])] = ProduceHead(
            end=end,
            client_id=client_id,
            topic=topic.name,
            topic_id=topic_id,
            index=index,
            answer=AnswerTemplate(version, topic.name, topic_id, index),
        )


def _head_end(frame: memoryview, version: int) -> int:
    """Where the head ends in a frame that the codec wrote; in any other, somewhere."""
    size: int
    (size,) = _unpack_int16(frame, HEAD_START)
    pos = HEAD_START + 2 + max(size, 0)  # behind the client id
    try:
        if version < FLEXIBLE_VERSION:  # transactional id, acks, time-out, topics, length of the name
            (size,) = _unpack_int16(frame, pos + 2 + 2 + 4 + 4)
            return pos + 14 + max(size, 0) + 4 + 4  # name, partitions, index
        pos += 1 + 1 + 2 + 4 + 1  # tags, transactional id, acks, time-out, topics
        topic_bytes = frame[pos] if version < _TOPIC_IDS else _TOPIC_ID_BYTES
        return (
            pos + topic_bytes + 1 + 4
        )  # a name has one byte less, but that of its length; partitions, index
    except (IndexError, struct.error):
        return 0


def _is_written(frame: memoryview, written: Sequence[Buffer], records: object) -> bool:
    """Whether ``written`` is ``frame`` behind its length. ``records``, perhaps long ones, are the frame's own."""
    at = -_LENGTH_BYTES
    for part in written:
        size = len(part)
        if part is not records and frame[max(at, 0) : at + size] != part[max(-at, 0) :]:
            return False
        at += size
    return at == len(frame)


def _is_usual(request: ProduceRequest) -> bool:
    """One batch for one partition of a topic that clients write to, and an answer is wanted."""
    topics = request.topic_data
    return (
        request.acks in (-1, 1)
        and request.transactional_id is None
        and len(topics) == 1
        and len(topics[0].partition_data) == 1
        and topics[0].partition_data[0].records is not None
        and len(topics[0].name) < 0x7F
        and topics[0].name.isascii()
        and not topics[0].name.startswith("__")
    )
