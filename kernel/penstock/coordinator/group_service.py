"""The group coordinator: the one task around the group machines.

It owns what the machines don't have: the clock, the timers, the parked requests and the log. State is
write-through: a commit is visible and acknowledged, and an assignment is handed out, only once the log has it.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Self, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel

from penstock.account import Ledger, LedgerStatistics
from penstock.coordinator.group_log import GroupLog, LogRecord, PartitionWriter, partition_for
from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_member import GROUP_BYTES, member_bytes
from penstock.coordinator.group_offsets import OffsetBook
from penstock.coordinator.group_types import (
    CommittedOffset,
    Complete,
    GroupDescription,
    GroupListing,
    GroupMetadata,
    GroupSettings,
    GroupState,
    JoinRequest,
    JoinResult,
    LeaveMember,
    LeaveResult,
    OffsetAndMetadata,
    Output,
    PersistGroup,
    SetTimer,
    SyncRequest,
    SyncResult,
    TimerKey,
    TopicPartition,
)
from penstock.coordinator.records import (
    GROUP_KEY_VERSION,
    OFFSETS_LOG,
    GroupKey,
    OffsetKey,
    decode_group_value,
    decode_key,
    decode_offset_value,
    encode_group_key,
    encode_group_value,
    encode_offset_key,
    encode_offset_value,
)
from penstock.coordinator.timers import TimerHeap
from penstock.coordinator.waiting import Clock, SystemClock, Waiter
from penstock.errors import (
    ClosedError,
    FencedError,
    NewerVersionError,
    PenstockError,
    UnavailableError,
    again,
)
from penstock.spi.allocator import Allocator
from penstock.spi.statistics import counter, gauge
from penstock.wire.error_codes import ErrorCode

__all__ = ("GroupService", "GroupStatistics")

_LOGGER = logging.getLogger("penstock.coordinator")
_STRING_BYTES_MAX = 32_767
#: Records that may wait for the log, whatever the memory of groups is.
_WRITES_BYTES_MIN = 2 * 1024 * 1024
#: Timers that are held before those without use are looked for.
_TIMERS_MIN = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatistics:
    """A snapshot of the coordinator."""

    groups: Annotated[int, gauge("groups", "Groups.")]
    groups_by_state: Annotated[Mapping[str, int], gauge("groups", "Groups in each state.", by="state")]
    members: Annotated[int, gauge("members", "Members of all groups.")]
    offsets: Annotated[int, gauge("offsets", "Committed offsets of all groups.")]
    parked_requests: Annotated[int, gauge("requests", "Requests that wait for other members.")]
    pending_writes: Annotated[int, gauge("writes", "Changes that wait to be written.")]
    appends: Annotated[int, counter("appends", "Appends to the log.")]
    append_failures: Annotated[int, counter("writes", "Changes that could not be written.")]
    checkpoints: Annotated[int, counter("checkpoints", "Times that the live state was written anew.")]
    #: Memory of groups, members and offsets; and of records on their way to the log.
    memory: LedgerStatistics
    writes: LedgerStatistics
    damaged_partitions: Annotated[int, gauge("partitions", "Partitions that are damaged: no coordinator.")]


class _Entry:
    """A group with what the service needs to know about it."""

    __slots__ = ("charged_bytes", "deletion", "group", "partition", "value")

    def __init__(self, group: Group, partition: int) -> None:
        self.group = group
        self.partition = partition
        self.value: bytes | None = None  # the group metadata that is durable
        self.charged_bytes = 0
        self.deletion: anyio.Event | None = None  # set once the tombstones are durable or failed


#: A group's timer, or None: time to look for offsets that have expired.
_Timer: TypeAlias = tuple[_Entry, TimerKey] | None


class GroupService:
    """The classic consumer groups of one broker. Use it as an async context manager, once.

    Entering reads all group state from `log`. When the scope ends, every parked request is answered with
    NOT_COORDINATOR. No method raises for what a client did: errors are part of the results.
    """

    def __init__(
        self,
        log: GroupLog,
        settings: GroupSettings | None = None,
        clock: Clock | None = None,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        allocator: Allocator | None = None,
    ) -> None:
        self._log = log
        self._settings = settings or GroupSettings()
        self._clock = clock or SystemClock()
        self._new_id = new_id
        self._memory = Ledger("groups", self._settings.memory_bytes_max, allocator)
        self._writes = Ledger(
            "groups", max(_WRITES_BYTES_MIN, self._settings.memory_bytes_max // 4), allocator
        )
        self._entries: dict[str, _Entry] = {}
        self._partitions: list[dict[str, _Entry]] = [{} for _ in range(log.partition_count)]
        self._writers = [self._new_writer(partition) for partition in range(log.partition_count)]
        self._timers: TimerHeap[_Timer] = TimerHeap()
        self._timers_max = _TIMERS_MIN
        self._timer_moved = anyio.Event()
        self._timer_sleeps_until_ms: int | None = None
        self._task_group: anyio.abc.TaskGroup | None = None
        self._not_ready = ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
        self._is_draining = False
        #: Partitions whose records can't be read: their groups have no coordinator, and nothing is written.
        self._damaged: set[int] = set()

    async def __aenter__(self) -> Self:
        """Read the log and start. A partition that is damaged leaves only its own groups without coordinator.

        Raises:
            PenstockError: the log can't be read now, or another owner has it.
        """
        await self._load()
        self._task_group = anyio.create_task_group()
        await self._task_group.__aenter__()
        self._not_ready = ErrorCode.NONE
        self._task_group.start_soon(self._run_timers)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Answer everything that waits and stop; what is being appended may or may not land."""
        assert self._task_group is not None, "the scope was entered"
        self._not_ready = ErrorCode.NOT_COORDINATOR
        for entry in list(self._entries.values()):
            self._apply(entry, entry.group.close(ErrorCode.NOT_COORDINATOR))
        for writer in self._writers:
            writer.close()
        self._task_group.cancel_scope.cancel()
        try:
            return await self._task_group.__aexit__(exc_type, exc, traceback)
        finally:
            self._memory.close()
            self._writes.close()

    def drain(self) -> None:
        """Answer parked requests with NOT_COORDINATOR and park no more; commits and the rest still work.

        Called when the broker stops taking requests, so that no connection waits for a rebalance.
        """
        self._is_draining = True
        for entry in list(self._entries.values()):
            self._apply(entry, entry.group.answer_parked(ErrorCode.NOT_COORDINATOR))

    def statistics(self) -> GroupStatistics:
        """A snapshot of counts; costs time proportional to the number of groups."""
        groups = [entry.group for entry in self._entries.values()]
        return GroupStatistics(
            groups=len(groups),
            groups_by_state=Counter(str(group.state) for group in groups),
            members=sum(len(group.members) for group in groups),
            offsets=sum(len(group.offsets) for group in groups),
            parked_requests=sum(group.parked_requests for group in groups),
            pending_writes=sum(writer.pending for writer in self._writers),
            appends=sum(writer.appends for writer in self._writers),
            append_failures=sum(writer.failures for writer in self._writers),
            checkpoints=sum(writer.checkpoints for writer in self._writers),
            memory=self._memory.statistics(),
            writes=self._writes.statistics(),
            damaged_partitions=len(self._damaged),
        )

    # -- members ------------------------------------------------------------------------------------------

    async def join(self, group_id: str, request: JoinRequest) -> JoinResult:
        """JoinGroup: parked until the join phase ends. A caller that goes away leaves its member behind
        until the session expires, as in Kafka.
        """
        error = await self._admit(group_id, may_park=True)
        if error is ErrorCode.NONE and _is_too_long(request):
            error = ErrorCode.INVALID_REQUEST
        request_bytes = request.protocols_bytes
        if error is ErrorCode.NONE and request_bytes > self._settings.member_bytes_max:
            error = ErrorCode.GROUP_MAX_SIZE_REACHED
        if error is not ErrorCode.NONE:
            return JoinResult(member_id=request.member_id, error=error)
        entry = self._entries.get(group_id)
        if entry is None and request.member_id:
            return JoinResult(member_id=request.member_id, error=ErrorCode.UNKNOWN_MEMBER_ID)
        if not self._has_room_to_join(entry, request):
            return JoinResult(member_id=request.member_id, error=ErrorCode.COORDINATOR_NOT_AVAILABLE)
        if entry is None:
            entry = self._create(group_id)
        waiter = Waiter[JoinResult]()
        prefix = request.client_id if request.group_instance_id is None else request.group_instance_id
        new_member_id = f"{prefix}-{self._new_id()}"
        with self._parked(request_bytes):
            self._apply(entry, entry.group.join(request, waiter, new_member_id, self._clock.now_ms()))
            return await waiter.wait()

    def _has_room_to_join(self, entry: _Entry | None, request: JoinRequest) -> bool:
        """Whether a member with this request may be remembered; one that takes no more than before always may."""
        member = None if entry is None else entry.group.members.get(request.member_id)
        growth = member_bytes(request.member_id, request)
        if member is not None:
            growth -= member.size_bytes - len(member.assignment)
        elif entry is None:
            growth += GROUP_BYTES
        return growth <= 0 or self._memory.has_room(growth + request.protocols_bytes)

    @contextmanager
    def _parked(self, size: int) -> Iterator[None]:
        """Account for a request that may wait: its frame stays as long."""
        self._memory.add(size)
        try:
            yield
        finally:
            if self._not_ready is not ErrorCode.NOT_COORDINATOR:
                self._memory.add(-size)

    async def sync(self, group_id: str, request: SyncRequest) -> SyncResult:
        """SyncGroup: parked until the leader's assignment is durable."""
        error = await self._admit(group_id, may_park=True)
        if error is not ErrorCode.NONE:
            return SyncResult(error=error)
        entry = self._entries.get(group_id)
        if entry is None:
            return SyncResult(error=ErrorCode.UNKNOWN_MEMBER_ID)
        size = request.assignments_bytes
        # twice: as the request, and as what the members get
        if size and not self._memory.has_room(2 * size):
            return SyncResult(error=ErrorCode.COORDINATOR_NOT_AVAILABLE)
        waiter = Waiter[SyncResult]()
        with self._parked(size):
            self._apply(entry, entry.group.sync(request, waiter, self._clock.now_ms()))
            return await waiter.wait()

    async def heartbeat(
        self, group_id: str, member_id: str, generation_id: int, group_instance_id: str | None = None
    ) -> ErrorCode:
        """Heartbeat."""
        error = await self._admit(group_id)
        if error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS:
            # As Kafka: a member needn't rejoin because its coordinator is still loading.
            return ErrorCode.NONE
        if error is not ErrorCode.NONE:
            return error
        entry = self._entries.get(group_id)
        if entry is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        now_ms = self._clock.now_ms()
        error, outputs = entry.group.heartbeat(member_id, generation_id, group_instance_id, now_ms)
        self._apply(entry, outputs)
        return error

    async def leave(
        self, group_id: str, members: Sequence[LeaveMember]
    ) -> tuple[ErrorCode, list[LeaveResult]]:
        """LeaveGroup: an error for the whole request, or one result per member.

        When the last member leaves, this returns once the empty group is durable: a member that was told it has
        left must not hold up the group for a session timeout after a crash.
        """
        error = await self._admit(group_id)
        if error is not ErrorCode.NONE:
            return error, []
        entry = self._entries.get(group_id)
        if entry is None:
            unknown = ErrorCode.UNKNOWN_MEMBER_ID
            return ErrorCode.NONE, [LeaveResult(o.member_id, o.group_instance_id, unknown) for o in members]
        results, outputs = entry.group.leave(members, self._clock.now_ms())
        if any(isinstance(output, PersistGroup) for output in outputs):
            written = anyio.Event()  # or not, after an error: the member is gone all the same, here and now
            self._apply(entry, outputs, written.set)
            await written.wait()
        else:
            self._apply(entry, outputs)
        return ErrorCode.NONE, results

    # -- offsets ------------------------------------------------------------------------------------------

    async def commit_offsets(
        self,
        group_id: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        *,
        member_id: str = "",
        generation_id: int = -1,
        group_instance_id: str | None = None,
        retention_ms: int | None = None,
    ) -> dict[TopicPartition, ErrorCode]:
        """OffsetCommit: one error per partition, returned once the accepted offsets are durable.

        A group that doesn't exist is created by a simple consumer (generation -1); for a generation of a
        group that doesn't exist the error is GROUP_ID_NOT_FOUND (ILLEGAL_GENERATION before version 9).
        """
        error = await self._admit(group_id, may_be_empty=True)
        if error is not ErrorCode.NONE:
            return dict.fromkeys(offsets, error)
        entry = self._entries.get(group_id)
        if entry is None and generation_id >= 0:
            return dict.fromkeys(offsets, ErrorCode.GROUP_ID_NOT_FOUND)
        growth = GROUP_BYTES if entry is None else 0
        growth += (
            OffsetBook().growth_bytes(offsets) if entry is None else entry.group.offsets.growth_bytes(offsets)
        )
        if growth > 0 and not self._memory.has_room(growth):
            return dict.fromkeys(offsets, ErrorCode.COORDINATOR_NOT_AVAILABLE)
        if entry is None:
            entry = self._create(group_id)
        group = entry.group
        plan, outputs = group.plan_commit(
            member_id, generation_id, group_instance_id, offsets, retention_ms, self._clock.now_ms()
        )
        self._apply(entry, outputs)
        if plan.error is not ErrorCode.NONE:
            return dict.fromkeys(offsets, plan.error)
        result = dict(plan.refused)
        if plan.accepted:

            def settle(error: ErrorCode) -> None:
                group.settle_commit(plan.accepted, durable=error is ErrorCode.NONE)
                self._account(entry)
                self._drop_if_disposable(entry)

            records = [_offset_record(group_id, *item) for item in plan.accepted.items()]
            error = await self._append(entry, records, settle)
            result.update(dict.fromkeys(plan.accepted, error))
        return result

    async def fetch_offsets(
        self, group_id: str, partitions: Iterable[TopicPartition] | None = None
    ) -> tuple[ErrorCode, dict[TopicPartition, CommittedOffset | None]]:
        """OffsetFetch: the asked partitions, None for those without an offset; or all that have one.

        An unknown group has no offsets, which is no error.
        """
        error = await self._admit(group_id, may_be_empty=True)
        if error is not ErrorCode.NONE:
            return error, {}
        entry = self._entries.get(group_id)
        if partitions is None:
            return ErrorCode.NONE, {} if entry is None else dict(entry.group.offsets.items())
        if entry is None:
            return ErrorCode.NONE, dict.fromkeys(partitions)
        return ErrorCode.NONE, {partition: entry.group.offsets.get(partition) for partition in partitions}

    async def delete_offsets(
        self, group_id: str, partitions: Collection[TopicPartition]
    ) -> tuple[ErrorCode, dict[TopicPartition, ErrorCode]]:
        """OffsetDelete: an error for the whole request, or one per partition."""
        error = await self._admit(group_id)
        if error is not ErrorCode.NONE:
            return error, {}
        entry = self._entries.get(group_id)
        if entry is None:
            return ErrorCode.GROUP_ID_NOT_FOUND, {}
        group = entry.group
        error = group.delete_offsets_error()
        if error is not ErrorCode.NONE:
            return error, {}
        result = {
            one: ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC if group.is_subscribed_to(one[0]) else ErrorCode.NONE
            for one in partitions
        }
        known = set(group.offsets.known())
        gone = [one for one, refused in result.items() if refused is ErrorCode.NONE and one in known]
        if gone:
            error = await self._tombstone_offsets(entry, gone)
            result.update(dict.fromkeys(gone, error))
        return ErrorCode.NONE, result

    async def on_topics_deleted(self, topics: Collection[str]) -> None:
        """The topics are gone: so are their offsets, in every group.

        Raises:
            UnavailableError: not all tombstones could be written; call again.
        """
        errors: list[ErrorCode] = []

        async def forget(entry: _Entry, gone: Sequence[TopicPartition]) -> None:
            errors.append(await self._tombstone_offsets(entry, gone))

        async with anyio.create_task_group() as tasks:
            for entry in list(self._entries.values()):
                gone = entry.group.offsets.of_topics(topics)
                if gone:
                    tasks.start_soon(forget, entry, gone)
        failed = sum(error is not ErrorCode.NONE for error in errors)
        if failed:
            raise UnavailableError(
                f"offsets of deleted topics couldn't be removed, try again: groups={failed}"
            )

    # -- administration -----------------------------------------------------------------------------------

    async def describe(self, group_ids: Sequence[str]) -> list[GroupDescription]:
        """DescribeGroups: unknown groups are Dead with GROUP_ID_NOT_FOUND (an error from version 6 on only)."""
        descriptions = []
        for group_id in group_ids:
            error = await self._admit(group_id, may_be_empty=True)
            entry = self._entries.get(group_id)
            if error is ErrorCode.NONE and entry is not None:
                descriptions.append(entry.group.describe())
                continue
            descriptions.append(
                GroupDescription(
                    group_id=group_id,
                    error=error or ErrorCode.GROUP_ID_NOT_FOUND,
                    state=GroupState.DEAD,
                    protocol_type="",
                    protocol_name="",
                    members=(),
                )
            )
        return descriptions

    async def list_groups(
        self, states: Collection[str] = (), types: Collection[str] = ()
    ) -> tuple[ErrorCode, list[GroupListing]]:
        """ListGroups: all groups, or those in one of `states` and of one of `types`, in any case of letters."""
        await anyio.lowlevel.checkpoint()
        if self._not_ready is not ErrorCode.NONE:
            return self._not_ready, []
        wanted_states = {state.lower() for state in states}
        wanted_types = {kind.lower() for kind in types}
        listings = (entry.group.listing() for entry in self._entries.values())
        return ErrorCode.NONE, [
            one
            for one in listings
            if (not wanted_states or one.state.lower() in wanted_states)
            and (not wanted_types or one.group_type in wanted_types)
        ]

    async def delete_groups(self, group_ids: Sequence[str]) -> dict[str, ErrorCode]:
        """DeleteGroups: one error per group; a deleted group's offsets are gone with it."""
        results: dict[str, ErrorCode] = {}

        async def delete(group_id: str) -> None:
            results[group_id] = await self._delete_group(group_id)

        async with anyio.create_task_group() as tasks:
            for group_id in dict.fromkeys(group_ids):
                tasks.start_soon(delete, group_id)
        return results

    # -- inside -------------------------------------------------------------------------------------------

    async def _admit(self, group_id: str, *, may_be_empty: bool = False, may_park: bool = False) -> ErrorCode:
        """Wait for a deletion of the group that is under way; refuse while not in charge."""
        await anyio.lowlevel.checkpoint()
        if not group_id and not may_be_empty:
            return ErrorCode.INVALID_GROUP_ID
        if len(group_id.encode()) > _STRING_BYTES_MAX:
            return ErrorCode.INVALID_GROUP_ID
        while (entry := self._entries.get(group_id)) is not None and entry.deletion is not None:
            await entry.deletion.wait()
        if may_park and self._is_draining:
            return ErrorCode.NOT_COORDINATOR
        if not self.coordinates(group_id):
            return ErrorCode.COORDINATOR_NOT_AVAILABLE
        return self._not_ready

    def coordinates(self, group_id: str) -> bool:
        """Whether the group's state could be read; False for groups in a damaged partition of the log."""
        return not self._damaged or partition_for(group_id, self._log.partition_count) not in self._damaged

    def _create(self, group_id: str) -> _Entry:
        partition = partition_for(group_id, self._log.partition_count)
        entry = _Entry(Group(group_id, self._settings, self._clock.now_ms()), partition)
        self._entries[group_id] = self._partitions[partition][group_id] = entry
        self._account(entry)
        return entry

    def _account(self, entry: _Entry) -> None:
        """Account for what the group takes now; nothing if it is forgotten."""
        size = 0
        if self._entries.get(entry.group.group_id) is entry:
            size = entry.group.size_bytes + (0 if entry.value is None else len(entry.value))
        if size != entry.charged_bytes:
            self._memory.add(size - entry.charged_bytes)
            entry.charged_bytes = size

    def _drop(self, entry: _Entry) -> None:
        group_id = entry.group.group_id
        if self._entries.get(group_id) is entry:
            del self._entries[group_id]
            del self._partitions[entry.partition][group_id]
            self._account(entry)

    def _drop_if_disposable(self, entry: _Entry) -> None:
        if entry.group.is_disposable and entry.value is None and entry.deletion is None:
            self._drop(entry)

    def _apply(
        self,
        entry: _Entry,
        outputs: Iterable[Output],
        persisted: Callable[[], None] | None = None,
    ) -> None:
        """Do what the machine says; `persisted` is called when the group is written, or couldn't be."""
        for output in outputs:
            if isinstance(output, SetTimer):
                self._schedule((entry, output.key), output.at_ms)
            elif isinstance(output, Complete):
                assert isinstance(output.waiter, Waiter), "waiters come from here"
                output.waiter.answer(output.result)
            else:
                self._persist(entry, output, persisted)
        self._drop_if_disposable(entry)
        self._account(entry)

    def _persist(self, entry: _Entry, output: PersistGroup, persisted: Callable[[], None] | None) -> None:
        value = encode_group_value(output.metadata)

        def done(error: ErrorCode) -> None:
            if error is ErrorCode.NONE:
                entry.value = value
            now_ms = self._clock.now_ms()
            self._apply(entry, entry.group.persisted(output.token, error, now_ms))
            if persisted is not None:
                persisted()

        key = encode_group_key(entry.group.group_id)
        self._writers[entry.partition].submit([(key, value)], done)

    async def _append(
        self, entry: _Entry, records: Sequence[LogRecord], settle: Callable[[ErrorCode], None]
    ) -> ErrorCode:
        """Append, then `settle` in log order whether or not the caller still waits, then answer the caller."""
        waiter = Waiter[ErrorCode]()

        def done(error: ErrorCode) -> None:
            settle(error)
            waiter.answer(error)

        self._writers[entry.partition].submit(records, done)
        return await waiter.wait()

    async def _tombstone_offsets(self, entry: _Entry, gone: Sequence[TopicPartition]) -> ErrorCode:
        group = entry.group

        def settle(error: ErrorCode) -> None:
            if error is ErrorCode.NONE:
                group.offsets.remove(gone)
                self._drop_if_disposable(entry)
                self._account(entry)

        records = [(encode_offset_key(group.group_id, *one), None) for one in gone]
        return await self._append(entry, records, settle)

    async def _delete_group(self, group_id: str) -> ErrorCode:
        error = await self._admit(group_id, may_be_empty=True)
        if error is not ErrorCode.NONE:
            return error
        entry = self._entries.get(group_id)
        if entry is None:
            return ErrorCode.GROUP_ID_NOT_FOUND
        error = entry.group.delete_error()
        if error is not ErrorCode.NONE:
            return error
        return await self._tombstone_group(entry)

    async def _tombstone_group(self, entry: _Entry) -> ErrorCode:
        """Delete an empty group; requests that arrive meanwhile wait for the outcome."""
        group = entry.group
        entry.deletion = deletion = anyio.Event()

        def settle(error: ErrorCode) -> None:
            entry.deletion = None
            if error is ErrorCode.NONE:
                self._drop(entry)
                self._apply(entry, group.close(ErrorCode.COORDINATOR_NOT_AVAILABLE))
            deletion.set()

        records: list[LogRecord] = [
            (encode_offset_key(group.group_id, *one), None) for one in group.offsets.known()
        ]
        records.append((encode_group_key(group.group_id), None))
        return await self._append(entry, records, settle)

    # -- time ---------------------------------------------------------------------------------------------

    def _schedule(self, timer: _Timer, at_ms: int) -> None:
        self._timers.schedule(timer, at_ms)
        if self._timers.held > self._timers_max:
            # of members that left long before their session would end
            self._timers.prune(self._is_needed)
            self._timers_max = max(_TIMERS_MIN, 2 * self._timers.held)
        if self._timer_sleeps_until_ms is None or at_ms < self._timer_sleeps_until_ms:
            self._timer_moved.set()

    def _is_needed(self, timer: _Timer) -> bool:
        if timer is None:
            return True
        entry, key = timer
        return self._entries.get(entry.group.group_id) is entry and entry.group.deadline(key) is not None

    async def _run_timers(self) -> None:
        self._schedule(None, self._clock.now_ms() + self._settings.offsets_retention_check_interval_ms)
        while True:
            now_ms = self._clock.now_ms()
            for timer in self._timers.pop_due(now_ms):
                self._fire(timer, now_ms)
            self._timer_moved = anyio.Event()
            self._timer_sleeps_until_ms = next_at_ms = self._timers.next_at_ms
            delay_ms = None if next_at_ms is None else max(next_at_ms - self._clock.now_ms(), 0)
            await self._clock.wait(self._timer_moved, delay_ms)

    def _fire(self, timer: _Timer, now_ms: int) -> None:
        if timer is None:
            assert self._task_group is not None, "timers run inside the scope"
            self._task_group.start_soon(self._expire_offsets)
            self._timers.schedule(None, now_ms + self._settings.offsets_retention_check_interval_ms)
            return
        entry, key = timer
        deadline_ms = entry.group.deadline(key)
        if deadline_ms is None:
            return
        if deadline_ms > now_ms:
            self._timers.schedule(timer, deadline_ms)
        else:
            self._apply(entry, entry.group.timer_fired(key, now_ms))

    async def _expire_offsets(self) -> None:
        """Remove what has outlived its retention, and groups that have nothing left (KIP-211)."""
        for entry in list(self._entries.values()):
            group = entry.group
            if entry.deletion is not None:
                continue
            gone = group.expired_offsets(self._clock.now_ms())
            if gone:
                error = await self._tombstone_offsets(entry, gone)
                _LOGGER.info(
                    "offsets expired: group_id=%r offsets=%d error=%s", group.group_id, len(gone), error.name
                )
            if group.is_abandoned and entry.deletion is None and self._entries.get(group.group_id) is entry:
                await self._tombstone_group(entry)

    # -- the log ------------------------------------------------------------------------------------------

    def _new_writer(self, partition: int) -> PartitionWriter:
        def spawn(run: Callable[[], Coroutine[object, object, None]]) -> None:
            assert self._task_group is not None, "nothing is written outside the scope"
            self._task_group.start_soon(run)

        return PartitionWriter(
            partition, self._log, self._settings, lambda: self._live_records(partition), spawn, self._writes
        )

    def _live_records(self, partition: int) -> Iterator[LogRecord]:
        """What a checkpoint of one partition holds: exactly what is durable and not deleted."""
        for entry in list(self._partitions[partition].values()):
            group_id = entry.group.group_id
            if entry.value is not None:
                yield encode_group_key(group_id), entry.value
            for item in entry.group.offsets.items():
                yield _offset_record(group_id, *item)

    async def _load(self) -> None:
        limiter = anyio.CapacityLimiter(self._settings.load_concurrency)

        async def load(partition: int) -> None:
            async with limiter:
                try:
                    await self._load_partition(partition)
                except (ClosedError, FencedError, NewerVersionError):
                    raise
                except PenstockError as error:
                    if error.retryable:
                        raise
                    self._damaged.add(partition)
                    _LOGGER.error(
                        "groups have no coordinator, their partition of the log is damaged; mend it, or give up its "
                        "damaged records, and start again: partition=%d of %d error=%s",
                        partition,
                        self._log.partition_count,
                        error,
                    )

        try:
            async with anyio.create_task_group() as tasks:
                for partition in range(self._log.partition_count):
                    tasks.start_soon(load, partition)
        except ExceptionGroup as group:
            raise again(group.exceptions[0]) from None

    async def _load_partition(self, partition: int) -> None:
        """Replay: the newest value of each key counts."""
        values: dict[bytes, bytes] = {}
        writer = self._writers[partition]
        async for key, value in self._log.read_all(partition):
            writer.loaded((key, value))
            if value is None:
                values.pop(key, None)
            else:
                values[key] = value
        now_ms = self._clock.now_ms()
        offsets: list[tuple[OffsetKey, CommittedOffset]] = []
        groups: list[tuple[str, bytes, GroupMetadata]] = []
        for key, value in values.items():
            decoded = decode_key(key)
            if isinstance(decoded, OffsetKey):
                offsets.append((decoded, decode_offset_value(value)))
            elif isinstance(decoded, GroupKey):
                groups.append((decoded.group_id, value, decode_group_value(value)))
            else:
                # left alone, it would be lost at the next checkpoint
                raise NewerVersionError.of(
                    "a record of a group",
                    f"log={OFFSETS_LOG} partition={partition}",
                    version=decoded.version,
                    known=GROUP_KEY_VERSION,
                )
        # all of it is readable: nothing is half loaded
        for offset_key, committed in offsets:
            entry = self._entries.get(offset_key.group_id) or self._create(offset_key.group_id)
            entry.group.offsets.restore((offset_key.topic, offset_key.partition), committed)
            self._account(entry)
        for group_id, value, metadata in groups:
            entry = self._entries.get(group_id) or self._create(group_id)
            entry.value = value
            self._apply(entry, entry.group.restore(metadata, now_ms))


def _offset_record(group_id: str, partition: TopicPartition, committed: CommittedOffset) -> LogRecord:
    return encode_offset_key(group_id, *partition), encode_offset_value(committed)


def _is_too_long(request: JoinRequest) -> bool:
    """Whether a string of the request doesn't fit into a group metadata record."""
    names = [request.client_id, request.client_host, request.protocol_type, request.group_instance_id or ""]
    names += [name for name, _ in request.protocols]
    # A member id is made of one of these and a uuid.
    return any(len(name.encode()) > _STRING_BYTES_MAX - 64 for name in names)
