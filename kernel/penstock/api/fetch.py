"""Fetch v4-18: sessions, size limits, long polling.

``fetch_nowait`` answers what can be answered from the log cache at once, without a task; ``handle_fetch`` waits:
for data, for cold reads, for memory. A response holds one charge of the fetch memory, taken in one piece (two
would let fetches wait for each other), which the server releases when the bytes have left.
"""

from __future__ import annotations

__all__ = ("APIS", "fetch_nowait", "handle_fetch")

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import anyio

from penstock.api.authorization import each
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.errors import error_code_of, is_expected
from penstock.api.fetch_session import CachedPartition, Plan, SessionError
from penstock.api.parked import REST_S_MAX, ParkedFetch
from penstock.api.portions import Steps, at_once, by_portions
from penstock.errors import FullError, PenstockError
from penstock.log.partition import Partition, ReadResult
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.fetch import (
    AbortedTransaction,
    EpochEndOffset,
    FetchableTopicResponse,
    FetchRequest,
    FetchResponse,
    LeaderIdAndEpoch,
    NodeEndpoint,
    PartitionData,
)
from penstock.work.pieces import PORTION
from penstock.work.timer import Timer, call_after

_SESSIONS_VERSION: Final = 7
_TOPIC_IDS_VERSION: Final = 13
_LEADER_VERSION: Final = 16
#: Errors beside which a client is told of the leader (KIP-951), so that it needn't ask.
_OF_THE_LEADER: Final = frozenset({ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.FENCED_LEADER_EPOCH})
_READ_COMMITTED: Final = 1
#: Who fetches as a replica of the same broker is told of no transactions, whatever its isolation level.
_FUTURE_REPLICA: Final = -3
_NOT_FOUND: Final = frozenset({ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, ErrorCode.UNKNOWN_TOPIC_ID})
_OF_IDS: Final = frozenset({ErrorCode.UNKNOWN_TOPIC_ID, ErrorCode.INCONSISTENT_TOPIC_ID})
_ISOLATION_LEVELS: Final = frozenset({0, 1})
#: Cold reads of one fetch stop after so many bytes: better an early answer than a full one.
_COLD_BYTES: Final = 4 * 1024 * 1024
_NO_EPOCH: Final = -1
#: A fetch of more partitions looks at a portion of them at a time, then others get their turn.
SLICE_PARTITIONS = 64
_PORTION_PARTITIONS: Final = 50
#: What a fetch that waits keeps, and for each partition (by the sizes of the objects).
_PARKED_BYTES: Final = 4096
_WATCHED_BYTES: Final = 1024
#: Batches that are smaller than this on average are joined, up to so many bytes: on the way to the socket each buffer
#: is looked at several times, which takes longer than to copy it once.
_SMALL_BATCH_BYTES: Final = 512
_JOINED_BYTES_MAX: Final = 256 * 1024
#: Copies up to this size aren't on the account of memory, as short responses aren't.
_COPIED_BYTES_MIN: Final = 16 * 1024
#: So many fetches that an append wakes go on at once; of a crowd whoever uses much of the loop waits for its turn.
_WOKEN_AT_ONCE: Final = 16


