"""The place of a request in the order of its connection's responses."""

from __future__ import annotations

__all__ = ("ProduceHeader", "ProduceSlot", "Slot")

from typing import TYPE_CHECKING, Any

import msgspec

from penstock.api.context import Client
from penstock.api.produce import ProduceCall
from penstock.errors import PenstockError
from penstock.log.append_outcome import AppendOutcome
from penstock.spi.allocator import Charge
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceResponse, TopicProduceData
from penstock.wire.registry import RequestHeader, decode_request_header, encode_response

if TYPE_CHECKING:
    from penstock.server.connection import Connection


class ProduceHeader:
    """The header of a connection's Produces: always the same but for the correlation id, so decoded once."""

    __slots__ = ("_header", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._header: RequestHeader | None = None

    def body_pos(self, frame: memoryview, version: int, client: Client) -> int:
        """Where the body of ``frame`` begins; notes the client's id."""
        tail, header = self._tail, self._header
        if header is None or version != header.api_version or frame[8 : 8 + len(tail)] != tail:
            header = self._header = decode_request_header(frame)
            client.client_id = header.client_id
            self._tail = bytes(frame[8 : header.body_pos])
        return header.body_pos


class Slot(msgspec.Struct, eq=False):
    """The place of one request in the order of responses."""

    version: int
    correlation_id: int
    request_bytes: int
    #: None until the request is answered; empty when there is nothing to send.
    buffers: list[Any] | None = None
    charges: list[Charge] | None = None
    close: bool = False

    def release_charges(self) -> None:
        """Give back what its response holds."""
        charges, self.charges = self.charges, None
        for charge in charges or ():
            charge.release()


class ProduceSlot(Slot, eq=False, kw_only=True):
    """The slot of a Produce: completes itself from the log's callback."""

    connection: Connection
    call: ProduceCall | None = None

    def complete(self, response: ProduceResponse | None) -> None:
        """The outcome of the call. Comes from within the log's callbacks, so it doesn't raise."""
        if response is None:
            self.buffers = []
            self.close = self.call is not None and self.call.failed
        else:
            try:
                self.buffers = encode_response(ApiKey.PRODUCE, self.version, self.correlation_id, response)
            except PenstockError as error:
                self.connection.answer_failed(self, error)
        self.call = None
        self.connection.slot_completed(self)

    def complete_one(self, topic: TopicProduceData, index: int, result: AppendOutcome) -> None:
        """One partition, and it went well."""
        connection = self.connection
        try:
            frame = connection.server.templates.encode(
                self.version,
                self.correlation_id,
                (topic.name, topic.topic_id),
                index,
                (result.base_offset, result.log_append_time_ms, result.log_start_offset),
            )
            self.buffers = [frame]
        except PenstockError as error:
            connection.answer_failed(self, error)
        self.call = None
        connection.slot_completed(self)
