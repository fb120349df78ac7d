"""The group coordinator of one partition of `__consumer_offsets`: group machines, and what they don't have.

It owns the parked requests of its groups and what the log says of them. State is write-through: a commit is visible
and acknowledged, and an assignment is handed out, only once the log has it.
"""

from __future__ import annotations

__all__ = ("CommitOutcome", "GroupCoordinator", "GroupSurroundings", "Timer")

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel

from penstock.account import Ledger
from penstock.coordinator.answers import Answers
from penstock.coordinator.group_commits import CommitSet, PreparedCommit
from penstock.coordinator.group_member import GROUP_BYTES, member_bytes
from penstock.coordinator.group_offsets import OffsetBook
from penstock.coordinator.group_refusals import session_error
from penstock.coordinator.group_table import Entry, GroupTable
from penstock.coordinator.group_types import (
    CommittedOffset,
    Complete,
    GroupSettings,
    JoinRequest,
    JoinResult,
    LeaveMember,
    LeaveResult,
    Output,
    PersistGroup,
    SetTimer,
    SyncRequest,
    SyncResult,
    TimerKey,
    TopicPartition,
)
from penstock.coordinator.records import (
    encode_group_key,
    encode_group_value,
    encode_long_group_value,
    encode_offset_key,
)
from penstock.coordinator.state_log import StateLog, cut_in_portions
from penstock.coordinator.timers import Timers
from penstock.coordinator.waiting import Clock, Waiter
from penstock.log.keyed_log import Record
from penstock.wire.error_codes import ErrorCode
from penstock.work.pieces import PORTION, in_portions, pieces

logger = logging.getLogger("penstock.coordinator")
#: Groups, or records of them, that are worked on before others get their turn: about a millisecond, since several
#: partitions load at a time.
_SLICE_GROUPS: Final = 20


class CommitOutcome:
    """What becomes of a commit."""

    __slots__ = ("errors", "writes")

    def __init__(self, errors: dict[TopicPartition, ErrorCode]) -> None:
        #: Of each partition, once it is known.
        self.errors = errors
        #: What is on its way to the log.
        self.writes: list[tuple[CommitSet, Waiter[ErrorCode]]] = []

    async def wait_until(self, clock: Clock, at_ms: int) -> dict[TopicPartition, ErrorCode]:
        """One error per partition, once what was accepted is durable.

        COORDINATOR_NOT_AVAILABLE for what isn't at ``at_ms``; it may become so later, and is visible then.
        """
        for one, waiter in self.writes:
            error = await waiter.wait_until(clock, at_ms)
            late = ErrorCode.COORDINATOR_NOT_AVAILABLE
            self.errors.update(dict.fromkeys(one.offsets, late if error is None else error))
        return self.errors


#: A timer of a group; None: of none, time to look for offsets that have expired.
Timer: TypeAlias = tuple[Entry, TimerKey] | None


@dataclass(frozen=True, slots=True)
class GroupSurroundings:
    """What the coordinators of all partitions share."""

    settings: GroupSettings
    clock: Clock
    #: For member ids; never the same twice.
    new_id: Callable[[], str]
    #: Of groups, members, offsets and parked requests.
    memory: Ledger
    timers: Timers[GroupCoordinator | None, Timer]
    answers: Answers
    #: Memory is short: forget, in all partitions, groups that stay only until it is looked what has expired.
    make_room: Callable[[], None]


