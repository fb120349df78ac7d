"""The groups of one broker: requests find the coordinator of their group's partition, and share clock and memory."""

from __future__ import annotations

__all__ = ("GroupService", "GroupStatistics")

import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from types import TracebackType
from typing import Annotated, Final, Self

import anyio
import anyio.abc
import anyio.lowlevel

from penstock.account import Ledger, LedgerStatistics
from penstock.coordinator.answers import Answers
from penstock.coordinator.coordinators import Coordinators, Phase
from penstock.coordinator.group_commits import prepare_commit
from penstock.coordinator.group_coordinator import GroupCoordinator, GroupSurroundings, Timer
from penstock.coordinator.group_offsets import metadata_fit
from penstock.coordinator.group_types import (
    PROTOCOL_BYTES,
    CommittedOffset,
    GroupDescription,
    GroupListing,
    GroupSettings,
    GroupState,
    JoinRequest,
    JoinResult,
    LeaveMember,
    LeaveResult,
    OffsetAndMetadata,
    SyncRequest,
    SyncResult,
    TopicPartition,
)
from penstock.coordinator.placement import hash_steps, partition_for
from penstock.coordinator.timers import Timers
from penstock.coordinator.waiting import Clock, SystemClock
from penstock.errors import PenstockError, UnavailableError, again
from penstock.log.keyed_log import RecordLog
from penstock.spi.allocator import Allocator
from penstock.spi.statistics import counter, gauge
from penstock.wire.error_codes import ErrorCode
from penstock.work.pieces import PORTION, in_portions, pieces
from penstock.work.retry import Backoff, doubling

logger = logging.getLogger("penstock.coordinator")

_STRING_BYTES_MAX: Final = 32_767
#: Groups that are described in one go.
_DESCRIPTIONS: Final = 50
#: Groups of one request that are deleted at the same time: each has a task, and their tombstones go together.
_DELETIONS: Final = 50
#: States and types of groups to list that are read in one go.
_FILTERS: Final = 1_000
#: Groups whose offsets of a deleted topic are removed at the same time: as many have their turns in one iteration.
_FORGETTING: Final = 200
#: Records that may wait for the log, whatever the memory of groups is.
_WRITES_BYTES_MIN: Final = 2 * 1024 * 1024
#: Where memory is short, groups that have nothing are looked for no more often than this.
_MAKE_ROOM_PAUSE_MS: Final = 1_000
#: Pauses while the offsets of deleted topics can't be removed.
_FORGET_PAUSES_MS: Final = doubling(1_000, 60_000)
#: The last time that a record can hold.
_TIME_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatistics:
    """A snapshot of the coordinators."""

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
    active_partitions: Annotated[int, gauge("partitions", "Partitions whose groups are coordinated here.")]
    loading_partitions: Annotated[int, gauge("partitions", "Partitions whose groups are being loaded.")]
    damaged_partitions: Annotated[int, gauge("partitions", "Partitions that are damaged: no coordinator.")]


