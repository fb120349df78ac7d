"""Lake tables from outside: what metadata and the tables themselves say, and replays, beside a broker that runs."""

from __future__ import annotations

__all__ = (
    "Lake",
    "Replayed",
    "TopicTable",
    "maintained_since",
    "next_request",
    "open_lake",
    "replay",
    "topic_tables",
)

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from penstock.config import Config
from penstock.errors import (
    ConfigError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    shown,
)
from penstock.lake.columns import decode_entries
from penstock.lake.configs import TableConfigs, topic_config_table
from penstock.lake.source import LakeSource, Throttle
from penstock.lake.states import LakeState
from penstock.lake.topics import lake_topic
from penstock.log.topic_config import TopicConfigTable
from penstock.metadata.image import Image
from penstock.metadata.service import load_image
from penstock.metadata.topics import LakeMaintained, TopicState
from penstock.plugins import PluginOpener, PluginRegistry
from penstock.spi.kinds import ALLOCATOR, LAKE_COMPACTOR, METADATA_LOG, OBJECT_STORE
from penstock.spi.lake import LakeCompactor, LakeCompactorSpec, LakeTable, LakeTopic
from penstock.spi.metadata_log import MetadataLog
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services

#: What a replay reads, and makes columns of, at a time.
_WINDOW_BYTES = 8 * 2**20
#: And what it commits.
_COMMIT_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lake:
    """What is needed to look at tables."""

    image: Image
    metadata_log: MetadataLog
    object_store: ObjectStore
    compactor: LakeCompactor
    batch_bytes: int
    topic_configs: TopicConfigTable

    def topic(self, name: str, table: str = "") -> tuple[TopicState, LakeTopic]:
        """The topic in metadata, and as the compactor sees it. Raises NotFoundError."""
        state = self.image.topics.named(name)
        if state is None:
            raise NotFoundError(f"metadata knows no topic of this name: topic={shown(name)}")
        return state, lake_topic(state, self.configs(state), table)

    def configs(self, state: TopicState) -> TableConfigs:
        """The effective configs of its table."""
        return TableConfigs.of(self.topic_configs.added_values(state.configs))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicTable:
    """One topic that wants a table, or had one; what isn't known is None."""

    topic: str
    table: str | None
    #: That of the claim, ``disabled``, or ``unclaimed`` if no broker has begun.
    state: str
    reason: str
    since_ms: int | None
    node_id: int | None
    #: Records that objects have and the table hasn't, by partition.
    lag_records: dict[int, int] | None
    #: Why the table couldn't be looked at; empty if it could.
    fault: str = ""
    #: How the newest maintenance ended; None: none has.
    maintained: LakeMaintained | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay wrote."""

    table: str
    records: int
    rejected: int
    commits: int


@asynccontextmanager
async def open_lake(
    config: Config, registry: PluginRegistry, *, read_only: bool = True
) -> AsyncIterator[Lake]:
    """Open what can be shared with a live broker. Raises ConfigError if no compactor is selected."""
    selection = registry.select_all(config)
    spec = selection.specs.get(LAKE_COMPACTOR.name)
    if spec is None:
        raise ConfigError(
            "there are no tables, as the configuration names no plugin in lake_compactor.plugin"
            + ("" if config.path is not None else "; is there a file of the broker's, to be named with -c?")
        )
    assert isinstance(spec, LakeCompactorSpec)
    services = Services(
        node_id=config.tree.broker.node_id,
        epoch=0,
        cluster_id=config.tree.broker.cluster_id or "",
        data_dir=Path(os.path.abspath(os.path.expanduser(config.tree.broker.data_dir))),  # noqa: ASYNC240 - no disk
        read_only=read_only,
        clock=time.monotonic,
    )
    async with AsyncExitStack() as stack:
        # stores and metadata are only read, whatever becomes of a table
        plugins = PluginOpener(stack, selection, replace(services, read_only=True))
        await plugins.open(ALLOCATOR)
        object_store = await plugins.open(OBJECT_STORE)
        metadata_log = await plugins.open(METADATA_LOG)
        image = await load_image(metadata_log)
        if not image.index:
            raise NotFoundError(
                "there is no metadata log, check broker.data_dir and object_store.url: "
                f"location={metadata_log.location}"
            )
        plugins.set_services(cluster_id=image.cluster_id, read_only=read_only)
        compactor = await plugins.open(LAKE_COMPACTOR)
        yield Lake(
            image=image,
            metadata_log=metadata_log,
            object_store=object_store,
            compactor=compactor,
            batch_bytes=spec.batch_bytes,
            topic_configs=topic_config_table(spec, config.tree.lake.defaults, {}),
        )


async def topic_tables(lake: Lake, only: str | None = None) -> list[TopicTable]:
    """Every topic that wants a table or had one, by name; or the one of that name. Raises NotFoundError."""
    if only is not None:
        return [await _topic_table(lake, lake.topic(only)[0])]
    states = sorted(lake.image.topics.all(), key=lambda state: state.name)
    return [
        await _topic_table(lake, state)
        for state in states
        if not state.internal and (state.lake is not None or lake.configs(state).is_enabled)
    ]


async def _topic_table(lake: Lake, state: TopicState) -> TopicTable:
    configs = lake.configs(state)
    table: str | None = None
    lag: dict[int, int] | None = None
    fault = ""
    try:
        async with lake.compactor.open_table(lake_topic(state, configs), 0) as opened:
            table = opened.name
            positions = await opened.positions()
        lag = {}
        for stream_id in state.log_streams:
            stream = lake.image.streams.require(stream_id)
            position = max(stream.start, positions.get(stream.partition, 0))
            lag[stream.partition] = max(0, stream.end - position)
    except NotFoundError:
        if state.lake is not None and state.lake.state == LakeState.RUNNING:  # else it isn't made yet
            fault = "somebody dropped the table or gave it another name: it is made again at the next commit"
    except PenstockError as error:
        fault = str(error)
    claim = state.lake
    shown = "disabled" if not configs.is_enabled else "unclaimed" if claim is None else claim.state
    return TopicTable(
        topic=state.name,
        table=table,
        state=shown,
        reason=claim.reason if claim is not None and configs.is_enabled else "",
        since_ms=claim.since_ms if claim is not None else None,
        node_id=claim.node_id if claim is not None else None,
        lag_records=lag,
        fault=fault,
        maintained=claim.maintained if claim is not None else None,
    )


def next_request(lake: Lake, topic: str) -> int:
    """A request for maintenance of the topic's table that is above all before: the time, as far as clocks agree.

    Raises NotFoundError, InvalidRequestError if the topic wants no table.
    """
    state, _ = lake.topic(topic)
    configs = lake.configs(state)
    if not configs.is_enabled:
        raise InvalidRequestError(
            f"nobody owns the table of a topic that wants none, set penstock.lake.enable=true: topic={topic}"
        )
    answered = state.lake.maintained.request if state.lake and state.lake.maintained else 0
    return max(time.time_ns() // 1_000_000, configs.maintenance_request + 1, answered + 1)


async def maintained_since(lake: Lake, topic: str, request: int) -> LakeMaintained | None:
    """How the maintenance ended that answers this request, as metadata say by now; None: it hasn't ended."""
    state = replace(lake, image=await load_image(lake.metadata_log)).topic(topic)[0]
    claim = state.lake
    if claim is None:
        return None
    if claim.maintained is not None and claim.maintained.request >= request:
        return claim.maintained
    return None


