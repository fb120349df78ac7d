"""A group of the pure machine that a test leads through its life, with a clock to turn by hand."""

from __future__ import annotations

__all__ = (
    "DELAY",
    "JOIN_TIMER",
    "REBALANCE",
    "SESSION",
    "SETTINGS",
    "SYNC_TIMER",
    "Driver",
    "request",
    "subscription",
)

import itertools
import struct
from dataclasses import replace
from typing import Any

from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_offsets import committed_offset
from penstock.coordinator.group_types import (
    Complete,
    GroupMetadata,
    GroupSettings,
    GroupState,
    JoinRequest,
    JoinResult,
    LeaveMember,
    OffsetAndMetadata,
    Output,
    PersistGroup,
    SyncRequest,
    SyncResult,
    TimerKind,
)
from penstock.wire.error_codes import ErrorCode

SETTINGS = GroupSettings()
DELAY = SETTINGS.initial_rebalance_delay_ms
SESSION = 10_000
REBALANCE = 60_000
JOIN_TIMER = (TimerKind.JOIN, "")
SYNC_TIMER = (TimerKind.SYNC, "")


def subscription(*topics: str) -> bytes:
    body = struct.pack(">hi", 0, len(topics))
    return body + b"".join(struct.pack(">h", len(t)) + t.encode() for t in topics) + struct.pack(">i", -1)


def request(member_id: str = "", **changes: Any) -> JoinRequest:
    base = JoinRequest(
        member_id=member_id,
        client_id="client",
        client_host="/127.0.0.1",
        session_timeout_ms=SESSION,
        rebalance_timeout_ms=REBALANCE,
        protocol_type="consumer",
        protocols=(("range", subscription("t")),),
    )
    return replace(base, **changes)


class Driver:
    """Feeds a group and keeps what comes out; persisting succeeds at once unless `hold` is set."""

    def __init__(self, settings: GroupSettings = SETTINGS) -> None:
        self.now = 1_000_000
        self.group = Group("g", settings, self.now)
        self.answers: dict[object, Any] = {}
        self.held: list[PersistGroup] = []
        self.persisted: list[GroupMetadata] = []
        self.hold = False
        self.names = (f"m{index}" for index in itertools.count(1))
        self.waiters = itertools.count()

    def state(self) -> GroupState:
        return self.group.state

    def do(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Complete):
                assert output.waiter not in self.answers, "answered twice"
                self.answers[output.waiter] = output.result
            elif isinstance(output, PersistGroup):
                self.held.append(output)
        if not self.hold:
            self.settle()

    def settle(self, error: ErrorCode = ErrorCode.NONE) -> None:
        held, self.held = self.held, []
        for output in held:
            if error is ErrorCode.NONE:
                self.persisted.append(output.metadata)
            self.do(self.group.persisted(output.token, error, self.now))

    def join(self, asked: JoinRequest | None = None) -> int:
        waiter = next(self.waiters)
        self.do(self.group.join(asked or request(), waiter, next(self.names), self.now))
        return waiter

    def joined(self, waiter: int) -> JoinResult:
        result = self.answers[waiter]
        assert isinstance(result, JoinResult)
        return result

    def sync(self, member: str, assignments: dict[str, bytes] | None = None, **changes: Any) -> int:
        waiter = next(self.waiters)
        asked = SyncRequest(
            member_id=member, generation_id=self.group.generation_id, assignments=assignments or {}
        )
        self.do(self.group.sync(replace(asked, **changes), waiter, self.now))
        return waiter

    def synced(self, waiter: int) -> SyncResult:
        result = self.answers[waiter]
        assert isinstance(result, SyncResult)
        return result

    def heartbeat(self, member: str, generation: int | None = None, instance: str | None = None) -> ErrorCode:
        current = self.group.generation_id if generation is None else generation
        error, outputs = self.group.heartbeat(member, current, instance, self.now)
        self.do(outputs)
        return error

    def leave(self, *members: LeaveMember) -> list[ErrorCode]:
        results, outputs = self.group.leave(members, self.now)
        self.do(outputs)
        return [one.error for one in results]

    def commit(
        self,
        member: str = "",
        generation: int = -1,
        *,
        instance: str | None = None,
        offset: int = 5,
        metadata: str = "",
        retention: int | None = None,
        topic: str = "t",
    ) -> ErrorCode:
        asked = OffsetAndMetadata(offset, 3, metadata)
        committed = committed_offset(asked, retention, self.now, SETTINGS.offset_metadata_bytes_max)
        sets = [] if committed is None else [{(topic, 0): committed}]
        error, outputs = self.group.begin_commit(member, generation, instance, sets, self.now)
        self.do(outputs)
        if error is ErrorCode.NONE:
            for offsets in sets:
                self.group.settle_commit(offsets, durable=True)
        return error or (ErrorCode.OFFSET_METADATA_TOO_LARGE if committed is None else ErrorCode.NONE)

    def pass_ms(self, ms: int) -> None:
        """Let time pass, firing timers in order."""
        end = self.now + ms
        while True:
            timers = [(at, key) for key, at in self.group._deadlines.items() if at <= end]
            if not timers:
                break
            self.now, key = min(timers, key=lambda timer: timer[0])
            self.do(self.group.timer_fired(key, self.now))
        self.now = end

    def stable(self, count: int = 1, **changes: Any) -> list[str]:
        """A stable group of `count` members m1, m2... of which the first leads."""
        waiters = [self.join(request(**changes)) for _ in range(count)]
        self.pass_ms(DELAY * 2)
        members = [self.joined(waiter).member_id for waiter in waiters]
        for member in reversed(members):
            self.sync(member, {name: name.encode() for name in members})
        assert self.group.state is GroupState.STABLE
        return members
