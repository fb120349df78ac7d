"""A cluster as a client sees it: brokers, topics and leaders, connections that are opened on use, and retries."""

from __future__ import annotations

__all__ = (
    "ClientSettings",
    "Cluster",
    "Node",
    "PartitionInfo",
    "TopicInfo",
    "parse_bootstrap_servers",
)

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import anyio.abc

from penstock.errors import (
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
    shown,
)
from penstock.wire import ApiKey, ErrorCode, Message
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest, FindCoordinatorResponse
from penstock.wire.messages.metadata import (
    MetadataRequest,
    MetadataRequestTopic,
    MetadataResponse,
    MetadataResponseTopic,
)
from penstock.work.retry import Backoff, doubling
from penstock_tools.client._scope import task_group
from penstock_tools.client.connection import Connection
from penstock_tools.client.errors import check, error_of, is_retriable, no_such

T = TypeVar("T")

#: A broker that creates topics by itself has created one by then; one that doesn't never says so.
_CREATION_S_MAX = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The addresses of a cluster, and timeouts."""

    bootstrap_servers: str = "127.0.0.1:9092"
    client_id: str = "penstock"
    connect_timeout_s: float = 10.0
    request_timeout_s: float = 30.0
    #: How long an operation is retried on errors that may pass.
    retry_timeout_s: float = 30.0
    retry_backoff_s: float = 0.05
    retry_backoff_max_s: float = 1.0
    #: How long the partitions and leaders of a topic are believed when nothing contradicts.
    metadata_age_max_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Node:
    """A broker's address."""

    node_id: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """One partition; ``leader`` is -1 while there is none."""

    partition: int
    leader: int
    leader_epoch: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """One topic; partitions in ascending order."""

    name: str
    topic_id: bytes
    is_internal: bool
    partitions: tuple[PartitionInfo, ...]

    def leader_of(self, partition: int) -> int:
        """Node id of the leader.

        Raises:
            NotFoundError: there is no such partition.
            UnavailableError: it has no leader now.
        """
        if not 0 <= partition < len(self.partitions):
            raise NotFoundError(
                f"topic has no such partition: topic={self.name} partition={partition} "
                f"partitions={len(self.partitions)}"
            )
        leader = self.partitions[partition].leader
        if leader < 0:
            raise UnavailableError(
                f"partition has no leader at the moment: topic={self.name} partition={partition}"
            )
        return leader