class _Fetch:
    """One fetch request on its way."""

    __slots__ = (
        "_context",
        "_copied_bytes",
        "_denied",
        "_enough",
        "_has_told_leader",
        "_is_follower",
        "_tells_leader",
        "budget",
        "is_cold",
        "plan",
        "read_committed",
        "request",
        "started_s",
    )

    def __init__(self, request: FetchRequest, context: RequestContext, plan: Plan) -> None:
        self.request = request
        self.plan = plan
        self._context = context
        #: The topics that the client may not read.
        self._denied = context.denied(Operation.READ, ResourceType.TOPIC, self._topic_names())
        self.read_committed = (
            request.isolation_level == _READ_COMMITTED and request.replica_id != _FUTURE_REPLICA
        )
        self._is_follower = request.replica_id >= 0 or request.replica_state.replica_id >= 0
        self._tells_leader = context.version >= _LEADER_VERSION
        self._has_told_leader = False
        #: Of the response, what isn't in a cache or an object's piece, which are accounted for.
        self._copied_bytes = 0
        settings = context.api.settings
        self.started_s = context.api.clock()
        # a client that hasn't shown yet that it takes what it asks for gets less at a time
        allowance = context.api.logs.fetch_memory.allowance(context.client.outgoing)
        self.budget = max(0, min(request.max_bytes, settings.fetch_bytes_max, allowance))
        #: Something isn't in memory, so there is nothing to wait for but the store.
        self.is_cold = False
        #: Bytes that are enough to answer. Who wants more than it may have isn't kept waiting for it.
        self._enough = request.min_bytes if request.min_bytes <= self.budget else max(1, self.budget // 2)

    @property
    def is_large(self) -> bool:
        """Whether looking at all partitions takes too long to be done in one go."""
        return len(self.plan) > SLICE_PARTITIONS

    def finds_any(self) -> bool:
        """Whether one of the partitions is there, and may be read."""
        return any(self._find(cached)[0] is not None for cached in self.plan)

    def collect(self) -> _Collected:
        """Look at the partitions, reading what the log cache has, within the limits, up to the first that is cold."""
        found = _Collected()
        for cached in self.plan:
            self._collect(cached, found)
            if found._cold:
                self.is_cold = True
                break
        return found

    async def collect_fairly(self, watch: _Watch | None = None) -> _Collected:
        """Collect like ``collect``, with turns for others in between if there are many partitions.

        Each partition is watched by ``watch`` from then on.
        """
        found = _Collected()
        for number, cached in enumerate(self.plan, 1):
            self._collect(cached, found, watch)
            if number % min(SLICE_PARTITIONS, _PORTION_PARTITIONS) == 0:
                await anyio.lowlevel.checkpoint()
        return found

    def collect_again(self, changed: Iterable[CachedPartition], found: _Collected) -> None:
        """Collect anew what has changed: partitions that were notified."""
        for cached in changed:
            found.drop(cached)
            self._collect(cached, found)

    def _collect(self, cached: CachedPartition, found: _Collected, watch: _Watch | None = None) -> None:
        partition, error = self._find(cached)
        if partition is None:
            found.add(_Entry(cached, None, error))
            return
        if partition.unavailable is not None:
            found.add(_Entry(cached, None, ErrorCode.KAFKA_STORAGE_ERROR))
            return
        if self._is_follower:
            found.add(_Entry(cached, partition, _follower_error(cached, partition)))
            return
        if watch is not None:
            # before looking at it: what comes meanwhile mustn't be missed
            watch.add(cached, partition)
        if not (self.plan.incremental and _is_quiet(cached, partition)):
            found.add(self._read(cached, partition, found))

    def _read(self, cached: CachedPartition, partition: Partition, found: _Collected) -> _Entry:
        entry = _Entry(cached, partition, _fence(cached, partition))
        if entry.error:
            return entry
        entry.diverging = _divergence(cached, partition)
        if entry.diverging is not None:
            if entry.diverging.end_offset < 0:
                entry.error = ErrorCode.OFFSET_OUT_OF_RANGE
                entry.diverging = None
            return entry
        if self._is_below_zero(cached, found) and (
            partition.log_start_offset <= cached.fetch_offset < partition.high_watermark
        ):
            entry.error = ErrorCode.UNKNOWN_SERVER_ERROR  # as Kafka says it, where there is something to read
            return entry
        limit = self.limit(cached, found.size_bytes)
        try:
            result = partition.read_nowait(
                cached.fetch_offset,
                limit,
                read_committed=self.read_committed,
                at_least_one=found.size_bytes == 0,
            )
        except PenstockError as error:
            if not is_expected(error):
                raise
            entry.error = error_code_of(error)
            return entry
        entry.cold = result is None
        entry.result = result
        if result is not None and result.is_cut:
            entry.passed_over_bytes = max(0, limit - result.size_bytes)
        return entry

    def _is_below_zero(self, cached: CachedPartition, found: _Collected) -> bool:
        """The limit is less than nothing: that of the partition, or that of the request for the first of them."""
        is_first, found.is_begun = not found.is_begun, True
        return cached.partition_max_bytes < 0 or (self.request.max_bytes < 0 and is_first)

    def left_s(self) -> float:
        """How much longer its client waits."""
        settings = self._context.api.settings
        wait_s = min(self.request.max_wait_ms, settings.fetch_wait_ms_max) / 1000
        return wait_s - (self._context.api.clock() - self.started_s)

    def charged_bytes(self, found: _Collected) -> int:
        """What the answer takes of the memory for fetches: what was found, and what is to be read."""
        cold_bytes = min(_COLD_BYTES, sum([self.limit(entry.cached, 0) for entry in found.cold]))
        size_bytes = max(found.size_bytes, min(self.budget, found.size_bytes + cold_bytes))
        return size_bytes or len(found.cold[:1])  # the first batch comes whatever the limits

    def limit(self, cached: CachedPartition, taken_bytes: int) -> int:
        """Bytes of one partition that may go into the response."""
        return max(0, min(cached.partition_max_bytes, self.budget - taken_bytes))

    def _topic_names(self) -> Iterator[str]:
        for cached in self.plan:
            if isinstance(cached.topic, str):
                yield cached.topic
            else:
                topic = self._context.api.logs.topic_by_id(cached.topic)
                if topic is not None:
                    yield topic.name

    def _find(self, cached: CachedPartition) -> tuple[Partition | None, int]:
        logs = self._context.api.logs
        name = cached.topic
        unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        if isinstance(name, bytes):
            topic = logs.topic_by_id(name)
            if topic is None:
                return None, self._code_of_lost_topic(cached)
            name = cached.known_as = topic.name
        if name in self._denied:
            return None, ErrorCode.TOPIC_AUTHORIZATION_FAILED
        return logs.partition(name, cached.partition), unknown

    def _code_of_lost_topic(self, cached: CachedPartition) -> int:
        """The error of a topic id without a topic, as in Kafka's sessions (KIP-516).

        The id was never known, its topic is gone, or another topic has the name now, and such a partition.
        """
        if cached.known_as is None:
            return ErrorCode.UNKNOWN_TOPIC_ID
        other = self._context.api.logs.topics().get(cached.known_as)
        if other is not None and 0 <= cached.partition < other.partition_count:
            return ErrorCode.INCONSISTENT_TOPIC_ID
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION

    def is_due(self, found: _Collected) -> bool:
        """Whether to answer now rather than wait for more."""
        return (
            found.size_bytes + found.passed_over_bytes >= self._enough
            or found.must_answer
            or not len(self.plan)
            or self.request.max_wait_ms <= 0
            or self._context.api.draining.is_set
        )

    def respond(self, found: _Collected) -> FetchResponse:
        """The response with what was found; notes in the session what the client is told."""
        topics: list[FetchableTopicResponse] = []
        for entry in found.in_order():
            self._add_to_response(entry, topics)
        return self._response(topics)

    async def respond_fairly(self, found: _Collected) -> FetchResponse:
        """Build the response like ``respond``, and let others have turns in between if it is long."""
        topics: list[FetchableTopicResponse] = []
        for number, entry in enumerate(found.in_order(), 1):
            self._add_to_response(entry, topics)
            if number % min(SLICE_PARTITIONS, _PORTION_PARTITIONS) == 0:
                await anyio.lowlevel.checkpoint()
        # a session may have thousands, of which its short requests name none
        self._context.is_long = len(found.entries) > PORTION
        return self._response(topics)

    def _response(self, topics: list[FetchableTopicResponse]) -> FetchResponse:
        if self._copied_bytes > _COPIED_BYTES_MIN:
            self._context.charges.append(self._context.api.logs.charge_copy(self._copied_bytes))
        response = FetchResponse(session_id=self.plan.session_id, responses=topics)
        if self._has_told_leader and not self._is_follower:
            node = self._context.client.advertised
            response.node_endpoints = [
                NodeEndpoint(node_id=node.node_id, host=node.host, port=node.port, rack=node.rack)
            ]
        return response

    def _add_to_response(self, entry: _Entry, topics: list[FetchableTopicResponse]) -> None:
        """Add the partition, as in Kafka to the topic before or to one of its own."""
        cached = entry.cached
        offsets = entry.offsets()
        if not self.plan.wanted(
            cached,
            size_bytes=entry.size_bytes,
            failed=bool(entry.error) or entry.diverging is not None,
            offsets=offsets,
        ):
            return
        topic = topics[-1] if topics else None
        if isinstance(cached.topic, bytes):
            if topic is None or topic.topic_id != cached.topic:
                topic = FetchableTopicResponse(topic_id=cached.topic, partitions=[])
                topics.append(topic)
        elif topic is None or topic.topic != cached.topic:
            topic = FetchableTopicResponse(topic=cached.topic, partitions=[])
            topics.append(topic)
        data = entry.data(self.read_committed, offsets)
        if entry.partition is not None and entry.error in _OF_THE_LEADER and self._tells_leader:
            data.current_leader = LeaderIdAndEpoch(
                leader_id=self._context.client.advertised.node_id, leader_epoch=entry.partition.leader_epoch
            )
            self._has_told_leader = True
        self._copied_bytes += entry.copied_bytes
        topic.partitions.append(data)


class _Entry:
    """The outcome of a fetch for one partition."""

    __slots__ = (
        "cached",
        "cold",
        "copied_bytes",
        "diverging",
        "error",
        "partition",
        "passed_over_bytes",
        "result",
    )

    def __init__(self, cached: CachedPartition, partition: Partition | None, error: int) -> None:
        self.cached = cached
        self.partition = partition
        self.error = int(error)
        self.cold = False
        self.result: ReadResult | None = None
        self.diverging: EpochEndOffset | None = None
        #: Of the records, once they are in a response.
        self.copied_bytes = 0
        #: What is left of the limit, which the next batch is too large for: no wait would fill it.
        self.passed_over_bytes = 0

    @property
    def size_bytes(self) -> int:
        return 0 if self.result is None else self.result.size_bytes

    def offsets(self) -> tuple[int, int, int]:
        """High watermark, last stable offset and log start offset, where the answer has them."""
        partition = self.partition
        if partition is None or self.error:
            return -1, -1, -1
        return partition.high_watermark, partition.last_stable_offset, partition.log_start_offset

    def data(self, committed: bool, offsets: tuple[int, int, int]) -> PartitionData:
        # Kafka sends null where nothing committed was read, but for what it didn't even look for
        reads = committed and not self.error and self.diverging is None
        aborted: list[AbortedTransaction] | None = [] if reads or self.error in _NOT_FOUND else None
        if committed and self.result is not None and self.result.aborted:
            aborted = [
                AbortedTransaction(producer_id=one.producer_id, first_offset=one.first_offset)
                for one in self.result.aborted
            ]
        high_watermark, last_stable_offset, log_start_offset = offsets
        data = PartitionData(
            partition_index=self.cached.partition,
            error_code=self.error,
            high_watermark=high_watermark,
            last_stable_offset=last_stable_offset,
            log_start_offset=log_start_offset,
            aborted_transactions=aborted,
        )
        if self.diverging is not None:
            data.diverging_epoch = self.diverging
        if self.result is not None:
            records, size = self.result.records, self.result.size_bytes
            if len(records) > 1 and size < min(_JOINED_BYTES_MAX, len(records) * _SMALL_BATCH_BYTES):
                data.records = [b"".join(records)]
                self.copied_bytes = size
            else:
                data.records = list(records)
        return data


class _Collected:
    """The outcomes for partitions, in order, and their sum in bytes. Quiet partitions aren't in it."""

    __slots__ = ("_cold", "_lost", "entries", "is_begun", "must_answer", "passed_over_bytes", "size_bytes")

    def __init__(self) -> None:
        self.entries: dict[CachedPartition, _Entry] = {}
        self._cold: dict[CachedPartition, _Entry] = {}
        #: Those without a partition.
        self._lost: dict[CachedPartition, _Entry] = {}
        self.size_bytes = 0
        self.passed_over_bytes = 0
        self.must_answer = False
        #: A partition was looked at.
        self.is_begun = False

    def add(self, entry: _Entry) -> None:
        self.entries[entry.cached] = entry
        if entry.cold:
            self._cold[entry.cached] = entry
        elif entry.partition is None:
            self._lost[entry.cached] = entry
        self.size_bytes += entry.size_bytes
        self.passed_over_bytes += entry.passed_over_bytes
        if entry.error or entry.diverging is not None:
            self.must_answer = True

    def drop(self, cached: CachedPartition) -> None:
        entry = self.entries.pop(cached, None)
        if entry is not None:
            self._cold.pop(cached, None)
            self._lost.pop(cached, None)
            self.size_bytes -= entry.size_bytes
            self.passed_over_bytes -= entry.passed_over_bytes

    def in_order(self) -> Iterable[_Entry]:
        """The outcomes as Kafka answers them: ids that no topic has had come after what is there or was another, then
        what else isn't there, or may not be read.
        """
        if not self._lost:
            return self.entries.values()
        lost = self._lost.values()
        return chain(
            (
                one
                for one in self.entries.values()
                if one.partition is not None or one.error == ErrorCode.INCONSISTENT_TOPIC_ID
            ),
            (one for one in lost if one.error == ErrorCode.UNKNOWN_TOPIC_ID),
            (one for one in lost if one.error not in _OF_IDS),
        )

    @property
    def cold(self) -> list[_Entry]:
        """The outcomes whose records aren't in memory and are to be read from the store."""
        return list(self._cold.values())


def fetch_nowait(request: FetchRequest, context: RequestContext) -> FetchResponse | None:
    """The response, if there is nothing to wait for; else None, and ``handle_fetch`` goes on from there."""
    if _asked_partitions(request) > SLICE_PARTITIONS:
        return None
    try:
        plan = at_once(_begin(request, context))
    except SessionError as error:
        return FetchResponse(error_code=error.error_code)
    fetch = _Fetch(request, context, plan)
    if request.isolation_level not in _ISOLATION_LEVELS and fetch.finds_any():
        return _refused(request, by_id=context.version >= _TOPIC_IDS_VERSION)
    if fetch.is_large:
        context.state = fetch
        return None
    found = fetch.collect()
    if _may_answer(fetch, found, context):
        return fetch.respond(found)
    context.state = fetch
    return None


def _may_answer(fetch: _Fetch, found: _Collected, context: RequestContext) -> bool:
    """Whether there is nothing to wait for; then the memory of the answer is paid for."""
    if found.cold or not fetch.is_due(found):
        return False
    if found.size_bytes:
        try:
            context.charges.append(
                context.api.logs.fetch_memory.charge_nowait(found.size_bytes, context.client.outgoing)
            )
        except FullError:
            return False  # wait for memory, without holding what was found
    return True


def _begin(request: FetchRequest, context: RequestContext) -> Steps[Plan]:
    """Fold the request into its session."""
    with_session = context.version >= _SESSIONS_VERSION
    return context.api.fetch_sessions.begin_in_steps(
        request.session_id if with_session else 0,
        request.session_epoch if with_session else -1,
        request.topics,
        request.forgotten_topics_data,
        by_id=context.version >= _TOPIC_IDS_VERSION,
        now_s=context.api.clock(),
    )


def _asked_partitions(request: FetchRequest) -> int:
    """The number of partitions that the request names; a topic without any takes as long as one."""
    asked = sum([len(topic.partitions) or 1 for topic in request.topics])
    return asked + sum([len(topic.partitions) or 1 for topic in request.forgotten_topics_data])


def _refused(request: FetchRequest, *, by_id: bool) -> FetchResponse:
    """UNKNOWN_SERVER_ERROR for all: what Kafka makes of an isolation level that it doesn't know."""
    code = ErrorCode.UNKNOWN_SERVER_ERROR
    topics: list[FetchableTopicResponse] = []
    if not by_id:
        for topic in request.topics:
            partitions = [
                PartitionData(
                    partition_index=one.partition, error_code=code, high_watermark=-1, aborted_transactions=[]
                )
                for one in topic.partitions
            ]
            topics.append(FetchableTopicResponse(topic=topic.topic, partitions=partitions))
    return FetchResponse(error_code=code, session_id=request.session_id, responses=topics)


async def handle_fetch(request: FetchRequest, context: RequestContext) -> FetchResponse:
    """Fetch, waiting for up to ``max_wait_ms`` until ``min_bytes`` are there.

    Cancelled when the client goes away.
    """
    if context.state is None:
        try:
            plan = await by_portions(_begin(request, context), 1)
        except SessionError as error:
            return FetchResponse(error_code=error.error_code)
        begun = context.state = _Fetch(request, context, plan)
        if request.isolation_level not in _ISOLATION_LEVELS and begun.finds_any():
            return _refused(request, by_id=context.version >= _TOPIC_IDS_VERSION)
    fetch, context.state = context.state, None
    assert isinstance(fetch, _Fetch)
    if fetch.is_large:
        found = await fetch.collect_fairly()
        if _may_answer(fetch, found, context):
            return await fetch.respond_fairly(found)
        fetch.is_cold = bool(found.cold)
        del found
    if fetch.is_cold:
        await _let_appends_first(context)
        return await _deliver(fetch, context)
    woken = await _wait(fetch, context)
    # of several, those that told of something come last
    if woken is not None and len(woken.entries) == 1 and _may_answer(fetch, woken, context):
        return await fetch.respond_fairly(woken)
    del woken  # what waits for memory holds nothing
    return await _deliver(fetch, context)


async def _let_appends_first(context: RequestContext) -> None:
    """Let others go first: whoever has come, and then the log, which would write what they append behind this."""
    await anyio.lowlevel.checkpoint()
    if context.api.logs.appends_wait:
        await anyio.lowlevel.checkpoint()


async def _wait(fetch: _Fetch, context: RequestContext) -> _Collected | None:
    """Wait until there are enough bytes, or an error to answer, or the time is up, or it gives way to another.

    Returns what is in the partitions, if all of them were looked at since they last told of something.
    """
    api = context.api
    watch = _Watch()
    parked: ParkedFetch | None = None
    try:
        api.draining.add_listener(watch.wake)
        is_crowded = api.parked.is_crowded
        found = await fetch.collect_fairly(None if is_crowded else watch)
        left_s = fetch.left_s()
        if left_s > 0.0 and not found.cold and not fetch.is_due(found):
            if is_crowded:
                context.rest_s = min(REST_S_MAX, left_s)
                return None
            parked = _park(fetch, context, watch)
        watch.end_after(left_s)
        while not found.cold and not fetch.is_due(found) and not (parked and parked.gave_way):
            changed = await watch.wait()
            if watch.is_over:
                break
            if any(watched.partition.watchers > _WOKEN_AT_ONCE for watched in changed):
                await anyio.lowlevel.checkpoint()  # many go on at a time: whoever has to waits for a turn
            for watched in changed:
                watched.again()
            fetch.collect_again([watched.cached for watched in changed], found)
        if parked is not None and parked.gave_way:
            context.rest_s = min(REST_S_MAX, max(0.0, fetch.left_s()))
        return None if watch.has_news else found
    finally:
        if parked is not None:
            api.parked.leave(parked)
        api.draining.remove_listener(watch.wake)
        watch.end()


def _park(fetch: _Fetch, context: RequestContext, watch: _Watch) -> ParkedFetch:
    """Account for what is kept while the fetch waits, and for its request no longer."""
    fetch.request.topics, fetch.request.forgotten_topics_data = [], []  # they are in the plan
    context.release_charges()
    size_bytes = _PARKED_BYTES + len(fetch.plan) * _WATCHED_BYTES
    return context.api.parked.enter(context.client.outgoing.address, size_bytes, watch.wake)


class _Watched:
    """One partition of a fetch that waits; called when the partition has something new."""

    __slots__ = ("_watch", "cached", "partition")

    def __init__(self, watch: _Watch, cached: CachedPartition, partition: Partition) -> None:
        self._watch = watch
        self.cached = cached
        self.partition = partition

    def __call__(self) -> None:
        self._watch.notify(self)

    def again(self) -> None:
        """Be called when there is something new after what is looked at next."""
        self.partition.add_listener(self)


class _Watch:
    """Listens to partitions, and collects those that have changed, until ``end``."""

    __slots__ = ("_all", "_event", "_notified", "_timer", "is_over", "wake")

    def __init__(self) -> None:
        self._event = anyio.Event()
        #: No scope: it would cancel what waits, which costs as much as the rest of a fetch that finds nothing, and
        #: what is cancelled can't let others go first.
        self._timer: Timer | None = None
        #: The time is up.
        self.is_over = False
        self._notified: list[_Watched] = []
        self._all: list[_Watched] = []
        self.wake: Callable[[], None] = self._wake  # one object, to be found again by remove_listener

    def add(self, cached: CachedPartition, partition: Partition) -> None:
        """Listen to a partition."""
        watched = _Watched(self, cached, partition)
        self._all.append(watched)
        watched.again()

    def end_after(self, delay_s: float) -> None:
        """Have the time up after so long; now, if that is no time."""
        if delay_s > 0.0:
            self._timer = call_after(delay_s, self._time_is_up)
        else:
            self._time_is_up()

    def _time_is_up(self) -> None:
        self._timer, self.is_over = None, True
        self._event.set()

    def end(self) -> None:
        """Stop listening; what only the collector would free, hundreds of kilobytes a fetch, is let go."""
        for watched in self._all:
            watched.partition.remove_listener(watched)
        self._all.clear()
        self._notified.clear()
        if self._timer is not None:
            self._timer.cancel()
        del self.wake

    @property
    def has_news(self) -> bool:
        """Whether a partition has changed since ``wait`` returned last."""
        return bool(self._notified)

    def _wake(self) -> None:
        self._event.set()

    def notify(self, watched: _Watched) -> None:
        """A partition has something new; it says so once, until ``_Watched.again``."""
        self._notified.append(watched)
        self._event.set()

    async def wait(self) -> Sequence[_Watched]:
        """Return the partitions that changed, as soon as there are any.

        There are none if the time is up, or the broker drains.
        """
        await self._event.wait()
        self._event = anyio.Event()
        changed, self._notified = self._notified, []
        return changed


async def _deliver(fetch: _Fetch, context: RequestContext) -> FetchResponse:
    """Pay for the memory, then read, cold parts too. Each step takes as long as a Produce or two: these go first."""
    found = await fetch.collect_fairly()
    size_bytes = fetch.charged_bytes(found)
    if not size_bytes:
        return await fetch.respond_fairly(found)
    memory, outgoing = context.api.logs.fetch_memory, context.client.outgoing
    try:
        context.charges.append(memory.charge_nowait(size_bytes, outgoing))
        fetch.budget = size_bytes
    except FullError:
        del found  # what waits for memory holds nothing
        context.charges.append(await memory.charge(size_bytes, outgoing))
        fetch.budget = size_bytes
        found = await fetch.collect_fairly()
    committed = fetch.read_committed
    total = found.size_bytes
    cold = [(entry.partition, entry) for entry in found.cold if entry.partition is not None]
    if len(cold) > 1:
        await _let_appends_first(context)
        await context.api.logs.prepare_reads(
            [(one, entry.cached.fetch_offset, fetch.limit(entry.cached, total)) for one, entry in cold],
            fetch.budget - total,
        )
    for partition, entry in cold:
        limit = fetch.limit(entry.cached, total)
        if total and not limit:
            break
        await _let_appends_first(context)
        try:
            entry.result = await partition.read(
                entry.cached.fetch_offset, limit, read_committed=committed, at_least_one=total == 0
            )
        except PenstockError as error:
            if not is_expected(error):
                raise
            entry.error = error_code_of(error)
            continue
        if total and not entry.result.size_bytes:
            break  # what is there doesn't fit: don't load the blocks of all others to find that theirs don't either
        total += entry.result.size_bytes
    if cold:
        await _let_appends_first(context)
    return await fetch.respond_fairly(found)


def _follower_error(cached: CachedPartition, partition: Partition) -> int:
    """The error for another replica, as there is none: to Kafka, who knows the epoch knows of a later change."""
    known = (
        ErrorCode.NOT_LEADER_OR_FOLLOWER
        if cached.current_leader_epoch < 0
        else ErrorCode.UNKNOWN_LEADER_EPOCH
    )
    return _fence(cached, partition) or known


def _fence(cached: CachedPartition, partition: Partition) -> int:
    """KIP-320: a client with older metadata than ours, or newer, is told so."""
    if cached.current_leader_epoch <= _NO_EPOCH or cached.current_leader_epoch == partition.leader_epoch:
        return ErrorCode.NONE
    if cached.current_leader_epoch < partition.leader_epoch:
        return ErrorCode.FENCED_LEADER_EPOCH
    return ErrorCode.UNKNOWN_LEADER_EPOCH


def _is_quiet(cached: CachedPartition, partition: Partition) -> bool:
    """Whether there is nothing to say that the client wasn't told: the most frequent case, hence looked for first."""
    end = partition.high_watermark
    return (
        cached.fetch_offset == end
        and cached.told == (end, partition.last_stable_offset, partition.log_start_offset)
        and cached.last_fetched_epoch == _NO_EPOCH
        and _fence(cached, partition) == ErrorCode.NONE
    )


def _divergence(cached: CachedPartition, partition: Partition) -> EpochEndOffset | None:
    """The point where the client's log and ours part, if they do (KIP-595, Fetch v12)."""
    if cached.last_fetched_epoch <= _NO_EPOCH:
        return None
    epoch, end_offset = partition.end_offset_for_epoch(cached.last_fetched_epoch)
    if epoch < cached.last_fetched_epoch or end_offset < cached.fetch_offset:
        return EpochEndOffset(epoch=epoch, end_offset=end_offset)
    return None


APIS: Final = (
    Api(
        key=ApiKey.FETCH,
        # and CLUSTER_ACTION, of followers, which there are none here
        needs=(each(Operation.READ, ResourceType.TOPIC),),
        nowait=fetch_nowait,
        short_elements=360,  # the shortest are topics without partitions, which are only decoded
        element_bytes=1_024,
        handler=handle_fetch,
        cancellable=True,
        failure=one_code(FetchResponse, since=_SESSIONS_VERSION),
        note="sessions, long polling, topic ids",
    ),
)
