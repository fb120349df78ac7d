"""The context of handlers: of one request, and of all requests of a broker.

Topics and partitions are the log layer's own: :mod:`penstock.log.manager`, ``topic``, ``partition``.
"""

from __future__ import annotations

__all__ = (
    "CHANGED_PARTITION_S",
    "CHANGE_S",
    "EVERYTHING",
    "ApiContext",
    "ApiSettings",
    "Client",
    "DataPlace",
    "Endpoint",
    "RequestContext",
    "Signal",
)

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from penstock.account import Ledger
from penstock.api.authorization import deciding, denied, operation_bits
from penstock.api.client import Client, Endpoint
from penstock.api.fetch_session import FetchSessions
from penstock.api.metadata_topics import MetadataFragments
from penstock.api.parked import Parked
from penstock.coordinator.group_service import GroupService
from penstock.log.manager import LogManager
from penstock.spi.allocator import Charge
from penstock.spi.authorizer import OPERATIONS, Authorizer, Operation, ResourceType

#: All operations on a resource of a type, as a bit field.
EVERYTHING: Final[Mapping[ResourceType, int]] = {
    resource: operation_bits(operations) for resource, operations in OPERATIONS.items()
}


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
    """Settings of the handlers, from the broker's configuration; the defaults are Kafka's."""

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


#: What a change of topics takes of the loop beside its request's handler: a few entries of metadata are written and
#: applied. Changes that come together share entries.
CHANGE_S: Final = 0.0015
#: What each of its partitions takes: their streams are opened or closed.
CHANGED_PARTITION_S: Final = 0.0001


def _unknown_capacity() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlace:
    """The place of the data, as DescribeLogDirs describes it."""

    #: For people, and for tools that group by it.
    location: str = ""
    #: (total, usable) bytes of the place, None where that can't be known. Blocks: call it in a thread.
    capacity: Callable[[], tuple[int, int] | None] = _unknown_capacity


@dataclass(slots=True, kw_only=True)
class ApiContext:
    """The state that all requests of a broker share."""

    logs: LogManager
    #: None only where nobody asks for groups.
    groups: GroupService | None
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
    #: Who decides what clients may do, for the gate and for handlers; None: everybody may do everything, and nobody
    #: is asked. One that permits everything is given up at once.
    authorizer: Authorizer | None = None
    #: What fetch sessions may take; None: as many as there may be.
    session_memory: Ledger | None = None
    fetch_sessions: FetchSessions = field(init=False)
    #: What fetches may keep while they wait for data; None: as much as they like.
    parked_memory: Ledger | None = None
    parked: Parked = field(init=False)
    #: Whether the log says that there are no transactions.
    told_of_transactions: bool = False
    #: Encoded topics, for Metadata.
    metadata_fragments: MetadataFragments = field(default_factory=MetadataFragments)

    def __post_init__(self) -> None:
        self.authorizer = deciding(self.authorizer)
        self.fetch_sessions = FetchSessions(
            self.settings.fetch_sessions_max, random.Random(), self.session_memory
        )
        self.parked = Parked(self.parked_memory or Ledger("parked", 2**63))


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """The context of one request."""

    api: ApiContext
    client: Client
    version: int
    #: Charges that the response holds; the server releases them when the bytes have left.
    charges: list[Charge] = field(default_factory=list)

    #: What the part of a handler that doesn't wait leaves to the part that does.
    state: object = None
    #: Its answer is a long one: it is encoded in a thread.
    is_long: bool = False
    #: Seconds that the broker's rooms computed for it in tasks of their own, by estimate: on its client's account.
    elsewhere_s: float = 0.0
    #: How long the client is to wait with its next request, as the handler says.
    rest_s: float = 0.0

    def changed_topics(self, partitions: int) -> None:
        """Note that topics with so many partitions are to be made, grown, configured or deleted for it, in one go."""
        self.elsewhere_s += (
            CHANGE_S / (1 + self.api.logs.changes_under_way) + partitions * CHANGED_PARTITION_S
        )

    @property
    def groups(self) -> GroupService:
        """The group coordinator, in the handlers of its APIs."""
        service = self.api.groups
        assert service is not None, "a broker has a group coordinator"
        return service

    def release_charges(self) -> None:
        """Give back what was charged so far; what the handler keeps it accounts for itself."""
        while self.charges:
            self.charges.pop().release()

    def allowed(
        self, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        """The names on which the client may do ``operation``: what a handler asks of the resources that
        a request lists, for all of them together. It leaves the others out, or answers them with
        ``authorization.DENIED``, as Kafka does in that API.
        """
        authorizer = self.api.authorizer
        if authorizer is None:
            return names
        return authorizer.allowed(self.client.requester, operation, resource, names)

    def denied(self, operation: Operation, resource: ResourceType, names: Iterable[str]) -> frozenset[str]:
        """The names on which the client may not do ``operation``: what is left out or refused, as with
        ``allowed``. Without an authorizer ``names`` isn't even gone through.
        """
        return denied(self.api.authorizer, self.client, operation, resource, names)

    def may(self, operation: Operation, resource: ResourceType, name: str) -> bool:
        """Whether the client may do ``operation`` on one resource."""
        return not self.denied(operation, resource, (name,))

    def authorized_operations(self, resource: ResourceType, name: str) -> int:
        """What the client may do with a resource, as a bit field (KIP-430)."""
        authorizer = self.api.authorizer
        if authorizer is None:
            return EVERYTHING[resource]
        requester = self.client.requester
        return operation_bits(
            {each for each in OPERATIONS[resource] if authorizer.allowed(requester, each, resource, (name,))}
        )
