"""Incremental fetch sessions (KIP-227): what a client fetches, so that it need not say so each time. Pure.

A session is known by its id and epoch. ``FetchSessions.begin`` folds a request into its session and says what to
fetch; ``Plan.wanted`` then decides, partition by partition, what an incremental answer has to mention.
"""

from __future__ import annotations

__all__ = ("CachedPartition", "FetchSessions", "Plan", "SessionError")

import random
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from typing import Final, TypeAlias

from penstock.account import Ledger
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.fetch import FetchPartition, FetchTopic, ForgottenTopic
from penstock.work.pieces import pieces

#: Topic id from Fetch v13 on, topic name before.
TopicKey: TypeAlias = bytes | str

_SESSIONLESS: Final = 0
_EPOCH_INITIAL: Final = 0
_EPOCH_FINAL: Final = -1
_EPOCH_MAX: Final = 2**31 - 1
#: A session used within this time isn't pushed out by a new one (min.incremental.fetch.session.eviction.ms).
_EVICTION_S: Final = 120.0
#: What a session and a partition in it take beside the topic's name or id (measured: 0.8 and 0.5 KB).
_SESSION_BYTES: Final = 1024
_PARTITION_BYTES: Final = 512


class SessionError(Exception):
    """The session of a request can't be used: the whole response is ``error_code``."""

    def __init__(self, error_code: ErrorCode) -> None:
        super().__init__(error_code.message)
        self.error_code = error_code


class CachedPartition:
    """A partition that is fetched: what the client last asked, and what it was last told."""

    __slots__ = (
        "current_leader_epoch",
        "fetch_offset",
        "known_as",
        "last_fetched_epoch",
        "partition",
        "partition_max_bytes",
        "told",
        "topic",
    )

    def __init__(self, topic: TopicKey, asked: FetchPartition) -> None:
        self.topic = topic
        self.partition = asked.partition
        #: The name of the topic, once its id was found: what is asked for by id may go, and come back as another.
        self.known_as: str | None = None
        #: (high watermark, last stable offset, log start offset) of the last answer.
        self.told: tuple[int, int, int] | None = None
        self.update(asked)

    def update(self, asked: FetchPartition) -> None:
        """The client asks for it anew."""
        self.fetch_offset = asked.fetch_offset
        self.partition_max_bytes = asked.partition_max_bytes
        self.current_leader_epoch = asked.current_leader_epoch
        self.last_fetched_epoch = asked.last_fetched_epoch


_Key: TypeAlias = tuple[TopicKey, int]
#: Partitions that are folded in at a time.
_STEP_PARTITIONS: Final = 200


class _Session:
    __slots__ = ("by_id", "epoch", "id", "partitions", "size_bytes", "used_s")

    def __init__(
        self, session_id: int, by_id: bool, partitions: OrderedDict[_Key, CachedPartition], size_bytes: int
    ) -> None:
        self.id = session_id
        self.by_id = by_id
        #: The epoch that the client's next request has to carry.
        self.epoch = 1
        self.partitions = partitions
        self.size_bytes = size_bytes
        self.used_s = 0.0


class Plan:
    """The partitions that one request fetches, in order, and the kind of its response."""

    __slots__ = ("_partitions", "incremental", "session_id")

    def __init__(
        self, partitions: OrderedDict[_Key, CachedPartition], session: _Session | None, *, incremental: bool
    ) -> None:
        self._partitions = partitions
        #: Goes into the response; 0 for none.
        self.session_id = _SESSIONLESS if session is None else session.id
        self.incremental = incremental

    def __iter__(self) -> Iterator[CachedPartition]:
        return iter(tuple(self._partitions.values()))

    def __len__(self) -> int:
        return len(self._partitions)

    def wanted(
        self, partition: CachedPartition, *, size_bytes: int, failed: bool, offsets: tuple[int, int, int]
    ) -> bool:
        """Whether the answer mentions the partition, which is then noted as told.

        ``offsets`` are its high watermark, last stable offset and log start offset. A partition that got data
        goes to the end of the order, so that with small limits all get their turn. The first answer of a session
        tells of all, and the next one begins with what it told first, as in Kafka.
        """
        changed = failed or size_bytes > 0 or partition.told != offsets
        partition.told = None if failed else offsets
        if size_bytes > 0 if self.incremental else self.session_id != _SESSIONLESS:
            key = (partition.topic, partition.partition)
            if key in self._partitions:
                self._partitions.move_to_end(key)
        return changed or not self.incremental


