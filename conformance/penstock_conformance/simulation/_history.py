"""One history: lives of a broker that end by a kill, a stop, a cut or a takeover, with clients, faults and checks."""

from __future__ import annotations

__all__ = ("History",)

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio

from penstock.bus import EventBus
from penstock.errors import CorruptError, FullError, InvariantError, PenstockError
from penstock.metadata.commands.topics import CreateTopic, DeleteTopic
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService, load_image
from penstock.metadata.words import NodeWords
from penstock.plugins import PluginRegistry, validate_settings
from penstock.spi import kinds
from penstock.spi.allocator import Allocator
from penstock.spi.plugin import Services
from penstock.stream.engine import EngineSettings, StreamEngine
from penstock.stream.object_format import object_key
from penstock.stream.object_puts import UploadSettings
from penstock.stream.open_stream import Stream
from penstock.stream.reader import ReaderSettings
from penstock_conformance.simulation._bucket import Bucket, BucketClient
from penstock_conformance.simulation._loop import SimulatedLoop
from penstock_conformance.simulation._media import Medium
from penstock_conformance.simulation._model import Model, WatchedWal, check_image
from penstock_conformance.simulation._threads import life_of_task

_NODE = 1
_PARTITIONS = 2
_LIVES = 5
_MEMORY_BYTES = 16 * 2**20
_CHUNK_BYTES = 4096
_DEADLINE_MS = 60_000
_SNAPSHOT_ENTRIES = 12
_NEVER_MS = 3_600_000_000
#: The topic that comes and goes.
_PASSING = "passing"
_YEAR_MS = 365 * 24 * 3_600_000


class _Life:
    """A process: what it has open, and how it is going to end."""

    def __init__(self, number: int, client: BucketClient) -> None:
        self.number = number
        self.client = client
        self.opened = asyncio.Event()
        self.scope = anyio.CancelScope()
        self.engine: StreamEngine | None = None
        self.metadata: MetadataService | None = None
        self.wal: Any = None
        self.streams: list[Stream] = []
        #: Set by each append that goes to the WAL.
        self.appended = asyncio.Event()
        self.appends = 0
        self.appends_max = 20


