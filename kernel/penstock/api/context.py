"""What the API handlers stand on: the partition, the log manager, and what comes with one request.

These are Protocols: the log layer below conforms to them without importing this module.
All calls come from the event loop's thread.
"""

from __future__ import annotations

__all__ = (
    "EVERYTHING",
    "ApiContext",
    "ApiSettings",
    "AppendResult",
    "Client",
    "DataPlace",
    "Endpoint",
    "LogManager",
    "NewTopic",
    "Partition",
    "ProducerInfo",
    "ReadResult",
    "RequestContext",
    "Signal",
    "Topic",
)

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from penstock.account import Ledger
from penstock.api.authorization import OPERATIONS, Authorizer, Operation, ResourceType, operation_bits
from penstock.api.client import Client, Endpoint
from penstock.log.limiter import BytesLimiter
from penstock.spi.allocator import Allocation, Charge

#: All operations on a resource of a type, as a bit field.
EVERYTHING: Final[Mapping[ResourceType, int]] = {
    resource: operation_bits(operations) for resource, operations in OPERATIONS.items()
}


class AppendResult(Protocol):
    """The outcome of one append; what a partition's entry of a ProduceResponse says."""

    @property
    def error_code(self) -> int:
        """0, or the Kafka error code."""

    @property
    def error_message(self) -> str | None:
        """A sentence for the client (Produce v8+)."""

    @property
    def record_errors(self) -> Sequence[tuple[int, str | None]]:
        """(index in the batch, message) of each bad record (KIP-467)."""

    @property
    def base_offset(self) -> int:
        """Offset of the first record; -1 on error. A duplicate gets its original one."""

    @property
    def log_append_time_ms(self) -> int:
        """-1 for CreateTime."""

    @property
    def log_start_offset(self) -> int:
        """-1 on error."""


class ReadResult(Protocol):
    """Whole batches, as stored: what leaves for the socket unchanged."""

    @property
    def records(self) -> Sequence[memoryview]:
        """Pieces that follow each other; nobody writes to their memory while they are referenced."""

    @property
    def size_bytes(self) -> int:
        """The sum of their sizes."""


