"""The surroundings of a clause about a strategy: brokers on the plugins that a configuration selects.

Each clause has a cluster of its own: an empty data directory, and keys of its own in the object store. Brokers are
child processes, so that they can be killed and stopped; between broker and object store is a layer that can take the
store away, or lose its replies.
"""

from __future__ import annotations

__all__ = ("Asking", "BrokerProcess", "Medium", "StrategyEnv", "restart", "serve")

import asyncio
import dataclasses
import math
import os
import random
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from penstock.broker import Broker
from penstock.client import ClientSettings, Cluster
from penstock.config import Config
from penstock.errors import PenstockError, UnavailableError
from penstock.plugins import PluginRegistry
from penstock.spi.kinds import METADATA_LOG, OBJECT_STORE, WAL
from penstock.spi.object_store import RESERVED_PREFIXES, MultipartUpload, ObjectInfo, ObjectStore
from penstock.spi.plugin import Buffer, PluginSpec, Services
from penstock.wire import ApiKey
from penstock.wire.messages.create_topics import CreatableTopic, CreateTopicsRequest, CreateTopicsResponse
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.incremental_alter_configs import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
)
from penstock.wire.messages.produce import (
    PartitionProduceData,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
)
from penstock.wire.record_builder import BatchBuilder
from penstock_conformance._body import make_body
from penstock_conformance._child import Child
from penstock_conformance._clause import not_applicable
from penstock_conformance._growth import counts, objects_by_type
from penstock_conformance._scoped_store import ScopedStore
from penstock_conformance._steps import Steps
from penstock_conformance._strategy_client import Client
from penstock_conformance._strategy_kafka import Acked, Records, Writer
from penstock_conformance._strategy_session import Session
from penstock_conformance._target import STRATEGY, Target
from penstock_tools.client.connection import Connection, Pending
from penstock_tools.inspection.places import open_places, open_store
from penstock_tools.inspection.verify import verify

T = TypeVar("T")

#: The kind of a resource with configs, as Kafka numbers them.
_TOPIC_RESOURCE = 2
#: How much slower timers are in the moment of an acknowledgement.
_SLOWER = 50
#: How often a broker is asked whether its store has refused something, and how often it answers until it has taken
#: for granted what it takes for granted.
_LOOK_S = 0.01
_TURNS = 30
#: How long such a turn takes for a write that waits for a later one.
_TURN_S = 0.003


