"""Large responses of other APIs than Fetch: counted among what clients hold, and made when there is room."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeLogs
from tests.unit.server.harness import serving

from penstock.api.context import CHANGE_S, CHANGED_PARTITION_S, RequestContext
from penstock.api.declaration import Api, Frame
from penstock.log.limiter import BytesLimiter
from penstock.server import requests
from penstock.server.slots import Slot
from penstock.time_shares import TimeMember
from penstock.wire.api_keys import ApiKey
from penstock.wire.elements import count_elements, drop_elements
from penstock.wire.messages.describe_groups import (
    DescribedGroup,
    DescribedGroupMember,
    DescribeGroupsRequest,
    DescribeGroupsResponse,
)
from penstock.wire.messages.fetch import FetchRequest
from penstock.wire.registry import Message

pytestmark = pytest.mark.anyio
REQUEST = DescribeGroupsRequest(groups=["g"])
METADATA = bytes(300_000)


def response() -> DescribeGroupsResponse:
    member = DescribedGroupMember(
        member_id="m", client_id="c", client_host="h", member_metadata=METADATA, member_assignment=b""
    )
    group = DescribedGroup(
        group_id="g", group_state="Stable", protocol_type="consumer", protocol_data="range", members=[member]
    )
    return DescribeGroupsResponse(groups=[group])


async def describe(request: Message, context: RequestContext) -> Message:
    return response()


def describe_nowait(request: Message, context: RequestContext) -> Message | None:
    return response()


SLOW = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=describe)
QUICK = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), nowait=describe_nowait)


class Owner:
    """Another connection, which takes what it's given."""

    def probe(self, now: float) -> None:
        """It moves."""


def logs_with(limit: int) -> FakeLogs:
    logs = FakeLogs()
    logs.add("t", 1)
    logs.fetch_memory = BytesLimiter(limit, credit=limit, credit_max=limit, clock=lambda: 100.0)
    return logs


async def returned(logs: FakeLogs) -> None:
    with anyio.fail_after(HANG_S):
        while logs.fetch_memory.used:  # noqa: ASYNC110 - the socket takes it, and nobody tells
            await anyio.sleep(0.001)


@pytest.mark.parametrize("api", [SLOW, QUICK], ids=["slow", "quick"])
async def test_a_large_response_is_counted_until_it_has_left(api: Api) -> None:
    logs = logs_with(1 << 20)
    async with serving(logs, handlers=[api]) as harness, await harness.connect() as client:
        for _ in range(3):
            answer = await client.call(ApiKey.DESCRIBE_GROUPS, 1, REQUEST)
            assert answer.groups[0].members[0].member_metadata == METADATA
        await returned(logs)
        assert any(one.size >= 300_000 for one in harness.allocator.allocations)
        assert harness.allocator.used == 0


async def test_without_room_a_large_response_waits_and_is_then_whole() -> None:
    logs = logs_with(400_000)
    async with serving(logs, handlers=[SLOW]) as harness, await harness.connect() as client:
        other = logs.fetch_memory.join("10.0.0.1", Owner())
        other.busy = True
        held = logs.fetch_memory.charge_nowait(300_000, other)
        await client.send(ApiKey.DESCRIBE_GROUPS, 1, REQUEST)
        with anyio.fail_after(HANG_S):
            while not logs.fetch_memory.waiting:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        held.release()
        answer = await client.receive()
        assert answer.groups[0].members[0].member_metadata == METADATA
        await returned(logs)


async def test_who_goes_away_while_its_response_waits_leaves_nothing_behind() -> None:
    logs = logs_with(400_000)
    async with serving(logs, handlers=[SLOW]) as harness:
        other = logs.fetch_memory.join("10.0.0.1", Owner())
        other.busy = True
        held = logs.fetch_memory.charge_nowait(300_000, other)
        async with await harness.connect() as client:
            await client.send(ApiKey.DESCRIBE_GROUPS, 1, REQUEST)
            with anyio.fail_after(HANG_S):
                while not logs.fetch_memory.waiting:  # noqa: ASYNC110
                    await anyio.sleep(0.001)
        with anyio.fail_after(HANG_S):
            while logs.fetch_memory.waiting:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        held.release()
        assert (logs.fetch_memory.used, harness.allocator.used) == (0, 0)


