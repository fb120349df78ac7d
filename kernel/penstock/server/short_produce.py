"""The short way of a Produce: one batch for one partition, in a request of a known head.

Nearly all requests of a busy broker are of this kind. ``ShortProduces.take`` does in one step what decoding,
``ProduceCall`` and its slot do for any request; from ``Partition.append`` on both ways are one. It changes nothing
where it doesn't go to the end: whatever is unusual, or has to wait, takes the long way from the start.
"""

from __future__ import annotations

__all__ = ("ShortProduce", "ShortProduces")

import struct
from typing import Final

from penstock.api.produce import failed_append, response_of_one
from penstock.errors import FullError, NotNowError, PenstockError
from penstock.log.append_outcome import AppendOutcome
from penstock.server.channel import Channel
from penstock.server.produce_heads import FLEXIBLE_VERSION, HEAD_START, ProduceHead
from penstock.server.slots import Slot
from penstock.spi.allocator import Allocation
from penstock.wire import native_code
from penstock.wire.api_keys import ApiKey
from penstock.wire.record_batch import ATTRIBUTES_POS, CODEC_MASK, HEADER_BYTES
from penstock.wire.registry import encode_response
from penstock.wire.validation import INLINE_BYTES_MAX, INLINE_PYTHON_BYTES_MAX

_PRODUCE: Final = int(ApiKey.PRODUCE)
#: Behind the records: the tagged fields of partition, topic and request, of which there are none.
_NO_TAGS: Final = b"\0\0\0"
#: Lengths of records that take a varint of two bytes, which are the usual ones. The first byte has the lowest 7 bits,
#: the second byte the others: as a number, the others are there twice.
_LENGTH_MIN: Final = 0x80
_LENGTH_MAX: Final = 0x3FFF
_HIGH_BITS: Final = ~0x7F
_MORE_BIT: Final = 0x80
_VARINT_BYTES_MAX: Final = 5
_CODEC_POS: Final = ATTRIBUTES_POS + 1
#: Of more bytes the records are looked at in a thread.
_INLINE_BYTES_MAX: Final = INLINE_PYTHON_BYTES_MAX if native_code.walk is None else INLINE_BYTES_MAX

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
            channel.answered(self)

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
        "_client",
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
        self._client = channel.client
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

    def take(
        self,
        frame: memoryview,
        api_key: int,
        version: int,
        correlation_id: int,
        allocation: Allocation | None = None,
    ) -> bool:
        """Take a frame (``penstock.server.frames.Take``): hand its batch to the partition if the way is short.

        ``allocation``, the memory of the frame, goes with it then.
        """
        if self._pipeline.waits or api_key != _PRODUCE or not self._is_open:
            return False
        head = self._known.get((version, bytes(frame[HEAD_START : self._head_end])))
        head = head or self._heads.find(frame, version)
        if head is None:
            return False
        size = len(frame)
        if version >= FLEXIBLE_VERSION:
            start, stop = head.end + 2, size - 3
            length = stop - start + 1  # as the codec writes it
            if not _LENGTH_MIN <= length <= _LENGTH_MAX:
                start = _start_of_records(frame, head.end, stop)
            elif _unpack_varint(frame, head.end)[0] != length + (length & _HIGH_BITS) + _MORE_BIT:
                start = 0
            if not start or bytes(frame[stop:]) != _NO_TAGS:
                return False
        else:
            start, stop = head.end + 4, size
            if stop - start < HEADER_BYTES or _unpack_length(frame, head.end)[0] != stop - start:
                return False
        if size > _LENGTH_MAX and (size > _INLINE_BYTES_MAX or frame[start + _CODEC_POS] & CODEC_MASK):
            return False  # it is left to a thread, most likely: what was begun here would be done again
        partition = self._partition(head.topic or self._topic_of(head), head.index)
        if partition is None:
            return False
        slot = ShortProduce(version, correlation_id, size, channel=self._channel, head=head)
        self._slots.append(slot)  # before the append, which may answer at once
        self._pipeline.bytes += size
        try:
            taken = partition.append(
                frame[start:stop],
                produce_version=version,
                now_ms=self.now_ms,
                charge=allocation,
                on_done=slot.done,
            )
        except (FullError, NotNowError):
            self._slots.pop()
            self._pipeline.bytes -= size
            return False
        except Exception as error:  # noqa: BLE001 - logged and answered
            # Of a bug below it isn't known whether the log took the memory, so it stays accounted for.
            taken = not isinstance(error, PenstockError)
            code, message = failed_append(error, partition)
            slot.done(AppendOutcome(code, message))
        if allocation is not None and not taken:
            allocation.release()
        if (
            head is not self._head or head.client_id is not self._client.client_id
        ):  # another way may have set it
            self._head, self._head_end = head, head.end
            self._channel.set_client_id(head.client_id)
        self.taken += 1
        return True

    def _topic_of(self, head: ProduceHead) -> str:
        """The name of the topic that the request has the id of; empty if it isn't one that clients write to."""
        topic = self._logs.topic_by_id(head.topic_id)
        return "" if topic is None or topic.internal else topic.name


def _start_of_records(frame: memoryview, pos: int, stop: int) -> int:
    """Where records begin whose length, a varint, is at ``pos``; 0 if they don't end at ``stop``, or are no batch."""
    value = shift = 0
    for at in range(pos, min(pos + _VARINT_BYTES_MAX, stop - HEADER_BYTES)):
        byte = frame[at]
        value |= (byte & ~_MORE_BIT) << shift
        if byte < _MORE_BIT:
            return at + 1 if at + value == stop else 0  # a length is written as one more
        shift += 7
    return 0
