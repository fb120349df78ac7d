"""Topics that are being created, grown or deleted while others ask for them."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import metadata, topics
from penstock.errors import (
    AlreadyExistsError,
    ClosedError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from penstock.wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse

pytestmark = pytest.mark.anyio


async def ask_metadata(logs: FakeLogs, version: int, *names: str) -> MetadataResponse:
    request = MetadataRequest(
        topics=[MetadataRequestTopic(name=name) for name in names], allow_auto_topic_creation=True
    )
    response = await metadata.handle_metadata(request, make_context(logs, version))
    assert isinstance(response, MetadataResponse)
    return response


@pytest.mark.parametrize("may_create", [True, False])
async def test_metadata_waits_for_a_topic_that_another_client_creates(
    logs: FakeLogs, may_create: bool
) -> None:
    logs.changing.add("new")
    request = MetadataRequest(topics=[MetadataRequestTopic(name="new")], allow_auto_topic_creation=may_create)
    context = make_context(logs, 9)
    assert metadata.metadata_nowait(request, context) is None
    answers: list[MetadataResponse] = []

    async def ask() -> None:
        answer = await metadata.handle_metadata(request, context)
        assert isinstance(answer, MetadataResponse)
        answers.append(answer)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert not answers
        logs.add("new", 3)
        logs.changing.clear()
        logs.changed.set()
    (topic,) = answers[0].topics
    assert (topic.error_code, len(topic.partitions)) == (0, 3)


async def test_metadata_of_a_topic_whose_creation_takes_long_is_asked_again(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LEADER_NOT_AVAILABLE, and never TOPIC_ALREADY_EXISTS, which ends KafkaJS, franz-go and others."""
    monkeypatch.setattr(metadata, "CREATION_WAIT_S", 0)
    logs.changing.add("new")
    response = await ask_metadata(logs, 9, "new", "t")
    assert [t.error_code for t in response.topics] == [ErrorCode.LEADER_NOT_AVAILABLE, 0]


@pytest.mark.parametrize("error", [AlreadyExistsError("by another"), NotFoundError("deleted at once")])
async def test_metadata_of_a_topic_that_comes_and_goes_is_asked_again(
    logs: FakeLogs, error: PenstockError
) -> None:
    logs.fail_with = error
    response = await ask_metadata(logs, 9, "new")
    assert [t.error_code for t in response.topics] == [ErrorCode.LEADER_NOT_AVAILABLE]


async def test_a_topic_is_deleted_as_the_one_that_was_asked_for(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], Mapping[str, bytes] | None]] = []

    async def delete(names: list[str], topic_ids: Mapping[str, bytes] | None = None) -> list[None]:
        asked.append((names, topic_ids))
        return [None] * len(names)

    monkeypatch.setattr(logs, "delete_topics", delete)
    by_id = logs.add("u").id
    states = [DeleteTopicState(name=None, topic_id=by_id), DeleteTopicState(name="t")]
    request = DeleteTopicsRequest(topics=states, timeout_ms=1000)
    response = await topics.handle_delete_topics(request, make_context(logs, 6))
    assert asked == [(["u", "t"], {"u": by_id})]
    assert [one.topic_id for one in response.responses] == [by_id, logs.topics()["t"].id]


