"""The broker: the one place that builds everything, in order, and takes it down again.

``async with Broker(...) as broker`` is a whole Kafka broker in this process; ``SyncBroker`` is the same for
code without an event loop. It runs on the asyncio backend (uvloop where it is installed).
"""

from __future__ import annotations

__all__ = ("Broker", "BrokerStatistics", "SyncBroker")

import dataclasses
import fcntl
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.from_thread import start_blocking_portal

from penstock.api.context import ApiContext, ApiSettings
from penstock.api.dispatch import apis
from penstock.client import ClientSettings, Cluster, Producer, ProducerSettings
from penstock.config import Config, Tree, load_config, split_address
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import GroupSettings
from penstock.errors import (
    CapabilityError,
    ConfigError,
    InvariantError,
    PenstockError,
    UnavailableError,
)
from penstock.log.keyed_log import KeyedLog
from penstock.log.manager import LogManager, LogSettings
from penstock.metadata.service import MetadataService
from penstock.plugins import PluginRegistry, Selection
from penstock.server.server import Server
from penstock.server.settings import ListenerSettings, ServerSettings
from penstock.spi.allocator import Allocator
from penstock.spi.block_cache import BlockCache
from penstock.spi.events import BrokerStarted, BrokerStopping, RecoveryFinished, UploadCommitted
from penstock.spi.log_cache import LogCache, LogCacheBlock
from penstock.spi.metadata_log import MetadataLog
from penstock.spi.object_store import ObjectStore
from penstock.spi.partitioner import Partitioner
from penstock.spi.plugin import Services
from penstock.spi.wal import WriteAheadLog
from penstock.stream.engine import EngineSettings, StreamEngine
from penstock.stream.reader import ReaderSettings
from penstock.stream.uploader import UploadSettings

logger = logging.getLogger("penstock.broker")

OFFSETS_TOPIC = "__consumer_offsets"
#: Threads wait for the interpreter lock at most about this long when the event loop is busy; with Python's
#: default of 5 ms a saturated loop starves the WAL's writer thread for seconds (measured).
SWITCH_INTERVAL_S = 1e-4
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatistics:
    """What every part says of itself; ``memory`` is bytes by purpose."""

    memory_limit_bytes: int
    memory_used_bytes: int
    memory: Mapping[str, int]
    resident_bytes: int
    parts: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "memory_limit_bytes": self.memory_limit_bytes,
            "memory_used_bytes": self.memory_used_bytes,
            "memory": dict(self.memory),
            "resident_bytes": self.resident_bytes,
            **{name: _plain(part) for name, part in self.parts.items()},
        }


@dataclass(slots=True, kw_only=True)
class _Parts:
    """The opened parts of a running broker."""

    selection: Selection
    allocator: Allocator
    object_store: ObjectStore
    metadata_log: MetadataLog
    metadata: MetadataService
    wal: WriteAheadLog
    log_cache: LogCache
    block_cache: BlockCache
    engine: StreamEngine
    logs: LogManager
    groups: GroupService
    server: Server
    node_epoch: int
    open_partitioner: Callable[[], AbstractAsyncContextManager[Partitioner]]


