"""DescribeUserScramCredentials where nobody has a password: Kafka's answers for none (KIP-554)."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.scram_users import describe_user_scram_credentials_nowait
from penstock.wire import ApiKey, ErrorCode, encode_response
from penstock.wire.messages.describe_user_scram_credentials import (
    DescribeUserScramCredentialsRequest,
    UserName,
)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (None, []),
        ([], []),
        (["ann"], [("ann", ErrorCode.RESOURCE_NOT_FOUND)]),
        (["bob", "bob"], [("bob", ErrorCode.DUPLICATE_RESOURCE)]),
    ],
)
def test_there_are_no_users_and_each_that_is_named_is_told_so_once(
    logs: FakeLogs, asked: list[str] | None, told: list[tuple[str, ErrorCode]]
) -> None:
    users = None if asked is None else [UserName(name=name) for name in asked]
    request = DescribeUserScramCredentialsRequest(users=users)
    response = describe_user_scram_credentials_nowait(request, make_context(logs, 0))
    encode_response(ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS, 0, 1, response)
    assert response.error_code == ErrorCode.NONE
    assert [(one.user, one.error_code) for one in response.results] == told
    assert all(one.credential_infos == [] and one.error_message for one in response.results)
