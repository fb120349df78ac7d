"""The broker: builds every part in order, and takes them down again."""

from __future__ import annotations

__all__ = ("Broker",)

import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from penstock.account import Ledger
from penstock.api.context import ApiContext, DataPlace
from penstock.api.dispatch import apis
from penstock.broker._groups import follow_logs, offsets_log
from penstock.broker._metadata import MetadataCheck, give_up_entries
from penstock.broker._outage import WatchedStore
from penstock.broker._own_task import OwnTask
from penstock.broker._process import capacity_of, now_ms, own_directory, switch_interval
from penstock.broker._settings import (
    api_settings,
    budget,
    check_opened,
    engine_settings,
    group_settings,
    lake_settings,
    listener_settings,
    log_settings,
    server_settings,
    topic_configs,
)
from penstock.broker._statistics import BrokerStatistics, resident_bytes
from penstock.broker._wal import register_node, release_wal, use_wal
from penstock.bus import EventBus
from penstock.config import Config, Tree, load_config
from penstock.coordinator.group_service import GroupService
from penstock.errors import CapabilityError, InvariantError, PenstockError
from penstock.files import ACCESSES
from penstock.lake.service import LakeService
from penstock.limits import Budget
from penstock.log.manager import LogManager
from penstock.log.topic_config import TopicConfigTable
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService
from penstock.metadata.words import ImageWords, NodeWords
from penstock.plugins import PluginOpener, PluginRegistry, Selection
from penstock.server.server import Server
from penstock.spi.events import BrokerStarted, BrokerStopping
from penstock.spi.kinds import (
    ALLOCATOR,
    BLOCK_CACHE,
    LAKE_COMPACTOR,
    LOG_CACHE,
    METADATA_LOG,
    OBJECT_STORE,
    PARTITIONER,
    WAL,
)
from penstock.spi.lake import LakeCompactorSpec
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock.spi.traffic import Traffic
from penstock.stream.engine import StreamEngine
from penstock.work.periodic import Jobs
from penstock.work.traffic import SharedStore

if TYPE_CHECKING:
    from penstock.client import Producer, ProducerSettings

logger = logging.getLogger("penstock.broker")