class Broker:
    """A Kafka broker. ``async with`` it once: entering recovers and listens, leaving drains, uploads and closes.

    ``config`` is a checked configuration, or the path of a TOML file; ``overrides`` are dotted keys on top of
    it (``{"listener.bind": "127.0.0.1:0"}``). Without either, it is the embedded default.

    Entering raises ConfigError, PluginError, CorruptError, FencedError or UnavailableError, each one sentence
    that says what, where and what to do. If the broker is fenced or meets corruption while it runs, the body of the
    ``async with`` is cancelled and that error raised.
    """

    def __init__(
        self,
        config: Config | str | os.PathLike[str] | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        registry: PluginRegistry | None = None,
    ) -> None:
        if isinstance(config, Config):
            if overrides:
                raise InvariantError("overrides go into load_config when a checked configuration is given")
            self.config = config
        else:
            self.config = load_config(None if config is None else Path(config), overrides=overrides)
        self._registry = registry or PluginRegistry(env=os.environ)
        self._parts: _Parts | None = None
        self._stack: AsyncExitStack | None = None
        self._stop_reason = "closed"

    # -- what a running broker says --------------------------------------------------------------------------

    @property
    def _running(self) -> _Parts:
        if self._parts is None:
            raise InvariantError("the broker isn't running: use 'async with Broker(...)'")
        return self._parts

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` that clients connect to, as for ``bootstrap.servers``."""
        return ",".join(f"{endpoint.host}:{endpoint.port}" for endpoint in self._running.server.endpoints)

    @property
    def cluster_id(self) -> str:
        """The cluster's name."""
        return self._running.metadata.image.cluster_id

    @property
    def plugins(self) -> Mapping[str, str]:
        """The selected plugin's name by kind."""
        return self._running.selection.names

    @property
    def places(self) -> Mapping[str, str]:
        """Where the data are, for people."""
        parts = self._running
        return {
            "wal": parts.wal.location,
            "object_store": parts.object_store.location,
            "metadata_log": parts.metadata_log.location,
        }

    @property
    def durability_domain(self) -> str:
        """The fault domain that an acknowledged record survives, as the WAL declares it."""
        return self._running.wal.capabilities.durability_domain

    @property
    def logs(self) -> LogManager:
        """Topics and partitions, for producing and reading in process."""
        return self._running.logs

    def statistics(self) -> BrokerStatistics:
        """A snapshot of every part; ``memory`` says what the memory is used for."""
        parts = self._running
        memory = parts.allocator.statistics()
        return BrokerStatistics(
            memory_limit_bytes=memory.limit_bytes,
            memory_used_bytes=memory.used_bytes,
            memory=dict(memory.used_by_purpose),
            resident_bytes=_resident_bytes(),
            parts={
                "server": parts.server.statistics(),
                "engine": parts.engine.statistics(),
                "wal": parts.wal.statistics(),
                "log_cache": parts.log_cache.statistics(),
                "block_cache": parts.block_cache.statistics(),
                "metadata": parts.metadata.statistics(),
                "object_store": parts.object_store.statistics(),
                "groups": parts.groups.statistics(),
                "fetch_in_flight_bytes": parts.logs.fetch_memory.used,
            },
        )

    @asynccontextmanager
    async def producer(self, settings: ProducerSettings | None = None) -> AsyncIterator[Producer]:
        """A producer in this process: ``async with broker.producer() as p: await p.send("topic", value=b"...")``.

        It goes the way of every client, over the listener, so what it is told is as durable; the partitioner is the
        one that the configuration selects. Leaving it flushes. Raises InvalidRequestError for bad settings.
        """
        parts = self._running
        cluster_settings = ClientSettings(bootstrap_servers=self.bootstrap_servers)
        async with (
            parts.open_partitioner() as partitioner,
            Cluster.open(cluster_settings) as cluster,
            Producer.open(cluster, partitioner, settings, now_ms=_now_ms) as producer,
        ):
            yield producer

    async def flush(self) -> None:
        """Upload and commit everything that is acknowledged now; returns when the object store has it."""
        await self._running.engine.flush()

    async def apply_retention(self) -> int:
        """Apply retention now instead of at the next interval; the number of partitions whose start moved."""
        return await self._running.logs.clean()

    # -- life ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise InvariantError("a broker is started once; make a new one")
        self._stack = AsyncExitStack()
        try:
            with _one_error():
                await self._stack.enter_async_context(self._run())
        except BaseException:
            self._parts = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._stack is not None
        try:
            with _one_error():
                return bool(await self._stack.__aexit__(kind, error, trace))
        finally:
            self._parts = None

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        tree = self.config.tree
        selection = self._registry.select_all(self.config)
        data_dir = Path(os.path.abspath(os.path.expanduser(tree.broker.data_dir)))  # noqa: ASYNC240 - no disk
        async with AsyncExitStack() as stack:
            stack.enter_context(_switch_interval())
            stack.enter_context(_own_directory(data_dir))
            parts = await self._open(stack, tree, selection, data_dir)
            self._parts = parts
            self._registry.notify(
                "penstock_on_broker_started",
                BrokerStarted(
                    node_id=tree.broker.node_id,
                    epoch=parts.node_epoch,
                    cluster_id=self.cluster_id,
                    bootstrap_servers=self.bootstrap_servers,
                    plugins=selection.names,
                ),
            )
            try:
                yield
            finally:
                self._registry.notify(
                    "penstock_on_broker_stopping",
                    BrokerStopping(node_id=tree.broker.node_id, reason=self._stop_reason),
                )

    async def _open(self, stack: AsyncExitStack, tree: Tree, selection: Selection, data_dir: Path) -> _Parts:
        """Open the parts from the bottom up; the stack closes them from the top down."""
        specs, settings = selection.specs, selection.settings
        node_id = tree.broker.node_id
        services = Services(
            node_id=node_id,
            epoch=0,
            cluster_id=tree.broker.cluster_id or "",
            data_dir=data_dir,
            clock=time.monotonic,
        )

        async def open_plugin(kind: str) -> Any:
            return await stack.enter_async_context(specs[kind].open(settings[kind], services))

        allocator: Allocator = await open_plugin("allocator")
        services = dataclasses.replace(services, allocator=allocator)
        object_store: ObjectStore = await open_plugin("object_store")
        _check_store(selection, object_store)
        services = dataclasses.replace(services, object_store=object_store)
        metadata_log: MetadataLog = await open_plugin("metadata_log")
        metadata = await stack.enter_async_context(
            MetadataService.open(metadata_log, now_ms=_now_ms, cluster_id=tree.broker.cluster_id or "")
        )
        node_epoch = await metadata.register(node_id)
        services = dataclasses.replace(services, epoch=node_epoch, cluster_id=metadata.image.cluster_id)
        wal: WriteAheadLog = await open_plugin("wal")
        log_cache: LogCache = await open_plugin("log_cache")
        block_cache: BlockCache = await open_plugin("block_cache")

        limit = allocator.statistics().limit_bytes
        log_manager: list[LogManager] = []

        def on_upload(event: UploadCommitted, block: LogCacheBlock) -> None:
            for manager in log_manager:
                manager.upload_committed(event, block)

        def on_recovered(event: RecoveryFinished) -> None:
            self._registry.notify("penstock_on_recovery_finished", event)

        engine = await stack.enter_async_context(
            StreamEngine.open(
                metadata=metadata,
                store=object_store,
                wal=wal,
                log_cache=log_cache,
                block_cache=block_cache,
                allocator=allocator,
                settings=_engine_settings(tree, limit, wal.statistics().capacity_bytes),
                node_id=node_id,
                node_epoch=node_epoch,
                now_ms=_now_ms,
                on_upload=on_upload,
                on_destroyed=lambda event: self._registry.notify("penstock_on_objects_destroyed", event),
                on_recovered=on_recovered,
            )
        )
        logs = await stack.enter_async_context(
            LogManager.open(
                engine,
                _log_settings(tree, limit),
                node_id=node_id,
                node_epoch=node_epoch,
                now_ms=_now_ms,
                notify=self._registry.notify,
            )
        )
        log_manager.append(logs)
        stack.push_async_callback(self._drain, logs, metadata)
        groups = await stack.enter_async_context(
            GroupService(await _offsets_log(logs, tree), _group_settings(tree))
        )
        logs.on_topics_deleted = groups.on_topics_deleted
        api = ApiContext(
            logs=logs, groups=groups, settings=_api_settings(tree), clock=time.monotonic, now_ms=_now_ms
        )
        api.draining.add_listener(groups.drain)
        server = await stack.enter_async_context(
            Server(
                listeners=[_listener(tree)],
                api=api,
                apis=apis(),
                allocator=allocator,
                settings=_server_settings(tree),
            )
        )
        return _Parts(
            selection=selection,
            allocator=allocator,
            object_store=object_store,
            metadata_log=metadata_log,
            metadata=metadata,
            wal=wal,
            log_cache=log_cache,
            block_cache=block_cache,
            engine=engine,
            logs=logs,
            groups=groups,
            server=server,
            node_epoch=node_epoch,
            open_partitioner=partial(specs["partitioner"].open, settings["partitioner"], services),
        )

    async def _drain(self, logs: LogManager, metadata: MetadataService) -> None:
        """The server is closed: upload what is left, so that the next start has nothing to recover."""
        timeout_s = self.config.tree.broker.drain_timeout / 1000
        reason = f"the object store took longer than {timeout_s:g} s"
        with anyio.CancelScope(shield=True), anyio.move_on_after(timeout_s) as scope:
            try:
                await logs.drain()
                await metadata.write_snapshot()
            except PenstockError as error:
                reason = str(error)
            else:
                return
        left = logs.unuploaded_bytes()
        if left or not scope.cancelled_caught:
            logger.warning("the next start recovers %d bytes that only the WAL holds: %s", left, reason)

    def stop_reason(self, reason: str) -> None:
        """Say why the broker is about to stop; observers are told."""
        self._stop_reason = reason


class SyncBroker:
    """A broker with an event loop of its own in a thread: ``with SyncBroker(...) as broker``."""

    def __init__(
        self,
        config: Config | str | os.PathLike[str] | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        registry: PluginRegistry | None = None,
    ) -> None:
        self.broker = Broker(config, overrides=overrides, registry=registry)
        self._stack: ExitStack | None = None
        self._call: Callable[..., Any] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(
                start_blocking_portal("asyncio", {"use_uvloop": uvloop_installed()}, name="penstock")
            )
            stack.enter_context(portal.wrap_async_context_manager(self.broker))
            self._call = portal.call
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._call = None
        self._stack.__exit__(kind, error, trace)

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` that clients connect to."""
        return self.broker.bootstrap_servers

    def statistics(self) -> BrokerStatistics:
        """See :meth:`Broker.statistics`."""
        result = self._in_loop(self.broker.statistics)
        assert isinstance(result, BrokerStatistics)
        return result

    def flush(self) -> None:
        """See :meth:`Broker.flush`."""
        self._in_loop(self.broker.flush)

    def _in_loop(self, function: Callable[[], Any]) -> Any:
        if self._call is None:
            raise InvariantError("the broker isn't running: use 'with SyncBroker(...)'")
        return self._call(function)


def uvloop_installed() -> bool:
    """Whether the faster event loop is there; it is a dependency everywhere but on Windows."""
    try:
        import uvloop  # noqa: F401 - whether it imports is the question
    except ImportError:
        return False
    return True


# -- settings of the parts, from the configuration -----------------------------------------------------------


def _engine_settings(tree: Tree, limit: int, wal_capacity: int) -> EngineSettings:
    stream = tree.stream
    upload_bytes = stream.upload_bytes or max(MIB, min(64 * MIB, limit // 6))
    if wal_capacity:
        # two blocks on their way and one filling must fit, or the WAL is full before it is trimmed
        upload_bytes = min(upload_bytes, max(MIB // 4, wal_capacity // 4))
    return EngineSettings(
        upload_bytes=upload_bytes,
        upload_interval_ms=stream.upload_interval,
        in_flight_bytes_max=stream.append_in_flight_bytes_max or max(MIB, limit // 8),
        lifecycle_interval_ms=max(100, min(stream.delete_delay, 10_000)),
        delete_delay_ms=stream.delete_delay,
        upload=UploadSettings(
            block_bytes=stream.block_bytes,
            object_split_bytes=stream.object_split_bytes,
            multipart_bytes=stream.multipart_bytes,
            part_bytes=16 * MIB,
            prepare_deadline_ms=stream.prepare_deadline,
        ),
        reader=ReaderSettings(),
    )


def _log_settings(tree: Tree, limit: int) -> LogSettings:
    topics = tree.topics
    return LogSettings(
        topic_defaults={
            "retention.ms": str(topics.retention),
            "retention.bytes": str(topics.retention_bytes),
            "max.message.bytes": str(topics.message_bytes_max),
            "message.timestamp.type": topics.timestamp_type,
        },
        retention_interval_ms=tree.stream.retention_interval,
        fetch_in_flight_bytes_max=tree.stream.fetch_in_flight_bytes_max or max(4 * MIB, limit // 4),
    )


def _group_settings(tree: Tree) -> GroupSettings:
    groups = tree.groups
    return GroupSettings(
        initial_rebalance_delay_ms=groups.initial_rebalance_delay,
        min_session_timeout_ms=groups.session_timeout_min,
        max_session_timeout_ms=groups.session_timeout_max,
        group_size_max=groups.members_max,
        offsets_retention_ms=groups.offsets_retention,
    )


def _api_settings(tree: Tree) -> ApiSettings:
    return ApiSettings(
        auto_create_topics=tree.topics.auto_create,
        partitions_default=tree.topics.partitions,
        partitions_per_topic_max=tree.topics.partitions_max,
        broker_configs=_broker_configs(tree),
    )


def _broker_configs(tree: Tree) -> dict[str, str]:
    """What DescribeConfigs says of the broker: our settings under the names that Kafka's tools look for."""
    listener, topics, groups = tree.listener, tree.topics, tree.groups
    return {
        "auto.create.topics.enable": "true" if topics.auto_create else "false",
        "broker.id": str(tree.broker.node_id),
        "connections.max.idle.ms": str(listener.idle_timeout),
        "default.replication.factor": "1",
        "group.initial.rebalance.delay.ms": str(groups.initial_rebalance_delay),
        "group.max.session.timeout.ms": str(groups.session_timeout_max),
        "group.max.size": str(groups.members_max),
        "group.min.session.timeout.ms": str(groups.session_timeout_min),
        "log.cleanup.policy": "delete",
        "log.message.timestamp.type": topics.timestamp_type,
        "log.retention.bytes": str(topics.retention_bytes),
        "log.retention.ms": str(topics.retention),
        "max.connections": str(listener.connections_max),
        "message.max.bytes": str(topics.message_bytes_max),
        "min.insync.replicas": "1",
        "node.id": str(tree.broker.node_id),
        "num.partitions": str(topics.partitions),
        "offsets.retention.minutes": str(groups.offsets_retention // 60_000),
        "offsets.topic.num.partitions": str(groups.offsets_partitions),
        "socket.request.max.bytes": str(listener.request_bytes_max),
    }


def _server_settings(tree: Tree) -> ServerSettings:
    listener = tree.listener
    return ServerSettings(
        request_bytes_max=listener.request_bytes_max,
        connections_max=listener.connections_max,
        idle_timeout_ms=listener.idle_timeout,
        pipeline_requests_max=listener.pipeline_depth,
    )


def _listener(tree: Tree) -> ListenerSettings:
    host, port = split_address(tree.listener.bind)
    advertised_host: str | None = None
    advertised_port: int | None = None
    if tree.listener.advertised is not None:
        advertised_host, advertised_port = split_address(tree.listener.advertised)
    return ListenerSettings(
        host=host,
        port=port,
        advertised_host=advertised_host,
        advertised_port=advertised_port or None,
    )


async def _offsets_log(logs: LogManager, tree: Tree) -> KeyedLog:
    """The log behind the group coordinator; its topic is made at the first start."""
    topic = logs.topics().get(OFFSETS_TOPIC)
    if topic is None:
        (made,) = await logs.create_topics(
            [_InternalTopic(OFFSETS_TOPIC, tree.groups.offsets_partitions, {"cleanup.policy": "compact"})],
            internal=True,
        )
        if isinstance(made, Exception):
            raise made
        topic = made
    return KeyedLog(OFFSETS_TOPIC, topic.partition_count, logs.partition, _now_ms)


@dataclass(frozen=True, slots=True)
class _InternalTopic:
    name: str
    partition_count: int
    configs: Mapping[str, str]


def _check_store(selection: Selection, store: ObjectStore) -> None:
    """What the plugins need must hold for the store as opened: a probe may have taken a claim back."""
    for kind, spec in selection.specs.items():
        for capability in sorted(spec.requires):
            if not getattr(store.capabilities, capability, False):
                raise CapabilityError(
                    f"the {kind} plugin needs an object store with {capability}, this one can't: choose another "
                    f"store or {kind}: plugin={spec.name} object_store={selection.names['object_store']} "
                    f"location={store.location}"
                )


# -- small things --------------------------------------------------------------------------------------------


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return 0  # no /proc here
    return pages * os.sysconf("SC_PAGE_SIZE")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


@contextmanager
def _own_directory(path: Path) -> Iterator[None]:
    """Hold the data directory for this process; the system lets go of it when the process ends, however it ends.

    A second broker on the same files would fence the first one, which is right between hosts and a mishap on one.
    Raises ConfigError when another process has it, UnavailableError when it can't be used.
    """
    lock = path / "penstock.lock"
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+b", buffering=0)  # unbuffered: closing has nothing to write that could fail
    except OSError as error:
        raise UnavailableError(
            f"the data directory can't be used, check the path and the disk: path={path} error={error.strerror}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"another broker runs on this data directory, stop it or set broker.data_dir: path={path} "
                f"pid={(file.read(20) or b'unknown').decode('ascii', 'replace')}"
            ) from None
        except OSError as error:
            # a file system without locks: the WAL's fencing still keeps two brokers apart
            logger.debug("the data directory can't be locked: path=%s error=%s", path, error.strerror)
        with suppress(OSError):  # the number is for people; a full disk must not keep a broker from starting
            file.truncate(0)
            file.write(b"%d" % os.getpid())
        yield


@contextmanager
def _switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _one_error() -> Iterator[None]:
    """Task groups wrap errors in groups; a group that is about one thing is raised as that one error."""
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if len(leaves) == 1 or all(isinstance(leaf, PenstockError) for leaf in leaves):
            leaf = next(
                (one for one in leaves if not isinstance(one, anyio.get_cancelled_exc_class())), leaves[0]
            )
            raise leaf from leaf.__cause__
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
