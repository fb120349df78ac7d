"""Topics of a request are looked up in one way: by name or by id, each with the error that the client is told."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api.context import RequestContext
from penstock.api.lookup import (
    check_topic_permitted,
    existing_topic,
    find_topic,
    partitions_by_topic,
    resolve_topics,
)
from penstock.log.errors import KafkaError
from penstock.spi.authorizer import Operation, Requester, ResourceType
from penstock.wire.error_codes import ErrorCode

pytestmark = pytest.mark.anyio
NO_ID = bytes(16)


class Denying:
    """Permits what isn't on its list, and remembers what it was asked."""

    permits_all = False

    def __init__(self, *denied: str) -> None:
        self.denied = denied
        self.asked: list[tuple[Operation, ResourceType, tuple[str, ...]]] = []

    def allowed(
        self, requester: Requester, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        self.asked.append((operation, resource, tuple(names)))
        return [name for name in names if name not in self.denied]


@pytest.fixture
def context(logs: FakeLogs) -> RequestContext:
    logs.add("secret")
    return make_context(logs, 0)


async def test_what_is_asked_for_by_name_by_id_or_by_neither_is_there_or_unknown_in_the_code_of_its_kind(
    logs: FakeLogs, context: RequestContext
) -> None:
    topic = logs.topics()["t"]
    found = await resolve_topics(["t", topic.id, "none", NO_ID, "", None], Operation.READ, context)
    assert found == [
        ("t", topic, ErrorCode.NONE),
        ("t", topic, ErrorCode.NONE),
        ("none", None, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (None, None, ErrorCode.UNKNOWN_TOPIC_ID),
        ("", None, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (None, None, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
    ]


async def test_who_may_not_ask_for_a_name_does_not_learn_whether_there_is_such_a_topic(
    logs: FakeLogs, context: RequestContext
) -> None:
    context.api.authorizer = Denying("secret", "absent", "")
    secret = logs.topics()["secret"]
    found = await resolve_topics(["secret", secret.id, "absent", "", "none", NO_ID], Operation.READ, context)
    assert [one.error for one in found] == [ErrorCode.TOPIC_AUTHORIZATION_FAILED] * 4 + [
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
    ]


async def test_the_authorizer_is_asked_once_of_every_name_and_of_no_id_that_is_unknown(
    logs: FakeLogs, context: RequestContext
) -> None:
    context.api.authorizer = authorizer = Denying()
    topic_id = logs.topics()["secret"].id
    await resolve_topics(["t", topic_id, "none", "t", NO_ID, None], Operation.DESCRIBE, context)
    assert authorizer.asked == [(Operation.DESCRIBE, ResourceType.TOPIC, ("t", "secret", "none"))]


async def test_a_topic_is_found_by_its_name_and_by_its_id(logs: FakeLogs, context: RequestContext) -> None:
    topic = logs.topics()["t"]
    assert find_topic(topic.id, context) is find_topic("t", context) is topic
    assert find_topic("none", context) is find_topic(NO_ID, context) is find_topic(None, context) is None


async def test_a_topic_that_is_denied_or_unknown_is_refused_in_its_code(context: RequestContext) -> None:
    check_topic_permitted("t", {"secret"})
    with pytest.raises(KafkaError, match="not permitted: topic='secret'") as denied:
        check_topic_permitted("secret", {"secret"})
    with pytest.raises(KafkaError, match="there is no such topic: name='none'") as unknown:
        existing_topic("none", context)
    assert denied.value.error_code == ErrorCode.TOPIC_AUTHORIZATION_FAILED
    assert unknown.value.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert existing_topic("t", context).name == "t"


async def test_a_topic_that_is_deleted_while_all_are_gone_through_has_no_partitions(
    logs: FakeLogs, context: RequestContext
) -> None:
    walk = partitions_by_topic(logs)
    assert next(walk) == ("secret", range(1))
    del logs._by_name["t"]
    assert list(walk) == [("t", range(0))]
