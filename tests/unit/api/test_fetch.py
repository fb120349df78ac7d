"""Fetch: limits, waiting, errors, memory."""

from __future__ import annotations

import gc
import itertools
import types
from collections.abc import Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeLogs, FakePartition, make_context

from penstock.account import Ledger
from penstock.api import fetch as fetch_module
from penstock.api.context import RequestContext
from penstock.api.fetch import fetch_nowait, handle_fetch
from penstock.api.parked import Parked
from penstock.errors import UnavailableError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.fetch import (
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchTopic,
    PartitionData,
)

pytestmark = pytest.mark.anyio

_SLICE_PARTITIONS = fetch_module.SLICE_PARTITIONS


@pytest.fixture(autouse=True, params=[500, 1], ids=["in one go", "in slices"])
def slice_partitions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a fetch is a large one makes no difference to what it gets."""
    monkeypatch.setattr(fetch_module, "SLICE_PARTITIONS", request.param)


def request(
    *offsets: int, topic: str = "t", partition_max_bytes: int = 1 << 20, **fields: Any
) -> FetchRequest:
    """A request for partitions 0, 1, ... from these offsets on."""
    partitions = [
        FetchPartition(partition=at, fetch_offset=offset, partition_max_bytes=partition_max_bytes)
        for at, offset in enumerate(offsets)
    ]
    fields = {"min_bytes": 1, **fields}
    return FetchRequest(topics=[FetchTopic(topic=topic, partitions=partitions)], **fields)


def partitions(response: FetchResponse) -> list[PartitionData]:
    return [partition for topic in response.responses for partition in topic.partitions]


def sizes(response: FetchResponse) -> list[int]:
    return [len(b"".join(pieces(partition))) for partition in partitions(response)]


def pieces(partition: PartitionData) -> list[bytes]:
    assert isinstance(partition.records, list | bytes)
    return [bytes(piece) for piece in partition.records] if isinstance(partition.records, list) else []


async def call(asked: FetchRequest, context: RequestContext) -> FetchResponse:
    response = fetch_nowait(asked, context)
    if response is None:
        with anyio.fail_after(HANG_S):
            response = await handle_fetch(asked, context)
    return response


async def test_answer_at_once_when_there_is_enough(logs: FakeLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "SLICE_PARTITIONS", 2)
    logs.at("t", 1).write(3)
    response = fetch_nowait(request(0, 0, max_wait_ms=60_000), make_context(logs, 11))
    assert response is not None
    first, second = partitions(response)
    assert (first.high_watermark, pieces(first)) == (0, [])
    assert (second.high_watermark, second.last_stable_offset, second.log_start_offset) == (3, 3, 0)
    assert pieces(second) == [logs.at("t", 1).batches[0][2]]


async def test_small_batches_are_joined_and_large_ones_leave_from_where_they_are(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand buffers of seventy bytes took the loop four times as long on their way as a copy of them does."""
    for _ in range(3):
        logs.at("t", 0).write(1)
        logs.at("t", 1).write(1)
        logs.at("t", 1).write(1)
    of_few, of_many = ([batch for _, _, batch in logs.at("t", number).batches] for number in (0, 1))
    size = max(map(len, of_many))
    monkeypatch.setattr(fetch_module, "_SMALL_BATCH_BYTES", size + 1)
    monkeypatch.setattr(fetch_module, "_JOINED_BYTES_MAX", 5 * size)
    few, many = partitions(await call(request(0, 0), make_context(logs, 11)))
    assert pieces(few) == [b"".join(of_few)]
    assert pieces(many) == of_many, "more than may be copied"
    monkeypatch.setattr(fetch_module, "_SMALL_BATCH_BYTES", min(map(len, of_few)))
    large, _ = partitions(await call(request(0, 0), make_context(logs, 11)))
    assert pieces(large) == of_few
    assert isinstance(large.records, list)
    assert all(isinstance(one, memoryview) for one in large.records), "not even one by one"


