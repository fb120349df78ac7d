"""The short way of a Produce: one small batch for one partition, in a request of a known head.

Nearly all requests of a busy broker are of this kind. ``ShortProduces.take`` does in one step what decoding,
``ProduceCall`` and its slot do for any request; from ``Partition.append`` on both ways are one. It changes nothing
where it doesn't go to the end: whatever is unusual, or has to wait, takes the long way from the start.
"""

from __future__ import annotations

__all__ = ("ShortProduce", "ShortProduces")

import struct
from typing import Final

from penstock.api.produce import failed_append, response_of_one
from penstock.errors import FullError, NotNowError
from penstock.log.append_outcome import AppendOutcome
from penstock.server.channel import Channel
from penstock.server.produce_heads import FLEXIBLE_VERSION, HEAD_START, ProduceHead
from penstock.server.slots import Slot
from penstock.wire.api_keys import ApiKey
from penstock.wire.record_batch import HEADER_BYTES
from penstock.wire.registry import encode_response

_PRODUCE: Final = int(ApiKey.PRODUCE)
#: Behind the records: the tagged fields of partition, topic and request, of which there are none.
_NO_TAGS: Final = b"\0\0\0"
#: Lengths of records that take a varint of two bytes: the usual ones; less takes one byte: a small record or two. The
#: first byte has the lowest 7 bits, the second byte the others: as a number, the others are there twice.
_LENGTH_MIN: Final = 0x80
_LENGTH_MAX: Final = 0x3FFF
_HIGH_BITS: Final = ~0x7F
_MORE_BIT: Final = 0x80

_unpack_length = struct.Struct(">i").unpack_from
_unpack_varint = struct.Struct("<H").unpack_from


class ShortProduce(Slot, kw_only=True, eq=False):
    """The slot of a Produce that went the short way; the log's callback completes it."""

    channel: Channel
    head: ProduceHead

    def done(self, outcome: AppendOutcome) -> None:
        """Answer with the outcome of the append. Called from within the log's callbacks, so it doesn't raise."""
        channel = self.channel
        if self.buffers is not None:
            return  # a bug already answered
        if outcome.error_code:
            self._refused(outcome)
        else:
            answer = self.head.answer
            self.buffers = [
                answer.pack(
                    answer.start,
                    self.correlation_id,
                    answer.middle,
                    outcome.base_offset,
                    outcome.log_append_time_ms,
                    outcome.log_start_offset,
                    answer.end,
                )
            ]
        if not channel.flush_scheduled:
            channel.produce_completed(self)

    def _refused(self, outcome: AppendOutcome) -> None:
        head = self.head
        response = response_of_one(head.topic, head.topic_id, head.index, outcome)
        try:
            self.buffers = encode_response(ApiKey.PRODUCE, self.version, self.correlation_id, response)
        except Exception as error:  # noqa: BLE001 - logged as a bug
            self.channel.answer_failed(self, error)


class ShortProduces:
    """The short way of one channel."""

    __slots__ = (
        "_channel",
        "_head",
        "_head_end",
        "_heads",
        "_is_open",
        "_known",
        "_logs",
        "_partition",
        "_pipeline",
        "_slots",
        "now_ms",
        "taken",
    )

    def __init__(self, channel: Channel) -> None:
        core = channel.core
        self._channel = channel
        self._pipeline = channel.pipeline
        self._slots = channel.pipeline.slots
        self._is_open = core.gate.is_open
        self._heads = core.produce_heads
        self._known = core.produce_heads.known
        self._logs = core.api.logs
        self._partition = core.api.logs.partition
        #: The head of the last one, and where it ended: most likely that of the next one too.
        self._head: ProduceHead | None = None
        self._head_end = 0
        #: The time of the appends.
        self.now_ms = 0
        #: How many went this way.
        self.taken = 0

    def take(self, frame: memoryview, api_key: int, version: int, correlation_id: int) -> bool:
        """Take a frame (``penstock.server.frames.Take``): hand its batch to the partition if the way is short."""
        if self._pipeline.waits or api_key != _PRODUCE or not self._is_open:
            return False
        head = self._known.get((version, bytes(frame[HEAD_START : self._head_end])))
        if head is None:
            head = self._heads.find(frame, version)
            if head is None:
                return False
        size = len(frame)
        if version >= FLEXIBLE_VERSION:
            start, stop = head.end + 2, size - 3
            length = stop - start + 1  # as the codec writes it
            if length >= _LENGTH_MIN:
                if (
                    length > _LENGTH_MAX
                    or _unpack_varint(frame, head.end)[0] != length + (length & _HIGH_BITS) + _MORE_BIT
                    or bytes(frame[stop:]) != _NO_TAGS
                ):
                    return False
            else:
                start, length = start - 1, length + 1
                if (
                    not HEADER_BYTES < length < _LENGTH_MIN
                    or frame[head.end] != length
                    or bytes(frame[stop:]) != _NO_TAGS
                ):
                    return False
        else:
            start, stop = head.end + 4, size
            if stop - start < HEADER_BYTES or _unpack_length(frame, head.end)[0] != stop - start:
                return False
        partition = self._partition(head.topic or self._topic_of(head), head.index)
        if partition is None:
            return False
        slot = ShortProduce(version, correlation_id, size, channel=self._channel, head=head)
        self._slots.append(slot)  # before the append, which may answer at once
        self._pipeline.bytes += size
        try:
            partition.append(
                frame[start:stop],
                produce_version=version,
                now_ms=self.now_ms,
                charge=None,
                on_done=slot.done,
            )
        except (FullError, NotNowError):
            self._slots.pop()
            self._pipeline.bytes -= size
            return False
        except Exception as error:  # noqa: BLE001 - logged and answered
            code, message = failed_append(error, partition)
            slot.done(AppendOutcome(code, message))
        if head is not self._head:
            self._head, self._head_end = head, head.end
            self._channel.set_client_id(head.client_id)
        self.taken += 1
        return True

    def _topic_of(self, head: ProduceHead) -> str:
        """The name of the topic that the request has the id of; empty if it isn't one that clients write to."""
        topic = self._logs.topic_by_id(head.topic_id)
        return "" if topic is None or topic.internal else topic.name
