"""DescribeUserScramCredentials: there are no users with passwords, as nobody authenticates.

UIs show an empty list of users, and ``kafka-configs --describe`` comes to its end.
"""

from __future__ import annotations

__all__ = ("APIS", "describe_user_scram_credentials_nowait")

from typing import Final

from penstock.api.authorization import the_cluster
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.errors import quoted
from penstock.api.portions import Steps, first_portion, other_portions
from penstock.spi.authorizer import Operation
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.describe_user_scram_credentials import (
    DescribeUserScramCredentialsRequest,
    DescribeUserScramCredentialsResponse,
    DescribeUserScramCredentialsResult,
)


def _describe_user_scram_credentials(
    request: DescribeUserScramCredentialsRequest, context: RequestContext
) -> Steps[DescribeUserScramCredentialsResponse]:
    """No users (KIP-554); one that is asked for by name is RESOURCE_NOT_FOUND, one named twice DUPLICATE_RESOURCE."""
    results: dict[str, DescribeUserScramCredentialsResult] = {}
    for user in request.users or ():
        yield
        code, what = (
            ErrorCode.RESOURCE_NOT_FOUND,
            "there is no such user, this broker asks nobody for a password",
        )
        if user.name in results:
            code, what = ErrorCode.DUPLICATE_RESOURCE, "a user is in the request twice"
        results[user.name] = DescribeUserScramCredentialsResult(
            user=user.name,
            error_code=code,
            error_message=f"{what}: name={quoted(user.name)}",
            credential_infos=[],
        )
    return DescribeUserScramCredentialsResponse(error_message="", results=list(results.values()))


describe_user_scram_credentials_nowait: Final = first_portion(_describe_user_scram_credentials)

APIS: Final = (
    Api(
        key=ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS,
        needs=(the_cluster(Operation.DESCRIBE),),
        nowait=describe_user_scram_credentials_nowait,
        handler=other_portions,
        failure=one_code(DescribeUserScramCredentialsResponse),
        note="there are no users, and none can be made",
    ),
)