async def test_copies_in_a_response_are_on_the_account_of_memory_until_it_has_left(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers that never read held as many bytes beside the memory limit as fetches may have in flight."""
    for number in (0, 1):
        for _ in range(100):
            logs.at("t", number).write(1, value=b"x" * 100)
    context = make_context(logs, 11)
    joined = [pieces(one) for one in partitions(await call(request(0, 0), context))]
    assert [len(of_one) for of_one in joined] == [1, 1]
    assert logs.copies.used == sum(len(batch) for (batch,) in joined)
    context.release_charges()
    assert logs.copies.used == logs.fetch_memory.used == 0
    monkeypatch.setattr(fetch_module, "_SMALL_BATCH_BYTES", 1)
    await call(request(0, 0), make_context(logs, 11))
    assert not logs.copies.used


async def test_offset_within_a_batch_gets_the_whole_batch(logs: FakeLogs) -> None:
    logs.at("t").write(5)
    response = await call(request(3), make_context(logs, 11))
    assert sizes(response) == [len(logs.at("t").batches[0][2])]


async def test_first_batch_comes_whatever_the_limits_and_then_nothing(logs: FakeLogs) -> None:
    """KIP-74."""
    for at in range(2):
        logs.at("t", at).write(1, value=b"x" * 1000)
        logs.at("t", at).write(1, value=b"x" * 1000)
    size = len(logs.at("t").batches[0][2])
    assert sizes(await call(request(0, 0, partition_max_bytes=1), make_context(logs, 11))) == [size, 0]
    assert sizes(await call(request(0, 0, max_bytes=1), make_context(logs, 11))) == [size, 0]
    assert sizes(await call(request(0, 0, max_bytes=3 * size), make_context(logs, 11))) == [2 * size, size]


async def test_whole_response_is_bounded_by_the_broker_too(logs: FakeLogs) -> None:
    for at in range(3):
        for _ in range(4):
            logs.at("t", at).write(1, value=b"x" * 1000)
    size = len(logs.at("t").batches[0][2])
    context = make_context(logs, 11, fetch_bytes_max=5 * size)
    assert sizes(await call(request(0, 0, 0), context)) == [4 * size, size, 0]


async def test_old_versions_are_given_topics_of_zstd(logs: FakeLogs) -> None:
    """As by Kafka 4, which doesn't look at what KIP-110 had refused to versions before 10."""
    logs.at("t").write(1)
    await logs.alter_configs("t", {"compression.type": "zstd"})
    for version in (4, 9):
        (answer,) = partitions(await call(request(0), make_context(logs, version)))
        assert answer.error_code == 0
        assert answer.records


async def test_partitions_take_turns_in_a_session(logs: FakeLogs) -> None:
    for at in range(3):
        logs.at("t", at).write(1, value=b"x" * 1000)
    context = make_context(logs, 11)
    response = await call(request(0, 0, 0, max_bytes=1, session_epoch=0), context)
    got = [p.partition_index for p in partitions(response) if p.records]
    for epoch in range(1, 5):
        again = FetchRequest(max_bytes=1, min_bytes=1, session_id=response.session_id, session_epoch=epoch)
        answer = await call(again, RequestContext(api=context.api, client=context.client, version=11))
        got += [p.partition_index for p in partitions(answer) if p.records]
    assert got == [0, 0, 1, 2, 0]


@pytest.mark.parametrize("turns", range(12))
async def test_what_comes_while_partitions_are_looked_at_wakes_the_fetch(logs: FakeLogs, turns: int) -> None:
    """Also in a partition that was looked at already."""
    context = make_context(logs, 11)
    got: list[FetchResponse] = []

    async def fetch() -> None:
        got.append(await call(request(0, 0, 0, max_wait_ms=3_600_000), context))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        logs.at("t", turns % 3).write(1)
    assert [bool(size) for size in sizes(got[0])] == [at == turns % 3 for at in range(3)]
    assert not any(logs.at("t", at).listeners for at in range(3))


async def test_of_many_partitions_fifty_at_most_are_looked_at_in_one_go(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "SLICE_PARTITIONS", _SLICE_PARTITIONS)
    logs.add("many", 200)
    looked = most = 0
    find = logs.partition

    def counted(topic: str, index: int) -> Any:
        nonlocal looked
        looked += 1
        return find(topic, index)

    monkeypatch.setattr(logs, "partition", counted)

    async def watch_turns() -> None:
        nonlocal looked, most
        while True:
            most, looked = max(most, looked), 0
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_turns)
        await call(request(*[0] * 200, topic="many", max_wait_ms=1), make_context(logs, 11))
        tasks.cancel_scope.cancel()
    assert 0 < most <= 50