class FetchSessions:
    """All sessions of a broker, the least recently used first.

    Where ``memory`` has no room, a new client stays without a session, and a session that grows too large ends, so
    that its client sends a full request the next time: both are served all the same.
    """

    def __init__(self, sessions_max: int, rng: random.Random, memory: Ledger | None = None) -> None:
        self._sessions_max = sessions_max
        # Random ids: a client that comes back after a restart must not meet somebody else's session.
        self._rng = rng
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._memory = memory or Ledger("sessions", 2**63)

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(
        self,
        session_id: int,
        epoch: int,
        topics: Iterable[FetchTopic],
        forgotten: Iterable[ForgottenTopic],
        *,
        by_id: bool,
        now_s: float,
    ) -> Plan:
        """Fold a request into its session. Raises SessionError."""
        steps = self.begin_in_steps(session_id, epoch, topics, forgotten, by_id=by_id, now_s=now_s)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                plan: Plan = end.value
                return plan

    def begin_in_steps(
        self,
        session_id: int,
        epoch: int,
        topics: Iterable[FetchTopic],
        forgotten: Iterable[ForgottenTopic],
        *,
        by_id: bool,
        now_s: float,
    ) -> Generator[None, None, Plan]:
        """``begin`` in steps of some hundred partitions, between which other requests may come."""
        if epoch in {_EPOCH_INITIAL, _EPOCH_FINAL}:
            if session_id != _SESSIONLESS:
                self._remove(session_id)
            partitions: OrderedDict[_Key, CachedPartition] = OrderedDict()
            size = _SESSION_BYTES + (yield from _merge(partitions, topics, by_id))
            session = None
            if epoch == _EPOCH_INITIAL:  # also one of nothing, to which partitions may come later
                session = self._create(by_id, partitions, size, now_s)
            return Plan(partitions, session, incremental=False)
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionError(ErrorCode.FETCH_SESSION_ID_NOT_FOUND)
        if session.epoch != epoch:
            raise SessionError(ErrorCode.INVALID_FETCH_SESSION_EPOCH)
        if session.by_id != by_id:
            raise SessionError(ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR)
        # now: who comes with the same epoch while this one is folded in is refused
        session.epoch = 1 if epoch == _EPOCH_MAX else epoch + 1
        session.used_s = now_s
        self._sessions.move_to_end(session_id)
        is_folded = False
        try:
            yield from self._fold(session, topics, forgotten)
            is_folded = True
        finally:
            # half of a request, whose client is gone, is on nobody's account; nor is what found no room
            if not is_folded and self._sessions.get(session_id) is session:
                self._remove(session_id)
        if not session.partitions:  # ended by forgetting all; what the request names is answered once more
            self._remove(session_id)
            named: OrderedDict[_Key, CachedPartition] = OrderedDict()
            yield from _merge(named, topics, by_id)
            return Plan(named, None, incremental=False)
        return Plan(session.partitions, session, incremental=True)

    def _fold(
        self, session: _Session, topics: Iterable[FetchTopic], forgotten: Iterable[ForgottenTopic]
    ) -> Generator[None, None, None]:
        """Add and forget what a request says, and account for it. Raises SessionError."""
        growth = yield from _merge(session.partitions, topics, session.by_id)
        # last, as in Kafka: what is named in both isn't fetched any more
        for topic in forgotten:
            key: TopicKey = topic.topic_id if session.by_id else topic.topic
            for chunk in pieces(topic.partitions, _STEP_PARTITIONS):
                for index in chunk:
                    if session.partitions.pop((key, index), None) is not None:
                        growth -= _PARTITION_BYTES + len(key)
                yield
        is_there = self._sessions.get(session.id) is session  # else it lost its place meanwhile
        if not is_there or (growth > 0 and not self._memory.has_room(growth)):
            raise SessionError(ErrorCode.FETCH_SESSION_ID_NOT_FOUND)
        self._memory.add(growth)
        session.size_bytes += growth

    def _create(
        self, by_id: bool, partitions: OrderedDict[_Key, CachedPartition], size: int, now_s: float
    ) -> _Session | None:
        if self._sessions_max <= 0 or size > self._memory.limit_bytes:
            return None
        while len(self._sessions) >= self._sessions_max or not self._memory.has_room(size):
            oldest = next(iter(self._sessions.values()), None)
            if oldest is None or now_s - oldest.used_s < _EVICTION_S:
                return None
            self._remove(oldest.id)
        session_id = self._rng.randrange(1, 2**31)
        while session_id in self._sessions:
            session_id = self._rng.randrange(1, 2**31)
        session = _Session(session_id, by_id, partitions, size)
        session.used_s = now_s
        self._sessions[session_id] = session
        self._memory.add(size)
        return session

    def _remove(self, session_id: int) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._memory.add(-session.size_bytes)


def _merge(
    partitions: OrderedDict[_Key, CachedPartition], topics: Iterable[FetchTopic], by_id: bool
) -> Generator[None, None, int]:
    """Add what is asked to ``partitions``; the bytes that they grew by."""
    growth = done = 0
    for topic in topics:
        key: TopicKey = bytes(topic.topic_id) if by_id else topic.topic
        for chunk in pieces(topic.partitions, _STEP_PARTITIONS):
            for asked in chunk:
                known = partitions.get((key, asked.partition))
                if known is None:
                    partitions[key, asked.partition] = CachedPartition(key, asked)
                    growth += _PARTITION_BYTES + len(key)
                else:
                    known.update(asked)
            done += len(chunk)
            if done >= _STEP_PARTITIONS:
                done = 0
                yield
        done += 1
        if done >= _STEP_PARTITIONS:
            done = 0
            yield
    return growth
