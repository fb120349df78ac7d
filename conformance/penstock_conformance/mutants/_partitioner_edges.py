"""Partitioners that are wrong about partitions without news, the order of news, other instances, clocks and seeds."""

from __future__ import annotations

__all__ = ()

import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from random import Random

from penstock.spi.partitioner import PartitionLoad
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._partitioner import PlainPartitioner

KIND = "partitioner"

_UNKNOWN = "partitions_without_news_are_chosen"
_SEED = "a_seed_makes_choices_repeatable"


@mutant(KIND, "takes_news_by_their_order", "news_are_by_partition")
class TakesNewsByTheirOrder(PlainPartitioner):
    """Keeps a list."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        super().update_load(topic, dict(enumerate(loads.values())), now_ms)


@mutant(KIND, "understands_dicts_only", "news_are_by_partition")
class UnderstandsDictsOnly(PlainPartitioner):
    """Any other mapping is nothing."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        super().update_load(topic, loads if isinstance(loads, dict) else {}, now_ms)


class _Completes(PlainPartitioner):
    """Makes up news of the partitions that have none."""

    def _made_up(self, known: Mapping[int, PartitionLoad]) -> PartitionLoad:
        raise NotImplementedError

    def _draw(self, topic: str, partition_count: int) -> int:
        known = self._loads.get(topic)
        if not known:
            return super()._draw(topic, partition_count)
        made_up = self._made_up(known)
        self._loads[topic] = {number: known.get(number, made_up) for number in range(partition_count)}
        try:
            return super()._draw(topic, partition_count)
        finally:
            self._loads[topic] = known


@mutant(KIND, "takes_partitions_without_news_for_away", _UNKNOWN)
class TakesPartitionsWithoutNewsForAway(_Completes):
    """Whoever has a leader would be told of."""

    def _made_up(self, known: Mapping[int, PartitionLoad]) -> PartitionLoad:
        return PartitionLoad(available=not any(load.available for load in known.values()))


@mutant(KIND, "expects_the_worst_where_there_are_no_news", _UNKNOWN)
class ExpectsTheWorstWhereThereAreNoNews(_Completes):
    """The longest queue that is known."""

    def _made_up(self, known: Mapping[int, PartitionLoad]) -> PartitionLoad:
        return PartitionLoad(queued_batches=max(load.queued_batches for load in known.values()))


@mutant(KIND, "goes_to_the_next_of_who_is_away", _UNKNOWN)
class GoesToTheNextOfWhoIsAway(PlainPartitioner):
    """One partition is away: its neighbour takes all."""

    def _draw(self, topic: str, partition_count: int) -> int:
        away = [number for number, load in self._loads.get(topic, {}).items() if not load.available]
        return (away[0] + 1) % partition_count if len(away) == 1 else super()._draw(topic, partition_count)


_NEWS: dict[str, Mapping[int, PartitionLoad]] = {}


@mutant(KIND, "shares_its_news_with_all_others", "two_partitioners_have_news_of_their_own")
class SharesItsNewsWithAllOthers(PlainPartitioner):
    """What is known of a topic is known in the whole process."""

    def __init__(self) -> None:
        super().__init__()
        _NEWS.clear()
        self._loads = _NEWS


@mutant(KIND, "forgets_news_by_the_clock", "news_last_until_there_are_others")
class ForgetsNewsByTheClock(PlainPartitioner):
    """Five minutes are long enough."""

    def __init__(self) -> None:
        super().__init__()
        self._told_at = 0.0

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        super().update_load(topic, loads, now_ms)
        self._told_at = time.monotonic()

    def _draw(self, topic: str, partition_count: int) -> int:
        if time.monotonic() - self._told_at > 300:
            self._loads.clear()
        return super()._draw(topic, partition_count)


@mutant(KIND, "takes_seed_0_for_none", _SEED)
class TakesSeed0ForNone(PlainPartitioner):
    """Zero is false."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._random = Random(seed or None)


@mutant(KIND, "ignores_its_seed", _SEED)
class IgnoresItsSeed(PlainPartitioner):
    """Takes it, and asks the system."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._random = Random()


