"""InitProducerId v0-5: ids for idempotent producers."""

from __future__ import annotations

__all__ = ("APIS", "handle_init_producer_id")

import logging
from typing import Final

from penstock.api.authorization import DENIED, each, the_transactional_id
from penstock.api.context import RequestContext
from penstock.api.deadline import Deadline
from penstock.api.declaration import Api, one_code
from penstock.api.errors import error_code_of, is_expected, quoted
from penstock.errors import ClosedError, FencedError, PenstockError
from penstock.log.unsupported import TRANSACTIONAL_ID
from penstock.spi.authorizer import CLUSTER_NAME, Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse

logger = logging.getLogger("penstock.api")


async def handle_init_producer_id(
    request: InitProducerIdRequest, context: RequestContext
) -> InitProducerIdResponse:
    """A new producer id each time. Transactional ids are refused (``penstock.log.unsupported``)."""
    if request.transactional_id == "" or (request.producer_id == -1) != (request.producer_epoch == -1):
        return InitProducerIdResponse(error_code=ErrorCode.INVALID_REQUEST, producer_epoch=-1)
    if request.transactional_id is not None:
        _tell_once(request.transactional_id, context)
        return InitProducerIdResponse(error_code=TRANSACTIONAL_ID.code, producer_epoch=-1)
    if not _may_write_idempotently(context):
        code = DENIED[ResourceType.CLUSTER]
        return InitProducerIdResponse(error_code=code, producer_epoch=-1)
    try:
        producer_id, epoch = await Deadline().of(context.api.logs.next_producer_id())
    except PenstockError as error:
        # All clients retry this code here; aiokafka and others take those of storage, leaders and time for final.
        is_late = error_code_of(error) == ErrorCode.REQUEST_TIMED_OUT
        passes = is_late or error.retryable or isinstance(error, ClosedError | FencedError)
        failure = ErrorCode.COORDINATOR_NOT_AVAILABLE if passes else error_code_of(error)
        if not is_expected(error):
            raise
        return InitProducerIdResponse(error_code=int(failure), producer_epoch=-1)
    return InitProducerIdResponse(producer_id=producer_id, producer_epoch=epoch)


def _may_write_idempotently(context: RequestContext) -> bool:
    """KIP-679: by a permission of its own, or as whoever may write to some topic."""
    if context.may(Operation.IDEMPOTENT_WRITE, ResourceType.CLUSTER, CLUSTER_NAME):
        return True
    return bool(context.allowed(Operation.WRITE, ResourceType.TOPIC, list(context.api.logs.topics())))


def _tell_once(transactional_id: str, context: RequestContext) -> None:
    if context.api.told_of_transactions:
        return
    context.api.told_of_transactions = True
    logger.warning(
        "a producer with a transactional id was refused, there are no transactions here yet; unset transactional.id, "
        "an idempotent producer writes nothing twice either (this is logged once): transactional_id=%s client_id=%s",
        quoted(transactional_id),
        quoted(context.client.client_id or ""),
    )


APIS: Final = (
    Api(
        key=ApiKey.INIT_PRODUCER_ID,
        high=5,  # 6 is two-phase commit (KIP-939), which isn't there
        # without a transactional id: IDEMPOTENT_WRITE, or WRITE on any topic (KIP-679)
        needs=(
            the_transactional_id(Operation.WRITE),
            each(Operation.IDEMPOTENT_WRITE, ResourceType.CLUSTER),
        ),
        handler=handle_init_producer_id,
        failure=one_code(InitProducerIdResponse),
        note=f"idempotent producers; a transactional id is refused with {TRANSACTIONAL_ID.code.name}, which "
        "[ends every client at once](error-codes.md)",
    ),
)
