"""Clauses of ``penstock.spi.partitioner``, all at once: random choices and news, held against a model."""

from __future__ import annotations

import functools
import gc
import tracemalloc
from typing import Any

from anyio.lowlevel import checkpoint

from penstock.spi.partitioner import PartitionLoad
from penstock_conformance._env import Env
from penstock_conformance.reference._partitioner import murmur2

KIND = "partitioner"

_STEPS = 1000
_TOPICS = 90
_COUNTS = (1, 2, 3, 6, 8, 12, 50)
_SIZES = (0, 1, 100, 4000, 16_384, 2**20, 2**20 + 1, 2**31, 2**53)
_QUEUES = (0, 0, 1, 5, 90, 2**31, 2**53, 2**63)
_TIMES = (0.0, 100.0, 100.0, 1e15)
#: Kinds of keys: every one of many is seen again, and some are longer than any buffer.
_KEYS = 11_000
_LONG = 7
#: Whoever sticks to a partition until a batch is full has left it after some records of so many bytes.
_TURN, _TURN_BYTES = 5, 2**20
#: More than what is known of one topic may take, however it is kept.
_KEPT_BYTES = 200_000


def _key(number: int) -> bytes:
    if number == _LONG:
        return b"long" * 300_000 + b"k"
    return b"" if number == 5 else b"\xffkey" * (number % 5) + b"%d" % number


@functools.cache
def _java_hash(number: int) -> int:
    """Where Java sends a key, before there is a count: a key of many parts takes long to hash."""
    return murmur2(_key(number)) & 0x7FFFFFFF


class _Model:
    """Where keys belong, and what was told of each topic last."""

    def __init__(self, env: Env, partitioner: Any) -> None:
        self._random = env.random
        self._partitioner = partitioner
        self._claims = partitioner.capabilities
        self._places: dict[tuple[int, int], int] = {}
        self._news: dict[str, dict[int, PartitionLoad]] = {}
        # each is the beginning of the next, some are beyond 64 characters, and some differ in little
        self._topics = ["t" * (n + 1) for n in range(_TOPICS)] + ["t" * 248 + "-", "t.t", "t_t", "Tt", "tT"]

    def choose(self, topic: str, key: bytes | None, count: int, size: int | None = None) -> int:
        """A choice that is in range."""
        size = self._random.choice(_SIZES) if size is None else size
        chosen: int = self._partitioner.choose(topic, key, size, count)
        assert type(chosen) is int, f"not an integer: {chosen!r}"
        assert 0 <= chosen < count, f"no such partition: {chosen} of {count}"
        return chosen

    def keyed(self, number: int, count: int) -> None:
        """Equal keys go to equal partitions, of whatever topic and record; where Java sends them, if claimed."""
        key, topic = _key(number), self._random.choice(self._topics)
        chosen = self.choose(topic, key, count)
        if self._claims.java_hash:
            self._places.setdefault((number, count), _java_hash(number) % count)
        if self._claims.key_affinity or self._claims.java_hash:
            wanted = self._places.setdefault((number, count), chosen)
            assert chosen == wanted, (
                f"partition {chosen} of {count} instead of {wanted}: topic={topic} {key[:24]=}"
            )

    def tell(self) -> None:
        """News of some topic, also of the same moment as others or before, and about partitions that don't exist."""
        topic = self._random.choice(self._topics[:7])
        loads = {
            number: PartitionLoad(
                queued_batches=self._random.choice(_QUEUES),
                available=self._random.random() < 0.6,
                waiting_since_ms=self._random.choice((None, 0.0, 5.5, 1e15)),
            )
            for number in range(self._random.choice((0, 1, 6, 14)))
        }
        self._partitioner.update_load(topic, loads, self._random.choice(_TIMES))
        self._news[topic] = dict(loads)
        loads.clear()  # it is the caller's again

    def tell_of_each_kind(self) -> None:
        """News of partitions that are all away, and others of the same moment and of an earlier one."""
        topic = self._topics[0]
        for now_ms, away in ((100.0, (0, 1, 2)), (100.0, (0,)), (0.0, (1,)), (0.0, (2,)), (-1.0, (0, 1))):
            loads = {
                number: PartitionLoad(queued_batches=queued, available=number not in away)
                for number, queued in enumerate((0 if now_ms else 50, 2**31, 2**63))
            }
            self._partitioner.update_load(topic, loads, now_ms)
            self._news[topic] = loads
            for _ in range(_TURN):
                self.choose(topic, None, 3, _TURN_BYTES)
            if self._claims.adaptive:
                self.avoid(topic, 3)

    def tell_of_all(self) -> None:
        """News of every topic, in each of which another partition is away."""
        for n, topic in self._random.sample(list(enumerate(self._topics)), len(self._topics)):
            loads = {number: PartitionLoad(available=number != n % 3) for number in range(3)}
            self._partitioner.update_load(topic, loads, 100.0)
            self._news[topic] = loads

    def avoid(self, topic: str, count: int) -> None:
        """What is away gets nothing, whatever was told of other topics since."""
        loads = self._news[topic]
        away = {number for number in range(count) if not loads.get(number, PartitionLoad()).available}
        if len(away) == count:
            return
        for _ in range(_TURN):  # a sticky choice from before may run out first
            self.choose(topic, None, count, _TURN_BYTES)
        chosen = {self.choose(topic, None, count, _TURN_BYTES) for _ in range(20)}
        assert not chosen & away, (
            f"records for partitions without a leader: {sorted(chosen & away)} of {count}"
        )


async def test_random_choices_agree_with_a_model(env: Env) -> None:
    """Whatever was asked and told before, of this topic or of others: partitions are in range, keys stay where they
    belong, whatever their record's size, and what is away gets nothing; the news that were told last count."""
    rng = env.random
    async with env.open() as partitioner:
        model = _Model(env, partitioner)
        model.tell_of_each_kind()
        model.tell_of_all()
        if partitioner.capabilities.adaptive:
            for topic in model._topics:
                model.avoid(topic, 3)
                await checkpoint()
        for _ in range(2):
            for number in range(_KEYS):
                model.keyed(number, 12)
            await checkpoint()
        for _ in range(_STEPS):
            await checkpoint()
            model.keyed(rng.randrange(_LONG + 1, 100), rng.choice(_COUNTS))
            model.choose(rng.choice(model._topics), None, rng.choice(_COUNTS))
            if rng.random() < 0.05:
                model.tell()
                if partitioner.capabilities.adaptive:
                    model.avoid(rng.choice(list(model._news)), rng.choice(_COUNTS))


async def test_memory_does_not_grow_with_news(env: Env) -> None:
    """What is told of a topic takes the place of what was told before."""
    loads = {number: PartitionLoad(queued_batches=number) for number in range(12)}
    async with env.open() as partitioner:

        def tell(times: int) -> None:
            for number in range(times):
                partitioner.update_load("topic", dict(loads), float(number))
                partitioner.choose("topic", None, 4000, 12)

        tell(50)
        gc.collect()
        tracemalloc.start()
        try:
            tell(1000)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert grown < _KEPT_BYTES, f"1,000 news of one topic take {grown} bytes for ever"