async def test_topics_are_deleted_and_grown_when_they_are_made(logs: FakeLogs) -> None:
    logs.changing.add("new")
    deleted: list[int] = []
    grown: list[int] = []

    async def delete() -> None:
        request = DeleteTopicsRequest(topic_names=["new"], timeout_ms=1000)
        response = await topics.handle_delete_topics(request, make_context(logs, 5))
        deleted.append(response.responses[0].error_code)

    async def grow() -> None:
        request = CreatePartitionsRequest(
            timeout_ms=1000, topics=[CreatePartitionsTopic(name="new", count=3, assignments=None)]
        )
        response = await topics.handle_create_partitions(request, make_context(logs, 3))
        grown.append(response.results[0].error_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(grow)
        tasks.start_soon(delete)
        await anyio.wait_all_tasks_blocked()
        logs.add("new")
        logs.changing.clear()
        logs.changed.set()
    assert (grown, deleted) == ([0], [0])


async def test_a_topic_that_is_being_deleted_is_created_anew_and_does_not_exist_already(
    logs: FakeLogs,
) -> None:
    """Also if whoever deletes it was told that its time is over: Kafka does one after the other."""
    logs.add("new")
    logs.changing.add("new")
    codes: list[int] = []

    async def create() -> None:
        asked = CreatableTopic(name="new", num_partitions=1, replication_factor=1)
        request = CreateTopicsRequest(topics=[asked], timeout_ms=60_000)
        response = await topics.handle_create_topics(request, make_context(logs, 7))
        codes.append(response.topics[0].error_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        await anyio.wait_all_tasks_blocked()
        assert not codes
        assert await logs.delete_topics(["new"]) == [None]
        logs.changing.clear()
        logs.changed.set()
    assert codes == [0]


async def test_a_creation_behind_a_deletion_that_hangs_keeps_its_time(logs: FakeLogs) -> None:
    logs.add("new")
    logs.changing.add("new")
    asked = CreatableTopic(name="new", num_partitions=1, replication_factor=1)
    request = CreateTopicsRequest(topics=[asked], timeout_ms=1)
    response = await topics.handle_create_topics(request, make_context(logs, 7))
    assert response.topics[0].error_code == ErrorCode.REQUEST_TIMED_OUT


async def test_partitions_that_somebody_else_added_meanwhile_are_invalid_partitions(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(name: str, count: int) -> None:
        raise InvalidRequestError("partitions can only be added")

    monkeypatch.setattr(logs, "create_partitions", refuse)
    request = CreatePartitionsRequest(
        timeout_ms=1000, topics=[CreatePartitionsTopic(name="t", count=9, assignments=None)]
    )
    response = await topics.handle_create_partitions(request, make_context(logs, 3))
    assert response.results[0].error_code == ErrorCode.INVALID_PARTITIONS


@pytest.mark.parametrize("error", [ClosedError("the broker stops"), FencedError("another one took over")])
async def test_a_broker_that_stops_is_not_the_controller_any_more(
    logs: FakeLogs, error: PenstockError
) -> None:
    """Java and others look for the next controller then; NOT_LEADER_OR_FOLLOWER would fail the call."""
    logs.fail_with = error
    request = CreateTopicsRequest(topics=[CreatableTopic(name="new", num_partitions=1, replication_factor=1)])
    response = await topics.handle_create_topics(request, make_context(logs, 7))
    assert response.topics[0].error_code == ErrorCode.NOT_CONTROLLER


@pytest.fixture(
    params=[
        (UnavailableError("too many changes wait"), ErrorCode.KAFKA_STORAGE_ERROR),
        (ClosedError("the broker stopped in the middle"), ErrorCode.NOT_CONTROLLER),
    ],
    ids=["unavailable", "closed"],
)
def refused(request: pytest.FixtureRequest, logs: FakeLogs, monkeypatch: pytest.MonkeyPatch) -> ErrorCode:
    """The log refuses, or doesn't finish, changes of topics as a whole; the code of that."""
    error, code = request.param

    async def refuse(*_topics: object) -> None:
        raise error

    monkeypatch.setattr(logs, "create_topics", refuse)
    monkeypatch.setattr(logs, "delete_topics", refuse)
    assert isinstance(code, ErrorCode)
    return code


async def test_a_change_that_is_refused_as_a_whole_is_answered_for_each_topic(
    logs: FakeLogs, refused: ErrorCode
) -> None:
    """It is raised, and not a result of each. These APIs have no error of the whole: the connection was closed."""
    asked = [CreatableTopic(name=name, num_partitions=1, replication_factor=1) for name in ("a", "b")]
    created = await topics.handle_create_topics(
        CreateTopicsRequest(topics=[*asked, CreatableTopic(name="?")]), make_context(logs, 7)
    )
    assert [one.error_code for one in created.topics] == [refused] * 2 + [ErrorCode.INVALID_TOPIC_EXCEPTION]
    deleted = await topics.handle_delete_topics(
        DeleteTopicsRequest(topic_names=["t", "none"], timeout_ms=1000), make_context(logs, 5)
    )
    assert [one.error_code for one in deleted.responses] == [refused, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]


async def test_metadata_tell_of_the_topics_that_are_there_when_no_other_can_be_created(
    logs: FakeLogs, refused: ErrorCode
) -> None:
    response = await ask_metadata(logs, 9, "t", "new")
    codes = [0, ErrorCode.LEADER_NOT_AVAILABLE]
    assert [one.error_code for one in response.topics] == codes, "all clients ask again"


async def test_metadata_hide_no_bug_in_a_creation(logs: FakeLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_topics: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(logs, "create_topics", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        await ask_metadata(logs, 9, "t", "new")