class History:
    """All lives of one seed."""

    def __init__(
        self,
        seed: int,
        loop: SimulatedLoop,
        medium: Medium,
        registry: PluginRegistry,
        directory: Path,
    ) -> None:
        self._random = Random(seed)
        #: Of what goes on beside everything else, so that it takes no number from others.
        self._aside = Random(f"aside {seed}")
        self._loop = loop
        #: How far the clocks of processes are ahead.
        self._ahead_ms = 0
        self._medium = medium
        self._registry = registry
        self._directory = directory
        self._bucket = Bucket(loop, Random(f"bucket {seed}"))
        self._medium.begin(loop, Random(f"medium {seed}"), self._bucket)
        self._model = Model()
        self._living = 0
        self._opened_at_loss = -1
        choose = self._random.choice
        self._settings = EngineSettings(
            upload_bytes=choose((3_000, 20_000, 2**20)),
            upload_interval_ms=choose((500, 5_000, 3_600_000)),
            in_flight_bytes_max=choose((20_000, 2**20)),
            lifecycle_interval_ms=choose((1_000, 3_600_000)),
            delete_delay_ms=0,
            orphan_sweep_interval_ms=choose((300, 20_000, 3_600_000)),
            orphan_grace_ms=2 * _DEADLINE_MS,
            upload=UploadSettings(
                block_bytes=512,
                object_split_bytes=choose((2_000, 2**20)),
                multipart_bytes=2**30,
                part_bytes=2**20,
                prepare_deadline_ms=_DEADLINE_MS,
                commit_ranges_max=choose((1, 5000)),
            ),
            reader=ReaderSettings(merge_bytes_max=2**20),
        )
        #: What happened, for people and for the proof that a seed gives one history.
        self.trace: list[str] = []
        self.counts: dict[str, int] = {}

    def note(self, text: str) -> None:
        """A line of the trace, with its moment."""
        self.trace.append(f"{self._loop.time():.6f} {text}")
        word = text.split(maxsplit=1)[0]
        self.counts[word] = self.counts.get(word, 0) + 1

    # -- lives -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All lives, and at the end a quiet one that checks everything."""
        with self._medium.in_place():
            await self._run()

    async def _run(self) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(_LIVES):
                pace = self._bucket.pace
                pace.fault_rate = self._random.choice((0.0, 0.0, 0.05, 0.2))
                pace.typical_s = self._random.choice((0.002, 0.02, 0.1))
                # what is damaged at its end looks shorter: then the other part must be there, and soon enough
                is_calm = self.counts.get("open", 0) == self._opened_at_loss
                if is_calm:
                    pace.fault_rate, pace.typical_s = 0.0, 0.002
                self._medium.set_pace(pace.fault_rate, pace.typical_s)
                life = _Life(number, BucketClient(self._bucket))
                life.appends_max = self._random.choice((10, 40, 120))
                self.note(f"life {number} faults={pace.fault_rate} typical={pace.typical_s}")
                tasks.start_soon(self._live, life)
                self._medium.disturbed = ""
                if self._medium.is_redundant and not is_calm:
                    tasks.start_soon(self._disturb)
                await self._end(life, tasks)
        self._bucket.pace.fault_rate = 0.0
        self._medium.set_pace(0.0, 0.002 if self._medium.is_redundant else self._bucket.pace.typical_s)
        await self._quiet_life()
        await self._damaged_life()

    async def _disturb(self) -> None:
        what = await self._medium.disturb()
        self.note(f"disturbed {what}")

    async def _perhaps_lose(self, *, is_part_out: bool) -> None:
        """Nobody lives, and nothing is on its way any more: a part of the medium may be lost that isn't needed.

        Not before a life has seen what was lost before: two losses at once are more than anything survives.
        """
        opened = self.counts.get("open", 0)
        if not self._medium.is_redundant or opened == self._opened_at_loss:
            return
        if not is_part_out and self._random.random() < 0.5:
            return
        while self._living:  # noqa: ASYNC110 - simulated time
            await anyio.sleep(1)
        self._bucket.pace.fault_rate = 0.0
        await anyio.sleep(_DEADLINE_MS / 1000)
        node = (await self._image(BucketClient(self._bucket))).nodes.get(_NODE)
        lost = self._medium.lose(
            "" if node is None else "".join(node.words.values()), what_was_well=is_part_out
        )
        if lost:
            self._opened_at_loss = self.counts.get("open", 0)
            self.note(f"lost {lost}")

    async def _end(self, life: _Life, tasks: anyio.abc.TaskGroup) -> None:
        """Wait for a while, then end the life, or cut it off and leave it to its successor."""
        random = self._random
        with anyio.move_on_after(random.choice((0.3, 5.0, 20.0))):
            await life.opened.wait()
        is_part_out = self._medium.is_redundant and life.opened.is_set() and await self._wait_for_part(life)
        if not is_part_out:
            await anyio.sleep(random.uniform(0.0, random.choice((0.2, 1.0, 4.0))))
            if random.random() < 0.7:
                await self._wait_until_busy(life)
        how = "kill" if is_part_out else random.choice(("kill", "kill", "stop", "cut", "takeover"))
        self.note(f"{how} {life.number}")
        if how == "kill":
            await self._kill(life)
        elif how == "cut":
            cut_s = random.uniform(0.5, 10.0)
            life.client.cut_off_until_s = self._loop.time() + cut_s
            self._medium.cut_off(life.number, cut_s)
            tasks.start_soon(self._kill_late, life, cut_s + random.uniform(0, 5))
        elif how == "takeover":
            tasks.start_soon(self._be_overtaken, life)
        else:
            await self._stop(life)
        await self._perhaps_lose(is_part_out=is_part_out)

    async def _wait_until_busy(self, life: _Life) -> None:
        """Something is on its way to the WAL, if anything is soon."""
        if life.engine is None or not life.engine.statistics().in_flight_bytes:
            life.appended.clear()
            with anyio.move_on_after(1):
                await life.appended.wait()
        await anyio.sleep(self._random.uniform(0, 0.5 * self._medium.typical_s))

    async def _wait_for_part(self, life: _Life) -> bool:
        """In many lives: a part of the medium went wrong just now, or returns, beside other work; whether one did."""
        random = self._random

        def is_degraded() -> bool:
            return bool(life.wal.statistics().state == "degraded")

        until = random.choice(("", "it goes wrong", "it returns", "it is back"))
        life.appends_max += 100
        if not until or not await _becomes(lambda: bool(self._medium.disturbed), within_s=5):
            return False
        if until != "it goes wrong":
            if not await _becomes(is_degraded, within_s=5):
                return False
            is_half_way = until == "it returns"
            await _becomes(lambda: not is_degraded() or (is_half_way and random.random() < 0.01), within_s=60)
        await anyio.sleep(random.uniform(0, random.choice((1, 10)) * self._bucket.pace.typical_s))
        self.note(f"awaited {life.number} {until}")
        return True

    async def _kill(self, life: _Life) -> None:
        await self._medium.kill(life.number)
        life.client.is_dead = True
        life.scope.cancel()

    async def _kill_late(self, life: _Life, after_s: float) -> None:
        await anyio.sleep(after_s)
        await self._kill(life)

    async def _be_overtaken(self, life: _Life) -> None:
        """The old owner stays awake and goes on writing until a while after its successor has opened."""
        life.appends_max += 100
        opened = self.counts.get("open", 0)
        await _becomes(lambda: self.counts.get("open", 0) > opened, within_s=20)
        await self._kill_late(life, self._random.uniform(0, 5))

    async def _stop(self, life: _Life) -> None:
        with anyio.move_on_after(30):
            if life.engine is not None:
                try:
                    done = await life.engine.drain()
                    self.note(f"drained {life.number} {done}")
                except PenstockError as error:
                    self.note(f"undrained {life.number} {type(error).__name__}")
        life.scope.cancel()
        with anyio.move_on_after(60):
            await anyio.sleep(self._random.uniform(0, 2))

    async def _live(self, life: _Life) -> None:
        """One process, until it ends. Errors of operation are an end like any other; broken promises are raised."""
        life_of_task.set(life.number)
        self._living += 1
        try:
            with life.scope:
                async with self._open(life):
                    await self._be_used(life)
        except BaseExceptionGroup as group:
            ends, rest = group.split(_is_end)
            if rest is not None:
                raise
            assert ends is not None
            self.note(f"ended {life.number} {_first(ends)}")
        except PenstockError as error:
            if not _is_end(error):
                raise
            self.note(f"ended {life.number} {type(error).__name__}")
        finally:
            life.engine = None
            self._living -= 1
            self.note(f"gone {life.number}")

    @asynccontextmanager
    async def _open(self, life: _Life) -> AsyncIterator[None]:
        """Everything that a broker opens for its streams."""
        services = self._services()
        async with AsyncExitStack() as stack:

            async def opened(kind: kinds.Kind[Any], services: Services, **settings: object) -> Any:
                spec = self._registry.select(kind.name, kind.default)
                return await stack.enter_async_context(spec.open(validate_settings(spec, settings), services))

            allocator = await opened(kinds.ALLOCATOR, services, limit=_MEMORY_BYTES, chunk_bytes=_CHUNK_BYTES)
            stack.callback(self._check_account, allocator)
            services = replace(services, allocator=allocator, object_store=life.client)
            log = await opened(kinds.METADATA_LOG, services)
            metadata = await stack.enter_async_context(
                MetadataService.open(
                    log, now_ms=self._now_ms, cluster_id="simulated", snapshot_entries=_SNAPSHOT_ENTRIES
                )
            )
            log_cache = await opened(kinds.LOG_CACHE, services)
            block_cache = await opened(kinds.BLOCK_CACHE, services, limit=2**20)
            epoch = await metadata.register(_NODE)
            services = replace(services, epoch=epoch, cluster_id="simulated")
            wal = await stack.enter_async_context(
                self._medium.open_wal(life.number, services, partial(NodeWords, metadata))
            )
            engine = await stack.enter_async_context(
                StreamEngine.open(
                    metadata=metadata,
                    store=life.client,
                    wal=WatchedWal(wal, metadata.image, life.appended.set),
                    log_cache=log_cache,
                    block_cache=block_cache,
                    allocator=allocator,
                    settings=self._settings,
                    node_id=_NODE,
                    node_epoch=epoch,
                    now_ms=self._now_ms,
                    bus=EventBus(),
                )
            )
            topic = metadata.image.topics.named("t")
            if topic is None:
                topic = await metadata.submit(CreateTopic("t", b"t" * 16, _PARTITIONS))
            passing = metadata.image.topics.named(_PASSING)
            life.metadata, life.wal = metadata, wal
            life.streams = await engine.open_streams(
                [*topic.log_streams, *(passing.log_streams if passing is not None else ())]
            )
            self.note(f"open {life.number} index={metadata.image.index}")
            await self._check(life, engine, epoch)
            check_image(metadata.image)
            life.engine = engine
            life.opened.set()
            yield
            used = allocator.statistics().used_bytes
            assert used <= _MEMORY_BYTES + 2**20, f"I8: over the limit of memory: used={used}"

    async def _check(self, life: _Life, engine: StreamEngine, epoch: int) -> None:
        """Everything acknowledged is there, if this life isn't one that was overtaken and will be told.

        Who is the newest owner metadata says, not the numbers of lives: one that began earlier may register later.
        """
        try:
            await self._model.check(engine, life.streams)
        except AssertionError:
            now = Bucket(self._loop, self._random)
            now.objects.update(self._bucket.objects)
            node = (await self._image(BucketClient(now))).nodes.get(_NODE)
            if node is None or node.epoch <= epoch:
                raise
            self.note(f"overtaken {life.number}")

    def _check_account(self, allocator: Allocator) -> None:
        """I8: nobody holds memory, but for the chunk that is cut from, and what was let go."""
        used = dict(allocator.statistics().used_by_purpose)
        used["append"] = max(0, used.get("append", 0) - _CHUNK_BYTES)
        let_go = {"idle", "pinned"}
        if self._medium.is_redundant:
            let_go.add("wal")  # a replica whose disk hangs keeps its buffers, as it may still write
        held = {purpose: size for purpose, size in used.items() if size and purpose not in let_go}
        assert not held, f"I8: everything is closed, and memory is still charged: {held}"

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000) + self._ahead_ms

    async def _set_clock(self) -> None:
        """In some lives the clock is wrong from some moment on, by years or by seconds."""
        if self._aside.random() < 0.3:
            await anyio.sleep(self._aside.uniform(0, 5))
            self._ahead_ms = self._aside.choice((-20 * _YEAR_MS, -_YEAR_MS, -5_000, 0, 5_000, _YEAR_MS))
            self.note(f"clock {self._ahead_ms}")

    # -- clients ---------------------------------------------------------------------------------------------

    async def _be_used(self, life: _Life) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(self._forever, life, self._produce, 1, number)
            tasks.start_soon(self._forever, life, self._trim, 10)
            tasks.start_soon(self._forever, life, self._flush, 5)
            tasks.start_soon(self._forever, life, self._look, 5)
            tasks.start_soon(self._forever, life, self._come_or_go, 40)
            tasks.start_soon(self._set_clock)

    async def _forever(
        self, life: _Life, step: Callable[[_Life, int], Awaitable[None]], rarity: int, number: int = 0
    ) -> None:
        """``step`` again and again, after pauses that are as many times longer as it is rare."""
        pause_s = rarity * self._random.choice((0.02, 0.3, 1.0))
        while True:
            await anyio.sleep(self._random.uniform(0, pause_s) + 0.001)
            try:
                await step(life, number)
            except PenstockError as error:
                if not _is_end(error):
                    raise
                await anyio.sleep(0.1)

    async def _produce(self, life: _Life, number: int) -> None:
        """Some records at once; who is told that one is durable, remembers it."""
        engine = life.engine
        assert engine is not None
        stream = self._random.choice(life.streams)
        last = asyncio.Event()
        if life.appends >= life.appends_max:
            await anyio.sleep(5)
            return
        for _ in range(min(life.appends_max - life.appends, self._random.choice((1, 1, 4, 25)))):
            try:
                if not self._append(life, engine, stream, number, last):
                    break
            except FullError:
                with anyio.move_on_after(1):
                    await engine.wait_for_room(0)
                return
        with anyio.move_on_after(5):
            await last.wait()

    def _append(
        self, life: _Life, engine: StreamEngine, stream: Stream, number: int, last: asyncio.Event
    ) -> bool:
        """One entry; False if there is no memory for it. Raises FullError, and what ends the life."""
        life.appends += 1
        payload = f"{life.number}.{number}.{life.appends} ".encode() * self._random.choice((1, 8, 100))
        try:
            allocation = engine.allocator.allocate_nowait(len(payload), "append")
        except FullError:
            return False
        allocation.view[:] = payload
        offset, count = stream.next_offset, self._aside.choice((1, 1, 1, 3))
        self._model.of(stream.stream_id).sent[payload] = count

        def done(error: Exception | None) -> None:
            if error is None:
                self._model.acked(stream.stream_id, offset, payload, life.number)
                self.note(f"acked {life.number} {stream.stream_id}@{offset}")
            last.set()
            if error is None and self._aside.random() < 0.05:
                try:  # who is told may append at once
                    self._append(life, engine, stream, number, last)
                except PenstockError as refused:
                    if not _is_end(refused):
                        raise

        try:
            engine.append(stream, count, self._now_ms(), allocation.view, allocation, done)
        except BaseException:
            allocation.release()
            raise
        return True

    async def _trim(self, life: _Life, _: int) -> None:
        engine = life.engine
        assert engine is not None
        stream = self._random.choice(life.streams)
        written = self._model.of(stream.stream_id)
        offset = self._random.randint(stream.start_offset, stream.confirmed_offset)
        written.start_max = max(written.start_max, offset)
        await engine.trim_streams([(stream.stream_id, offset)])
        written.start = max(written.start, offset)
        self.note(f"trimmed {life.number} {stream.stream_id}@{offset}")

    async def _come_or_go(self, life: _Life, _: int) -> None:
        """A topic is made, or deleted with what is on its way to it; the next one of its name has other streams."""
        engine, metadata = life.engine, life.metadata
        assert engine is not None
        assert metadata is not None
        topic = metadata.image.topics.named(_PASSING)
        if topic is None:
            topic = await metadata.submit(CreateTopic(_PASSING, self._aside.randbytes(16), 1))
            life.streams += await engine.open_streams(topic.log_streams)
            self.note(f"came {life.number} {topic.log_streams}")
            return
        gone = await metadata.submit(DeleteTopic(topic.topic_id))
        life.streams = [stream for stream in life.streams if stream.stream_id not in gone]
        engine.forget_streams(gone)
        self.note(f"went {life.number} {topic.log_streams}")

    async def _flush(self, life: _Life, _: int) -> None:
        assert life.engine is not None
        await life.engine.flush()
        self.note(f"flushed {life.number}")

    async def _look(self, life: _Life, _: int) -> None:
        """A reader finds what is acknowledged, at any time."""
        engine, stream = life.engine, self._random.choice(life.streams)
        assert engine is not None
        start, end = stream.start_offset, stream.confirmed_offset
        if start >= end:
            return
        offset = self._random.randrange(start, end)
        entries = await engine.reads.read(stream, offset, 500)
        assert not entries or entries[0].base_offset <= offset < entries[0].next_offset, (
            f"I1: a read began elsewhere: stream={stream.stream_id} offset={offset} found={entries[0].base_offset}"
        )
        known = self._model.of(stream.stream_id).acked.get(offset)
        if entries and known is not None and entries[0].base_offset == offset:
            assert bytes(entries[0].data) == known[0], (
                f"I1: a read gave other bytes: stream={stream.stream_id} offset={offset}"
            )

    # -- the end ---------------------------------------------------------------------------------------------

    async def _quiet_life(self) -> None:
        """No faults any more: everything comes to its end, and all invariants hold."""
        life = _Life(_LIVES, BucketClient(self._bucket))
        life_of_task.set(life.number)
        self.note("quiet")
        # what is periodic is called below instead, since hours pass
        self._settings = replace(
            self._settings,
            upload_interval_ms=_NEVER_MS,
            lifecycle_interval_ms=_NEVER_MS,
            orphan_sweep_interval_ms=_NEVER_MS,
        )
        async with self._open(life):
            engine, metadata = life.engine, life.metadata
            assert engine is not None
            assert metadata is not None
            for _ in range(3):
                await self._produce(life, 0)
            await engine.flush()
            await self._loop.skip(3 * _DEADLINE_MS / 1000)
            for _ in range(3):
                await engine._lifecycle.sweep()
                await engine._orphans.sweep()
                await self._loop.skip(3 * _DEADLINE_MS / 1000)
            await self._medium.settle(life.wal)
            await self._model.check(engine, life.streams)
            image = metadata.image
            check_image(image)
            await self._check_replay(image)
            found = {key for key in self._bucket.objects if key.startswith("objects/")}
            held = {object_key(one.object_id) for one in image.objects.all() if one.state == "committed"}
            assert held <= found, f"I6: committed objects are missing: {sorted(held - found)[:3]}"
            assert found <= held, f"I6: objects that metadata doesn't know stay: {sorted(found - held)[:3]}"
            for _ in range(3):  # for the damage: what only the WAL holds
                await self._produce(life, 0)
            self.note(f"checked index={image.index} objects={len(held)}")

    async def _check_replay(self, image: Image) -> None:
        """I7: from the newest snapshot, and from the very first entry, the same image."""
        expected = image.to_snapshot()
        assert await self._image_in(self._bucket) == expected, "I7: the snapshot gives another image"
        whole = Bucket(self._loop, self._random)
        whole.objects.update(self._bucket.created)
        assert await self._image_in(whole) == expected, "I7: the entries from the first on give another image"

    async def _image_in(self, bucket: Bucket) -> bytes:
        return (await self._image(BucketClient(bucket))).to_snapshot()

    async def _image(self, store: BucketClient) -> Image:
        spec = self._registry.select(kinds.METADATA_LOG.name, kinds.METADATA_LOG.default)
        async with spec.open(validate_settings(spec, {}), self._services(object_store=store)) as log:
            return await load_image(log)

    def _services(self, **more: Any) -> Services:
        return Services(
            node_id=_NODE, epoch=1, cluster_id="", data_dir=self._directory, clock=self._loop.time, **more
        )

    async def _damaged_life(self) -> None:
        """I10, I11: what is damaged, or missing before the end, is told; no wrong byte is ever returned."""
        what = self._medium.damage(self._random)
        if not what:
            return
        self.note(f"damaged {what}")
        life = _Life(_LIVES + 1, BucketClient(self._bucket))
        life_of_task.set(life.number)
        try:
            async with self._open(life):
                self.note("unharmed")
        except* CorruptError as group:
            assert not self._medium.is_redundant, f"what another place holds wasn't used: {_message(group)}"
            self.note(f"told {_first(group)}")


async def _becomes(holds: Callable[[], bool], *, within_s: float) -> bool:
    """Whether ``holds`` becomes true soon."""
    with anyio.move_on_after(within_s):
        while not holds():  # noqa: ASYNC110 - simulated time
            await anyio.sleep(0.02)
        return True
    return False


def _is_end(error: BaseException) -> bool:
    return isinstance(error, PenstockError) and not isinstance(error, CorruptError | InvariantError)


def _first(group: BaseException) -> str:
    return type(_one(group)).__name__


def _message(group: BaseException) -> str:
    return str(_one(group))


def _one(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