async def test_each_of_many_partitions_is_looked_at_once_if_there_is_enough(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "SLICE_PARTITIONS", _SLICE_PARTITIONS)
    logs.add("many", 200)
    logs.at("many", 7).write(1)
    looked: list[int] = []
    find = logs.partition

    def noted(topic: str, index: int) -> Any:
        looked.append(index)
        return find(topic, index)

    monkeypatch.setattr(logs, "partition", noted)
    response = await call(request(*[0] * 200, topic="many", max_wait_ms=60_000), make_context(logs, 11))
    assert [at for at, size in enumerate(sizes(response)) if size] == [7]
    assert looked == list(range(200))


async def test_of_quiet_partitions_only_what_changed_is_said(logs: FakeLogs) -> None:
    """KIP-227; and what isn't about offsets is noticed all the same."""
    for at in range(3):
        logs.at("t", at).write(4)
    context = make_context(logs, 12)
    first = await call(request(4, 4, 4, session_epoch=0, max_wait_ms=0), context)
    assert len(partitions(first)) == 3

    async def again(epoch: int, *asked: FetchPartition) -> list[tuple[int, int, int]]:
        more = FetchRequest(
            session_id=first.session_id,
            session_epoch=epoch,
            topics=[FetchTopic(topic="t", partitions=list(asked))] if asked else [],
            max_wait_ms=0,
            min_bytes=1,
        )
        answer = await call(more, RequestContext(api=context.api, client=context.client, version=12))
        return [(p.partition_index, p.error_code, p.log_start_offset) for p in partitions(answer)]

    assert await again(1) == []
    logs.at("t", 1).log_start_offset = 2
    assert await again(2) == [(1, 0, 2)]
    assert await again(3) == []
    stale = FetchPartition(partition=0, fetch_offset=4, partition_max_bytes=100, current_leader_epoch=2)
    assert await again(4, stale) == [(0, ErrorCode.FENCED_LEADER_EPOCH, -1)]
    assert await again(5) == [(0, ErrorCode.FENCED_LEADER_EPOCH, -1)], "until it asks with another one"
    diverged = FetchPartition(partition=2, fetch_offset=4, partition_max_bytes=100, last_fetched_epoch=2)
    logs.at("t", 2).end_offset_for_epoch = lambda epoch: (1, 3)  # type: ignore[method-assign]
    assert (2, 0, 0) in await again(6, diverged)


async def test_waits_until_min_bytes_are_there(logs: FakeLogs) -> None:
    context = make_context(logs, 11)
    asked = request(0, min_bytes=150, max_wait_ms=60_000)
    assert fetch_nowait(asked, context) is None
    responses: list[FetchResponse] = []

    async def wait() -> None:
        responses.append(await handle_fetch(asked, context))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        logs.at("t").write(1)
        await anyio.wait_all_tasks_blocked()
        assert not responses, "one small batch is not enough"
        logs.at("t").write(1)
        logs.at("t").write(1)
    assert sum(sizes(responses[0])) >= 150
    assert not logs.at("t").listeners
    assert logs.fetch_memory.used == context.charges[0].size == sum(sizes(responses[0]))