class ProducerInfo(Protocol):
    """What a partition remembers of an idempotent producer (KIP-98)."""

    @property
    def producer_id(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def last_sequence(self) -> int:
        """Of the last record; -1 when the producer has none in this epoch."""

    @property
    def last_write_ms(self) -> int:
        """When the broker took its last batch."""


class Partition(Protocol):
    """A partition that this broker leads."""

    @property
    def topic(self) -> str: ...
    @property
    def topic_id(self) -> bytes: ...
    @property
    def index(self) -> int: ...
    @property
    def leader_epoch(self) -> int: ...
    @property
    def log_start_offset(self) -> int: ...
    @property
    def high_watermark(self) -> int: ...
    @property
    def last_stable_offset(self) -> int: ...
    @property
    def unavailable(self) -> str | None:
        """Why nothing is served here (its data are damaged), or None. Only DeleteRecords works then."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its record batches, in objects and in the write-ahead log."""

    def append(
        self,
        records: memoryview,
        *,
        produce_version: int,
        now_ms: int,
        charge: Allocation | None,
        on_done: Callable[[AppendResult], None],
        is_prepared: bool = False,
    ) -> bool:
        """Validate, sequence, assign offsets in place, hand to the WAL. Synchronous: the call fixes the order.

        Returns whether the records were taken. When True and ``charge`` is given, the partition owns the
        memory from now on and releases ``charge`` some day; when False nothing was appended (a validation
        error, a duplicate) and ``charge`` stays the caller's. Without ``charge`` the records are in a scratch
        buffer: the partition copies what it keeps before it returns, whatever it returns.

        ``on_done`` is called exactly once, before the return or later from the event loop: with success only
        when the records are durable. It must not raise.

        Raises:
            FullError: there is no room now; nothing has changed and ``on_done`` is not called. Wait with
                ``LogManager.wait_for_room`` and try again.
            NotNowError: the batch takes longer to check, or to recompress for its topic; nothing has changed.
                Its ``wait`` returns the batch to append instead, with ``is_prepared``, and its memory, None if
                that is the one it has; or raises BatchError for a batch that can't be. (Small batches are
                recompressed at once: False is returned then, as their own memory isn't needed any more, and
                ``on_done`` is called as ever.)
        """

    def read_nowait(
        self, offset: int, bytes_max: int, *, read_committed: bool, at_least_one: bool
    ) -> ReadResult | None:
        """What the log cache has from ``offset`` on, below the high watermark (or last stable offset).

        The batch that contains ``offset`` comes whole. Batches past ``bytes_max`` are left out, but for the
        first one when ``at_least_one``. At the end: an empty result. None: not in the log cache, use ``read``.

        Raises:
            KafkaError: OFFSET_OUT_OF_RANGE, or the partition is closed.
        """

    async def read(
        self, offset: int, bytes_max: int, *, read_committed: bool, at_least_one: bool
    ) -> ReadResult:
        """The same from wherever the data is. Raises KafkaError as above, UnavailableError, CorruptError."""

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call ``listener()`` each time the high watermark moves, and once when the partition closes."""

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Stop calling it. Unknown listeners are ignored; may be called from within a listener."""

    async def offset_for_timestamp(self, timestamp: int) -> tuple[int, int, int] | None:
        """(offset, timestamp, leader epoch) of the first record whose timestamp is >= ``timestamp``."""

    async def max_timestamp_offset(self) -> tuple[int, int, int] | None:
        """(offset, timestamp, leader epoch) of the record with the largest timestamp; None when empty."""

    async def delete_records(self, offset: int) -> int:
        """Move the log start to ``offset``; returns the log start offset. Raises KafkaError beyond the HW."""

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        """(largest leader epoch <= ``epoch``, its end offset) (KIP-320).

        For an epoch before all that are known (``epoch``, the first one's start); (-1, -1) for one that is to come.
        """

    def leader_epoch_at(self, offset: int) -> int:
        """The leader epoch that a record at ``offset`` has, or would have."""

    def active_producers(self, now_ms: int) -> Sequence[ProducerInfo]:
        """The idempotent producers that haven't expired, by id."""


class Topic(Protocol):
    """A topic."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> bytes: ...
    @property
    def partition_count(self) -> int: ...
    @property
    def configs(self) -> Mapping[str, str]:
        """What differs from the defaults."""

    @property
    def internal(self) -> bool: ...
    @property
    def version(self) -> int:
        """Grows whenever this broker leads another partition of it, or another one becomes (un)available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTopic:
    """A topic to create; name and configs are validated already."""

    name: str
    partition_count: int
    configs: Mapping[str, str]


class LogManager(Protocol):
    """All topics and partitions of this broker."""

    @property
    def cluster_id(self) -> str: ...
    @property
    def node_id(self) -> int: ...
    @property
    def fetch_memory(self) -> BytesLimiter:
        """The account of what responses hold on their way to clients."""

    def topics(self) -> Mapping[str, Topic]:
        """All topics by name; may be a live view."""

    def topic_by_id(self, topic_id: bytes) -> Topic | None: ...

    def partition(self, name: str, index: int) -> Partition | None:
        """None when there is no such partition."""

    def is_changing(self, name: str) -> bool:
        """Whether a topic of that name is being created, grown, configured or deleted."""

    async def wait_changed(self, names: Collection[str]) -> None:
        """Return when none of the topics is being created, grown, configured or deleted. Cancellable."""

    async def create_topics(self, topics: Sequence[NewTopic]) -> Sequence[Topic | Exception]:
        """Create each topic and open its partitions, in one metadata commit where possible.

        One that is being created already is waited for, and exists then.

        One result per topic, in order: the topic, or a PenstockError (AlreadyExistsError...) of that topic.
        """

    async def delete_topics(self, names: Sequence[str]) -> Sequence[Exception | None]:
        """One result per name, in order: None, or a PenstockError of that topic (NotFoundError...)."""

    async def create_partitions(self, name: str, count: int) -> None:
        """Grow a topic to ``count`` partitions. Raises PenstockError; validated already."""

    async def change_configs(
        self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> None:
        """Replace all overrides of a topic by what ``change`` makes of the present ones: of those at its turn, not
        before. Raises PenstockError, and what ``change`` raises.
        """

    def config_default(self, key: str) -> str:
        """The value of a topic config where the topic has none: the broker's default, or Kafka's."""

    def config_value(self, name: str, key: str) -> str:
        """The effective value of a topic's config: its override, the broker's default, or Kafka's default."""

    async def wait_for_room(self) -> None:
        """Return when an append that met FullError is worth trying again. Cancellable."""

    async def next_producer_id(self) -> tuple[int, int]:
        """A new (producer id, epoch 0), durable as used."""


class Signal:
    """A flag that wakes whoever listens, once."""

    __slots__ = ("_listeners", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._listeners: set[Callable[[], None]] = set()

    def set(self) -> None:
        """Raise the flag and call the listeners."""
        self.is_set = True
        for listener in tuple(self._listeners):
            listener()

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have it called when the flag goes up; not called when it is up already."""
        self._listeners.add(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Forget it."""
        self._listeners.discard(listener)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """What the handlers are told by the broker's configuration; the defaults are Kafka's."""

    auto_create_topics: bool = True
    partitions_default: int = 1
    partitions_per_topic_max: int = 10_000
    #: Upper bound of one fetch response, whatever the client asks (``fetch.max.bytes``).
    fetch_bytes_max: int = 55 * 1024 * 1024
    #: How long a fetch may wait, whatever the client asks.
    fetch_wait_ms_max: int = 300_000
    #: Incremental fetch sessions kept (KIP-227).
    fetch_sessions_max: int = 1000
    #: A produce that finds no room waits this long before it is refused as retriable.
    produce_wait_ms_max: int = 30_000
    #: Static broker configs that DescribeConfigs shows, by Kafka's names.
    #: None where one isn't set.
    broker_configs: Mapping[str, str | None] = field(default_factory=dict)


def _unknown_capacity() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlace:
    """Where the data are, as DescribeLogDirs tells it."""

    #: For people, and for tools that group by it.
    location: str = ""
    #: (total, usable) bytes of the place, None where that can't be known. Blocks: call it in a thread.
    capacity: Callable[[], tuple[int, int] | None] = _unknown_capacity


@dataclass(slots=True, kw_only=True)
class ApiContext:
    """What all requests of a broker share."""

    logs: LogManager
    #: The group coordinator's service, as ``penstock.api.groups`` wants it.
    groups: Any
    settings: ApiSettings
    #: Monotonic seconds.
    clock: Callable[[], float]
    #: Milliseconds since 1970, for record timestamps.
    now_ms: Callable[[], int]
    #: Raised when the server drains: parked requests answer with what they have.
    draining: Signal = field(default_factory=Signal)
    #: What ApiVersions advertises: (api key, lowest, highest version); the dispatcher fills it in.
    api_versions: Sequence[tuple[int, int, int]] = ()
    data_place: DataPlace = field(default_factory=DataPlace)
    #: Who decides what clients may do; None: everybody may do everything, and nobody is asked.
    authorizer: Authorizer | None = None
    #: Fetch sessions; ``penstock.api.fetch`` makes them on first use.
    fetch_sessions: Any = None
    #: What they may take; None: as many as there may be.
    session_memory: Ledger | None = None
    #: Whether the log says that there are no transactions.
    told_of_transactions: bool = False
    #: Encoded topics; ``penstock.api.metadata`` makes it on first use.
    metadata_fragments: Any = None


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """What comes with one request."""

    api: ApiContext
    client: Client
    version: int
    #: Charges that the response holds; the server releases them when the bytes have left.
    charges: list[Charge] = field(default_factory=list)

    #: What the part of a handler that doesn't wait leaves to the part that does.
    state: Any = None

    def release_charges(self) -> None:
        """Give back what was charged so far; what the handler keeps it accounts for itself."""
        while self.charges:
            self.charges.pop().release()

    def allowed(
        self, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        """Those of ``names`` on which the client may do ``operation``: what a handler asks of the resources that
        a request lists, for all of them together. It leaves the others out, or answers them with
        ``authorization.DENIED``, as Kafka does in that API.
        """
        authorizer = self.api.authorizer
        if authorizer is None:
            return names
        return authorizer.allowed(self.client, operation, resource, names)

    def authorized_operations(self, resource: ResourceType, name: str) -> int:
        """What the client may do with a resource, as a bit field (KIP-430)."""
        authorizer = self.api.authorizer
        if authorizer is None:
            return EVERYTHING[resource]
        return operation_bits(
            {
                each
                for each in OPERATIONS[resource]
                if authorizer.allowed(self.client, each, resource, (name,))
            }
        )
