"""ConsumerGroupHeartbeat v0-1 (KIP-848): told that the new group protocol isn't here, in words that end the attempt.

Clients that don't find the API at all do as they like: librdkafka with ``group.protocol=consumer`` waits for it for
ever and tells nobody. An Apache Kafka whose new protocol is switched off advertises the API and answers as here,
which ends the attempt of every client.
"""

from __future__ import annotations

__all__ = ("APIS", "consumer_group_heartbeat_nowait")

from typing import Final

from penstock.api.authorization import each, the_group
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.consumer_group_heartbeat import (
    ConsumerGroupHeartbeatRequest,
    ConsumerGroupHeartbeatResponse,
)


def consumer_group_heartbeat_nowait(
    request: ConsumerGroupHeartbeatRequest, context: RequestContext
) -> ConsumerGroupHeartbeatResponse:
    """UNSUPPORTED_VERSION."""
    return ConsumerGroupHeartbeatResponse(
        error_code=ErrorCode.UNSUPPORTED_VERSION,
        error_message="this broker has the classic group protocol only: set group.protocol=classic",
    )


APIS: Final = (
    Api(
        key=ApiKey.CONSUMER_GROUP_HEARTBEAT,
        needs=(the_group(Operation.READ), each(Operation.DESCRIBE, ResourceType.TOPIC)),
        nowait=consumer_group_heartbeat_nowait,
        failure=one_code(ConsumerGroupHeartbeatResponse),
        note="UNSUPPORTED_VERSION, as Kafka answers where the new group protocol (KIP-848) is switched off",
    ),
)
