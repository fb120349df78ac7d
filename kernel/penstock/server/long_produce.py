"""Produce requests of any shape: decoded, let through by the gate, and handed to the log as far as it takes them."""

from __future__ import annotations

__all__ = ("ProduceHeader", "start")

from functools import partial
from typing import Final

from penstock.api.gate import UnidentifiedError
from penstock.api.produce import PORTION_PARTITIONS, CheckedRequest, ProduceCall, response_of_one
from penstock.api.produce_scan import has_too_many_partitions
from penstock.errors import NotNowError, PenstockError, kept
from penstock.log.append_outcome import AppendOutcome
from penstock.log.errors import KafkaError
from penstock.server.admission import admit
from penstock.server.channel import Channel
from penstock.server.produce_heads import HEAD_BYTES_MAX
from penstock.server.responses import count_response
from penstock.server.slots import Slot
from penstock.server.waiting import WaitingProduce
from penstock.server.wide_produce import WideProduce
from penstock.spi.allocator import Allocation
from penstock.spi.buffers import Buffer
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceRequest, ProduceResponse, TopicProduceData
from penstock.wire.registry import RequestHeader, decode_request, decode_request_header, encode_response

_PRODUCE: Final = int(ApiKey.PRODUCE)


class ProduceHeader:
    """The header of a connection's Produces: always the same but for the correlation id, so decoded once."""

    __slots__ = ("_header", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._header: RequestHeader | None = None

    def body_pos(self, frame: memoryview, version: int, channel: Channel) -> int:
        """Where the body of ``frame`` begins; notes the client's id."""
        tail, header = self._tail, self._header
        if header is None or version != header.api_version or frame[8 : 8 + len(tail)] != tail:
            header = self._header = decode_request_header(frame)
            if header.body_pos > HEAD_BYTES_MAX:  # a tagged field may be as long as the request
                self._header, self._tail = None, b""
            else:
                self._tail = bytes(frame[8 : header.body_pos])
        if header.client_id != channel.client.client_id:
            channel.set_client_id(header.client_id)
        return header.body_pos


class _ProduceSlot(Slot, eq=False, kw_only=True):
    """The slot of a Produce: completes itself from the log's callback."""

    channel: Channel
    call: ProduceCall | None = None
    #: It has so many partitions that its answer is encoded in a thread.
    is_wide: bool = False

    @property
    def asked_ms(self) -> int:
        """See ``Slot.asked_ms``."""
        return 0 if self.call is None else self.call.timeout_ms

    def lose(self) -> None:
        """See ``Slot.lose``."""
        super().lose()
        self.call = None  # it leads back here, and one that still waited will never complete

    def complete(self, response: ProduceResponse | None) -> None:
        """The outcome of the call. Comes from within the log's callbacks, so it doesn't raise."""
        if response is None:
            self.buffers = []
            self.close = self.call is not None and self.call.failed
        else:
            response.throttle_time_ms = self.throttle_ms
            if self.is_wide and not self.channel.is_lost:
                self.call = None
                self.channel.core.start_metered(self.channel, self._encode, response)
                return
            try:
                self.buffers = encode_response(ApiKey.PRODUCE, self.version, self.correlation_id, response)
            except Exception as error:  # noqa: BLE001 - logged as a bug
                self.channel.answer_failed(self, error)
        self.call = None
        self.channel.answered(self)

    async def _encode(self, response: ProduceResponse) -> None:
        channel = self.channel
        core = channel.core
        work = partial(_encode_and_drop, self.version, self.correlation_id, response)
        try:
            self.buffers = await core.turns.run_in_thread(work, core.long_requests)
        except PenstockError:
            self.buffers = []
            self.close = True
        # Room or not: a client waits for one thing at a time, and may have several of these.
        count_response(core, channel.client, self)
        channel.slot_completed(self)

    def complete_one(self, topic: TopicProduceData, index: int, result: AppendOutcome) -> None:
        """One partition, and it went well."""
        if self.throttle_ms:
            self.complete(response_of_one(topic.name, topic.topic_id, index, result))
            return
        channel = self.channel
        try:
            frame = channel.core.templates.encode(
                self.version,
                self.correlation_id,
                (topic.name, topic.topic_id),
                index,
                (result.base_offset, result.log_append_time_ms, result.log_start_offset),
            )
            self.buffers = [frame]
        except Exception as error:  # noqa: BLE001 - logged as a bug
            channel.answer_failed(self, error)
        self.call = None
        channel.answered(self)


def _encode_and_drop(version: int, correlation_id: int, response: ProduceResponse) -> list[Buffer]:
    """The answer to a wide request, in a thread; it has no partitions then.

    They are dropped some at a time: all in one go would keep the interpreter for milliseconds, whoever drops them.
    """
    buffers = encode_response(ApiKey.PRODUCE, version, correlation_id, response)
    for topic in response.responses:
        while topic.partition_responses:
            del topic.partition_responses[-PORTION_PARTITIONS:]
    return buffers


def start(
    channel: Channel,
    header: ProduceHeader,
    frame: memoryview,
    version: int,
    correlation_id: int,
    allocation: Allocation | None,
) -> None:
    """Begin a Produce, which keeps ``allocation``; the frame is a view of it, or of memory that is needed for others.

    Raises PenstockError, with nothing changed, when it's malformed.
    """
    core = channel.core
    body_pos = header.body_pos(frame, version, channel)
    request: ProduceRequest | None = None
    timeout_ms = 0  # of one that waits for memory
    if allocation is None or not has_too_many_partitions(frame, body_pos, version, PORTION_PARTITIONS):
        decoded = decode_request(_PRODUCE, version, frame, body_pos, lenient=True)
        assert isinstance(decoded, ProduceRequest)
        timeout_ms = decoded.timeout_ms
        request = None if _is_wide(decoded) else decoded
    slot = _ProduceSlot(version, correlation_id, len(frame), channel=channel, is_wide=request is None)
    channel.pipeline.take(slot)
    if request is None:
        slot.charges = []
        begin = partial(_begin, channel, slot)
        channel.wait_not_now(WideProduce(channel, slot, frame, body_pos, allocation, timeout_ms, begin))
        return
    core.requests_by_api[_PRODUCE] += 1
    core.produce_heads.learn(frame, channel.client.client_id, version, request)
    call = ProduceCall(request, version, core.api, channel.client, allocation, slot)
    slot.call = call
    if not core.gate.is_open:
        refusal = _refusal(channel, slot, request)
        if refusal is not None:
            call.give_up(refusal)
            return
    try:
        call.advance()
    except NotNowError as not_now:
        own_frame = frame if allocation is None else None
        channel.wait_not_now(
            WaitingProduce(
                core,
                call,
                own_frame,
                is_work=not_now.is_work,
                address=channel.address,
                size=len(frame),
            )
        )


def _is_wide(request: ProduceRequest) -> bool:
    topics = request.topic_data
    return max(len(topics), sum([len(topic.partition_data) for topic in topics])) > PORTION_PARTITIONS


def _begin(
    channel: Channel, slot: _ProduceSlot, checked: CheckedRequest, allocation: Allocation | None
) -> ProduceCall:
    """The call of a wide Produce, which keeps ``allocation``; it refuses all if the gate does."""
    core, request = channel.core, checked.request
    core.requests_by_api[_PRODUCE] += 1
    call = ProduceCall(request, slot.version, core.api, channel.client, allocation, slot, checked)
    slot.call = call
    if not core.gate.is_open:
        refusal = _refusal(channel, slot, request)
        if refusal is not None:
            call.refuse(refusal)
    return call


def _refusal(channel: Channel, slot: _ProduceSlot, request: ProduceRequest) -> KafkaError | None:
    """Let a Produce through the gate; why not, which all its partitions are to be answered with."""
    core = channel.core
    api = core.apis[_PRODUCE]
    try:
        admit(channel, api, request, slot)
    except KafkaError as error:
        core.handler_failed(api.key, error, expected=True, client=channel.client)
        slot.close = isinstance(error, UnidentifiedError)
        return kept(error)
    return None
