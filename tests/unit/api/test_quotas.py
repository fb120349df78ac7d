"""DescribeClientQuotas without quotas: an empty list, and the filter's rules (KIP-546)."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.quotas import describe_client_quotas_nowait
from penstock.wire import ApiKey, ErrorCode, encode_response
from penstock.wire.messages.describe_client_quotas import ComponentData, DescribeClientQuotasRequest

EXACT, DEFAULT, ANY = 0, 1, 2


def part(entity_type: str, match_type: int, match: str | None = None) -> ComponentData:
    return ComponentData(entity_type=entity_type, match_type=match_type, match=match)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("components", "code"),
    [
        ([], ErrorCode.NONE),
        ([part("user", EXACT, "ann")], ErrorCode.NONE),
        ([part("user", DEFAULT), part("client-id", ANY)], ErrorCode.NONE),
        ([part("ip", EXACT, "10.0.0.1")], ErrorCode.NONE),
        ([part("user", EXACT)], ErrorCode.INVALID_REQUEST),
        ([part("user", DEFAULT, "ann")], ErrorCode.INVALID_REQUEST),
        ([part("user", ANY, "ann")], ErrorCode.INVALID_REQUEST),
        ([part("user", 3)], ErrorCode.INVALID_REQUEST),
        ([part("", ANY)], ErrorCode.INVALID_REQUEST),
        ([part("user", ANY), part("user", DEFAULT)], ErrorCode.INVALID_REQUEST),
        ([part("ip", ANY), part("user", ANY)], ErrorCode.INVALID_REQUEST),
        ([part("client-id", ANY), part("ip", DEFAULT)], ErrorCode.INVALID_REQUEST),
        ([part("galaxy", ANY)], ErrorCode.UNSUPPORTED_VERSION),
    ],
)
def test_there_are_no_quotas_and_filters_are_checked(
    logs: FakeLogs, components: list[ComponentData], code: ErrorCode, version: int
) -> None:
    request = DescribeClientQuotasRequest(components=components)
    response = describe_client_quotas_nowait(request, make_context(logs, version))
    encode_response(ApiKey.DESCRIBE_CLIENT_QUOTAS, version, 1, response)
    assert (response.error_code, response.entries) == (code, None if code else []), "as Kafka has it"
    assert (response.error_message == "") == (code == ErrorCode.NONE)  # empty, not null, as in Kafka
