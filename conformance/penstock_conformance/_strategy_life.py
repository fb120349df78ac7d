"""A random life of a cluster: what its clients do is drawn, and compared with a model at every step."""

from __future__ import annotations

__all__ = ("QUICK", "Life", "living")

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from penstock_conformance._strategy import BrokerProcess, StrategyEnv
from penstock_conformance._strategy_client import Client
from penstock_conformance._strategy_session import Session

#: What a broker does in minutes happens within a life: uploads, in several objects each, drops, deletions and
#: snapshots of metadata. These are settings of brokers, not of plugins, and hold where the user has set nothing.
QUICK: dict[str, str | int] = {
    "stream.upload_interval": "150ms",
    "stream.upload_bytes": "64KiB",
    "stream.object_split_bytes": "8KiB",
    "stream.block_bytes": "4KiB",
    "stream.delete_delay": "0ms",
    "stream.retention_interval": "100ms",
    "stream.metadata_snapshot_entries": 20,
}
_SIZES = (28, 300, 300, 3000, 30_000)
_TOPICS = ("orders", "orders-2", "o", "clicks")
_GROUPS = ("group", "another")
_PARTITIONS_MAX = 4
_ALIKE, _ALIKE_BYTES = 16, 900
_RETENTION_BYTES = "60000"


class Life:
    """A client that does this and that; ``broker`` is where it does it."""

    def __init__(self, env: StrategyEnv, broker: BrokerProcess, session: Client[Session]) -> None:
        self.broker = broker
        self.session = session
        self.steps = env.steps
        #: How many partitions each topic has.
        self._topics: dict[str, int] = {}
        #: Those of which retention drops records.
        self._dropping: set[str] = set()
        self._random = env.random
        self._do = {
            self._write: 8,
            self._read: 4,
            self._commit: 3,
            self._trim: 2,
            self._create: 2,
            self._delete: 2,
            self._add_partitions: 1,
            self._configure: 1,
            self._rest: 2,
        }

    async def go_on(self, count: int) -> None:
        """So many random steps; then every record is answered."""
        if not self._topics:
            await self._create()
        for _ in range(count):
            (step,) = self._random.choices(list(self._do), list(self._do.values()))
            await step()
        await self.flush()

    async def start_in_trouble(self, **medium: Any) -> None:
        """Start the broker with a store that fails, and with one that works if it says that it can't."""
        refusal = await self.broker.try_start(**medium)
        assert not refusal or "UnavailableError" in refusal, f"the broker doesn't start: {refusal}"
        if refusal:
            await self.broker.start()

    async def begin_to_write(self) -> None:
        """Records on their way to every partition, which nobody waits for."""
        for topic, count in self._topics.items():
            for number in range(count):
                await self._write_to(topic, number)

    async def write_alike(self) -> None:
        """Records of one size, each answered before the next, and time to upload them: contents tell them apart."""
        topic, number = await self._where_all_is_kept()
        for _ in range(_ALIKE):
            await self.session.ask(Session.write, topic, number, [_ALIKE_BYTES])
            await self.flush()
        await self._rest()

    async def _where_all_is_kept(self) -> tuple[str, int]:
        """A partition of which retention drops nothing, so that all of it can be compared; made if need be."""
        kept = [topic for topic in self._topics if topic not in self._dropping]
        if not kept and (names := self._free_names()):
            await self._create_named(names[0], {})
            kept = names[:1]
        topic = self._random.choice(sorted(kept or self._topics))
        return topic, self._random.randrange(self._topics[topic])

    async def flush(self) -> None:
        """Wait for the answers."""
        await self.session.ask(Session.flush)

    async def look(self) -> None:
        """Compare everything."""
        await self.session.ask(Session.look_at_topics)
        await self.session.ask(Session.look_at_commits)
        await self.session.ask(Session.read_all)
        await self.session.ask(Session.look_at_times)

    async def _write_to(self, topic: str, number: int) -> None:
        sizes = self._random.choices(_SIZES, k=self._random.choice((1, 1, 4, 40)))
        await self.session.ask(Session.write, topic, number, sizes)

    async def _write(self) -> None:
        for _ in range(self._random.choice((1, 3))):
            await self._write_to(*self._somewhere())
        if self._random.random() < 0.7:
            await self.flush()

    async def _read(self) -> None:
        await self.flush()
        where = self._random.choice((0.0, 0.9, self._random.random()))
        await self.session.ask(Session.read, *self._somewhere(), where, self._random.choice((1, 20, 500)))

    async def _commit(self) -> None:
        group = self._random.choice(_GROUPS)
        await self.session.ask(Session.commit, group, *self._somewhere(), self._random.random())

    async def _trim(self) -> None:
        await self.flush()
        await self.session.ask(Session.trim, *self._somewhere(), self._random.random())

    async def _create(self) -> None:
        if names := self._free_names():
            configs = {"retention.bytes": _RETENTION_BYTES} if self._random.random() < 0.3 else {}
            await self._create_named(self._random.choice(names), configs)

    def _free_names(self) -> list[str]:
        return [name for name in _TOPICS if name not in self._topics]

    async def _create_named(self, topic: str, configs: dict[str, str]) -> None:
        count = self._random.randint(1, 3)
        await self.session.ask(Session.create, topic, count, configs)
        self._topics[topic] = count
        (self._dropping.add if configs else self._dropping.discard)(topic)

    async def _delete(self) -> None:
        if len(self._topics) > 1:
            await self.flush()
            topic, _ = self._somewhere()
            await self.session.ask(Session.delete, topic)
            del self._topics[topic]
            if self._random.random() < 0.5:
                await self._create_named(topic, {})
                await self._write_to(topic, 0)

    async def _add_partitions(self) -> None:
        topic, _ = self._somewhere()
        if self._topics[topic] < _PARTITIONS_MAX:
            await self.session.ask(Session.add_partitions, topic)
            self._topics[topic] += 1

    async def _configure(self) -> None:
        value = str(self._random.randrange(1, 10) * 3_600_000)
        await self.session.ask(Session.configure, self._somewhere()[0], "delete.retention.ms", value)

    async def _rest(self) -> None:
        """Time for the broker to upload and to drop; that it does isn't asked."""
        self.steps.note("rest")
        await anyio.sleep(0.25)

    def _somewhere(self) -> tuple[str, int]:
        topic = self._random.choice(sorted(self._topics))
        return topic, self._random.randrange(self._topics[topic])


@asynccontextmanager
async def living(env: StrategyEnv, **medium: Any) -> AsyncIterator[Life]:
    """A life with a broker that runs; a clause that breaks in it tells the last steps and the seed."""
    env.defaults.update(QUICK)
    env.steps.note(f"seed {env.target.seed}")
    with env.steps.told():
        async with env.broker() as broker, env.session() as session:
            await broker.start(**medium)
            yield Life(env, broker, session)
