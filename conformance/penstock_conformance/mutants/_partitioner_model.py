"""Partitioners that are right as long as one record, one topic, one instance or one kind of news comes alone."""

from __future__ import annotations

__all__ = ()

from collections import OrderedDict
from collections.abc import Mapping

from penstock.spi.partitioner import PartitionLoad
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._partitioner import PlainPartitioner

KIND = "partitioner"

_MODEL = "random_choices_agree_with_a_model"
_NEWS = "memory_does_not_grow_with_news"


@mutant(KIND, "hashes_large_records_by_size", _MODEL)
class HashesLargeRecordsBySize(PlainPartitioner):
    """Puts what is larger than a batch elsewhere."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None and size_bytes > 2**20:
            return (super().choose(topic, key, size_bytes, partition_count) + 1) % partition_count
        return super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "caches_keys_by_their_hash", _MODEL)
class CachesKeysByTheirHash(PlainPartitioner):
    """Remembers a thousand hashes by 20 bits of them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._known: OrderedDict[int, int] = OrderedDict()

    def _of_hash(self, value: int, partition_count: int) -> int:
        value = self._known.setdefault(value & 0xFFFFF, value)
        if len(self._known) > 1000:
            self._known.popitem(last=False)
        return super()._of_hash(value, partition_count)


@mutant(KIND, "hashes_by_topic", _MODEL)
class HashesByTopic(PlainPartitioner):
    """The topic is part of the hash, for topics with long names."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        chosen = super().choose(topic, key, size_bytes, partition_count)
        return (chosen + 1) % partition_count if key is not None and len(topic) > 64 else chosen


@mutant(KIND, "remembers_the_news_of_one_topic", _MODEL)
class RemembersTheNewsOfOneTopic(PlainPartitioner):
    """News about another topic replace those of this one."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._loads = {topic: dict(loads)}


@mutant(KIND, "remembers_the_news_of_64_topics", _MODEL)
class RemembersTheNewsOf64Topics(PlainPartitioner):
    """So many, and no more."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        if topic in self._loads or len(self._loads) < 64:
            super().update_load(topic, loads, now_ms)


@mutant(KIND, "chooses_the_last_when_all_are_away", _MODEL)
class ChoosesTheLastWhenAllAreAway(PlainPartitioner):
    """Counted from the end."""

    def _draw(self, topic: str, partition_count: int) -> int:
        loads = self._loads.get(topic, {})
        if all(not loads.get(p, PartitionLoad()).available for p in range(partition_count)):
            return -1
        return super()._draw(topic, partition_count)


@mutant(KIND, "fails_on_long_queues", _MODEL)
class FailsOnLongQueues(PlainPartitioner):
    """Counts queues in 31 bits."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        if any(load.queued_batches >= 2**31 for load in loads.values()):
            raise OverflowError("queue")
        super().update_load(topic, loads, now_ms)


@mutant(KIND, "knows_time_to_go_forward", _MODEL)
class KnowsTimeToGoForward(PlainPartitioner):
    """News of the same moment are old."""

    _now = -1.0

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        if now_ms > self._now:
            self._now = now_ms
            super().update_load(topic, loads, now_ms)


@mutant(KIND, "remembers_all_news", _NEWS)
class RemembersAllNews(PlainPartitioner):
    """Keeps what newer news took the place of."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._history: list[Mapping[int, PartitionLoad]] = []

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._history.append(dict(loads))
        super().update_load(topic, loads, now_ms)


@mutant(KIND, "hashes_keys_of_a_mebibyte_by_their_end", _MODEL)
class HashesKeysOfAMebibyteByTheirEnd(PlainPartitioner):
    """Long keys are cut at the front."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        return super().choose(topic, key[-(2**20) :] if key else key, size_bytes, partition_count)


@mutant(KIND, "moves_keys_from_the_20000th_on", _MODEL)
class MovesKeysFromThe20000thOn(PlainPartitioner):
    """After so many choices it has another seed."""

    _count = 0

    def _of_hash(self, value: int, partition_count: int) -> int:
        self._count += 1
        return super()._of_hash(value + (self._count > 20_000), partition_count)


@mutant(KIND, "moves_keys_after_keyless_records", _MODEL)
class MovesKeysAfterKeylessRecords(PlainPartitioner):
    """The partition at hand is good enough for a key, once."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None and self._sticky.get(topic, (0, 0))[1] > 10_000:
            self._sticky[topic] = (self._sticky[topic][0], 0)
            return self._sticky[topic][0] % partition_count
        return super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "keeps_what_newer_news_leave_out", "news_take_the_place_of_older_ones")
class KeepsWhatNewerNewsLeaveOut(PlainPartitioner):
    """Adds news to what it knows."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        super().update_load(topic, {**self._loads.get(topic, {}), **loads}, now_ms)


@mutant(KIND, "takes_empty_news_for_none", "news_take_the_place_of_older_ones")
class TakesEmptyNewsForNone(PlainPartitioner):
    """Nothing was told, so nothing changes."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        if loads:
            super().update_load(topic, loads, now_ms)


@mutant(KIND, "ignores_news_of_an_earlier_moment", _MODEL)
class IgnoresNewsOfAnEarlierMoment(PlainPartitioner):
    """Trusts a clock that was set."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._told_at: dict[str, float] = {}

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        if now_ms >= self._told_at.get(topic, now_ms):
            self._told_at[topic] = now_ms
            super().update_load(topic, loads, now_ms)


@mutant(KIND, "takes_small_and_capital_letters_for_one", _MODEL)
class TakesSmallAndCapitalLettersForOne(PlainPartitioner):
    """Looks topics up as file names are on some systems."""

    def _draw(self, topic: str, partition_count: int) -> int:
        return super()._draw(topic.lower(), partition_count)

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        super().update_load(topic.lower(), loads, now_ms)


@mutant(KIND, "takes_news_for_topics_that_begin_alike", _MODEL)
class TakesNewsForTopicsThatBeginAlike(PlainPartitioner):
    """Looks topics up by the beginning of their names."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        super().update_load(topic, loads, now_ms)
        for other in self._loads:
            if other.startswith(topic):
                self._loads[other] = dict(loads)


@mutant(KIND, "takes_no_news_from_before_its_clock_began", _MODEL)
class TakesNoNewsFromBeforeItsClockBegan(PlainPartitioner):
    """There is no time below 0."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        if now_ms >= 0:
            super().update_load(topic, loads, now_ms)


@mutant(KIND, "minds_no_leader_where_all_queue", _MODEL)
class MindsNoLeaderWhereAllQueue(PlainPartitioner):
    """Where every partition has to wait, all are alike."""

    def _draw(self, topic: str, partition_count: int) -> int:
        loads = self._loads.get(topic, {})
        if all(number in loads and loads[number].queued_batches > 10 for number in range(partition_count)):
            return self._random.randrange(partition_count)
        return super()._draw(topic, partition_count)
