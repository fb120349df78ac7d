"""SaslHandshake where nobody authenticates: what a Kafka without SASL answers."""

from __future__ import annotations

from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.sasl import sasl_handshake_nowait
from penstock.wire import ApiKey, ErrorCode, encode_response
from penstock.wire.messages.sasl_handshake import SaslHandshakeRequest


def test_a_handshake_is_told_that_there_is_no_mechanism(logs: FakeLogs) -> None:
    response = sasl_handshake_nowait(SaslHandshakeRequest(mechanism="PLAIN"), make_context(logs, 1))
    assert (response.error_code, response.mechanisms) == (ErrorCode.ILLEGAL_SASL_STATE, [])
    assert encode_response(ApiKey.SASL_HANDSHAKE, 1, 1, response)