@pytest.mark.parametrize(
    ("parts", "weight", "bound"),
    [
        (0, 16, Frame.CONTROL),
        (100, 100, Frame.CONTROL),
        (1_000_000, 0, Frame.CONTROL),
        (0, 16, Frame.GROUP),  # of a commit; what waits for members is on the account of groups
    ],
)
async def test_a_long_request_is_counted_for_what_its_answer_may_take(
    parts: int, weight: int, bound: Frame
) -> None:
    """Sixteen that asked for configs of 10,000 topics, and read nothing, took 1.4 GB: each was counted as 2 MB."""
    begun, may_end = anyio.Event(), anyio.Event()

    async def wait(request: Message, context: RequestContext) -> Message:
        begun.set()
        await may_end.wait()
        return response()

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=wait, answer_parts=parts, frame=bound)
    async with (
        serving(handlers=[api], receive_bytes_max=8 << 20) as harness,
        await harness.connect() as client,
    ):
        request = DescribeGroupsRequest(groups=["g" * 100] * 100)
        size = len(client.frame(ApiKey.DESCRIBE_GROUPS, 1, request, answered=False)) - 4
        await client.send(ApiKey.DESCRIBE_GROUPS, 1, request)
        with anyio.fail_after(HANG_S):
            await begun.wait()
        handling = harness.server.core.handling
        assert handling.used == (weight * size or handling.limit // 2)
        may_end.set()
        await client.receive()
        with anyio.fail_after(HANG_S):
            while handling.used:  # noqa: ASYNC110
                await anyio.sleep(0.001)


async def test_a_request_that_is_counted_as_more_than_half_does_not_wait_for_those_that_take_little() -> None:
    """One may take its client's time: a deletion of records that waits for an upload, say."""
    begun, may_end = anyio.Event(), anyio.Event()

    async def wait(request: Message, context: RequestContext) -> Message:
        if not begun.is_set():
            begun.set()
            await may_end.wait()
        return response()

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=wait)
    async with (
        serving(handlers=[api], receive_bytes_max=1 << 20) as harness,
        await harness.connect() as little,
        await harness.connect() as much,
    ):
        await little.send(ApiKey.DESCRIBE_GROUPS, 1, DescribeGroupsRequest(groups=["g" * 100] * 30))
        with anyio.fail_after(HANG_S):
            await begun.wait()
            await much.send(ApiKey.DESCRIBE_GROUPS, 1, DescribeGroupsRequest(groups=["g" * 100] * 400))
            await much.receive()
        may_end.set()
        await little.receive()
        assert harness.server.core.handling.used == 0


async def test_a_request_of_many_short_elements_is_counted_for_each_of_them() -> None:
    """LeaveGroup of 1 MiB took 78 MiB, and counted 16."""
    begun, may_end = anyio.Event(), anyio.Event()

    async def wait(request: Message, context: RequestContext) -> Message:
        begun.set()
        await may_end.wait()
        return response()

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=wait)
    async with serving(handlers=[api]) as harness, await harness.connect() as client:
        await client.send(ApiKey.DESCRIBE_GROUPS, 1, DescribeGroupsRequest(groups=[""] * 2_000))
        with anyio.fail_after(HANG_S):
            await begun.wait()
        assert harness.server.core.handling.used == 2_000 * api.element_bytes
        may_end.set()
        await client.receive()
        assert harness.server.core.handling.used == 0


