"""DescribeClientQuotas v0-1: there are no quotas, and a filter that makes no sense is still refused."""

from __future__ import annotations

__all__ = ("APIS", "describe_client_quotas_nowait")

from collections.abc import Sequence
from typing import Final

from penstock.api.authorization import the_cluster
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.errors import quoted
from penstock.log.errors import KafkaError
from penstock.spi.authorizer import Operation
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.describe_client_quotas import (
    ComponentData,
    DescribeClientQuotasRequest,
    DescribeClientQuotasResponse,
)

# org.apache.kafka.common.quota.ClientQuotaEntity and .requests.DescribeClientQuotasRequest
_USER_TYPES: Final = frozenset({"user", "client-id"})
_IP_TYPE: Final = "ip"
_MATCH_EXACT: Final = 0
_MATCH_DEFAULT: Final = 1
_MATCH_SPECIFIED: Final = 2


def describe_client_quotas_nowait(
    request: DescribeClientQuotasRequest, context: RequestContext
) -> DescribeClientQuotasResponse:
    """DescribeClientQuotas (KIP-546): no entries, and a null list only beside an error."""
    response = DescribeClientQuotasResponse(error_message="", entries=[])
    try:
        _check_filter(request.components)
    except KafkaError as error:
        response.error_code = error.error_code
        response.error_message = str(error)
        response.entries = None
    return response


def _check_filter(components: Sequence[ComponentData]) -> None:
    seen: set[str] = set()
    for component in components:
        kind = component.entity_type
        if kind in seen:
            raise _invalid(f"an entity type is in the filter twice: entity_type={quoted(kind)}")
        seen.add(kind)
        if not kind:
            raise _invalid("an entity type is empty")
        if kind not in _USER_TYPES and kind != _IP_TYPE:
            raise KafkaError(
                ErrorCode.UNSUPPORTED_VERSION, f"entity type is unknown: entity_type={quoted(kind)}"
            )
        if component.match_type == _MATCH_EXACT:
            if component.match is None:
                raise _invalid(f"an exact match needs a name: entity_type={kind}")
        elif component.match_type in {_MATCH_DEFAULT, _MATCH_SPECIFIED}:
            if component.match is not None:
                raise _invalid(f"only an exact match takes a name: entity_type={kind}")
        else:
            raise _invalid(f"match type is unknown: match_type={component.match_type}")
    if _IP_TYPE in seen and seen & _USER_TYPES:
        raise _invalid("ip can't be combined with user or client-id in one filter")


def _invalid(text: str) -> KafkaError:
    return KafkaError(ErrorCode.INVALID_REQUEST, text)


APIS: Final = (
    Api(
        key=ApiKey.DESCRIBE_CLIENT_QUOTAS,
        needs=(the_cluster(Operation.DESCRIBE_CONFIGS),),
        nowait=describe_client_quotas_nowait,
        failure=one_code(DescribeClientQuotasResponse),
        note="there are none, and none can be set",
    ),
)
