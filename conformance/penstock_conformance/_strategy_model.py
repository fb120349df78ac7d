"""What a cluster must hold after what was asked of it: no broker, no clock, no I/O."""

from __future__ import annotations

__all__ = ("ClusterModel", "PartitionModel", "TopicModel")

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

#: What a broker counts for a record beside its value, at most: a batch of its own, and the key.
_FRAME_BYTES = 160
#: From the timestamp of one record to the next one's; and how much later than that each seventh is.
_STEP_MS = 1000
_LATE_MS = 5500


@dataclass(slots=True)
class PartitionModel:
    """One partition: records that are known to be there, and records that may be."""

    #: By offset, the sequence of each record that was acknowledged or read. What was read once has to stay.
    known: dict[int, int] = field(default_factory=dict)
    #: Sequences that were handed over and not answered: each is there once, or not at all.
    unsure: set[int] = field(default_factory=set)
    #: Bytes of each record's value, by sequence.
    sizes: dict[int, int] = field(default_factory=dict)
    #: Where it starts, and how far it may, because nobody answered who wanted records removed.
    low: int = 0
    low_max: int = 0
    #: The end that was told last.
    end: int = 0
    #: Retention drops what is beyond so many bytes; -1 keeps all.
    bytes_kept: int = -1
    #: The timestamp that the first record would have, if it weren't late.
    begin_ms: int = 0

    def hand_over(self, size: int) -> int:
        """A record is on its way; its sequence."""
        sequence = len(self.sizes)
        self.sizes[sequence] = size
        self.unsure.add(sequence)
        return sequence

    def acknowledge(self, sequence: int, offset: int) -> None:
        """The broker says where the record is."""
        before = self.known.get(offset, sequence)
        assert before == sequence, f"an offset was given twice: offset={offset} sequences={before},{sequence}"
        assert offset >= self.low, f"an offset below the start was given: offset={offset} start={self.low}"
        self.known[offset] = sequence
        self.unsure.discard(sequence)
        self.end = max(self.end, offset + 1)

    def time_of(self, sequence: int) -> int:
        """A record's timestamp. Not all are in order."""
        return self.begin_ms + _STEP_MS * sequence + (_LATE_MS if sequence % 7 == 3 else 0)

    def check_lookup(self, time_ms: int, found: int) -> None:
        """What the broker tells as the first offset whose record isn't earlier; negative if there is none."""
        sequences = [self.known.get(offset, -1) for offset in range(self.low, self.end)]
        if self.bytes_kept >= 0 or -1 in sequences:
            return  # retention may go on meanwhile, and nobody knows what was never read
        fitting = (n for n, sequence in enumerate(sequences, self.low) if self.time_of(sequence) >= time_ms)
        expected = next(fitting, -1)
        assert max(found, -1) == expected, (
            f"another record is told for a time: offset={found} {expected=} behind_ms={time_ms - self.begin_ms}"
        )

    def trim(self, offset: int, *, acknowledged: bool = True) -> None:
        """Records below ``offset`` were removed, or may have been."""
        self.low_max = max(self.low_max, offset)
        if acknowledged:
            self.low = max(self.low, offset)

    def check_ends(self, low: int, end: int) -> None:
        """What the broker says of start and end: neither goes back, and there are no more offsets than records."""
        assert self.low <= low, f"removed records are back: start={low} expected={self.low}"
        assert low <= self.low_max or self._drops(low), (
            f"records are missing at the start: start={low} expected={self.low_max}"
        )
        assert end >= self.end, f"acknowledged records are lost: end={end} expected={self.end}"
        strange = sum(offset not in self.known for offset in range(low, end))
        assert strange <= len(self.unsure), (
            f"{strange} offsets are of no record that was handed over: start={low} end={end}"
        )
        self.low, self.low_max, self.end = low, max(low, self.low_max), end

    def _drops(self, low: int) -> bool:
        """Whether retention may drop what is below ``low``: enough stays behind it."""
        kept = sum(
            self.sizes[sequence] + _FRAME_BYTES for offset, sequence in self.known.items() if offset >= low
        )
        return 0 <= self.bytes_kept <= kept

    def check_records(self, start: int, records: Sequence[tuple[int, int]]) -> None:
        """Offsets and sequences as they were read from ``start`` on: dense, each what was acknowledged, in order."""
        before = max((seq for offset, seq in self.known.items() if offset < start), default=-1)
        expected = start
        for offset, sequence in records:
            if expected == start and offset > start and self._drops(offset):
                self.low = self.low_max = max(self.low, offset)  # retention was faster than the reader
                expected = offset
            assert offset == expected, f"a hole or a repetition: offset={offset} expected={expected}"
            known = self.known.get(offset)
            if known is None:
                assert sequence in self.unsure, (
                    f"a record is there twice, or was never handed over: offset={offset} sequence={sequence}"
                )
                self.acknowledge(sequence, offset)
            else:
                assert known == sequence, f"another record: {offset=} sequence={sequence} expected={known}"
            assert sequence > before, f"out of order: {offset=} sequence={sequence} behind sequence={before}"
            before = sequence
            expected += 1