@mutant(KIND, "knows_news_of_a_hundred_topics", "news_are_about_one_topic")
class KnowsNewsOfAHundredTopics(PlainPartitioner):
    """Topics that were told of last."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._loads.pop(topic, None)
        super().update_load(topic, loads, now_ms)
        if len(self._loads) > 100:
            del self._loads[next(iter(self._loads))]


@mutant(KIND, "listens_twenty_times", "newest_news_count")
class ListensTwentyTimes(PlainPartitioner):
    """And knows how the topic is."""

    def __init__(self) -> None:
        super().__init__()
        self._told = 0

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._told += 1
        if self._told <= 20:
            super().update_load(topic, loads, now_ms)


@mutant(KIND, "counts_queues_in_16_bits", "newest_news_count")
class CountsQueuesIn16Bits(PlainPartitioner):
    """No queue is as long as that."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        loads = {at: replace(load, queued_batches=load.queued_batches % 2**16) for at, load in loads.items()}
        super().update_load(topic, loads, now_ms)


@mutant(
    KIND,
    "takes_keys_for_texts_that_zeros_end",
    "keys_go_where_java_sends_them",
    "keys_that_differ_little_are_others",
)
class TakesKeysForTextsThatZerosEnd(PlainPartitioner):
    """From the ninth byte on: before, they are numbers."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None and len(key) > 8:
            key = key[:8] + key[8:].rstrip(b"\0")
        return super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "goes_round_for_all_topics", "keyless_records_spread")
class GoesRoundForAllTopics(PlainPartitioner):
    """One number counts for all: two topics in turns have half of the partitions each."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def _next(self, topic: str, partition_count: int) -> int:
        self._count += 1
        return self._count % partition_count

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None or partition_count < 1 or topic in self._loads:
            return super().choose(topic, key, size_bytes, partition_count)
        return self._next(topic, partition_count)


@mutant(KIND, "goes_round_with_every_record", "keyless_records_spread")
class GoesRoundWithEveryRecord(GoesRoundForAllTopics):
    """With a key or without, of each topic by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()

    def _next(self, topic: str, partition_count: int) -> int:
        return self._counts[topic] % partition_count

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        self._counts[topic] += 1
        return super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "has_a_partition_for_large_records", "keyless_records_spread")
class HasAPartitionForLargeRecords(PlainPartitioner):
    """So that they hold up no others."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is None and size_bytes > 2**20 and partition_count > 0:
            return 0
        return super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "draws_by_the_clock_beside_news", _SEED)
class DrawsByTheClockBesideNews(PlainPartitioner):
    """News come at some time or other, so a seed is of no use then."""

    def _draw(self, topic: str, partition_count: int) -> int:
        if self._loads.get(topic):
            self._random.seed(time.monotonic_ns())
        return super()._draw(topic, partition_count)


@mutant(KIND, "draws_with_the_randomness_of_all", _SEED)
class DrawsWithTheRandomnessOfAll(PlainPartitioner):
    """Which it seeds as it is opened."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        random.seed(seed)
        vars(self)["_random"] = random


@mutant(KIND, "never_uses_again_what_went_away", "new_partitions_are_used")
class NeverUsesAgainWhatWentAway(PlainPartitioner):
    """A topic that lost partitions keeps to those that were left."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._counts: dict[str, int] = {}
        self._left: dict[str, int] = {}

    def _draw(self, topic: str, partition_count: int) -> int:
        if partition_count < self._counts.get(topic, 0):
            self._left[topic] = partition_count
        self._counts[topic] = partition_count
        return super()._draw(topic, min(partition_count, self._left.get(topic, partition_count)))


@mutant(KIND, "moves_keys_when_all_are_away", "news_move_no_key")
class MovesKeysWhenAllAreAway(PlainPartitioner):
    """Nobody gets the record anyhow."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        loads = self._loads.get(topic, {})
        if key is not None and len(loads) >= partition_count > 0:
            key = key if any(load.available for load in loads.values()) else b""
        return super().choose(topic, key, size_bytes, partition_count)