class GroupService:
    """The classic consumer groups of one broker. Use it as an async context manager, once.

    Inside of it, `lead` and `resign` say which partitions of the log are this broker's; each has a coordinator of its
    own, loaded in the background. Requests meanwhile are answered as `penstock.coordinator.coordinators` says. When
    the scope ends, every parked request is answered with NOT_COORDINATOR. No method raises for what a client did:
    errors are part of the results.
    """

    def __init__(
        self,
        log: RecordLog,
        settings: GroupSettings | None = None,
        clock: Clock | None = None,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        allocator: Allocator | None = None,
        has_topic: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """``has_topic`` says whether there is a topic of that name."""
        self._has_topic = has_topic
        self._settings = settings or GroupSettings()
        self._clock = clock or SystemClock()
        self._memory = Ledger("groups", self._settings.memory_bytes_max, allocator)
        self._writes = Ledger(
            "groups", max(_WRITES_BYTES_MIN, self._settings.memory_bytes_max // 4), allocator
        )
        self._timers: Timers[GroupCoordinator | None, Timer] = Timers(self._clock, self._fire, _is_needed)
        self._answers = Answers()
        surroundings = GroupSurroundings(
            self._settings, self._clock, new_id, self._memory, self._timers, self._answers, self._make_room
        )
        self._long_commits = anyio.Lock()
        #: Records of a long commit that aren't submitted yet: no more than may wait for the log.
        self._prepared = Ledger("groups", self._writes.limit_bytes, allocator)
        self._made_room_ms = -_MAKE_ROOM_PAUSE_MS
        #: When topics were deleted whose offsets aren't removed yet, by name: nobody is told of those any more.
        self._unforgotten: dict[str, int] = {}
        self._is_trying_again = False
        #: The same of deletions that are told now, with the time up to which offsets are removed for each.
        self._deletions: dict[int, dict[str, int]] = {}
        #: Topics that were made while groups were being loaded, and are there: what these say of such a name is of
        #: another topic. Just before that, by name.
        self._made_meanwhile: dict[str, int] = {}
        self._coordinators: Coordinators[GroupCoordinator] = Coordinators(
            log,
            self._settings.log,
            self._writes,
            lambda state_log: GroupCoordinator(state_log, surroundings),
            what="groups",
            load_concurrency=self._settings.load_concurrency,
            loaded=self._forget_what_is_gone,
        )
        self._task_group: anyio.abc.TaskGroup | None = None
        self._not_ready = ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
        self._is_draining = False

    async def __aenter__(self) -> Self:
        """Start, with no partition led yet.

        Raises, when the scope ends:
            NewerVersionError: a newer version wrote records of a group; the body was cancelled.
        """
        self._task_group = anyio.create_task_group()
        await self._task_group.__aenter__()
        self._coordinators.begin(self._task_group)
        self._not_ready = ErrorCode.NONE
        self._schedule_check(self._clock.now_ms())
        self._task_group.start_soon(self._timers.run)
        self._task_group.start_soon(self._answers.run)
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
        try:
            await self._coordinators.close()
        finally:
            self._answers.flush()
            self._task_group.cancel_scope.cancel()
            try:
                swallowed = await self._task_group.__aexit__(exc_type, exc, traceback)
            finally:
                self._memory.close()
                self._writes.close()
                self._prepared.close()
        if self._coordinators.fatal is not None:
            raise again(self._coordinators.fatal)
        return swallowed

    def lead(self, partition: int) -> None:
        """This broker leads `partition` of the log: load its groups in the background; harmless if it did before.

        A partition that was damaged is loaded anew.
        """
        if self._not_ready is ErrorCode.NONE:
            self._coordinators.lead(partition)

    def resign(self, partition: int) -> None:
        """This broker doesn't lead `partition` any more: its groups are forgotten, and whoever waits for them is told
        NOT_COORDINATOR.
        """
        if self._not_ready is ErrorCode.NONE:
            self._coordinators.resign(partition)

    async def wait_loaded(self) -> None:
        """Return when the groups of all partitions that are led are loaded, or known to be damaged.

        Raises:
            PenstockError: a partition can't be read now; that is tried again and again nevertheless.
        """
        await self._coordinators.wait_loaded()

    def drain(self) -> None:
        """Answer parked requests with NOT_COORDINATOR and park no more; commits and the rest still work.

        Called when the broker stops taking requests, so that no connection waits for a rebalance.
        """
        self._is_draining = True
        for coordinator in self._coordinators.active():
            coordinator.answer_parked()

    def statistics(self) -> GroupStatistics:
        """A snapshot of counts; costs time proportional to the number of groups."""
        groups = [
            entry.group
            for coordinator in self._coordinators.active()
            for entry in coordinator.entries.values()
        ]
        counters = self._coordinators.counters
        return GroupStatistics(
            groups=len(groups),
            groups_by_state=Counter(str(group.state) for group in groups),
            members=sum(len(group.members) for group in groups),
            offsets=sum(len(group.offsets) for group in groups),
            parked_requests=sum(group.parked_requests for group in groups),
            pending_writes=self._coordinators.pending_writes(),
            appends=counters.appends,
            append_failures=counters.failures,
            checkpoints=counters.checkpoints,
            memory=self._memory.statistics(),
            writes=self._writes.statistics(),
            active_partitions=self._coordinators.count(Phase.ACTIVE),
            loading_partitions=self._coordinators.count(Phase.LOADING),
            damaged_partitions=self._coordinators.count(Phase.FAILED),
        )

    # -- members ------------------------------------------------------------------------------------------

    async def join(self, group_id: str, request: JoinRequest) -> JoinResult:
        """JoinGroup: parked until the join phase ends."""
        found = await self._admit(group_id, may_park=True)
        if isinstance(found, GroupCoordinator):
            if PROTOCOL_BYTES * len(request.protocols) > self._settings.member_bytes_max:
                found = ErrorCode.GROUP_MAX_SIZE_REACHED  # there may be a million: nobody looks at each
            elif _is_too_long(request):
                found = ErrorCode.INVALID_REQUEST
        if isinstance(found, GroupCoordinator):
            return await found.join(group_id, request)
        return JoinResult(member_id=request.member_id, error=found)

    async def sync(self, group_id: str, request: SyncRequest) -> SyncResult:
        """SyncGroup: parked until the leader's assignment is durable."""
        found = await self._admit(group_id, may_park=True)
        if isinstance(found, GroupCoordinator):
            return await found.sync(group_id, request)
        return SyncResult(error=found)

    async def heartbeat(
        self, group_id: str, member_id: str, generation_id: int, group_instance_id: str | None = None
    ) -> ErrorCode:
        """Heartbeat."""
        found = await self._admit(group_id)
        if isinstance(found, GroupCoordinator):
            return found.heartbeat(group_id, member_id, generation_id, group_instance_id)
        # As Kafka: a member needn't rejoin because its coordinator is still loading.
        return ErrorCode.NONE if found is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS else found

    async def leave(
        self, group_id: str, members: Sequence[LeaveMember]
    ) -> tuple[ErrorCode, list[LeaveResult]]:
        """LeaveGroup: an error for the whole request, or one result per member."""
        found = await self._admit(group_id)
        if isinstance(found, GroupCoordinator):
            return await found.leave(group_id, members)
        return found, []

    # -- offsets ------------------------------------------------------------------------------------------

    def may_commit(self, offset: OffsetAndMetadata) -> bool:
        """Whether the offset's metadata are short enough for any group."""
        return metadata_fit(offset.metadata, self._settings.offset_metadata_bytes_max)

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

        COORDINATOR_NOT_AVAILABLE for those that aren't after ``write_timeout_ms``; they may become so later.
        """
        until_ms = self._clock.now_ms() + self._settings.write_timeout_ms
        while True:
            found = await self._admit(group_id, may_be_empty=True)
            if not isinstance(found, GroupCoordinator):
                return dict.fromkeys(offsets, found)
            async with self._preparing(len(offsets)) as take:
                commit = await prepare_commit(
                    group_id,
                    offsets,
                    retention_ms=retention_ms,
                    now_ms=self._clock.now_ms(),
                    settings=self._settings,
                    take=take,
                )
                # others had their turn: the partition may be another broker's, the group on its way out
                if self._find(group_id) is found and found.deletion_of(group_id) is None:
                    outcome = found.commit_offsets(
                        group_id,
                        commit,
                        member_id=member_id,
                        generation_id=generation_id,
                        group_instance_id=group_instance_id,
                    )
                    break
        return await outcome.wait_until(self._clock, until_ms)

    @asynccontextmanager
    async def _preparing(self, count: int) -> AsyncIterator[Callable[[int], bool]]:
        """While the records of a commit are made; gives what is told of their bytes.

        One long commit at a time: each record has the group's id, so they may take a thousand times what the
        request did.
        """
        if count <= PORTION:
            yield lambda size: True
            return
        async with self._long_commits:
            try:
                yield self._take_prepared
            finally:
                self._prepared.close()

    def _take_prepared(self, size: int) -> bool:
        if self._not_ready is ErrorCode.NONE:  # else the scope ends, and all memory is given back
            self._prepared.add(size)
        return self._prepared.used_bytes <= self._prepared.limit_bytes

    async def fetch_offsets(
        self, group_id: str, partitions: Iterable[TopicPartition] | None = None
    ) -> tuple[ErrorCode, dict[TopicPartition, CommittedOffset | None]]:
        """OffsetFetch: the asked partitions, None for those without an offset; or all that have one."""
        found = await self._admit(group_id, may_be_empty=True)
        if isinstance(found, GroupCoordinator):
            return ErrorCode.NONE, self._fetch(found, group_id, partitions)
        return found, {}

    def fetch_offsets_nowait(
        self, group_id: str, partitions: Iterable[TopicPartition] | None = None
    ) -> tuple[ErrorCode, dict[TopicPartition, CommittedOffset | None]] | None:
        """As ``fetch_offsets``, for one of many groups; None while the group is being deleted."""
        found = self._admit_nowait(group_id, may_be_empty=True)
        if isinstance(found, ErrorCode):
            return found, {}
        if isinstance(found, GroupCoordinator):
            return ErrorCode.NONE, self._fetch(found, group_id, partitions)
        return None

    def _fetch(
        self, coordinator: GroupCoordinator, group_id: str, partitions: Iterable[TopicPartition] | None
    ) -> dict[TopicPartition, CommittedOffset | None]:
        offsets = coordinator.fetch_offsets(group_id, partitions)
        if not self._unforgotten:
            return offsets
        known = {
            one: None
            if offset is not None and offset.commit_timestamp_ms <= self._unforgotten.get(one[0], -1)
            else offset
            for one, offset in offsets.items()
        }
        if partitions is None:
            return {one: offset for one, offset in known.items() if offset is not None}
        return known

    async def delete_offsets(
        self, group_id: str, partitions: Collection[TopicPartition]
    ) -> tuple[ErrorCode, dict[TopicPartition, ErrorCode]]:
        """OffsetDelete: an error for the whole request, or one per partition."""
        found = await self._admit(group_id)
        if isinstance(found, GroupCoordinator):
            return await found.delete_offsets(group_id, partitions)
        return found, {}

    async def on_topics_deleted(self, topics: Collection[str]) -> None:
        """The topics are gone: so are their offsets, in every group, also in those that are still being loaded.

        Raises:
            PenstockError: not all tombstones could be written, or not all groups be loaded. That is tried again, of
                what isn't newer than this call, until it works; or until the scope ends. The caller needn't.
        """
        deleted = dict.fromkeys(topics, self._clock.now_ms())
        gone = dict.fromkeys(topics, _TIME_MAX)
        self._withhold(deleted)
        for topic in deleted:
            self._made_meanwhile.pop(topic, None)  # all that is in the log by now goes, whose ever it was
        self._deletions[id(gone)] = gone
        try:
            await self._forget_topics(gone)
        except PenstockError:
            if self._not_ready is ErrorCode.NONE:
                self._forget_later(deleted)
            raise
        finally:
            del self._deletions[id(gone)]
        self._forgotten(deleted)

    def is_forgetting(self, topic: str) -> bool:
        """Whether offsets of a topic of that name, which was deleted, may still be in the log."""
        return topic in self._unforgotten

    def on_topic_created(self, topic: str) -> None:
        """The topic is there, and wasn't. Groups may know offsets of another of its name: its deletion is being told,
        or was before they were loaded.
        """
        before_ms = self._clock.now_ms() - 1
        for gone in self._deletions.values():
            if topic in gone:
                gone[topic] = before_ms
        if self._coordinators.count(Phase.LOADING):
            self._made_meanwhile[topic] = before_ms

    def _forget_what_is_gone(self, coordinator: GroupCoordinator) -> None:
        """Groups were loaded; topics may have been deleted while nobody wrote that their offsets are gone."""
        loaded, now_ms = coordinator.take_loaded_topics(), self._clock.now_ms()
        gone = {name: now_ms for name in loaded if not self._has_topic(name)}
        gone |= {name: at_ms for name, at_ms in self._made_meanwhile.items() if name in loaded}
        if not self._coordinators.count(Phase.LOADING):
            self._made_meanwhile.clear()
        if gone:
            assert self._task_group is not None, "groups are loaded inside the scope"
            self._withhold(gone)
            self._task_group.start_soon(self._forget_gone, gone)

    async def _forget_gone(self, topics: Mapping[str, int]) -> None:
        try:
            await self._forget_topics(topics)
        except PenstockError:
            if self._not_ready is ErrorCode.NONE:
                self._forget_later(topics)
        else:
            self._forgotten(topics)
            logger.info("offsets of topics that are gone were removed: topics=%d", len(topics))

    def _withhold(self, topics: Mapping[str, int]) -> None:
        """Tell nobody of offsets of these topics that are no newer."""
        for name, deleted_ms in topics.items():
            self._unforgotten[name] = max(deleted_ms, self._unforgotten.get(name, -1))

    def _forgotten(self, topics: Mapping[str, int]) -> None:
        for name, deleted_ms in topics.items():
            if self._unforgotten.get(name) == deleted_ms:  # else it was deleted once more meanwhile
                del self._unforgotten[name]

    async def _forget_topics(self, topics: Mapping[str, int]) -> None:
        await self._coordinators.wait_loaded()
        failures: list[int] = []
        places = anyio.Semaphore(_FORGETTING)

        async def forget(coordinator: GroupCoordinator) -> None:
            failures.append(await coordinator.forget_topics(topics, places))

        async with anyio.create_task_group() as tasks:
            for coordinator in self._coordinators.active():
                if coordinator.entries:
                    tasks.start_soon(forget, coordinator)
        failed = sum(failures)
        if failed:
            raise UnavailableError(
                f"offsets of deleted topics couldn't be removed, trying again later: groups={failed}"
            )

    def _forget_later(self, topics: Mapping[str, int]) -> None:
        """A topic that has such a name later would begin with the offsets of the one that is gone."""
        self._withhold(topics)
        if not self._is_trying_again:
            self._is_trying_again = True
            assert self._task_group is not None, "topics are deleted inside the scope"
            self._task_group.start_soon(self._forget_until_it_works)

    async def _forget_until_it_works(self) -> None:
        backoff = Backoff(_FORGET_PAUSES_MS)
        while self._unforgotten:
            await self._clock.wait(anyio.Event(), int(backoff.failed()))
            topics = dict(self._unforgotten)
            try:
                await self._forget_topics(topics)
            except PenstockError as error:
                level = logging.WARNING if backoff.is_news else logging.DEBUG
                logger.log(
                    level, "offsets of deleted topics are still there: topics=%d error=%s", len(topics), error
                )
                continue
            self._forgotten(topics)
        self._is_trying_again = False

    # -- administration -----------------------------------------------------------------------------------

    async def describe(self, group_ids: Sequence[str]) -> list[GroupDescription]:
        """DescribeGroups: unknown groups are Dead with GROUP_ID_NOT_FOUND (an error from version 6 on only)."""
        await anyio.lowlevel.checkpoint()
        return [
            await self._describe(group_id)
            async for group_id in in_portions(group_ids, _DESCRIPTIONS, more=hash_steps)
        ]

    async def _describe(self, group_id: str) -> GroupDescription:
        found = self._admit_nowait(group_id, may_be_empty=True)
        if isinstance(found, anyio.Event):
            found = await self._admit(group_id, may_be_empty=True)
        error = ErrorCode.GROUP_ID_NOT_FOUND
        if isinstance(found, GroupCoordinator):
            entry = found.entries.get(group_id)
            if entry is not None:
                return entry.group.describe()
        else:
            error = found
        return GroupDescription(
            group_id=group_id,
            error=error,
            state=GroupState.DEAD,
            protocol_type="",
            protocol_name="",
            members=(),
        )

    async def list_groups(
        self, states: Collection[str] = (), types: Collection[str] = ()
    ) -> tuple[ErrorCode, list[GroupListing]]:
        """ListGroups: all groups, or those in one of `states` and of one of `types`, in any case of letters.

        As in Kafka, a list would be taken for all there is, so there's none while groups are being loaded.
        """
        await anyio.lowlevel.checkpoint()
        if self._not_ready is not ErrorCode.NONE:
            return self._not_ready, []
        if self._coordinators.count(Phase.LOADING):
            return ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, []
        wanted_states = {state.lower() async for state in in_portions(states, _FILTERS)}
        wanted_types = {kind.lower() async for kind in in_portions(types, _FILTERS)}
        entries = [list(coordinator.entries.values()) for coordinator in self._coordinators.active()]
        return ErrorCode.NONE, [
            one
            async for entry in in_portions(chain.from_iterable(entries))
            # else it was deleted while others had their turn
            if (one := entry.group.listing()).state is not GroupState.DEAD
            and (not wanted_states or one.state.lower() in wanted_states)
            and (not wanted_types or one.group_type in wanted_types)
        ]

    async def delete_groups(self, group_ids: Sequence[str]) -> dict[str, ErrorCode]:
        """DeleteGroups: one error per group; a deleted group's offsets are gone with it."""
        results: dict[str, ErrorCode] = {}

        async def delete(group_id: str) -> None:
            found = await self._admit(group_id, may_be_empty=True)
            if isinstance(found, GroupCoordinator):
                results[group_id] = await found.delete_group(group_id)
            else:
                results[group_id] = found

        await anyio.lowlevel.checkpoint()
        there: list[str] = []
        async for group_id in in_portions(dict.fromkeys(group_ids), more=hash_steps):
            found = self._admit_nowait(group_id, may_be_empty=True)
            if isinstance(found, ErrorCode):
                results[group_id] = found
            elif isinstance(found, GroupCoordinator) and group_id not in found.entries:
                results[group_id] = ErrorCode.GROUP_ID_NOT_FOUND
            else:
                results[group_id] = ErrorCode.NONE  # its place among the results
                there.append(group_id)
        for chunk in pieces(there, _DELETIONS):
            async with anyio.create_task_group() as tasks:
                for group_id in chunk:
                    tasks.start_soon(delete, group_id)
        return results

    # -- inside -------------------------------------------------------------------------------------------

    async def _admit(
        self, group_id: str, *, may_be_empty: bool = False, may_park: bool = False
    ) -> GroupCoordinator | ErrorCode:
        """The group's coordinator, once a deletion of the group that is under way has ended; or the answer.

        COORDINATOR_NOT_AVAILABLE if such a deletion takes longer than ``write_timeout_ms``.
        """
        until_ms = self._clock.now_ms() + self._settings.write_timeout_ms
        await anyio.lowlevel.checkpoint()
        while True:
            found = self._admit_nowait(group_id, may_be_empty=may_be_empty)
            if isinstance(found, ErrorCode):
                return found
            if isinstance(found, GroupCoordinator):
                return ErrorCode.NOT_COORDINATOR if may_park and self._is_draining else found
            left_ms = until_ms - self._clock.now_ms()
            if left_ms <= 0:
                return ErrorCode.COORDINATOR_NOT_AVAILABLE
            await self._clock.wait(found, left_ms)

    def _admit_nowait(
        self, group_id: str, *, may_be_empty: bool = False
    ) -> GroupCoordinator | ErrorCode | anyio.Event:
        """As ``_admit``; or what says that a deletion of the group that is under way has ended."""
        if not group_id and not may_be_empty:
            return ErrorCode.INVALID_GROUP_ID
        if len(group_id.encode()) > _STRING_BYTES_MAX:
            return ErrorCode.INVALID_GROUP_ID
        found = self._find(group_id)
        if not isinstance(found, GroupCoordinator):
            return found
        return found.deletion_of(group_id) or found

    def _find(self, group_id: str) -> GroupCoordinator | ErrorCode:
        if self._not_ready is not ErrorCode.NONE:
            return self._not_ready
        return self._coordinators.find(partition_for(group_id, self._coordinators.partition_count))

    def coordinates(self, group_id: str) -> bool:
        """Whether this broker is the group's coordinator, or will be once it is loaded.

        False for groups in a partition of the log that is damaged, or that this broker doesn't lead.
        """
        if self._not_ready is not ErrorCode.NONE:
            return True
        found = self._find(group_id)
        return isinstance(found, GroupCoordinator) or found is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS

    def _schedule_check(self, now_ms: int) -> None:
        self._timers.schedule(None, None, now_ms + self._settings.offsets_retention_check_interval_ms)

    def _fire(self, coordinator: GroupCoordinator | None, timer: Timer, now_ms: int) -> None:
        if coordinator is not None and timer is not None:
            coordinator.fire(*timer, now_ms)
            return
        assert self._task_group is not None, "timers run inside the scope"
        self._task_group.start_soon(self._expire_offsets)
        self._schedule_check(now_ms)

    def _make_room(self) -> None:
        now_ms = self._clock.now_ms()
        if now_ms - self._made_room_ms < _MAKE_ROOM_PAUSE_MS:
            return  # there may be tens of thousands of groups, and many who ask
        self._made_room_ms = now_ms
        for coordinator in self._coordinators.active():
            coordinator.forget_nothings()

    async def _expire_offsets(self) -> None:
        for coordinator in self._coordinators.active():
            await coordinator.expire_offsets()


def _is_needed(coordinator: GroupCoordinator | None, timer: Timer) -> bool:
    return coordinator is None or timer is None or coordinator.needs(*timer)


def _is_too_long(request: JoinRequest) -> bool:
    """Whether a string of the request doesn't fit into a group metadata record."""
    names = [request.client_id, request.client_host, request.protocol_type, request.group_instance_id or ""]
    names += map(itemgetter(0), request.protocols)
    # A member id is made of one of these and a uuid.
    bytes_max = _STRING_BYTES_MAX - 64
    longest = max(map(len, names))
    # a character has four bytes at most: nearly all names are short enough, whatever they are
    return longest > bytes_max // 4 and any(len(name.encode()) > bytes_max for name in names)
