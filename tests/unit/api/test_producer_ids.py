"""InitProducerId: one clause of the protocol each."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import producer_ids
from penstock.errors import ClosedError, UnavailableError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.init_producer_id import InitProducerIdRequest

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


async def test_each_producer_gets_an_id_of_its_own(logs: FakeLogs) -> None:
    request = InitProducerIdRequest(transactional_id=None)
    first = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    second = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert (first.error_code, first.producer_epoch) == (0, 0)
    assert first.producer_id != second.producer_id


async def test_producer_ids_fail_clearly(logs: FakeLogs) -> None:
    request = InitProducerIdRequest(transactional_id="tx")
    response = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert (response.error_code, response.producer_id) == (
        ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        -1,
    )
    logs.fail_with = UnavailableError("storage is away")
    request.transactional_id = None
    response = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert response.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE
    logs.fail_with = ClosedError("the broker is stopping")
    response = await producer_ids.handle_init_producer_id(request, make_context(logs, 4))
    assert response.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE, (
        "aiokafka ends on NOT_LEADER_OR_FOLLOWER"
    )