async def test_waits_for_no_more_than_fits(logs: FakeLogs) -> None:
    """``fetch.min.bytes`` as large as ``max.partition.fetch.bytes``: whole batches hardly ever add up to it."""
    for index in (0, 0, 1, 1):
        logs.at("t", index).write(1)
    one = len(logs.at("t").batches[0][2])
    limit = one + one // 2
    asked = request(0, 0, partition_max_bytes=limit, min_bytes=2 * limit, max_wait_ms=60_000)
    assert sizes(await call(asked, make_context(logs, 11))) == [one, one]
    asked = request(1, 1, partition_max_bytes=limit, min_bytes=2 * limit, max_wait_ms=60_000)
    assert fetch_nowait(asked, make_context(logs, 11)) is None, "there is room for more"


async def test_waits_no_longer_than_max_wait(logs: FakeLogs) -> None:
    response = await call(request(0, min_bytes=150, max_wait_ms=10), make_context(logs, 11))
    assert sizes(response) == [0]
    assert not logs.at("t").listeners


async def test_a_fetch_whose_time_is_up_is_woken_and_not_cancelled(logs: FakeLogs) -> None:
    """What is cancelled goes on at once, whoever waits: it can't let others go first."""
    thrown: list[BaseException] = []

    @types.coroutine
    def watched(work: Coroutine[Any, Any, FetchResponse]) -> Generator[Any, Any, FetchResponse]:
        waits = work.send(None)
        try:
            while True:
                try:
                    value = yield waits
                except BaseException as error:  # noqa: BLE001 - it is raised where work waits
                    thrown.append(error)
                    waits = work.throw(error)
                else:
                    waits = work.send(value)
        except StopIteration as end:
            response: FetchResponse = end.value
            return response

    asked, context = request(0, min_bytes=150, max_wait_ms=3), make_context(logs, 11)
    assert fetch_nowait(asked, context) is None
    assert sizes(await watched(handle_fetch(asked, context))) == [0]
    assert thrown == []


