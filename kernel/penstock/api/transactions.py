"""ListTransactions v0-2, DescribeTransactions: there are no transactions, and the answers say so as Kafka's do.

UIs and ``kafka-transactions`` ask without being asked to, and take an API that isn't there for a broken cluster.
"""

from __future__ import annotations

__all__ = ("APIS", "describe_transactions_nowait", "list_transactions_nowait")

from typing import Final

from penstock.api.authorization import DENIED, each
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.patterns import is_pattern
from penstock.api.portions import Steps, first_portion, other_portions
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.describe_transactions import (
    DescribeTransactionsRequest,
    DescribeTransactionsResponse,
    TransactionState,
)
from penstock.wire.messages.list_transactions import ListTransactionsRequest, ListTransactionsResponse

#: org.apache.kafka.clients.admin.TransactionState, as brokers spell it.
_STATES: Final = frozenset(
    {
        "Empty",
        "Ongoing",
        "PrepareCommit",
        "PrepareAbort",
        "CompleteCommit",
        "CompleteAbort",
        "Dead",
        "PrepareEpochFence",
    }
)


def _list_transactions(
    request: ListTransactionsRequest, context: RequestContext
) -> Steps[ListTransactionsResponse]:
    """An empty list; states that don't exist, and what is no pattern, are told, so that a misspelt filter isn't taken
    for "none".
    """
    unknown: dict[str, None] = {}
    for state in request.state_filters:
        yield
        if state not in _STATES:
            unknown[state] = None
    pattern = request.transactional_id_pattern
    if pattern and not (yield from is_pattern(pattern)):
        return ListTransactionsResponse(error_code=ErrorCode.INVALID_REGULAR_EXPRESSION)
    return ListTransactionsResponse(unknown_state_filters=list(unknown), transaction_states=[])


def _describe_transactions(
    request: DescribeTransactionsRequest, context: RequestContext
) -> Steps[DescribeTransactionsResponse]:
    """TRANSACTIONAL_ID_NOT_FOUND for each."""
    names = request.transactional_ids
    denied = context.denied(Operation.DESCRIBE, ResourceType.TRANSACTIONAL_ID, names)
    states: list[TransactionState] = []
    for name in names:
        yield
        code = ErrorCode.TRANSACTIONAL_ID_NOT_FOUND
        if not name:
            code = ErrorCode.INVALID_REQUEST
        elif name in denied:
            code = DENIED[ResourceType.TRANSACTIONAL_ID]
        states.append(_no_transaction(name, code))
    return DescribeTransactionsResponse(transaction_states=states)


def _no_transaction(name: str, error_code: int) -> TransactionState:
    return TransactionState(error_code=error_code, transactional_id=name, topics=[])


def _each_id(
    request: DescribeTransactionsRequest, _version: int, error_code: int
) -> DescribeTransactionsResponse:
    states = [_no_transaction(name, error_code) for name in request.transactional_ids]
    return DescribeTransactionsResponse(transaction_states=states)


list_transactions_nowait: Final = first_portion(_list_transactions)
describe_transactions_nowait: Final = first_portion(_describe_transactions)

APIS: Final = (
    Api(
        key=ApiKey.DESCRIBE_TRANSACTIONS,
        needs=(each(Operation.DESCRIBE, ResourceType.TRANSACTIONAL_ID),),
        nowait=describe_transactions_nowait,
        handler=other_portions,
        failure=_each_id,
        note="TRANSACTIONAL_ID_NOT_FOUND: there are no transactions",
    ),
    Api(
        key=ApiKey.LIST_TRANSACTIONS,
        needs=(),  # Kafka wants Describe on each that it lists
        nowait=list_transactions_nowait,
        handler=other_portions,
        failure=one_code(ListTransactionsResponse),
        note="there are none",
    ),
)