@dataclass(slots=True)
class Medium:
    """What happens to requests on their way to the object store."""

    #: No request gets there.
    down: bool = False
    #: It takes no more writes; what is there can be read and deleted.
    full: bool = False
    #: Beginnings of the keys of which it takes no more.
    full_below: Sequence[str] = ()
    #: The part of the requests that fail before they have any effect.
    failing: float = 0.0
    #: The part of the writes whose reply is lost after they took effect.
    lost_replies: float = 0.0
    #: The number of the one request that fails, before it has any effect; 0 for none.
    failing_at: int = 0
    #: How long each read of an object takes.
    slow_s: float = 0.0
    #: Of writes that are under way at once the last to begin is the first to end. Each waits a moment for another.
    overtaken: bool = False
    #: The process dies (SIGKILL) instead of writing records.
    fatal: bool = False
    random: random.Random = field(default_factory=random.Random)
    #: How many requests were made, and how many writes were refused since it was set, as it is full or away.
    requests: int = 0
    refused: int = 0
    #: The number of the write that was begun last, and the greatest of those that have ended.
    begun: int = 0
    ended: int = 0

    def request(self) -> None:
        """Raises UnavailableError if the store is away."""
        self.requests += 1
        if self.down:
            raise UnavailableError("the conformance suite took the object store away")
        if self.requests == self.failing_at or (self.failing and self.random.random() < self.failing):
            raise UnavailableError("the conformance suite had a request fail")

    def write(self, key: str, begun: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Make a request that writes the object ``key``, or a part of it."""
        if self.fatal and key.startswith(RESERVED_PREFIXES):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.full or key.startswith(tuple(self.full_below)):
            self.requests += 1
            self.refused += 1
            raise UnavailableError("the conformance suite has the object store full")
        self.refused += self.down
        return self.change(partial(self._behind_later, begun) if self.overtaken else begun)

    async def _behind_later(self, begun: Callable[[], Awaitable[T]]) -> T:
        """Make a request when one that began later has ended, or none does for a moment."""
        self.begun = number = self.begun + 1
        patience = _TURNS
        for _ in range(10 * _TURNS):
            if self.ended > number or not patience:
                break
            await anyio.sleep(_TURN_S)
            patience -= self.begun == number
        try:
            return await begun()
        finally:
            self.ended = max(self.ended, number)

    async def change(self, begun: Callable[[], Awaitable[T]]) -> T:
        """Make a request that changes something."""
        self.request()
        result = await begun()
        if self.down or self.random.random() < self.lost_replies:
            raise UnavailableError("the conformance suite lost the reply of a write that took effect")
        return result


class UnreliableStore(ScopedStore):
    """An object store below a prefix, at the mercy of a :class:`Medium`."""

    def __init__(self, store: ObjectStore, prefix: str, medium: Medium) -> None:
        super().__init__(store, prefix)
        self._medium = medium

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        self._medium.request()
        if self._medium.slow_s:
            await anyio.sleep(self._medium.slow_s)
        return await super().get(key, start, end)

    async def head(self, key: str) -> ObjectInfo:
        self._medium.request()
        return await super().head(key)

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        return await self._medium.write(key, partial(super().put, key, body))

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        return await self._medium.write(key, partial(super().put_if_absent, key, body))

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        return await self._medium.write(key, partial(super().compare_and_swap, key, body, token))

    async def create_multipart(self, key: str) -> MultipartUpload:
        return await self._medium.write(key, partial(super().create_multipart, key))

    async def delete(self, keys: Sequence[str]) -> None:
        await self._medium.change(partial(super().delete, keys))

    async def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        self._medium.request()
        async for info in super().list(prefix, start_after):
            self._medium.request()
            yield info


class _Registry(PluginRegistry):
    """The plugins as they are, but for object stores, which are seen through the medium."""

    def __init__(self, target: Target, scope: str, medium: Medium) -> None:
        super().__init__(env=os.environ, plugins_dirs=target.plugins_dirs, modules=target.modules)
        self._scope = scope
        self._medium = medium

    def select(self, kind: str, name: str) -> PluginSpec[Any, Any]:
        spec = super().select(kind, name)
        if kind != OBJECT_STORE.name:
            return spec
        opened = spec.open

        @asynccontextmanager
        async def seen(settings: Any, services: Services) -> AsyncIterator[UnreliableStore]:
            async with opened(settings, services) as store:
                yield UnreliableStore(store, self._scope, self._medium)

        return dataclasses.replace(spec, open=seen)


class StrategyEnv:
    """The environment of one clause: a cluster that nothing was done in yet."""

    def __init__(self, target: Target, data_dir: Path, name: str = "") -> None:
        self.target = target
        self.data_dir = data_dir
        self.name = name
        self.random = random.Random(f"{target.seed}/{STRATEGY}/{name}")
        self.rounds = target.rounds
        #: What was begun.
        self.steps = Steps()
        #: Prefix of the cluster's keys; child processes have the same.
        self.scope = f"penstock-conformance/{data_dir.name}/"
        self.port = _free_port()
        #: Settings of the clause's brokers where the user has none.
        self.defaults: dict[str, str | int] = {}

    @property
    def bootstrap_servers(self) -> str:
        """Where the cluster's broker listens."""
        return f"127.0.0.1:{self.port}"

    def config(self, *, host: str = "broker", port: int = 0, with_defaults: bool = False) -> Config:
        """The configuration of a broker whose data directory is ``host``, which is made; with what this clause has
        set where the user has nothing, or without. Raises ConfigError."""
        (self.data_dir / host).mkdir(mode=0o700, exist_ok=True)  # as a broker does before it opens plugins
        return _config(self.target, self.data_dir / host, port, self.defaults if with_defaults else None)

    def registry(self, medium: Medium | None = None) -> PluginRegistry:
        """The plugins that a broker of this cluster selects from."""
        return _Registry(self.target, self.scope, medium or Medium())

    def broker(self, *, host: str = "broker", port: int = 0) -> BrokerProcess:
        """A broker of this cluster, not started yet."""
        return BrokerProcess(self, host, port or self.port)

    def client(self, servers: str = "") -> Client[Records]:
        """A client of the cluster's broker, or of another one, in a process of its own."""
        return Client(self, self.steps, Records, servers or self.bootstrap_servers)

    def writer(self, topic: str, owner: int, servers: str = "") -> Client[Writer]:
        """A producer of the cluster's broker, or of another one, in a process of its own."""
        return Client(self, self.steps, Writer, servers or self.bootstrap_servers, topic, owner)

    @asynccontextmanager
    async def asking(self, servers: str = "") -> AsyncIterator[Asking]:
        """A connection to the cluster's broker, or to another one."""
        async with Cluster.open(
            ClientSettings(bootstrap_servers=servers or self.bootstrap_servers)
        ) as cluster:
            yield Asking(await cluster.any_node())

    def session(self) -> Client[Session]:
        """A client that compares, in a process of its own."""
        return Client(self, self.steps, Session, self.bootstrap_servers)

    async def shares(self, host: str) -> bool:
        """Whether a broker with another data directory sees the same object store."""
        return await self._place("broker") == await self._place(host)

    async def _place(self, host: str) -> str:
        registry, config = self.registry(), self.config(host=host)
        async with open_store(config, registry.select_all(config), read_only=False) as store:
            return store.location

    async def look(self) -> tuple[Mapping[str, Any], str]:
        """What the selected plugins claim together, and where the objects are."""
        registry, config = self.registry(), self.config(host="look")
        selection = registry.select_all(config)
        async with open_store(config, selection, read_only=False) as store:
            stored, location = store.capabilities, store.location
        wal = selection.specs[WAL.name].capabilities
        claims = {
            "durable": stored.durable and wal.durability_domain != "process",
            "durability_domain": wal.durability_domain,
            **{name: getattr(wal, name) for name in ("shareable", "fencing", "bounded", "identity")},
        }
        return claims, f"objects in {location}"

    def uploads(self) -> Sequence[str]:
        """Beginnings of the keys that an upload writes: of objects, and of metadata if the store has them."""
        config = self.config()
        selection = self.registry().select_all(config)
        kind = METADATA_LOG.name
        return [*RESERVED_PREFIXES, *selection.specs[kind].key_prefixes(selection.settings[kind])]

    def need_durable(self) -> None:
        """Leave the clause where nothing outlives a process."""
        registry, config = self.registry(), self.config(host="look")
        if registry.select_all(config).specs[WAL.name].capabilities.durability_domain == "process":
            not_applicable("the write-ahead log lives and dies with its process")

    def another_port(self) -> int:
        """For a second broker."""
        return _free_port()

    async def verify(self, *, host: str = "broker") -> None:
        """No invariant is broken on the media of a broker that was stopped."""
        config = self.config(host=host)
        async with open_places(config, self.registry()) as places:
            report = await verify(places, now_ms=int(time.time() * 1000), delete_delay_ms=0)
        assert not report.problems, f"the media don't verify: {report.problems[0]}"

    async def clean(self) -> None:
        """Remove the cluster's objects."""
        registry, config = self.registry(), self.config(host="clean")
        async with open_store(config, registry.select_all(config), read_only=False) as store:
            assert isinstance(store, UnreliableStore)
            await store.clean()


def _config(
    target: Target, data_dir: Path, port: int, defaults: Mapping[str, str | int] | None = None
) -> Config:
    """``data_dir`` is that of one host, in the directory of the clause, which is what ``{dir}`` stands for."""
    ours = {"broker.data_dir": str(data_dir), "listener.bind": f"127.0.0.1:{port}"}
    return target.broker_config(data_dir.parent, ours, defaults)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Asking:
    """A request about a topic that is on its way to a broker, whether that sleeps or not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending: Pending | None = None

    async def begin(self, what: str, topic: str) -> None:
        """Send a request to ``create``, ``delete`` or ``configure`` it; nobody waits for the answer."""
        if what == "create":
            wanted = [CreatableTopic(name=topic, num_partitions=1, replication_factor=1)]
            request: Any = CreateTopicsRequest(topics=wanted, timeout_ms=60_000)
            key = ApiKey.CREATE_TOPICS
        elif what == "delete":
            request = DeleteTopicsRequest(
                topics=[DeleteTopicState(name=topic)], topic_names=[topic], timeout_ms=60_000
            )
            key = ApiKey.DELETE_TOPICS
        else:
            changed = [AlterableConfig(name="retention.ms", value="86400000")]
            resource = AlterConfigsResource(
                resource_type=_TOPIC_RESOURCE, resource_name=topic, configs=changed
            )
            request = IncrementalAlterConfigsRequest(resources=[resource])
            key = ApiKey.INCREMENTAL_ALTER_CONFIGS
        self._pending = await self._connection.begin(key, request)

    async def was_granted(self) -> bool:
        """Whether the broker, which has ended, had said so."""
        assert self._pending is not None
        try:
            await self._pending.wait(60)
            answer: Any = self._pending.result()
        except UnavailableError:  # nobody answered
            return False
        told = answer.topics if isinstance(answer, CreateTopicsResponse) else answer.responses
        return not told[0].error_code


class BrokerProcess:
    """A broker in a process of its own; it can be started again after it ended."""

    def __init__(self, env: StrategyEnv, host: str, port: int) -> None:
        self._env = env
        self._host = host
        self._port = port
        self._child: Child | None = None

    async def __aenter__(self) -> BrokerProcess:
        self._stack = AsyncExitStack()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def start(self, **medium: Any) -> None:
        """Return when clients are accepted. Breaks the clause if the broker doesn't start."""
        refusal = await self.try_start(**medium)
        assert refusal == "", f"the broker doesn't start: {refusal}"

    async def try_start(self, **medium: Any) -> str:
        """Why the broker doesn't start, one sentence; empty if it runs."""
        answer = await self._begin(medium)
        assert answer is not None, "the broker died at its start"
        if answer[0] == "ended":
            self._child = None
            return str(answer[1])
        return ""

    async def die_at_start(self, after_s: float) -> None:
        """Start it, and kill it so long after that: it has begun to recover, or has recovered, or serves already."""
        with anyio.move_on_after(after_s):
            await self._begin({})
        await self.kill()

    async def die_uploading(self) -> None:
        """Start it, and have it die (SIGKILL) as it begins to upload what it recovered, if it recovered anything."""
        await self._begin({"fatal": True})
        await self.kill()

    async def die_acknowledging(
        self, topic: str, owner: int, sizes: Sequence[int], first: int
    ) -> dict[int, Acked]:
        """Have it produce a record of each size in one request, each to a partition of its own, and die (SIGKILL) as
        they are acknowledged; the acknowledgements, by sequence, from ``first`` on."""
        places = await self._order(
            {"produce": {"topic": topic, "owner": owner, "sizes": sizes, "first": first}}
        )
        assert places and places[0] != "ended", f"the broker ended: {places}"
        await self.kill()
        return {sequence: Acked(*place) for sequence, place in enumerate(places, first)}

    async def die_uploaded(self, **medium: Any) -> None:
        """Set fields of its :class:`Medium`, and have it die (SIGKILL) when something is uploaded and let go of."""
        assert self._child is not None
        await self._child.tell({"medium": medium, "until": "uploaded"})
        await self._child.rest()
        await self.kill()

    async def _begin(self, medium: Mapping[str, Any]) -> Any:
        """Start a process; its first word, or None if it died."""
        assert self._child is None, "it runs already"
        child = Child(
            self._env,
            serve,
            host=self._host,
            port=self._port,
            scope=self._env.scope,
            medium=medium,
            seed=self._env.target.seed,
            defaults=self._env.defaults,
        )
        self._child = await self._stack.enter_async_context(child)
        return await self._child.next()

    async def change_medium(self, **medium: Any) -> int:
        """Set fields of its :class:`Medium`; they hold when this returns. How many requests it made until now."""
        requests, _ = await self._set_medium(medium)
        return requests

    async def refused_writes(self) -> int:
        """How many of its writes the store refused since its :class:`Medium` was set, as it is full or away."""
        _, refused = await self._set_medium({})
        return refused

    async def has_snapshot(self) -> bool:
        """Whether it has written a snapshot of metadata since it began."""
        answer = await self._order({"snapshot": True})
        assert answer[0] == "snapshot", f"the broker ended: {answer}"
        return bool(answer[1])

    async def feel_refusals(
        self, is_over: Callable[[], bool] = lambda: False, *, looks_max: float = math.inf
    ) -> None:
        """Return when the store has refused a write and the broker had time to go on from there, ``is_over`` says
        so, or after so many looks. What counts is how often the broker answers: time may pass without it."""
        looks = felt = 0
        while felt < _TURNS and looks < looks_max and not is_over():
            await anyio.sleep(_LOOK_S)
            looks += 1
            felt += bool(await self.refused_writes())

    async def _set_medium(self, medium: Mapping[str, Any]) -> tuple[int, int]:
        answer = await self._order({"medium": medium})
        assert answer[0] == "changed", f"the broker ended: {answer}"
        _, requests, refused = answer
        return requests, refused

    async def stop(self) -> None:
        """Stop it in order: it uploads what it has, and its log is empty."""
        answer = await self._order("stop")
        assert answer == ["stopped"], f"the broker didn't stop in order: {answer}"
        assert self._child is not None
        await self._child.finish()
        self._child = None

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._child is not None
        self._child.kill()
        await self._child.rest()
        self._child = None

    def pause(self) -> None:
        """SIGSTOP."""
        assert self._child is not None
        self._child.stop()

    def resume(self) -> None:
        """SIGCONT."""
        assert self._child is not None
        self._child.wake()

    async def resume_with(self, **medium: Any) -> None:
        """SIGCONT, with fields of its :class:`Medium` that are set as soon as it runs; for one that then ends."""
        assert self._child is not None
        await self._child.tell({"medium": medium})
        self.resume()

    def resident_bytes(self) -> int:
        """The memory that it holds, without files that it has mapped; 0 where the system doesn't say."""
        assert self._child is not None
        try:
            status = Path(f"/proc/{self._child.pid}/status").read_text()
        except OSError:
            return 0
        return 1024 * sum(map(int, re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB$", status, re.MULTILINE)))

    async def ending(self) -> str:
        """Wait until it ends by itself; with which error."""
        assert self._child is not None
        answer = await self._child.next()
        if answer is not None and answer[0] == "changed":  # see resume_with
            answer = await self._child.next()
        assert answer is not None, "the broker died without a word"
        assert answer[0] == "ended", f"the broker answered instead of ending: {answer}"
        self._child = None
        return str(answer[1])

    async def _order(self, order: object) -> Any:
        assert self._child is not None, "it doesn't run"
        await self._child.tell(order)
        return await self._child.next()


async def serve(
    target: Target,
    data_dir: Path,
    tell: Callable[[object], None],
    hear: Callable[[], Awaitable[Any]],
    *,
    host: str,
    port: int,
    scope: str,
    medium: Mapping[str, Any],
    seed: int,
    defaults: Mapping[str, str | int],
) -> None:
    """The life of a broker process: it serves until it is told to stop, or its parent is gone."""
    way = Medium(**medium, random=random.Random(f"{seed}/{scope}"))
    registry = _Registry(target, scope, way)
    stopped = False
    try:
        async with Broker(_config(target, data_dir / host, port, defaults), registry=registry) as broker:
            tell(["ready"])
            while (order := await hear()) not in (None, "stop"):
                if "produce" in order:
                    tell(await _produce(broker, **order["produce"]))
                    os.kill(os.getpid(), signal.SIGKILL)
                if "snapshot" in order:
                    tell(["snapshot", broker.statistics().parts["metadata"].snapshot_index])
                    continue
                for name, value in order["medium"].items():
                    setattr(way, name, value)
                    way.refused = 0
                if "until" in order:
                    while not broker.statistics().parts["engine"].uploader.committed_blocks:
                        await checkpoint()
                    os.kill(os.getpid(), signal.SIGKILL)
                tell(["changed", way.requests, way.refused])
            stopped = True
    except PenstockError as error:
        tell(["ended", f"{type(error).__name__}: {error}"])
        return
    if stopped:
        tell(["stopped"])


async def _produce(
    broker: Broker, *, topic: str, owner: int, sizes: Sequence[int], first: int
) -> list[tuple[int, int]]:
    """Produce a record of each size in one request from within the broker's process; partitions and offsets.

    Nothing but the event loop is between the acknowledgement and the return, and from the request on its timers go
    far slower: however busy the machine is, the answer is there before what was put off for some milliseconds.
    """
    data = []
    for partition, (sequence, size) in enumerate(enumerate(sizes, first)):
        batch = BatchBuilder()
        batch.append(f"{owner}/{sequence}".encode(), make_body(owner, sequence, size), (), 0)
        data.append(PartitionProduceData(index=partition, records=batch.build()))
    topics = [TopicProduceData(name=topic, partition_data=data)]
    async with Cluster.open(ClientSettings(bootstrap_servers=broker.bootstrap_servers)) as cluster:
        connection = await cluster.any_node()
        _slow_down(asyncio.get_running_loop())
        request = ProduceRequest(acks=-1, timeout_ms=60_000, topic_data=topics)
        answer = await connection.request(ApiKey.PRODUCE, request, timeout_s=60)
    assert isinstance(answer, ProduceResponse)
    (of_topic,) = answer.responses
    refused = [each.error_code for each in of_topic.partition_responses if each.error_code]
    assert not refused, f"{len(refused)} of {len(sizes)} records weren't taken: error_code={refused[0]}"
    return [(each.index, each.base_offset) for each in of_topic.partition_responses]


def _slow_down(loop: asyncio.AbstractEventLoop) -> None:
    """Have a second of the loop's clock take many seconds; a loop whose clock can't be set keeps it."""
    clock, begun = loop.time, loop.time()
    with suppress(AttributeError):
        loop.time = lambda: begun + (clock() - begun) / _SLOWER  # type: ignore[method-assign] # this loop only


async def restart(
    target: Target,
    data_dir: Path,
    tell: Callable[[object], None],
    _hear: Callable[[], Awaitable[Any]],
    *,
    port: int,
    scope: str,
    parts: int,
    times: int,
) -> None:
    """Start and stop a broker in one process ``parts`` times ``times`` times; tell what is there after each part."""
    for _ in range(parts):
        for _ in range(times):
            registry = _Registry(target, scope, Medium())
            async with Broker(_config(target, data_dir / "broker", port), registry=registry):
                pass
        told = await counts()
        tell([*told, objects_by_type()])