class GroupCoordinator:
    """The groups of one partition. A :class:`penstock.coordinator.coordinators.Coordinator`.

    No method raises for what a client did: errors are part of the results.
    """

    def __init__(self, log: StateLog, surroundings: GroupSurroundings) -> None:
        self._log = log
        self._settings = surroundings.settings
        self._clock = surroundings.clock
        self._new_id = surroundings.new_id
        self._memory = surroundings.memory
        self._timers = surroundings.timers
        self._answers = surroundings.answers
        self._make_room = surroundings.make_room
        self._table = GroupTable(log.partition, self._settings, self._memory)
        #: What parked requests have of ``memory``.
        self._parked_bytes = 0
        self._is_closed = False

    # -- loading and unloading ----------------------------------------------------------------------------

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Replay one record of the log."""
        self._table.apply(key, value)

    def live(self) -> Iterator[Record]:
        """The records that give the groups as they are durable."""
        return self._table.live()

    async def start(self) -> None:
        """All records are replayed: sessions begin anew, so members have time to find the coordinator.

        Raises:
            CorruptError: a record isn't well-formed.
            NewerVersionError: a newer version wrote it.
        """
        now_ms = self._clock.now_ms()
        for number, built in enumerate(self._table.build(now_ms), 1):
            if built is not None:
                entry, metadata = built
                self._carry_out(entry, entry.group.restore(metadata, now_ms))
            if number % _SLICE_GROUPS == 0:
                await anyio.lowlevel.checkpoint()

    def take_loaded_topics(self) -> Collection[str]:
        """The topics that had an offset in the log when it was loaded; told once."""
        topics, self._table.built_topics = self._table.built_topics, set()
        return topics

    async def close(self) -> None:
        """Answer everybody who waits with NOT_COORDINATOR, and forget all groups and their timers."""
        self._is_closed = True
        self._timers.forget(self)
        self._park(-self._parked_bytes)
        self._table.drop_raw()
        for number, entry in enumerate(list(self._table.entries.values()), 1):
            self._carry_out(entry, entry.group.close(ErrorCode.NOT_COORDINATOR))
            self._table.drop(entry)
            if number % _SLICE_GROUPS == 0:
                await anyio.lowlevel.checkpoint()

    def answer_parked(self) -> None:
        """Answer parked requests with NOT_COORDINATOR; their members stay."""
        for entry in list(self._table.entries.values()):
            self._carry_out(entry, entry.group.answer_parked(ErrorCode.NOT_COORDINATOR))

    # -- look-ups -----------------------------------------------------------------------------------------

    @property
    def partition(self) -> int:
        """The partition of the log whose groups these are."""
        return self._log.partition

    @property
    def entries(self) -> Mapping[str, Entry]:
        """group id -> group, with what is known of it; a live view."""
        return self._table.entries

    def deletion_of(self, group_id: str) -> anyio.Event | None:
        """Set once the group is deleted or that failed; None if it isn't being deleted."""
        entry = self._table.entries.get(group_id)
        return None if entry is None else entry.deletion

    def _write_until_ms(self) -> int:
        """How long a request that comes now waits for what it writes."""
        return self._clock.now_ms() + self._settings.write_timeout_ms

    # -- members ------------------------------------------------------------------------------------------

    async def join(self, group_id: str, request: JoinRequest) -> JoinResult:
        """JoinGroup: parked until the join phase ends. A caller that goes away leaves its member behind
        until the session expires, as in Kafka.
        """
        request_bytes = request.protocols_bytes
        if request_bytes > self._settings.member_bytes_max:
            return JoinResult(member_id=request.member_id, error=ErrorCode.GROUP_MAX_SIZE_REACHED)
        entry = self._table.entries.get(group_id)
        if entry is None:
            error = session_error(request, self._settings)
            if error is ErrorCode.NONE and request.member_id:
                error = ErrorCode.UNKNOWN_MEMBER_ID
            if error is not ErrorCode.NONE:
                return JoinResult(member_id=request.member_id, error=error)
        if not self._has_room_to_join(entry, request):
            return JoinResult(member_id=request.member_id, error=ErrorCode.COORDINATOR_NOT_AVAILABLE)
        entry = self._table.entries.get(group_id) or self._create(group_id)
        waiter = Waiter[JoinResult]()
        prefix = request.client_id if request.group_instance_id is None else request.group_instance_id
        new_member_id = f"{prefix}-{self._new_id()}"
        with self._parked(request_bytes):
            self._carry_out(entry, entry.group.join(request, waiter, new_member_id, self._clock.now_ms()))
            return await waiter.wait()

    def _has_room_to_join(self, entry: Entry | None, request: JoinRequest) -> bool:
        """Whether a member with this request may be remembered; one that takes no more than before always may."""
        member = None if entry is None else entry.group.members.get(request.member_id)
        growth = member_bytes(request.member_id, request)
        if member is not None:
            growth -= member.size_bytes - len(member.assignment)
        elif entry is None:
            growth += GROUP_BYTES
        return growth <= 0 or self._has_room(growth + request.protocols_bytes)

    def _has_room(self, size: int) -> bool:
        """Whether so much may be remembered. Groups that have nothing may be forgotten for it."""
        if self._memory.used_bytes + size > self._memory.limit_bytes:
            self._make_room()
        return self._memory.has_room(size)

    @contextmanager
    def _parked(self, size: int) -> Iterator[None]:
        """Account for a request that may wait, of which so much stays as long."""
        self._park(size)
        try:
            yield
        finally:
            if not self._is_closed:  # else it's given back already, with all the others
                self._park(-size)

    def _park(self, size: int) -> None:
        self._memory.add(size)
        self._parked_bytes += size

    async def sync(self, group_id: str, request: SyncRequest) -> SyncResult:
        """SyncGroup: parked until the leader's assignment is durable."""
        entry = self._table.entries.get(group_id)
        if entry is None:
            return SyncResult(error=ErrorCode.UNKNOWN_MEMBER_ID)
        size = request.assignments_bytes
        # twice: as the request, and as what the members get
        if size and not self._memory.has_room(2 * size):
            return SyncResult(error=ErrorCode.COORDINATOR_NOT_AVAILABLE)
        waiter = Waiter[SyncResult]()
        with self._parked(size):
            self._carry_out(entry, entry.group.sync(request, waiter, self._clock.now_ms()))
            return await waiter.wait()

    def heartbeat(
        self, group_id: str, member_id: str, generation_id: int, group_instance_id: str | None
    ) -> ErrorCode:
        """Heartbeat."""
        entry = self._table.entries.get(group_id)
        if entry is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        now_ms = self._clock.now_ms()
        error, outputs = entry.group.heartbeat(member_id, generation_id, group_instance_id, now_ms)
        self._carry_out(entry, outputs)
        return error

    async def leave(
        self, group_id: str, members: Sequence[LeaveMember]
    ) -> tuple[ErrorCode, list[LeaveResult]]:
        """LeaveGroup: an error for the whole request, or one result per member.

        When the last member leaves, this returns once the empty group is durable: a member that was told it has
        left must not hold up the group for a session timeout after a crash. The members are gone at once all the
        same, also if it can't be written, whose error is answered, or not in time: COORDINATOR_NOT_AVAILABLE.
        """
        until_ms = self._write_until_ms()
        results: list[LeaveResult] = []
        for chunk in pieces(members, PORTION):
            if results:
                await anyio.lowlevel.checkpoint()
                if self._is_closed:
                    return ErrorCode.NOT_COORDINATOR, []
            entry = self._table.entries.get(group_id)
            if entry is None:
                unknown = ErrorCode.UNKNOWN_MEMBER_ID
                results += [LeaveResult(o.member_id, o.group_instance_id, unknown) for o in chunk]
                continue
            some, outputs = entry.group.leave(chunk, self._clock.now_ms())
            results += some
            written = None
            if any(isinstance(output, PersistGroup) for output in outputs):
                written = Waiter[ErrorCode]()
            self._carry_out(entry, outputs, None if written is None else written.answer)
            if written is not None:
                error = await written.wait_until(self._clock, until_ms)
                if error is not ErrorCode.NONE:
                    return ErrorCode.COORDINATOR_NOT_AVAILABLE if error is None else error, []
        return ErrorCode.NONE, results

    # -- offsets ------------------------------------------------------------------------------------------

    def commit_offsets(
        self,
        group_id: str,
        commit: PreparedCommit,
        *,
        member_id: str,
        generation_id: int,
        group_instance_id: str | None,
    ) -> CommitOutcome:
        """OffsetCommit: decide, and hand what is accepted to the log, which is made durable also if the caller goes
        away. In one step: so commits are in the log in the order in which the group allowed them.

        A group that doesn't exist is created by a simple consumer (generation -1) with the first offset that it
        commits, also a refused one, as in Kafka; for a generation of a group that doesn't exist the error is
        GROUP_ID_NOT_FOUND (ILLEGAL_GENERATION before version 9).
        """
        entry = self._table.entries.get(group_id)
        if entry is None and generation_id >= 0:
            return CommitOutcome(dict.fromkeys(commit.asked, ErrorCode.GROUP_ID_NOT_FOUND))
        if entry is None and not commit.asked:
            return CommitOutcome({})
        book = OffsetBook() if entry is None else entry.group.offsets
        growth = GROUP_BYTES if entry is None else 0
        growth += sum(book.growth_bytes(one.offsets) for one in commit.sets)
        if growth > 0 and not self._has_room(growth):
            return CommitOutcome(dict.fromkeys(commit.asked, ErrorCode.COORDINATOR_NOT_AVAILABLE))
        entry = self._table.entries.get(group_id) or self._create(group_id)
        error, outputs = entry.group.begin_commit(
            member_id,
            generation_id,
            group_instance_id,
            [one.offsets for one in commit.sets],
            self._clock.now_ms(),
        )
        self._carry_out(entry, outputs)
        if error is not ErrorCode.NONE:
            return CommitOutcome(dict.fromkeys(commit.asked, error))
        outcome = CommitOutcome(dict(commit.refused))
        for one in commit.sets:
            self._submit_offsets(entry, one, outcome)
        return outcome

    def _submit_offsets(self, entry: Entry, one: CommitSet, outcome: CommitOutcome) -> None:
        offsets, waiter = one.offsets, Waiter[ErrorCode]()

        def settle(error: ErrorCode) -> None:
            entry.group.settle_commit(offsets, durable=error is ErrorCode.NONE)
            self._table.account(entry)
            waiter.answer(error)

        outcome.writes.append((one, waiter))
        self._log.submit(one.records, settle)

    def fetch_offsets(
        self, group_id: str, partitions: Iterable[TopicPartition] | None
    ) -> dict[TopicPartition, CommittedOffset | None]:
        """OffsetFetch: the asked partitions, None for those without an offset; or all that have one.

        An unknown group has no offsets, which is no error.
        """
        entry = self._table.entries.get(group_id)
        if partitions is None:
            return {} if entry is None else dict(entry.group.offsets.items())
        if entry is None:
            return dict.fromkeys(partitions)
        return {partition: entry.group.offsets.get(partition) for partition in partitions}

    async def delete_offsets(
        self, group_id: str, partitions: Collection[TopicPartition]
    ) -> tuple[ErrorCode, dict[TopicPartition, ErrorCode]]:
        """OffsetDelete: an error for the whole request, or one per partition.

        COORDINATOR_NOT_AVAILABLE for all if it takes too long: some offsets are gone then, or will be.
        """
        until_ms = self._write_until_ms()
        entry = self._table.entries.get(group_id)
        if entry is None:
            return ErrorCode.GROUP_ID_NOT_FOUND, {}
        group = entry.group
        error = group.delete_offsets_error()
        if error is not ErrorCode.NONE:
            return error, {}
        result: dict[TopicPartition, ErrorCode] = {}
        for chunk in pieces(list(partitions), PORTION):
            if result:
                await anyio.lowlevel.checkpoint()
            for one in chunk:
                subscribed = group.is_subscribed_to(one[0])
                result[one] = ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC if subscribed else ErrorCode.NONE

        def still(partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
            going = []
            for one in group.offsets.known_of(partitions):
                if group.is_subscribed_to(one[0]):
                    result[one] = ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC  # since the others had their turns
                else:
                    going.append(one)
            return going

        gone = group.offsets.known_of(one for one, refused in result.items() if refused is ErrorCode.NONE)
        if gone:
            errors = await self._tombstone_offsets(entry, gone, still, until_ms)
            if errors is None:
                return ErrorCode.COORDINATOR_NOT_AVAILABLE, {}
            result.update(errors)
        return ErrorCode.NONE, result

    async def forget_topics(self, topics: Mapping[str, int], places: anyio.Semaphore) -> int:
        """The topics are gone: so are their offsets, but those that are newer than the time that each topic has, in
        ms. How many groups couldn't be told, for now.

        Each group takes one of ``places`` until its tombstones are durable.
        """
        failed = 0

        async def forget(entry: Entry, gone: Sequence[TopicPartition]) -> None:
            nonlocal failed
            try:
                errors = await self._tombstone_offsets(
                    entry, gone, partial(entry.group.offsets.of_topics, topics)
                )
                failed += any(error is not ErrorCode.NONE for error in (errors or {}).values())
            finally:
                places.release()

        async with anyio.create_task_group() as tasks:
            async for entry in in_portions(list(self._table.entries.values()), _SLICE_GROUPS):
                if entry.group.offsets.of_topics(topics):
                    await places.acquire()
                    # others had their turn
                    tasks.start_soon(forget, entry, entry.group.offsets.of_topics(topics))
        return failed

    async def expire_offsets(self) -> None:
        """Remove what has outlived its retention, and groups that have nothing left (KIP-211)."""
        for number, entry in enumerate(list(self._table.entries.values()), 1):
            if number % _SLICE_GROUPS == 0:
                await anyio.lowlevel.checkpoint()
            group = entry.group
            if entry.deletion is not None or self._table.entries.get(group.group_id) is not entry:
                continue
            now_ms = self._clock.now_ms()
            gone = group.expired_offsets(now_ms)
            if gone:
                errors = await self._tombstone_offsets(entry, gone, partial(group.expired_offsets, now_ms))
                failed = sum(error is not ErrorCode.NONE for error in (errors or {}).values())
                logger.info(
                    "offsets expired: group_id=%r offsets=%d failed=%d", group.group_id, len(gone), failed
                )
            is_current = self._table.entries.get(group.group_id) is entry
            if not group.is_abandoned or entry.deletion is not None or not is_current:
                continue
            if not self._forget_if_nothing(entry):
                await self._tombstone_group(entry)

    def forget_nothings(self) -> None:
        """Forget groups that have nothing, without waiting until it is looked what has expired."""
        for entry in list(self._table.entries.values()):
            self._forget_if_nothing(entry)

    def _forget_if_nothing(self, entry: Entry) -> bool:
        """Forget the group if nothing of it is in the log, or on its way there; whether that is so."""
        is_nothing = entry.value is None and entry.deletion is None and entry.group.is_disposable
        if is_nothing:
            self._table.drop(entry)
        return is_nothing

    async def _tombstone_offsets(
        self,
        entry: Entry,
        gone: Sequence[TopicPartition],
        still: Callable[[Sequence[TopicPartition]], Collection[TopicPartition]],
        until_ms: int | None = None,
    ) -> dict[TopicPartition, ErrorCode] | None:
        """Remove offsets; each counts by itself, so many go in several sets, in order. None if a set isn't durable
        at ``until_ms``: it may become so, those after it are left alone.

        Others have their turns while a set is made or appended. So ``still`` says of each set, when it is submitted,
        what of it is to go: a tombstone behind a newer commit would be the loss of that.
        """
        errors: dict[TopicPartition, ErrorCode] = {}
        left = iter(gone)
        records = ((encode_offset_key(entry.group.group_id, *one), None) for one in gone)
        async with aclosing(cut_in_portions(records, self._settings.append_bytes_max)) as chunks:
            async for chunk in chunks:
                offsets = list(islice(left, len(chunk)))
                if self._is_closed:
                    errors.update(dict.fromkeys([*offsets, *left], ErrorCode.NOT_COORDINATOR))
                    break
                if self._table.entries.get(entry.group.group_id) is not entry:
                    break  # deleted meanwhile; another group may have its id
                going = set(still(offsets))
                tombstones = [one for offset, one in zip(offsets, chunk, strict=True) if offset in going]
                if tombstones:
                    offsets = [offset for offset in offsets if offset in going]
                    error = await self._answer(self._remove(entry, offsets, tombstones), until_ms)
                    if error is None:
                        return None
                    errors.update(dict.fromkeys(offsets, error))
        return errors

    async def _answer(self, waiter: Waiter[ErrorCode], until_ms: int | None) -> ErrorCode | None:
        """What becomes of a write; None if that isn't known at ``until_ms``."""
        return await (waiter.wait() if until_ms is None else waiter.wait_until(self._clock, until_ms))

    def _remove(
        self, entry: Entry, offsets: Sequence[TopicPartition], tombstones: Sequence[Record]
    ) -> Waiter[ErrorCode]:
        """Append one set of tombstones; ``offsets`` are gone with it, and the group if its own is among them."""
        group = entry.group
        waiter = Waiter[ErrorCode]()

        def settle(error: ErrorCode) -> None:
            if error is ErrorCode.NONE:
                group.offsets.remove(offsets)
                if len(tombstones) > len(offsets):
                    self._table.drop(entry)
                    self._carry_out(entry, group.close(ErrorCode.COORDINATOR_NOT_AVAILABLE))
                else:
                    self._table.account(entry)
            waiter.answer(error)

        self._log.submit(tombstones, settle)
        return waiter

    # -- deletion -----------------------------------------------------------------------------------------

    async def delete_group(self, group_id: str) -> ErrorCode:
        """DeleteGroups, of one; a deleted group's offsets are gone with it."""
        entry = self._table.entries.get(group_id)
        if entry is None:
            return ErrorCode.GROUP_ID_NOT_FOUND
        error = entry.group.delete_error()
        if error is not ErrorCode.NONE:
            return error
        return await self._tombstone_group(entry, self._write_until_ms())

    async def _tombstone_group(self, entry: Entry, until_ms: int | None = None) -> ErrorCode:
        """Delete an empty group; requests that arrive meanwhile wait for the outcome.

        Its own tombstone comes last, after those of all offsets: a group that is half deleted can be deleted again.
        COORDINATOR_NOT_AVAILABLE if what is being appended isn't durable at ``until_ms``; it may become so, and
        requests for the group wait until that is known.
        """
        group = entry.group
        known = group.offsets.known()
        left = iter(known)
        records: Iterator[Record] = (
            (
                encode_group_key(group.group_id) if one is None else encode_offset_key(group.group_id, *one),
                None,
            )
            for one in chain(known, [None])
        )
        entry.deletion = deletion = anyio.Event()
        under_way: Waiter[ErrorCode] | None = None

        def end() -> None:
            entry.deletion = None
            deletion.set()

        try:
            async with aclosing(cut_in_portions(records, self._settings.append_bytes_max)) as chunks:
                async for chunk in chunks:
                    under_way = self._remove(entry, list(islice(left, len(chunk))), chunk)
                    error = await self._answer(under_way, until_ms)
                    if error is not ErrorCode.NONE:
                        return ErrorCode.COORDINATOR_NOT_AVAILABLE if error is None else error
            return ErrorCode.NONE
        finally:
            if under_way is None:
                end()
            else:
                # what was submitted may land: whoever was let in before would be lost to it
                under_way.when_answered(end)

    # -- inside -------------------------------------------------------------------------------------------

    def fire(self, entry: Entry, key: TimerKey, now_ms: int) -> None:
        """A timer of a group wakes up; one that was moved is set again."""
        deadline_ms = entry.group.deadline(key)
        if deadline_ms is None:
            return
        if deadline_ms > now_ms:
            self._schedule(entry, key, deadline_ms)
        else:
            self._carry_out(entry, entry.group.timer_fired(key, now_ms))

    def needs(self, entry: Entry, key: TimerKey) -> bool:
        """Whether a timer of a group is of use."""
        is_current = self._table.entries.get(entry.group.group_id) is entry
        return is_current and entry.group.deadline(key) is not None

    def _schedule(self, entry: Entry, key: TimerKey, at_ms: int) -> None:
        if not self._is_closed:
            self._timers.schedule(self, (entry, key), at_ms)

    def _create(self, group_id: str) -> Entry:
        return self._table.create(group_id, self._clock.now_ms())

    def _carry_out(
        self,
        entry: Entry,
        outputs: Iterable[Output],
        persisted: Callable[[ErrorCode], None] | None = None,
    ) -> None:
        """Do what the machine says; `persisted` is called when the group is written, or with why it couldn't be."""
        answers: list[Complete] = []
        for output in outputs:
            if isinstance(output, SetTimer):
                self._schedule(entry, output.key, output.at_ms)
            elif isinstance(output, Complete):
                answers.append(output)
            else:
                self._persist(entry, output, persisted)
        if answers:
            self._answers.give(answers)
        self._table.account(entry)

    def _persist(
        self, entry: Entry, output: PersistGroup, persisted: Callable[[ErrorCode], None] | None
    ) -> None:
        key, metadata, value = encode_group_key(entry.group.group_id), output.metadata, b""

        async def make() -> list[Record]:
            nonlocal value
            value = await encode_long_group_value(metadata)
            return [(key, value)]

        def done(error: ErrorCode) -> None:
            if error is ErrorCode.NONE:
                entry.value = value
            now_ms = self._clock.now_ms()
            self._carry_out(entry, entry.group.persisted(output.token, error, now_ms))
            if persisted is not None:
                persisted(error)

        if len(metadata.members) > PORTION:
            self._log.submit_later(make, metadata.size_bytes, done)
        else:
            value = encode_group_value(metadata)
            self._log.submit([(key, value)], done)
