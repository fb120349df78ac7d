"""ApiVersions, and what holds for every API that is advertised."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, any_request, make_context

from penstock.api import metadata
from penstock.api.dispatch import advertised, apis
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.registry import encode_response

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


def test_advertised_versions_are_those_that_are_handled() -> None:
    table = apis()
    versions = {key: (low, high) for key, low, high in advertised(table)}
    assert versions[ApiKey.PRODUCE] == (0, 13), "librdkafka compresses only if it sees 0"
    assert versions[ApiKey.FETCH] == (4, 18)
    assert versions[ApiKey.INIT_PRODUCER_ID] == (0, 5), "6 is two-phase commit"
    assert versions[ApiKey.DESCRIBE_LOG_DIRS] == (1, 4), "5 is Kafka 4.3, and cordoned directories"
    assert 24 not in versions  # AddPartitionsToTxn
    for key, api in table.items():
        assert key == ApiKey.PRODUCE or api.handler is not None or api.nowait is not None


@pytest.mark.parametrize("version", range(5))
async def test_api_versions_in_every_version(logs: FakeLogs, version: int) -> None:
    context = make_context(logs, version)
    context.api.api_versions = advertised(apis())
    request = ApiVersionsRequest(client_software_name="lib", client_software_version="1.2-x")
    response = metadata.api_versions_nowait(request, context)
    assert (response.error_code, len(response.api_keys)) == (0, len(apis()))
    assert not response.supported_features
    assert not response.finalized_features
    encode_response(ApiKey.API_VERSIONS, version, 1, response)
    assert context.client.software_name == ("lib" if version >= 3 else "unknown")


@pytest.mark.parametrize("name", ["", "-x", "a b", "x-"])
async def test_api_versions_checks_the_software_name(logs: FakeLogs, name: str) -> None:
    """KIP-511."""
    request = ApiVersionsRequest(client_software_name=name, client_software_version="1")
    response = metadata.api_versions_nowait(request, make_context(logs, 3))
    assert response.error_code == ErrorCode.INVALID_REQUEST


def test_failure_responses_exist_where_the_protocol_has_a_place_for_them() -> None:
    for key, api in apis().items():
        request = any_request(key)
        for version in range(api.low, api.high + 1):
            response = api.failure_response(request, version, ErrorCode.UNKNOWN_SERVER_ERROR)
            if response is not None:
                assert encode_response(key, version, 1, response)
    assert apis()[ApiKey.METADATA].failure_response(None, 9, -1) is None
