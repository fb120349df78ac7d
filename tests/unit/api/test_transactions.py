"""ListTransactions and DescribeTransactions where there are no transactions: Kafka's answers for none (KIP-664)."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.transactions import describe_transactions_nowait, list_transactions_nowait
from penstock.wire import ApiKey, ErrorCode, encode_response
from penstock.wire.messages.describe_transactions import DescribeTransactionsRequest
from penstock.wire.messages.list_transactions import ListTransactionsRequest


@pytest.mark.parametrize("version", [0, 1, 2])
def test_no_transactions_are_listed_and_misspelt_states_are_told_once(logs: FakeLogs, version: int) -> None:
    request = ListTransactionsRequest(state_filters=["Ongoing", "ongoing", "Dead", "ongoing"])
    response = list_transactions_nowait(request, make_context(logs, version))
    encode_response(ApiKey.LIST_TRANSACTIONS, version, 1, response)
    assert response.error_code == ErrorCode.NONE
    assert (response.transaction_states, response.unknown_state_filters) == ([], ["ongoing"])


def test_what_is_no_pattern_is_told(logs: FakeLogs) -> None:
    for pattern, code in (
        (None, ErrorCode.NONE),
        ("a.*", ErrorCode.NONE),
        ("a(", ErrorCode.INVALID_REGULAR_EXPRESSION),
    ):
        request = ListTransactionsRequest(transactional_id_pattern=pattern)
        assert list_transactions_nowait(request, make_context(logs, 2)).error_code == code


def test_every_transactional_id_that_is_asked_for_is_not_found(logs: FakeLogs) -> None:
    request = DescribeTransactionsRequest(transactional_ids=["payments", "", "payments"])
    response = describe_transactions_nowait(request, make_context(logs, 0))
    encode_response(ApiKey.DESCRIBE_TRANSACTIONS, 0, 1, response)
    assert [(one.transactional_id, one.error_code) for one in response.transaction_states] == [
        ("payments", ErrorCode.TRANSACTIONAL_ID_NOT_FOUND),
        ("", ErrorCode.INVALID_REQUEST),
        ("payments", ErrorCode.TRANSACTIONAL_ID_NOT_FOUND),
    ]