@dataclass(slots=True, kw_only=True)
class _Parts:
    """The opened parts of a running broker."""

    selection: Selection
    plugins: PluginOpener
    metadata: MetadataService
    wal_identity: str
    engine: StreamEngine
    logs: LogManager
    groups: GroupService
    #: None: no lake compactor is selected.
    lake: LakeService | None
    server: Server
    #: The broker's own.
    jobs: Jobs
    #: What goes to the object store, by class.
    traffic: SharedStore
    node_epoch: int

    def statistics(self) -> dict[str, Any]:
        """What every room and plugin says of itself: a room is told under the name of its field here."""
        rooms = {field.name: getattr(self, field.name) for field in fields(self)}
        plugins = {kind.name: self.plugins[kind] for kind in self.plugins.opened if kind.statistics}
        return {
            name: part.statistics()
            for name, part in {**rooms, **plugins, **self.plugins.opened_by_plugins}.items()
            if callable(getattr(part, "statistics", None))
        }


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
        self._life: OwnTask[None] | None = None
        self._store: WatchedStore | None = None
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
        """The places of the data by kind of plugin, for people: first that of the newest records, the WAL."""
        plugins = self._running.plugins
        kinds = (WAL, *(kind for kind in plugins.opened if kind is not WAL and kind.has_place))
        return {kind.name: plugins[kind].location for kind in kinds}

    @property
    def durability_domain(self) -> str:
        """The fault domain that an acknowledged record survives, as the WAL declares it."""
        return self._running.plugins[WAL].capabilities.durability_domain

    @property
    def wal_identity(self) -> str:
        """The identity of the WAL, as metadata records it; empty if its plugin tells none."""
        return self._running.wal_identity

    @property
    def logs(self) -> LogManager:
        """Topics and partitions, for producing and reading in process."""
        return self._running.logs

    def unaccounted_bytes(self) -> int:
        """Memory of the process that is on nobody's account: the interpreter, code, metadata, and what leaks."""
        return resident_bytes() - self._running.plugins[ALLOCATOR].statistics().used_bytes

    def statistics(self) -> BrokerStatistics:
        """A snapshot of every part; ``memory`` says what the memory is used for."""
        parts = self._running
        memory = parts.plugins[ALLOCATOR].statistics()
        return BrokerStatistics(
            memory_limit_bytes=memory.limit_bytes,
            memory_used_bytes=memory.used_bytes,
            memory=dict(memory.used_by_purpose),
            resident_bytes=resident_bytes(),
            tasks=len(anyio.get_running_tasks()),
            parts=parts.statistics(),
            fetch_in_flight_bytes=parts.logs.fetch_memory.used,
            unavailable_partitions=parts.logs.unavailable_partitions(),
        )

    @asynccontextmanager
    async def producer(self, settings: ProducerSettings | None = None) -> AsyncIterator[Producer]:
        """A producer in this process: ``async with broker.producer() as p: await p.send("topic", value=b"...")``.

        It goes the way of every client, over the listener, so what it is told is as durable; the partitioner is the
        one that the configuration selects. Leaving it flushes. Raises InvalidRequestError for bad settings.
        """
        from penstock.client import ClientSettings, Cluster, Producer

        parts = self._running
        cluster_settings = ClientSettings(bootstrap_servers=self.bootstrap_servers)
        async with (
            parts.plugins.context(PARTITIONER) as partitioner,
            Cluster.open(cluster_settings) as cluster,
            Producer.open(cluster, partitioner, settings, now_ms=now_ms) as producer,
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
        if self._life is not None:
            raise InvariantError("a broker is started once; make a new one")
        self._life = OwnTask(self._run(), name="penstock-broker")
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._life is not None
        await self._life.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        tree = self.config.tree
        selection = self._registry.select_all(self.config)
        data_dir = Path(os.path.abspath(os.path.expanduser(tree.broker.data_dir)))  # noqa: ASYNC240 - no disk
        async with AsyncExitStack() as stack:
            stack.enter_context(switch_interval())
            stack.enter_context(own_directory(data_dir, ACCESSES[tree.broker.data_access]))
            bus = EventBus()
            self._registry.observe(bus)
            stack.callback(setattr, self, "_parts", None)
            self._parts = parts = await self._open(stack, bus, tree, selection, data_dir)
            assert self._store is not None
            self._store.started()
            bus.publish(
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
                bus.publish(BrokerStopping(node_id=tree.broker.node_id, reason=self._stop_reason))

    async def _open(
        self, stack: AsyncExitStack, bus: EventBus, tree: Tree, selection: Selection, data_dir: Path
    ) -> _Parts:
        """Open the parts from the bottom up; the stack closes them from the top down."""
        node_id = tree.broker.node_id
        configs = topic_configs(tree, selection)
        services = Services(
            node_id=node_id,
            epoch=0,
            cluster_id=tree.broker.cluster_id or "",
            data_dir=data_dir,
            access=ACCESSES[tree.broker.data_access],
            clock=time.monotonic,
        )
        plugins = PluginOpener(stack, selection, services)
        opened_store = await plugins.open_through(OBJECT_STORE)
        _check_store(selection, opened_store)
        watched_store = await stack.enter_async_context(
            WatchedStore.open(opened_store, time.monotonic, tree.broker.start_timeout / 1000)
        )
        self._store = watched_store
        # outside of what is watched: who waits for its turn isn't a sign of an outage
        traffic = SharedStore(watched_store, time.monotonic)
        object_store = traffic.view(Traffic.COMPACTION)
        plugins.set(OBJECT_STORE, object_store)
        metadata_log = await plugins.open_through(METADATA_LOG)
        entry_bytes_max = metadata_log.capabilities.entry_bytes_max
        check_opened(self.config, {"metadata_log.entry": ("an entry of the metadata log", entry_bytes_max)})

        def services_to_look(image: Image) -> Services:
            plugins.set_words(partial(ImageWords, image))
            return plugins.services_of(WAL)

        check = MetadataCheck(
            metadata_log, object_store, selection, services_to_look, tree.broker.accept_lost_metadata
        )
        metadata = await stack.enter_async_context(
            MetadataService.open(
                metadata_log,
                now_ms=now_ms,
                cluster_id=tree.broker.cluster_id or "",
                before_writing=check,
                bus=bus,
                snapshot_entries=tree.stream.metadata_snapshot_entries,
            )
        )
        if check.loss is not None:
            await give_up_entries(metadata, object_store, check.loss)
        plugins.set_services(cluster_id=metadata.image.cluster_id)
        plugins.set_words(partial(NodeWords, metadata))
        node_epoch = await register_node(
            metadata, selection, plugins.services_of(WAL), tree.broker.accept_lost_wal
        )
        plugins.set_services(epoch=node_epoch)
        wal = await plugins.open_through(WAL)
        allocator = plugins[ALLOCATOR]
        memory = allocator.statistics()
        check_opened(
            self.config,
            {
                "allocator.limit": ("the allocator", memory.limit_bytes),
                "wal.memory": ("the WAL's memory", memory.used_bytes),
                "wal.entry": ("an entry of the WAL", wal.capabilities.entry_bytes_max),
            },
        )
        wal_identity = await use_wal(metadata, selection, plugins.services_of(WAL), wal.location)
        await plugins.open_rest()

        divided = budget(tree, memory.limit_bytes, wal.statistics().capacity_bytes)
        divided.check(memory.used_bytes)
        engine = await stack.enter_async_context(
            StreamEngine.open(
                metadata=metadata,
                store=object_store,
                wal=wal,
                log_cache=plugins[LOG_CACHE],
                block_cache=plugins[BLOCK_CACHE],
                allocator=allocator,
                settings=engine_settings(tree, divided),
                node_id=node_id,
                node_epoch=node_epoch,
                now_ms=now_ms,
                bus=bus,
            )
        )
        logs = await stack.enter_async_context(
            LogManager.open(
                engine,
                log_settings(tree, divided, configs),
                node_id=node_id,
                node_epoch=node_epoch,
                now_ms=now_ms,
                bus=bus,
            )
        )
        stack.push_async_callback(self._drain, logs, metadata, node_epoch)
        lake = await self._open_lake(stack, bus, plugins, selection, engine, object_store, configs, divided)
        groups = await stack.enter_async_context(
            GroupService(
                await offsets_log(logs, tree),
                group_settings(tree, divided),
                allocator=allocator,
                has_topic=lambda name: metadata.image.topics.named(name) is not None,
            )
        )
        follow_logs(groups, logs, metadata.image, bus)
        api = ApiContext(
            logs=logs,
            groups=groups,
            settings=api_settings(tree, divided),
            session_memory=Ledger("sessions", divided.sessions, allocator),
            parked_memory=Ledger("parked", divided.parked, allocator),
            clock=time.monotonic,
            now_ms=now_ms,
            authorizer=None,  # the one place where gate and handlers get theirs from; no plugin decides yet
            data_place=DataPlace(
                location=object_store.location, capacity=partial(capacity_of, object_store.location)
            ),
        )
        api.draining.add_listener(groups.drain)
        server = await stack.enter_async_context(
            Server(
                listeners=[listener_settings(tree)],
                api=api,
                apis=apis(),
                allocator=allocator,
                settings=server_settings(tree, divided),
            )
        )
        return _Parts(
            selection=selection,
            plugins=plugins,
            metadata=metadata,
            wal_identity=wal_identity,
            engine=engine,
            logs=logs,
            groups=groups,
            lake=lake,
            server=server,
            jobs=watched_store.jobs,
            traffic=traffic,
            node_epoch=node_epoch,
        )

    async def _open_lake(
        self,
        stack: AsyncExitStack,
        bus: EventBus,
        plugins: PluginOpener,
        selection: Selection,
        engine: StreamEngine,
        object_store: ObjectStore,
        configs: TopicConfigTable,
        divided: Budget,
    ) -> LakeService | None:
        """The service that makes tables; it is left before the drain, so that what it wants uploaded still is."""
        compactor = plugins.get(LAKE_COMPACTOR)
        if compactor is None:
            return None
        spec = selection.specs[LAKE_COMPACTOR.name]
        assert isinstance(spec, LakeCompactorSpec)
        tree = self.config.tree
        return await stack.enter_async_context(
            LakeService.open(
                engine=engine,
                compactor=compactor,
                batch_bytes=spec.batch_bytes,
                store=object_store,
                topic_configs=configs,
                settings=lake_settings(tree, divided),
                node_id=tree.broker.node_id,
                node_epoch=plugins.services.epoch,
                bus=bus,
            )
        )

    async def _drain(self, logs: LogManager, metadata: MetadataService, node_epoch: int) -> None:
        """The server is closed: upload what is left, so that the next start has nothing to recover."""
        timeout_s = self.config.tree.broker.drain_timeout / 1000
        reason = f"the object store took longer than {timeout_s:g} s"
        with anyio.CancelScope(shield=True), anyio.move_on_after(timeout_s) as scope:
            try:
                if await logs.drain():
                    await release_wal(metadata, self.config.tree.broker.node_id, node_epoch)
                await metadata.write_snapshot()
            except PenstockError as error:
                reason = str(error)
            else:
                return
        if self._store is not None and self._store.outage:
            reason = f"the object store doesn't work: {self._store.outage}"
        if left := logs.unuploaded_bytes():
            logger.warning("the next start recovers %d bytes that only the WAL holds: %s", left, reason)
        elif not scope.cancelled_caught:
            logger.warning("everything is uploaded, but the next start reads the WAL to know it: %s", reason)

    def stop_reason(self, reason: str) -> None:
        """Say why the broker is about to stop; observers are told."""
        self._stop_reason = reason


def _check_store(selection: Selection, store: ObjectStore) -> None:
    """Raise CapabilityError if the opened store lacks what a plugin needs: a probe may have taken a claim back."""
    for kind, spec in selection.specs.items():
        for capability in sorted(spec.requires):
            if not getattr(store.capabilities, capability, False):
                raise CapabilityError(
                    f"the {kind} plugin needs an object store with {capability}, this one can't: choose another "
                    f"store or {kind}: plugin={spec.name} object_store={selection.names[OBJECT_STORE.name]} "
                    f"location={store.location}"
                )
