"""The APIs of access control lists on a broker without them."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import acls
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_acls import AclCreation, CreateAclsRequest
from penstock.wire.messages.describe_acls import DescribeAclsRequest

pytestmark = pytest.mark.anyio

TOPIC, BROKER = 2, 4


async def test_acls_say_that_security_is_disabled(logs: FakeLogs) -> None:
    described = acls.describe_acls_nowait(DescribeAclsRequest(), make_context(logs, 3))
    assert described.error_code == ErrorCode.SECURITY_DISABLED
    created = acls.create_acls_nowait(CreateAclsRequest(creations=[AclCreation()]), make_context(logs, 3))
    assert [result.error_code for result in created.results] == [ErrorCode.SECURITY_DISABLED]
