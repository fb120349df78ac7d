"""FindCoordinator v0-6: which broker coordinates a group."""

from __future__ import annotations

__all__ = ("APIS", "handle_find_coordinator")

from collections.abc import Collection
from typing import Final

from penstock.api.authorization import DENIED, NOBODY, each
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.find_coordinator import (
    Coordinator,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
)
from penstock.work.pieces import PORTION, in_portions

_FIND_BATCH_VERSION: Final = 4

#: Answers that say in words what is wrong: a request may have a million keys of a byte, each with 64 bytes of words.
_MESSAGES_MAX: Final = 100
#: Characters of a key that takes no time.
_SHORT_KEY: Final = 250
_KEY_TYPE_GROUP: Final = 0
_KEY_TYPE_TRANSACTION: Final = 1
_KEY_KINDS: Final = {
    _KEY_TYPE_GROUP: ResourceType.GROUP,
    _KEY_TYPE_TRANSACTION: ResourceType.TRANSACTIONAL_ID,
}


async def handle_find_coordinator(
    request: FindCoordinatorRequest, context: RequestContext
) -> FindCoordinatorResponse:
    """FindCoordinator v0-6: this broker coordinates all groups."""
    is_batch = context.version >= _FIND_BATCH_VERSION
    kind = _KEY_KINDS.get(request.key_type)
    keys = request.coordinator_keys if is_batch else [request.key]
    denied = NOBODY if kind is None else context.denied(Operation.DESCRIBE, kind, keys)
    if is_batch:
        # a key is looked at character by character, and may have tens of thousands
        portion = PORTION if max(map(len, keys), default=0) <= _SHORT_KEY else 1
        coordinators: list[Coordinator] = []
        found: dict[str, Coordinator] = {}
        async for key in in_portions(keys, portion):
            if len(coordinators) == _MESSAGES_MAX:
                found.clear()
            one = found.get(key)
            if one is None:
                one = found[key] = _coordinator(key, request.key_type, denied, context)
                if one.error_code and len(coordinators) >= _MESSAGES_MAX:
                    one.error_message = None
            coordinators.append(one)
        return FindCoordinatorResponse(coordinators=coordinators)
    one = _coordinator(request.key, request.key_type, denied, context)
    return FindCoordinatorResponse(
        error_code=one.error_code,
        # versions 1 to 3 of Kafka name the code that is none
        error_message=one.error_message or "NONE",
        node_id=one.node_id,
        host=one.host,
        port=one.port,
    )


def _coordinator(key: str, key_type: int, denied: Collection[str], context: RequestContext) -> Coordinator:
    if key in denied:
        return _no_coordinator(key, DENIED[_KEY_KINDS[key_type]], "not permitted")
    if key_type not in _KEY_KINDS:
        message = f"unknown coordinator type, use 0 for groups: type={key_type}"
        return _no_coordinator(key, ErrorCode.INVALID_REQUEST, message)
    if key_type == _KEY_TYPE_GROUP and not context.groups.coordinates(key):
        message = "the group's state is damaged, or its partition has no leader"
        return _no_coordinator(key, ErrorCode.COORDINATOR_NOT_AVAILABLE, message)
    # There are no transactions yet. Clients ask on and on after an error here that isn't one of a few, so a
    # transactional producer is sent to InitProducerId, whose UNSUPPORTED_VERSION says what is the matter.
    endpoint = context.client.advertised
    return Coordinator(
        key=key, node_id=endpoint.node_id, host=endpoint.host, port=endpoint.port, error_message=""
    )


def _no_coordinator(key: str, error: ErrorCode, message: str) -> Coordinator:
    return Coordinator(key=key, node_id=-1, host="", port=-1, error_code=error, error_message=message)


APIS: Final = (
    Api(
        key=ApiKey.FIND_COORDINATOR,
        needs=(
            each(Operation.DESCRIBE, ResourceType.GROUP),
            each(Operation.DESCRIBE, ResourceType.TRANSACTIONAL_ID),
        ),
        handler=handle_find_coordinator,
        failure=one_code(FindCoordinatorResponse, until=_FIND_BATCH_VERSION - 1),
    ),
)