@dataclass(slots=True, eq=False)
class _Link:
    """The connection to one broker, with the lock that lets one task open it."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    connection: Connection | None = None


def parse_bootstrap_servers(text: str) -> list[tuple[str, int]]:
    """``host:port[,host:port...]``; the port is 9092 if left out, IPv6 addresses stand in brackets.

    Raises:
        InvalidRequestError: an entry is no address.
    """
    addresses = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            continue
        host, colon, port_text = entry.rpartition(":")
        if not colon or entry.endswith("]"):
            host, port_text = entry, "9092"
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not host or not port_text.isdecimal() or not 0 < int(port_text) < 65536:
            raise InvalidRequestError(f"not an address, write it like 127.0.0.1:9092: value={entry}")
        addresses.append((host, int(port_text)))
    if not addresses:
        raise InvalidRequestError(
            f"no bootstrap server is given, write it like 127.0.0.1:9092: value={text!r}"
        )
    return addresses


class Cluster:
    """Connections to a cluster's brokers. Open it with :meth:`open`, which owns all connections."""

    def __init__(
        self, settings: ClientSettings, tasks: anyio.abc.TaskGroup, jitter: Callable[[], float]
    ) -> None:
        self.settings = settings
        self._tasks = tasks
        self._jitter = jitter
        self._bootstrap = parse_bootstrap_servers(settings.bootstrap_servers)
        self._links: dict[tuple[str, int, str], _Link] = {}
        self._nodes: dict[int, Node] = {}
        self._topics: dict[str, TopicInfo] = {}
        self._topics_since_s = 0.0
        self._coordinators: dict[str, Node] = {}
        self.cluster_id: str | None = None
        self.controller_id = -1

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: ClientSettings | None = None, *, jitter: Callable[[], float] | None = None
    ) -> AsyncIterator[Cluster]:
        """A cluster; nothing is connected before it is used. ``jitter`` gives 0..1 and spreads retries.

        Raises:
            InvalidRequestError: ``bootstrap_servers`` is no list of addresses.
        """
        async with task_group() as tasks:
            yield cls(settings or ClientSettings(), tasks, jitter or random.Random().random)

    # -- connections -----------------------------------------------------------------------------------------

    async def node(self, node_id: int) -> Connection:
        """The connection to a broker by id, which an earlier :meth:`topics` told about; UnavailableError."""
        known = self._nodes.get(node_id)
        if known is None:
            raise UnavailableError(f"broker isn't known, its address may come later: node_id={node_id}")
        return await self._connection(known.host, known.port)

    async def any_node(self) -> Connection:
        """A connection to whatever broker answers: one in use, then the known, then the bootstrap servers.

        Raises:
            UnavailableError: none answers; the text is the last one's.
        """
        for link in self._links.values():
            if link.connection is not None and link.connection.is_usable:
                return link.connection
        places = [(node.host, node.port) for node in self._nodes.values()]
        error: UnavailableError | None = None
        for host, port in [*self._bootstrap, *(place for place in places if place not in self._bootstrap)]:
            try:
                return await self._connection(host, port)
            except UnavailableError as failure:
                error = kept(failure)
        assert error is not None
        raise again(error)

    async def controller(self) -> Connection:
        """The connection to the broker that changes topics."""
        if self.controller_id not in self._nodes:
            await self.topics([])
        if self.controller_id in self._nodes:
            return await self.node(self.controller_id)
        return await self.any_node()

    async def coordinator(self, group: str) -> Connection:
        """The connection to the broker that coordinates ``group``; one apart from that for data.

        A broker answers a connection's requests in order, so a long poll would hold heartbeats up.

        Raises:
            UnavailableError: it isn't known yet; retry.
        """
        place = self._coordinators.get(group)
        if place is None:
            answer = await self.ask(
                await self.any_node(), ApiKey.FIND_COORDINATOR, FindCoordinatorRequest(key=group)
            )
            assert isinstance(answer, FindCoordinatorResponse)
            check(answer.error_code, f"group has no coordinator group={group}", answer.error_message)
            place = Node(answer.node_id, answer.host, answer.port)
            self._coordinators[group] = place
        return await self._connection(place.host, place.port, "coordinator")

    def forget_coordinator(self, group: str) -> None:
        """Ask again where the coordinator is, on next use."""
        self._coordinators.pop(group, None)

    async def ask(self, connection: Connection, api_key: int, message: Message) -> Message:
        """One request with this client's timeout; see :meth:`Connection.request`."""
        return await connection.request(api_key, message, timeout_s=self.settings.request_timeout_s)

    async def _connection(self, host: str, port: int, purpose: str = "") -> Connection:
        link = self._links.setdefault((host, port, purpose), _Link())
        async with link.lock:
            if link.connection is None or not link.connection.is_usable:
                link.connection = await self._tasks.start(self._hold, host, port)
            assert link.connection is not None
            return link.connection

    async def _hold(
        self,
        host: str,
        port: int,
        *,
        task_status: anyio.abc.TaskStatus[Connection] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Own one connection until it breaks."""
        async with Connection.open(
            host, port, client_id=self.settings.client_id, timeout_s=self.settings.connect_timeout_s
        ) as connection:
            task_status.started(connection)
            await connection.wait_broken()

    # -- topics ----------------------------------------------------------------------------------------------

    async def topics(self, names: Sequence[str] | None = None, *, create: bool = False) -> list[TopicInfo]:
        """The metadata of the topics ``names``, asked for now, in their order; of all topics if None, by name.

        ``create`` lets the broker create those that are missing, if it is set up so; retries until they are there.

        Raises:
            NotFoundError: a topic isn't there.
            UnavailableError: no broker answers in time.
        """

        missing_since: float | None = None

        async def attempt() -> list[TopicInfo]:
            nonlocal missing_since
            wanted = None if names is None else [MetadataRequestTopic(name=name) for name in names]
            answer = await self.ask(
                await self.any_node(),
                ApiKey.METADATA,
                MetadataRequest(topics=wanted, allow_auto_topic_creation=create),
            )
            assert isinstance(answer, MetadataResponse)
            try:
                return self._take(answer, names, create)
            except _MissingTopicError as error:
                now_s = anyio.current_time()
                missing_since = now_s if missing_since is None else missing_since
                if now_s - missing_since < _CREATION_S_MAX:
                    raise
                raise NotFoundError(str(error)) from None

        return await self.retry(attempt)

    async def topic(self, name: str, *, create: bool = False) -> TopicInfo:
        """One topic, from what is known already if it is; raises as :meth:`topics`."""
        now_s = anyio.current_time()
        if now_s - self._topics_since_s > self.settings.metadata_age_max_s:
            self.forget_topics()
            self._topics_since_s = now_s
        return self._topics.get(name) or (await self.topics([name], create=create))[0]

    def forget_topics(self) -> None:
        """Ask again on next use: a leader moved, or partitions were added."""
        self._topics.clear()

    @property
    def nodes(self) -> list[Node]:
        """The brokers of the last answer, by id."""
        return sorted(self._nodes.values(), key=lambda node: node.node_id)

    def _take(self, answer: MetadataResponse, names: Sequence[str] | None, create: bool) -> list[TopicInfo]:
        self._nodes = {each.node_id: Node(each.node_id, each.host, each.port) for each in answer.brokers}
        self.cluster_id, self.controller_id = answer.cluster_id, answer.controller_id
        found = {}
        for topic in answer.topics:
            name = topic.name or ""
            self._topics.pop(name, None)
            if topic.error_code:
                if create and topic.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION:
                    raise _MissingTopicError(
                        f"there is no such topic, and the broker doesn't create it: topic={shown(name)}"
                    )
                if topic.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION:
                    raise no_such("topic", name)
                raise error_of(topic.error_code, f"topic can't be used topic={name}")
            found[name] = self._topics[name] = _topic_info(name, topic)
        if names is None:
            return [found[name] for name in sorted(found)]
        missing = [name for name in names if name not in found]
        if missing:
            raise UnavailableError(f"broker says nothing of the topic: topic={missing[0]}")
        return [found[name] for name in names]

    async def by_leader(
        self, partitions: Iterable[tuple[str, int]], *, or_replica: bool = False
    ) -> dict[int, list[tuple[str, int]]]:
        """``partitions`` by the node id of their leader; raises as :meth:`topics` and :meth:`TopicInfo.leader_of`.

        ``or_replica``: a partition without leader is given to the broker that has it.
        """
        wanted = sorted(set(partitions))
        missing = sorted({topic for topic, _ in wanted if topic not in self._topics})
        if missing:
            await self.topics(missing)
        leaders: dict[int, list[tuple[str, int]]] = {}
        for topic, partition in wanted:
            info = self._topics[topic]
            if or_replica and partition < len(info.partitions) and info.partitions[partition].leader < 0:
                node_id = next(iter(info.partitions[partition].replicas), -1)
            else:
                node_id = info.leader_of(partition)
            leaders.setdefault(node_id, []).append((topic, partition))
        return leaders

    # -- patience --------------------------------------------------------------------------------------------

    async def retry(self, attempt: Callable[[], Awaitable[T]], *, group: str | None = None) -> T:
        """Run ``attempt`` until it works, an error says that it never will, or ``retry_timeout_s`` is over.

        Between attempts: exponential backoff with jitter, and a fresh look for leaders, the controller and the
        coordinator of ``group``. The last error is raised. Only for requests that may be sent twice. While
        nothing was ever reached there is nothing to wait for: a first refused connection is raised at once.
        """
        deadline = anyio.current_time() + self.settings.retry_timeout_s
        pauses = doubling(self.settings.retry_backoff_s, self.settings.retry_backoff_max_s)
        backoff = Backoff(pauses, jitter=0.2, random=self._jitter)
        while True:
            try:
                return await attempt()
            except PenstockError as error:
                if not error.retryable or not self._nodes:
                    raise
                pause_s = backoff.failed()
                if anyio.current_time() + pause_s > deadline:
                    raise
            self.forget_topics()
            self.controller_id = -1
            if group is not None:
                self.forget_coordinator(group)
            await anyio.sleep(pause_s)


class _MissingTopicError(NotFoundError):
    """The topic may be about to be created, or never will be: retry for a while."""

    retryable = True


def _topic_info(name: str, topic: MetadataResponseTopic) -> TopicInfo:
    partitions = tuple(
        PartitionInfo(
            each.partition_index,
            # LEADER_NOT_AVAILABLE and its like; what else is wrong with it doesn't concern a client
            -1 if is_retriable(each.error_code) and each.leader_id < 0 else each.leader_id,
            each.leader_epoch,
            tuple(each.replica_nodes),
            tuple(each.isr_nodes),
        )
        for each in sorted(topic.partitions, key=lambda each: each.partition_index)
    )
    return TopicInfo(name, bytes(topic.topic_id), topic.is_internal, partitions)
