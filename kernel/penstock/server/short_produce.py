"""The short way of a Produce: one small batch for one partition, in a request of a known head.

Nearly all requests of a busy broker are of this kind. ``start`` does in one step what decoding, ``ProduceCall`` and
``ProduceSlot`` do for any request; from ``Partition.append`` on both ways are one. It changes nothing where it
doesn't go to the end: whatever is unusual, or has to wait, takes the long way from the start.
"""

from __future__ import annotations

__all__ = ("ShortProduce", "start")

from typing import TYPE_CHECKING, Final

from penstock.api.produce import failed_append, response_of_one
from penstock.api.produce_response import CORRELATION_POS, pack_correlation_into, pack_offsets_into
from penstock.errors import FullError, NotNowError, PenstockError
from penstock.log.append_outcome import AppendOutcome
from penstock.server.produce_heads import ProduceHead
from penstock.server.slots import Slot
from penstock.wire.api_keys import ApiKey
from penstock.wire.registry import encode_response

if TYPE_CHECKING:
    from penstock.server.connection import Connection

_PRODUCE: Final = int(ApiKey.PRODUCE)


class ShortProduce(Slot, kw_only=True, eq=False):
    """Its slot, which completes itself from the log's callback."""

    connection: Connection
    head: ProduceHead

    def done(self, outcome: AppendOutcome) -> None:
        """How the append ended. Comes from within the log's callbacks, so it doesn't raise."""
        connection, head = self.connection, self.head
        if self.buffers is not None:
            return  # a bug already answered
        if outcome.error_code:
            response = response_of_one(head.topic, head.topic_id, head.index, outcome)
            try:
                self.buffers = encode_response(ApiKey.PRODUCE, self.version, self.correlation_id, response)
            except PenstockError as error:
                connection.answer_failed(self, error)
        else:
            answer = bytearray(head.answer)
            pack_correlation_into(answer, CORRELATION_POS, self.correlation_id)
            pack_offsets_into(
                answer,
                head.offsets_pos,
                outcome.base_offset,
                outcome.log_append_time_ms,
                outcome.log_start_offset,
            )
            self.buffers = [answer]
        if not connection.flush_scheduled:
            connection.slot_completed(self)


def start(connection: Connection, frame: memoryview, version: int, correlation_id: int) -> bool:
    """Hand the batch in ``frame`` to its partition; False if it has to go the long way, and nothing has changed."""
    server = connection.server
    if not server.gate.is_open:
        return False
    found = server.produce_heads.find(frame, version, connection.head_end)
    if found is None:
        return False
    head, records = found
    api = server.api
    name = head.topic
    if not name:
        topic = api.logs.topic_by_id(head.topic_id)
        if topic is None or topic.internal:
            return False
        name = topic.name
    partition = api.logs.partition(name, head.index)
    if partition is None:
        return False
    size = len(frame)
    slot = ShortProduce(version, correlation_id, size, connection=connection, head=head)
    connection.slots.append(slot)  # before the append, which may answer at once
    connection.in_flight_bytes += size
    try:
        partition.append(
            records, produce_version=version, now_ms=api.now_ms(), charge=None, on_done=slot.done
        )
    except (FullError, NotNowError):
        connection.slots.pop()
        connection.in_flight_bytes -= size
        return False
    except Exception as error:  # noqa: BLE001 - logged and answered
        code, message = failed_append(error, partition)
        slot.done(AppendOutcome(code, message))
    connection.head_end = head.end
    connection.client.client_id = head.client_id
    server.requests_by_api[_PRODUCE] += 1
    return True
