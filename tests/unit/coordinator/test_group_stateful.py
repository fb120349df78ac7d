"""Any sequence of joins, leaves, silences and write failures keeps the promises of the group protocol."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.depth import examples

from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_types import (
    CommittedOffset,
    Complete,
    GroupSettings,
    GroupState,
    JoinRequest,
    JoinResult,
    LeaveMember,
    Output,
    PersistGroup,
    SetTimer,
    SyncRequest,
    SyncResult,
)
from penstock.wire.error_codes import ErrorCode

SETTINGS = GroupSettings(new_member_join_timeout_ms=40_000)
SESSION_MS = 10_000
REBALANCE_MS = 30_000


class Client:
    """A consumer that does what clients do; `request` is what it waits for."""

    def __init__(self, name: int, instance: str | None, metadata: bytes) -> None:
        self.name = name
        self.instance = instance
        self.metadata = metadata
        self.member_id = ""
        self.generation = -1
        self.leads = False
        self.members: tuple[str, ...] = ()
        self.request: int | None = None
        self.needs: str = "join"
        self.assignment: bytes | None = None


class GroupProtocol(RuleBasedStateMachine):
    """Clients and time around one group."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.group = Group("g", SETTINGS, self.now)
        self.clients: list[Client] = []
        self.numbers = itertools.count(1)
        self.waiting: dict[int, Client | None] = {}
        self.timers: set[Any] = set()
        self.writes: list[PersistGroup] = []
        self.generation = 0
        self.leaders: dict[int, str] = {}

    # -- the world ------------------------------------------------------------------------------------------

    def do(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, SetTimer):
                assert output.at_ms >= self.now
                self.timers.add(output.key)
            elif isinstance(output, PersistGroup):
                self.writes.append(output)
            else:
                self.answer(output)

    def answer(self, output: Complete) -> None:
        assert isinstance(output.waiter, int)
        assert output.waiter in self.waiting, "every request is answered exactly once"
        client = self.waiting.pop(output.waiter)
        if client is None or client.request != output.waiter:
            return
        client.request = None
        if isinstance(output.result, JoinResult):
            self.joined(client, output.result)
        else:
            self.synced(client, output.result)

    def joined(self, client: Client, result: JoinResult) -> None:
        client.needs = "join"
        if result.error is ErrorCode.MEMBER_ID_REQUIRED:
            client.member_id = result.member_id
        elif result.error is ErrorCode.NONE:
            assert client.generation <= result.generation_id
            client.member_id = result.member_id
            client.generation = result.generation_id
            is_leader = result.leader == result.member_id
            client.leads = is_leader and not result.skip_assignment
            client.members = tuple(one.member_id for one in result.members)
            assert bool(client.members) == is_leader
            if client.leads:
                leader = self.leaders.setdefault(result.generation_id, result.leader)
                assert leader == result.leader, "one member assigns in a generation"
            client.needs = "sync"
        elif result.error in (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.FENCED_INSTANCE_ID):
            client.member_id = ""

    def synced(self, client: Client, result: SyncResult) -> None:
        if result.error is ErrorCode.NONE:
            assert result.assignment in (b"", client.member_id.encode()) or client.instance is not None
            client.assignment = result.assignment
            client.needs = ""
        else:
            self.rejected(client, result.error)

    def rejected(self, client: Client, error: ErrorCode) -> None:
        client.needs = "join"
        if error in (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.FENCED_INSTANCE_ID):
            client.member_id = ""

    def act(self, client: Client) -> None:
        """The client's next step."""
        if client.request is not None:
            return
        if client.needs == "join":
            self.send_join(client)
        elif client.needs == "sync":
            self.send_sync(client)
        else:
            self.beat(client)

    def send_join(self, client: Client) -> None:
        waiter = client.request = next(self.numbers)
        self.waiting[waiter] = client
        request = JoinRequest(
            member_id=client.member_id,
            group_instance_id=client.instance,
            client_id="c",
            client_host="h",
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            protocol_type="consumer",
            protocols=(("range", client.metadata),),
            require_known_member_id=client.name % 2 == 0,
            supports_skip_assignment=client.name % 3 == 0,
        )
        self.do(self.group.join(request, waiter, f"member-{next(self.numbers)}", self.now))

    def send_sync(self, client: Client) -> None:
        waiter = client.request = next(self.numbers)
        self.waiting[waiter] = client
        assignments = {name: name.encode() for name in client.members} if client.leads else {}
        request = SyncRequest(
            member_id=client.member_id,
            generation_id=client.generation,
            group_instance_id=client.instance,
            assignments=assignments,
        )
        self.do(self.group.sync(request, waiter, self.now))

    def beat(self, client: Client) -> None:
        error, outputs = self.group.heartbeat(client.member_id, client.generation, client.instance, self.now)
        self.do(outputs)
        if error is not ErrorCode.NONE:
            self.rejected(client, error)

    def settle_writes(self, error: ErrorCode = ErrorCode.NONE) -> None:
        writes, self.writes = self.writes, []
        for write in writes:
            self.do(self.group.persisted(write.token, error, self.now))

    def fire_until(self, end: int) -> None:
        while True:
            due = [
                (at, key) for key in self.timers if (at := self.group.deadline(key)) is not None and at <= end
            ]
            if not due:
                break
            at, key = min(due, key=lambda one: one[0])
            self.now = max(self.now, at)
            self.do(self.group.timer_fired(key, self.now))
        self.now = end

    # -- what may happen ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.clients) < 5)
    @rule(instance=st.sampled_from([None, None, "i", "j"]))
    def start_client(self, instance: str | None) -> None:
        self.clients.append(Client(next(self.numbers), instance, b"first"))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        self.act(data.draw(st.sampled_from(self.clients)))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), metadata=st.sampled_from([b"first", b"second"]))
    def resubscribe(self, data: st.DataObject, metadata: bytes) -> None:
        client = data.draw(st.sampled_from(self.clients))
        client.metadata = metadata
        if client.request is None:
            self.send_join(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        """The connection breaks while a request is parked: the client sends it again."""
        client = data.draw(st.sampled_from(self.clients))
        if client.request is not None:
            self.waiting[client.request] = None
            client.request = None
            self.act(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        client.request = None

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        client.request = None
        _, outputs = self.group.leave([LeaveMember(client.member_id, client.instance)], self.now)
        self.do(outputs)

    @rule(ms=st.integers(1, 12_000))
    def pass_time(self, ms: int) -> None:
        self.fire_until(self.now + ms)

    @rule(is_ok=st.booleans())
    def finish_writes(self, is_ok: bool) -> None:
        self.settle_writes(ErrorCode.NONE if is_ok else ErrorCode.COORDINATOR_NOT_AVAILABLE)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), offset=st.integers(0, 100))
    def commit(self, data: st.DataObject, offset: int) -> None:
        client = data.draw(st.sampled_from(self.clients))
        before = self.group.offsets.get(("t", 0))
        offsets = {("t", 0): CommittedOffset(offset, -1, "", self.now)}
        error, outputs = self.group.begin_commit(
            client.member_id, client.generation, client.instance, [offsets], self.now
        )
        self.do(outputs)
        assert self.group.offsets.get(("t", 0)) is before, "not visible before it is durable"
        if error is ErrorCode.NONE:
            self.group.settle_commit(offsets, durable=True)
        after = self.group.offsets.get(("t", 0))
        if error is ErrorCode.NONE:
            assert after is not None
            assert after.offset == offset
            is_member = client.member_id in self.group.members
            assert self.group.state is GroupState.EMPTY or is_member
        else:
            assert after is before

    @rule()
    def everybody_behaves(self) -> None:
        """With clients that answer in time and a log that works, the group becomes stable or empty."""
        for _ in range(80):
            self.settle_writes()
            for client in list(self.clients):
                self.act(client)
            self.fire_until(self.now + 2_000)
        instances = [client.instance for client in self.clients if client.instance is not None]
        if len(instances) != len(set(instances)):
            return  # two clients fight for one instance id: there is no end to that
        if not self.clients:
            assert self.group.state is GroupState.EMPTY
            return
        assert self.group.state is GroupState.STABLE
        assert set(self.group.members) == {client.member_id for client in self.clients}
        for client in self.clients:
            assert client.generation == self.group.generation_id
            assert client.assignment is not None
        assert not self.waiting, "nothing is left without an answer"

    # -- what always holds ------------------------------------------------------------------------------------

    @invariant()
    def generations_only_grow(self) -> None:
        assert self.group.generation_id >= self.generation
        self.generation = self.group.generation_id

    @invariant()
    def the_group_is_whole(self) -> None:
        group = self.group
        if group.state is GroupState.EMPTY:
            assert not group.members
        if group.state in (GroupState.STABLE, GroupState.COMPLETING_REBALANCE):
            assert group.leader_id in group.members
            assert group.protocol_name == "range"
        instances = [one.group_instance_id for one in group.members.values() if one.is_static]
        assert len(instances) == len(set(instances))

    @invariant()
    def nothing_parked_can_be_forgotten(self) -> None:
        """Whoever waits is known to the group, and something is scheduled that ends the waiting."""
        assert self.group.parked_requests == len(self.waiting)
        if self.waiting and not self.writes:
            assert any(self.group.deadline(key) is not None for key in self.timers)


GroupProtocol.TestCase.settings = settings(
    max_examples=examples(60),
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestGroupProtocol = GroupProtocol.TestCase
