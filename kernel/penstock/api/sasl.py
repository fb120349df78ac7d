"""SaslHandshake: there is no mechanism to authenticate by, said in words that end the attempt.

Java clients that are configured for SASL look no more at which APIs there are: closed connections are an outage to
them, and after a minute they report one. Told what an Apache Kafka without SASL tells them, they end at once.
"""

from __future__ import annotations

__all__ = ("APIS", "sasl_handshake_nowait")

from typing import Final

from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.sasl_handshake import SaslHandshakeRequest, SaslHandshakeResponse


def sasl_handshake_nowait(request: SaslHandshakeRequest, context: RequestContext) -> SaslHandshakeResponse:
    """ILLEGAL_SASL_STATE, and no mechanisms."""
    return SaslHandshakeResponse(error_code=ErrorCode.ILLEGAL_SASL_STATE, mechanisms=[])


APIS: Final = (
    Api(
        key=ApiKey.SASL_HANDSHAKE,
        needs=(),
        nowait=sasl_handshake_nowait,
        failure=one_code(SaslHandshakeResponse),
        note="ILLEGAL_SASL_STATE, as Kafka answers on a listener without SASL",
    ),
)