async def test_a_fetch_that_is_woken_reads_what_came_once_if_there_is_memory_for_it(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read of a thousand small batches takes a crowd that is woken as long as all the rest."""
    partition = logs.at("t")
    asked, context = request(0, max_wait_ms=60_000), make_context(logs, 11)
    assert fetch_nowait(asked, context) is None
    responses: list[FetchResponse] = []
    reads: list[int] = []
    read = partition.read_nowait

    def counted(offset: int, *others: Any, **named: Any) -> Any:
        reads.append(offset)
        return read(offset, *others, **named)

    async def wait() -> None:
        responses.append(await handle_fetch(asked, context))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(partition, "read_nowait", counted)
        partition.write(3)
    assert reads == [0]
    assert sizes(responses[0]) == [len(partition.batches[0][2])]
    assert [charge.size for charge in context.charges] == sizes(responses[0]), "it is paid for"


async def test_a_wait_that_ended_leaves_no_listeners_for_the_collector(logs: FakeLogs) -> None:
    """They are hundreds of kilobytes where many partitions are watched, and the collector comes late."""
    gc.collect()
    gc.disable()
    try:
        await call(request(0, min_bytes=150, max_wait_ms=10), make_context(logs, 11))
        left = [one for one in gc.get_objects() if isinstance(one, fetch_module._Watch)]
    finally:
        gc.enable()
    assert not any(one._all or one._notified for one in left)


async def test_empty_incremental_request_waits_too(logs: FakeLogs) -> None:
    context = make_context(logs, 11)
    first = await call(request(0, session_epoch=0), context)
    again = FetchRequest(min_bytes=1, max_wait_ms=10, session_id=first.session_id, session_epoch=1)
    assert fetch_nowait(again, context) is None
    response = await handle_fetch(again, context)
    assert response.session_id == first.session_id
    assert not response.responses


@pytest.mark.parametrize("count", [3, 40])
async def test_of_a_crowd_that_an_append_wakes_each_may_be_made_to_wait_for_its_turn(
    logs: FakeLogs, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """They all go on in the next iteration of the loop, in which others would wait for all of them."""
    partition = logs.at("t")
    reads: list[int] = []
    read = partition.read_nowait

    def counted(offset: int, *args: Any, **kwargs: Any) -> Any:
        reads.append(offset)
        return read(offset, *args, **kwargs)

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(call, request(0, max_wait_ms=3_600_000), make_context(logs, 11))
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(partition, "read_nowait", counted)
        partition.write(1)
        await anyio.lowlevel.checkpoint()
        assert bool(reads) == (count == 3), "a few go on at once, a crowd lets others go first"
    assert len(reads) >= count


async def test_a_fetch_that_gives_way_is_answered_and_its_client_rests_as_long_as_it_would_have_waited(
    logs: FakeLogs,
) -> None:
    context = make_context(logs, 11)
    answers = []

    async def wait() -> None:
        answers.append(await call(request(0, max_wait_ms=3_000), context))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        while not len(context.api.parked):
            await anyio.lowlevel.checkpoint()
        context.api.parked.enter("127.0.0.1", 2**63 - 1, lambda: None)  # nearly all the room there is
    assert sizes(answers[0]) == [0]
    assert context.rest_s == pytest.approx(3.0)


async def test_a_fetch_that_waits_is_charged_for_what_it_watches_and_no_longer_as_a_request(
    logs: FakeLogs,
) -> None:
    logs.at("t", 1)
    context = make_context(logs, 11)
    context.api.parked = Parked(memory := Ledger("parked", 2**30))
    requests = Ledger("requests", 2**30)
    requests.add(1000)
    charge = SimpleNamespace(release=lambda: requests.add(-1000))
    context.charges.append(charge)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, asked := request(0, 0, max_wait_ms=3_600_000), context)
        while not len(context.api.parked):
            await anyio.lowlevel.checkpoint()
        few = memory.used_bytes
        assert few > 0
        assert requests.used_bytes == 0
        assert not asked.topics, "what was decoded isn't kept"
        many = make_context(logs, 11)
        many.api.parked = context.api.parked
        tasks.start_soon(call, request(*[0] * 2, max_wait_ms=3_600_000), many)
        while len(context.api.parked) < 2:
            await anyio.lowlevel.checkpoint()
        assert memory.used_bytes == 2 * few
        tasks.cancel_scope.cancel()
    assert memory.used_bytes == 0


async def test_draining_ends_the_wait(logs: FakeLogs) -> None:
    context = make_context(logs, 11)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, request(0, max_wait_ms=60_000), context)
        await anyio.wait_all_tasks_blocked()
        context.api.draining.set()


async def test_deleting_the_topic_ends_the_wait(logs: FakeLogs) -> None:
    context = make_context(logs, 11)
    responses: list[FetchResponse] = []

    async def wait() -> None:
        responses.append(await call(request(0, max_wait_ms=60_000), context))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        gone = logs.at("t")
        await logs.delete_topics(["t"])
        gone.listeners.tell()
    assert partitions(responses[0])[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


async def test_nothing_asked_is_answered_at_once(logs: FakeLogs) -> None:
    response = fetch_nowait(FetchRequest(min_bytes=1, max_wait_ms=60_000), make_context(logs, 11))
    assert response is not None
    assert not response.responses


@pytest.mark.parametrize(
    ("offset", "fields", "code"),
    [
        (4, {}, ErrorCode.OFFSET_OUT_OF_RANGE),
        (3, {}, ErrorCode.NONE),
        (0, {"current_leader_epoch": 2}, ErrorCode.FENCED_LEADER_EPOCH),
        (0, {"current_leader_epoch": 4}, ErrorCode.UNKNOWN_LEADER_EPOCH),
        (0, {"current_leader_epoch": 3}, ErrorCode.NONE),
        (0, {"last_fetched_epoch": 1}, ErrorCode.OFFSET_OUT_OF_RANGE),
        (0, {"partition": 9}, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
    ],
)
async def test_partition_errors_are_answered_at_once(
    logs: FakeLogs, offset: int, fields: dict[str, int], code: ErrorCode
) -> None:
    logs.at("t").write(3)
    asked = request(offset, max_wait_ms=60_000 if code else 0)
    for name, value in fields.items():
        setattr(asked.topics[0].partitions[0], name, value)
    response = fetch_nowait(asked, make_context(logs, 12))
    assert response is not None
    assert [p.error_code for p in partitions(response)] == [code]


@pytest.mark.parametrize("version", [12, 13])
async def test_topics_are_answered_in_the_order_of_their_partitions_and_what_is_not_there_last(
    logs: FakeLogs, version: int
) -> None:
    """As in Kafka: partitions that follow each other share a topic, so one may be there twice. Unknown ids come first
    of what isn't there."""
    for number, name in enumerate("ab", 1):
        logs.add(name, 2).id = bytes(15) + bytes([number])
        for index in range(2):
            logs.at(name, index).write(1)
    topics = [
        FetchTopic(
            topic=name,
            topic_id=logs.topics()[name].id if name in logs.topics() else bytes(15) + b"\7",
            partitions=[FetchPartition(partition=at, fetch_offset=1) for at in indexes],
        )
        for name, indexes in (("a", [0, 9]), ("b", [0]), ("no", [0]), ("a", [1, 0]), ("b", [8]))
    ]
    response = await call(FetchRequest(topics=topics, max_wait_ms=0), make_context(logs, version))
    names = {bytes(topic.id): name for name, topic in logs.topics().items()}
    names[bytes(15) + b"\7"] = "no"
    assert [
        (one.topic or names[bytes(one.topic_id)], [part.partition_index for part in one.partitions])
        for one in response.responses
    ] == (
        [("a", [0]), ("b", [0]), ("a", [1, 9]), ("no", [0]), ("b", [8])]
        if version < 13
        else [("a", [0]), ("b", [0]), ("a", [1]), ("no", [0]), ("a", [9]), ("b", [8])]
    )


@pytest.mark.parametrize("version", [15, 16, 18])
@pytest.mark.parametrize("replica_id", [-1, 2])
@pytest.mark.parametrize("epoch", [-1, 2, 3, 4])
async def test_who_is_wrong_about_the_leader_is_told_of_it(
    logs: FakeLogs, version: int, replica_id: int, epoch: int
) -> None:
    """KIP-951; where the leader is, is told to consumers. The partition's epoch is 3."""
    asked = request(0, max_wait_ms=0)
    asked.replica_state.replica_id = replica_id
    asked.topics[0].topic_id = logs.topics()["t"].id
    asked.topics[0].partitions[0].current_leader_epoch = epoch
    context = make_context(logs, version)
    response = await call(asked, context)
    (answer,) = partitions(response)
    codes = {2: ErrorCode.FENCED_LEADER_EPOCH, 4: ErrorCode.UNKNOWN_LEADER_EPOCH}
    if replica_id >= 0:
        codes |= {-1: ErrorCode.NOT_LEADER_OR_FOLLOWER, 3: ErrorCode.UNKNOWN_LEADER_EPOCH}
    code = codes.get(epoch, ErrorCode.NONE)
    assert answer.error_code == code
    is_told = version > 15 and code in {ErrorCode.FENCED_LEADER_EPOCH, ErrorCode.NOT_LEADER_OR_FOLLOWER}
    node = context.client.advertised
    leader = (answer.current_leader.leader_id, answer.current_leader.leader_epoch)
    assert leader == ((node.node_id, 3) if is_told else (-1, -1))
    endpoints = [(one.node_id, one.host, one.port, one.rack) for one in response.node_endpoints]
    is_consumer = replica_id < 0
    assert endpoints == ([(node.node_id, node.host, node.port, node.rack)] if is_told and is_consumer else [])


async def test_diverging_client_is_told_where(logs: FakeLogs) -> None:
    logs.at("t").write(3)
    asked = request(3, max_wait_ms=60_000)
    asked.topics[0].partitions[0].last_fetched_epoch = 5
    response = fetch_nowait(asked, make_context(logs, 12))
    assert response is not None
    (partition,) = partitions(response)
    assert (partition.diverging_epoch.epoch, partition.diverging_epoch.end_offset) == (3, 3)


async def test_topics_by_id_from_version_13_on(logs: FakeLogs) -> None:
    logs.at("t").write(3)
    asked = request(0, topic="")
    asked.topics[0].topic_id = logs.topics()["t"].id
    response = await call(asked, make_context(logs, 13))
    assert response.responses[0].topic_id == logs.topics()["t"].id
    assert sizes(response) == [len(logs.at("t").batches[0][2])]
    asked.topics[0].topic_id = b"x" * 16
    response = await call(asked, make_context(logs, 13))
    assert [p.error_code for p in partitions(response)] == [ErrorCode.UNKNOWN_TOPIC_ID]


async def test_unknown_session_is_an_error_of_the_whole_response(logs: FakeLogs) -> None:
    asked = FetchRequest(session_id=5, session_epoch=1)
    assert (await call(asked, make_context(logs, 11))).error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND


@pytest.mark.parametrize(("isolation_level", "aborted"), [(0, None), (1, [])])
async def test_aborted_transactions_are_null_only_for_readers_of_uncommitted(
    logs: FakeLogs, isolation_level: int, aborted: list[object] | None
) -> None:
    response = await call(request(0, isolation_level=isolation_level), make_context(logs, 11))
    assert partitions(response)[0].aborted_transactions == aborted


async def test_a_future_replica_is_told_of_no_transactions_whatever_it_asks_for(logs: FakeLogs) -> None:
    for replica_id, aborted in ((-1, []), (-2, []), (-3, None)):
        asked = request(0, isolation_level=1)
        asked.replica_id = replica_id
        response = await call(asked, make_context(logs, 11))
        assert partitions(response)[0].aborted_transactions == aborted


async def test_aborted_transactions_are_null_where_nothing_committed_was_read(logs: FakeLogs) -> None:
    response = await call(request(99, isolation_level=1), make_context(logs, 11))
    (one,) = partitions(response)
    assert (one.error_code, one.aborted_transactions) == (ErrorCode.OFFSET_OUT_OF_RANGE, None)


def test_a_session_out_of_step_is_told_so_before_that_it_goes_on_by_names(logs: FakeLogs) -> None:
    by_ids = make_context(logs, 13)
    opened = fetch_nowait(FetchRequest(session_epoch=0, topics=[], max_wait_ms=0), by_ids)
    assert opened is not None
    by_names = make_context(logs, 12)
    by_names.api.fetch_sessions = by_ids.api.fetch_sessions
    for epoch, code in (
        (5, ErrorCode.INVALID_FETCH_SESSION_EPOCH),
        (1, ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR),
    ):
        asked = FetchRequest(session_id=opened.session_id, session_epoch=epoch, topics=[], max_wait_ms=0)
        answer = fetch_nowait(asked, by_names)
        assert answer is not None
        assert answer.error_code == code


async def test_cold_data_is_read_after_its_memory_is_paid_for(logs: FakeLogs) -> None:
    for at in range(2):
        logs.at("t", at).write(3, value=b"x" * 500)
    logs.at("t", 1).cold = True
    context = make_context(logs, 11)
    asked = request(0, 0, max_wait_ms=60_000)
    assert fetch_nowait(asked, context) is None
    response = await handle_fetch(asked, context)
    assert sizes(response) == [len(logs.at("t", at).batches[0][2]) for at in range(2)]
    assert logs.at("t", 1).cold_reads == 1
    assert len(context.charges) == 1
    assert context.charges[0].size >= sum(sizes(response))


async def test_cold_reads_of_several_partitions_are_prepared_together(logs: FakeLogs) -> None:
    for at in range(2):
        logs.at("t", at).write(3, value=b"x" * 500)
        logs.at("t", at).cold = True
    context = make_context(logs, 11)
    asked = request(0, 0, max_wait_ms=60_000)
    assert fetch_nowait(asked, context) is None
    response = await handle_fetch(asked, context)
    assert all(sizes(response))
    ((wanted, bytes_max),) = logs.prepared
    assert [(topic, index, offset) for topic, index, offset, _ in wanted] == [("t", 0, 0), ("t", 1, 0)]
    assert 0 < bytes_max <= context.charges[0].size


@pytest.mark.parametrize("appends_wait", [False, True])
async def test_others_go_first_before_each_step_of_a_cold_fetch_and_the_log_with_what_they_append(
    logs: FakeLogs, appends_wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.add("wide", 4)
    for at in range(4):
        logs.at("wide", at).write(1, value=b"x" * 500)
        logs.at("wide", at).cold = True
    monkeypatch.setattr(logs, "appends_wait", appends_wait, raising=False)
    context = make_context(logs, 11)
    asked = request(*[0] * 4, topic="wide", max_wait_ms=60_000)
    turns, seen = 0, list[int]()
    read = FakePartition.read

    async def reading(self: FakePartition, *args: Any, **kwargs: Any) -> Any:
        seen.append(turns)
        return await read(self, *args, **kwargs)

    monkeypatch.setattr(FakePartition, "read", reading)
    responses: list[FetchResponse] = []
    looked_at = count_looks(monkeypatch)
    assert fetch_nowait(asked, context) is None
    assert looked_at() <= 1, "there is nothing to be answered at once"

    async def wait() -> None:
        responses.append(await handle_fetch(asked, context))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        while not responses:
            await anyio.lowlevel.checkpoint()
            turns += 1
    assert all(sizes(responses[0]))
    least = 1 + appends_wait
    assert seen[0] >= 2 * least, "before it is begun, and before it is prepared"
    assert all(after - before >= least for before, after in itertools.pairwise([*seen, turns]))
    assert looked_at() <= 2 * 4


def count_looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often a partition was asked what it has in memory."""
    looks = 0
    read_nowait = FakePartition.read_nowait

    def looking(self: FakePartition, *args: Any, **kwargs: Any) -> Any:
        nonlocal looks
        looks += 1
        return read_nowait(self, *args, **kwargs)

    monkeypatch.setattr(FakePartition, "read_nowait", looking)
    return lambda: looks


async def test_a_fetch_that_is_full_loads_nothing_of_further_partitions(logs: FakeLogs) -> None:
    logs.add("wide", 5)
    for at in range(5):
        logs.at("wide", at).write(1, value=b"x" * 500)
        logs.at("wide", at).cold = True
    context = make_context(logs, 11)
    asked = request(*[0] * 5, topic="wide", max_bytes=900, max_wait_ms=60_000)
    assert fetch_nowait(asked, context) is None
    response = await handle_fetch(asked, context)
    assert [size > 0 for size in sizes(response)] == [True, False, False, False, False]
    assert [logs.at("wide", at).cold_reads for at in range(5)] == [1, 1, 0, 0, 0]


async def test_cold_read_that_fails_is_an_error_of_its_partition(logs: FakeLogs) -> None:
    logs.at("t").write(3)
    logs.at("t").cold = True
    context = make_context(logs, 11)
    asked = request(0, 0)
    assert fetch_nowait(asked, context) is None
    logs.at("t").fail_with = UnavailableError("the store is away")
    response = await handle_fetch(asked, context)
    assert [p.error_code for p in partitions(response)] == [ErrorCode.KAFKA_STORAGE_ERROR, 0]


async def test_without_memory_the_fetch_waits_for_it(logs: FakeLogs) -> None:
    logs.at("t").write(1, value=b"x" * 1000)
    memory = logs.fetch_memory
    memory.shares.limit = 1500
    other = memory.charge_nowait(1000, memory.join("elsewhere", None))
    context = make_context(logs, 11)
    asked = request(0)
    assert fetch_nowait(asked, context) is None
    responses: list[FetchResponse] = []

    async def wait() -> None:
        responses.append(await handle_fetch(asked, context))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not responses
        other.release()
    assert sizes(responses[0]) == [len(logs.at("t").batches[0][2])]