@dataclass(slots=True)
class TopicModel:
    """A topic from its creation to its deletion; its records say ``owner``, which no other topic's do."""

    owner: int
    partitions: list[PartitionModel]
    configs: dict[str, str]


class ClusterModel:
    """Topics with their records, and what groups have committed."""

    def __init__(self, begin_ms: int = 0) -> None:
        self._begin_ms = begin_ms
        self.topics: dict[str, TopicModel] = {}
        #: The offsets that may be committed, by group, topic and partition: one, unless nobody answered.
        self.commits: dict[tuple[str, str, int], set[int]] = {}
        self._created = 0

    def create(self, name: str, partitions: int, configs: Mapping[str, str]) -> TopicModel:
        """A topic was created; one of the same name that was deleted before is another."""
        self._created += 1
        kept = int(configs.get("retention.bytes", -1))
        topic = TopicModel(self._created, [self._partition(kept) for _ in range(partitions)], dict(configs))
        self.topics[name] = topic
        return topic

    def add_partitions(self, name: str, count: int) -> None:
        """Partitions were added: there are ``count`` now."""
        topic = self.topics[name]
        kept = topic.partitions[0].bytes_kept
        topic.partitions += [self._partition(kept) for _ in range(count - len(topic.partitions))]

    def _partition(self, bytes_kept: int) -> PartitionModel:
        return PartitionModel(bytes_kept=bytes_kept, begin_ms=self._begin_ms)

    def delete(self, name: str) -> None:
        """Topic, records and commits are gone."""
        del self.topics[name]
        self.commits = {place: offsets for place, offsets in self.commits.items() if place[1] != name}

    def commit(
        self, group: str, topic: str, partition: int, offset: int, *, acknowledged: bool = True
    ) -> None:
        """A group committed an offset, or may have."""
        place = group, topic, partition
        self.commits[place] = {offset} | (set() if acknowledged else self.commits.get(place, {-1}))

    def partitions(self) -> Iterator[tuple[str, int, PartitionModel]]:
        """All there are."""
        for name, topic in self.topics.items():
            for number, partition in enumerate(topic.partitions):
                yield name, number, partition

    def check_topics(self, found: Mapping[str, int]) -> None:
        """Names and numbers of partitions as the broker tells them."""
        expected = {name: len(topic.partitions) for name, topic in self.topics.items()}
        assert found == expected, f"the topics aren't those that were acknowledged: {found=} {expected=}"

    def check_configs(self, name: str, found: Mapping[str, str]) -> None:
        """The configs of a topic as the broker tells them; those that were never set are its own affair."""
        expected = self.topics[name].configs
        told = {key: found.get(key, "") for key in expected}
        assert told == expected, f"configs aren't those acknowledged: topic={name} found={told} {expected=}"

    def check_commits(self, group: str, found: Mapping[tuple[str, int], int]) -> None:
        """What a group has committed, by topic and partition, as the broker tells it."""
        for (owner, topic, partition), expected in self.commits.items():
            if owner == group:
                offset = found.get((topic, partition), -1)
                assert offset in expected, (
                    f"a committed offset is lost: {group=} {topic=} {partition=} {offset=} expected={expected}"
                )
                self.commits[owner, topic, partition] = {offset}
