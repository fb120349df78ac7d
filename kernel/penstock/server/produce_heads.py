"""What usual Produce requests have in front of their records, so that it is decoded once and not with each request.

A producer sends the same bytes again and again: its client id, acks, the time-out, the topic, the partition. Up to
the length of the records only the correlation id differs. These bytes are a request's *head*.

A head is learned from what the codec made of a request, and only if the codec would write the very same bytes again.
So nothing is read in a second way: equal bytes mean an equal request. Whatever isn't known goes through the codec.
"""

from __future__ import annotations

__all__ = ("ProduceHead", "ProduceHeads")

import struct
from typing import Final

import msgspec

from penstock.api.produce_response import TEMPLATE_VERSION_MIN, response_template
from penstock.errors import PenstockError
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceRequest
from penstock.wire.record_batch import ATTRIBUTES_POS, HEADER_BYTES, TRANSACTIONAL_BIT
from penstock.wire.registry import encode_request

#: From these versions on a request has tagged fields (KIP-482), and topics have ids in place of names (KIP-516).
_FLEXIBLE: Final = 9
_TOPIC_IDS: Final = 13
#: Heads kept. Where more are in use, one in ``_REPLACED_PART`` that aren't known takes the place of the oldest.
_HEADS_MAX: Final = 4096
_REPLACED_PART: Final = 16

#: A head begins with the client id; before it are API key, version and correlation id.
_START: Final = 8
#: Behind the records: the tagged fields of partition, topic and request, of which there are none.
_NO_TAGS: Final = b"\0\0\0"
#: Where a batch has the byte with the transactional bit.
_ATTRIBUTES_LOW_POS: Final = ATTRIBUTES_POS + 1
_TOPIC_ID_BYTES: Final = 16
#: Lengths of records that take a varint of two bytes: the usual ones.
_SHORT_MIN: Final = 0x80
_SHORT_MAX: Final = 0x3FFF

_unpack_int16 = struct.Struct(">h").unpack_from
_unpack_int32 = struct.Struct(">i").unpack_from


class ProduceHead(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A request of one batch for one partition, but for correlation id and records; and its answer's bytes.

    It takes the bytes of a frame up to ``end``. ``topic`` is empty where the request has the topic's id.
    ``offsets_pos`` is where base offset, append time and log start offset go in ``answer``.
    """

    end: int
    client_id: str | None
    topic: str
    topic_id: bytes
    index: int
    answer: bytes
    offsets_pos: int


class ProduceHeads:
    """The heads that connections of a server have sent, by version and bytes. Bounded."""

    __slots__ = ("_heads", "_unknown")

    def __init__(self) -> None:
        self._heads: dict[tuple[int, bytes], ProduceHead] = {}
        self._unknown = 0

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, frame: memoryview, version: int, end: int) -> tuple[ProduceHead, memoryview] | None:
        """The head of ``frame`` and the records behind it; None if it isn't known, or something is unusual.

        ``end`` is where the last one ended, most likely that of this one too.
        """
        head = self._heads.get((version, bytes(frame[_START:end])))
        if head is None:
            end = _head_end(frame, version)
            head = self._heads.get((version, bytes(frame[_START:end])))
            if head is None:
                return None
        size = len(frame)
        if version < _FLEXIBLE:
            start = stop = end + 4
            if start <= size and _unpack_int32(frame, end)[0] == size - start:
                stop = size
        else:
            start = end + 2
            stop = size - 3
            length = stop - start + 1  # as the codec writes it
            if (
                not _SHORT_MIN <= length <= _SHORT_MAX
                or frame[end] != length & 0x7F | 0x80
                or frame[end + 1] != length >> 7
                or bytes(frame[stop:]) != _NO_TAGS
            ):
                return None
        if stop - start < HEADER_BYTES or frame[start + _ATTRIBUTES_LOW_POS] & TRANSACTIONAL_BIT:
            return None
        return head, frame[start:stop]

    def learn(self, frame: memoryview, client_id: str | None, version: int, request: ProduceRequest) -> None:
        """Keep the head of ``request``, which was decoded from ``frame``, if it is a usual one."""
        if version < TEMPLATE_VERSION_MIN or not _is_usual(request):
            return
        if len(self._heads) >= _HEADS_MAX:
            self._unknown += 1
            if self._unknown % _REPLACED_PART:
                return
        (correlation_id,) = _unpack_int32(frame, 4)
        try:
            written = encode_request(ApiKey.PRODUCE, version, correlation_id, client_id, request)
        except (PenstockError, UnicodeEncodeError):
            return
        if b"".join(written)[4:] != frame:
            return
        if len(self._heads) >= _HEADS_MAX:
            del self._heads[next(iter(self._heads))]
        topic = request.topic_data[0]
        topic_id, index = bytes(topic.topic_id), topic.partition_data[0].index
        answer, offsets_pos = response_template(version, topic.name, topic_id, index)
        end = _head_end(frame, version)
        self._heads[version, bytes(frame[_START:end])] = ProduceHead(
            end=end,
            client_id=client_id,
            topic=topic.name,
            topic_id=topic_id,
            index=index,
            answer=answer,
            offsets_pos=offsets_pos,
        )


def _head_end(frame: memoryview, version: int) -> int:
    """Where the head ends in a frame that the codec wrote; in any other, somewhere."""
    size: int
    (size,) = _unpack_int16(frame, _START)
    pos = _START + 2 + max(size, 0)  # behind the client id
    try:
        if version < _FLEXIBLE:  # transactional id, acks, time-out, topics, length of the name
            (size,) = _unpack_int16(frame, pos + 2 + 2 + 4 + 4)
            return pos + 14 + max(size, 0) + 4 + 4  # name, partitions, index
        pos += 1 + 1 + 2 + 4 + 1  # tags, transactional id, acks, time-out, topics
        topic_bytes = frame[pos] if version < _TOPIC_IDS else _TOPIC_ID_BYTES
        return (
            pos + topic_bytes + 1 + 4
        )  # a name has one byte less, but that of its length; partitions, index
    except (IndexError, struct.error):
        return 0


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
