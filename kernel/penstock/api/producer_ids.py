"""InitProducerId v0-5: ids for idempotent producers."""

from __future__ import annotations

__all__ = ("handle_init_producer_id",)

from penstock.api.context import RequestContext
from penstock.api.deadline import Deadline
from penstock.api.errors import error_code_of, is_expected
from penstock.errors import PenstockError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse


async def handle_init_producer_id(
    request: InitProducerIdRequest, context: RequestContext
) -> InitProducerIdResponse:
    """A new producer id each time. Transactional ids are refused: this broker has no transactions yet."""
    if request.transactional_id is not None:
        return InitProducerIdResponse(error_code=ErrorCode.UNSUPPORTED_VERSION, producer_epoch=-1)
    try:
        producer_id, epoch = await Deadline().of(context.api.logs.next_producer_id())
    except PenstockError as error:
        # Clients retry this code here, and not all of them the storage's own.
        is_late = error_code_of(error) == ErrorCode.REQUEST_TIMED_OUT
        code = ErrorCode.COORDINATOR_NOT_AVAILABLE if error.retryable or is_late else error_code_of(error)
        if not is_expected(error):
            raise
        return InitProducerIdResponse(error_code=int(code), producer_epoch=-1)
    return InitProducerIdResponse(producer_id=producer_id, producer_epoch=epoch)