async def test_what_others_compute_for_a_request_is_on_its_clients_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paid: list[float] = []

    async def change(request: Message, context: RequestContext) -> Message:
        context.changed_topics(1_000)
        return response()

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=change)
    async with serving(handlers=[api]) as harness, await harness.connect() as client:
        shares = harness.server.core.loop_time
        used = shares.used

        def recorded(member: TimeMember, processor_s: float, clock_s: float, now: float) -> None:
            paid.append(processor_s)
            used(member, processor_s, clock_s, now)

        monkeypatch.setattr(shares, "used", recorded)
        await client.send(ApiKey.DESCRIBE_GROUPS, 1, REQUEST)
        await client.receive()
    assert paid.count(CHANGE_S + 1_000 * CHANGED_PARTITION_S) == 1


async def test_a_response_that_is_larger_than_clients_may_hold_doesnt_wait_for_all_of_them() -> None:
    """Configs of all topics, say, beside somebody who reads on a slow line: it waited until that one had read all."""
    logs = logs_with(1 << 20)

    async def answer(request: Message, context: RequestContext) -> Message:
        answers = response()
        answers.groups *= 8
        return answers

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=answer)
    async with serving(logs, handlers=[api]) as harness, await harness.connect() as client:
        logs.fetch_memory.take(logs.fetch_memory.join("slow", Owner()), 1 << 17)
        assert len((await client.call(ApiKey.DESCRIBE_GROUPS, 1, REQUEST)).groups) == 8


async def test_who_does_not_read_an_answer_holds_no_room_of_requests_that_are_handled() -> None:
    """Thirty that sent long requests and read nothing kept all others of more than 2 KiB waiting, for minutes."""
    logs = logs_with(1 << 30)

    async def answer(request: Message, context: RequestContext) -> Message:
        answers = response()
        answers.groups *= 100  # more than the system takes
        return answers

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=answer)
    async with serving(logs, handlers=[api]) as harness, await harness.connect() as client:
        await client.send(ApiKey.DESCRIBE_GROUPS, 1, DescribeGroupsRequest(groups=["g" * 100] * 100))
        with anyio.fail_after(HANG_S):
            while not logs.fetch_memory.used:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        assert logs.fetch_memory.used >= 100 * len(METADATA)
        assert harness.server.core.handling.used == 0


async def test_what_was_long_is_dropped_in_portions_while_its_memory_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 100,000 partitions in one go it took the event loop 13 ms."""
    portions: list[tuple[bool, int]] = []
    left: list[list[int]] = []

    def drop(over: list[Message]) -> Iterator[None]:
        for _ in drop_elements(over):
            core = harness.server.core
            portions.append((core.handling.used > 0, core.sent_bytes))
            yield
        left.append([count_elements(message) for message in over])

    monkeypatch.setattr(requests, "drop_elements", drop)

    async def answer(request: Message, context: RequestContext) -> Message:
        assert isinstance(request, DescribeGroupsRequest)
        return DescribeGroupsResponse(
            groups=[
                DescribedGroup(group_id=name, group_state="", protocol_data="") for name in request.groups
            ]
        )

    api = Api(key=ApiKey.DESCRIBE_GROUPS, needs=(), handler=answer)
    async with serving(handlers=[api]) as harness, await harness.connect() as client:
        for size in (1, 2_000):
            before = harness.server.core.sent_bytes
            names = [f"group-{number}" for number in range(size)]
            got = await client.call(ApiKey.DESCRIBE_GROUPS, 1, DescribeGroupsRequest(groups=names))
            assert [group.group_id for group in got.groups] == names
        assert left == [[0, 0]]
        assert len(portions) > 10
        assert set(portions) == {(True, before)}, "before the answer left"
        assert harness.server.core.handling.used == 0


def test_how_long_a_request_may_wait_is_known_when_nothing_else_of_it_is() -> None:
    slot = Slot(
        11, 1, 100, api_key=ApiKey.FETCH, message=FetchRequest(max_wait_ms=5_000, min_bytes=1, topics=[])
    )
    slot.forget_request()
    assert slot.message is None
    assert slot.asked_ms == 5_000