async def replay(
    lake: Lake,
    topic: str,
    start: int,
    table: str,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> Replayed:
    """Write a topic's records from the offset ``start`` on, as far as objects have them, into a table of its own.

    A table that a replay began goes on where it ended. ``progress(offsets done, offsets there are)`` is called after
    each batch. Raises InvalidRequestError if ``table`` is the topic's own.
    """
    state, wanted = lake.topic(topic, table)
    own = lake_topic(state, lake.configs(state))
    async with AsyncExitStack() as stack:
        own_name = await _name_of(lake, own)
        if own_name is None and table != state.name and await _name_of(lake, wanted) is None:
            # what the topic's own table will be called is the compactor's affair: once the new one is there, it shows
            # whether it is that; and with the lowest epoch, it fences no broker from it
            async with lake.compactor.open_table(wanted, 1):
                pass
            own_name = await _name_of(lake, own)
        if table == (own_name or state.name):
            raise InvalidRequestError(
                f"a replay goes into a table of its own, name another one: table={table}"
            )
        # nobody else opens it, so any number that grows from replay to replay fences as it should
        opened = await stack.enter_async_context(lake.compactor.open_table(wanted, lake.image.index))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        throttle = Throttle(0, time.monotonic)

        def source_of(image: Image) -> LakeSource:
            return LakeSource(image, lake.object_store, tasks, throttle)

        return await _write_all(lake, state, opened, source_of, start, progress)


async def _name_of(lake: Lake, topic: LakeTopic) -> str | None:
    """The name of the table; None if there is none."""
    try:
        async with lake.compactor.open_table(topic, 0) as opened:
            return opened.name
    except NotFoundError:
        return None


async def _write_all(
    lake: Lake,
    state: TopicState,
    table: LakeTable,
    source_of: Callable[[Image], LakeSource],
    start: int,
    progress: Callable[[int, int], None],
) -> Replayed:
    image, source = lake.image, source_of(lake.image)
    positions = dict(await table.positions())
    streams = [lake.image.streams.require(stream_id) for stream_id in state.log_streams]
    records = rejected = commits = pending = done = 0
    begin = {
        stream.partition: positions.get(stream.partition, max(stream.start, start)) for stream in streams
    }
    total = sum(max(0, stream.end - begin[stream.partition]) for stream in streams)
    for stream in streams:
        position = begin[stream.partition]
        while position < stream.end:
            try:
                entries = await source.read(image.streams.require(stream.stream_id), position, _WINDOW_BYTES)
            except (CorruptError, NotFoundError):
                # what the topic's retention let go of meanwhile is gone after a minute, and no damage
                newer = await load_image(lake.metadata_log)
                now = newer.streams.get(stream.stream_id)
                if now is None or now.start <= max(position, image.streams.require(stream.stream_id).start):
                    raise
                image, source = newer, source_of(newer)
                continue
            for batch in decode_entries(stream.partition, entries, position, lake.batch_bytes):
                written = await table.write(batch)
                records += written.rows
                rejected += sum(written.rejected.values())
                pending += batch.nbytes
                done += batch.next_offset - position
                position = batch.next_offset
                progress(done, total)
            positions[stream.partition] = position
            if pending >= _COMMIT_BYTES:
                await table.commit(positions)
                commits, pending = commits + 1, 0
    await table.commit(positions)
    return Replayed(table=table.name, records=records, rejected=rejected, commits=commits + 1)
