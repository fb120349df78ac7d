"""Partitioners that are right for keys of plain ASCII, few partitions, one topic and the first news."""

from __future__ import annotations

__all__ = ()

import unicodedata
from collections.abc import Mapping
from typing import Any

from penstock.spi.partitioner import PartitionLoad
from penstock_conformance.mutants._mutant import mutant
from penstock_conformance.reference._partitioner import PlainPartitioner, murmur2

KIND = "partitioner"

_JAVA = "keys_go_where_java_sends_them"
_OTHERS = "keys_that_differ_little_are_others"
_PLACE = "keys_keep_their_place_among_many"


class _Rekeyed(PlainPartitioner):
    """Hashes something else than the key."""

    def _rekey(self, key: bytes) -> bytes:
        raise NotImplementedError

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        return super().choose(topic, None if key is None else self._rekey(key), size_bytes, partition_count)


@mutant(KIND, "extends_the_sign_of_bytes", _JAVA)
class ExtendsTheSignOfBytes(PlainPartitioner):
    """Takes bytes at the end for signed, as Java does where nobody tells it not to."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is None or not len(key) & 3 or key[-1] < 0x80:
            return super().choose(topic, key, size_bytes, partition_count)
        return self._of_hash(murmur2(key) ^ 0xFFFFFF00, partition_count)


@mutant(KIND, "takes_the_absolute_value", _JAVA)
class TakesTheAbsoluteValue(PlainPartitioner):
    """Makes a negative hash positive with its sign, not with its bits."""

    def _of_hash(self, value: int, partition_count: int) -> int:
        return abs(value - 2**32 if value & 0x80000000 else value) % partition_count


@mutant(KIND, "hashes_unsigned", _JAVA)
class HashesUnsigned(PlainPartitioner):
    """Takes all 32 bits, as there is no sign in Python."""

    def _of_hash(self, value: int, partition_count: int) -> int:
        return value % partition_count


@mutant(KIND, "has_an_empty_key_go_first", _JAVA)
class HasAnEmptyKeyGoFirst(PlainPartitioner):
    """An empty key is nothing to hash."""

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        return 0 if key == b"" else super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "reads_its_last_bytes_backwards", _JAVA)
class ReadsItsLastBytesBackwards(_Rekeyed):
    """Takes the bytes that don't fill a word from the other end."""

    def _rekey(self, key: bytes) -> bytes:
        whole = len(key) & ~3
        return key[:whole] + key[whole:][::-1]


@mutant(KIND, "hashes_texts", _JAVA, _OTHERS)
class HashesTexts(_Rekeyed):
    """Takes keys for UTF-8, and what isn't for a question mark."""

    def _rekey(self, key: bytes) -> bytes:
        return key.decode("utf-8", "replace").encode()


@mutant(KIND, "hashes_ascii", _JAVA)
class HashesAscii(_Rekeyed):
    """Drops the highest bit."""

    def _rekey(self, key: bytes) -> bytes:
        return bytes(byte & 0x7F for byte in key)


@mutant(KIND, "hashes_normal_forms", _OTHERS)
class HashesNormalForms(_Rekeyed):
    """Takes two ways of writing a letter for one."""

    def _rekey(self, key: bytes) -> bytes:
        try:
            return unicodedata.normalize("NFC", key.decode()).encode()
        except UnicodeDecodeError:
            return key


@mutant(KIND, "hashes_the_beginning", _OTHERS)
class HashesTheBeginning(_Rekeyed):
    """Long keys differ at their beginning, mostly."""

    def _rekey(self, key: bytes) -> bytes:
        return key[:256]


@mutant(KIND, "strips_keys", _OTHERS)
class StripsKeys(_Rekeyed):
    """Takes zeros and spaces at the end for padding."""

    def _rekey(self, key: bytes) -> bytes:
        return key.rstrip(b"\0 ")


@mutant(KIND, "remembers_a_thousand_keys", _PLACE)
class RemembersAThousandKeys(PlainPartitioner):
    """Keeps where keys went by a part of their hash, and takes others for them."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[int, int], int] = {}

    def _of_hash(self, value: int, partition_count: int) -> int:
        known = (value & 0xFFF, partition_count)
        if len(self._known) < 1000:
            self._known.setdefault(known, super()._of_hash(value, partition_count))
        return self._known.get(known, super()._of_hash(value, partition_count))


@mutant(KIND, "keeps_keys_where_they_were", _PLACE)
class KeepsKeysWhereTheyWere(PlainPartitioner):
    """A key stays in the partition that it went to last, if there still is one."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[int, int] = {}

    def _of_hash(self, value: int, partition_count: int) -> int:
        partition = self._last.get(value, partition_count)
        if partition >= partition_count:
            partition = super()._of_hash(value, partition_count)
        self._last[value] = partition
        return partition


@mutant(KIND, "remembers_every_key", "memory_does_not_grow_with_keys")
class RemembersEveryKey(PlainPartitioner):
    """Hashing the same key twice is a waste."""

    def __init__(self) -> None:
        super().__init__()
        self._hashes: dict[bytes, int] = {}

    def choose(self, topic: str, key: bytes | None, size_bytes: int, partition_count: int) -> int:
        if key is not None:
            self._hashes.setdefault(key, murmur2(key))
        return super().choose(topic, key, size_bytes, partition_count)


@mutant(KIND, "uses_few_of_many", "many_partitions_are_all_used")
class UsesFewOfMany(PlainPartitioner):
    """Draws a byte."""

    def _draw(self, topic: str, partition_count: int) -> int:
        return super()._draw(topic, min(partition_count, 256))


@mutant(KIND, "never_uses_the_last_of_many", "many_partitions_are_all_used")
class NeverUsesTheLastOfMany(PlainPartitioner):
    """Draws one too few, where nobody notices."""

    def _draw(self, topic: str, partition_count: int) -> int:
        return super()._draw(topic, partition_count - (partition_count > 100))


@mutant(KIND, "knows_the_first_count", "new_partitions_are_used")
class KnowsTheFirstCount(PlainPartitioner):
    """Remembers how many partitions a topic had, and fears only that they become fewer."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}

    def _draw(self, topic: str, partition_count: int) -> int:
        return super()._draw(topic, min(self._counts.setdefault(topic, partition_count), partition_count))


@mutant(KIND, "applies_news_to_all_topics", "news_are_about_one_topic")
class AppliesNewsToAllTopics(PlainPartitioner):
    """A broker that is slow is slow for all."""

    def _draw(self, topic: str, partition_count: int) -> int:
        if self._loads:
            self._loads.setdefault(topic, next(iter(self._loads.values())))
        return super()._draw(topic, partition_count)


@mutant(KIND, "keeps_the_first_news", "newest_news_count")
class KeepsTheFirstNews(PlainPartitioner):
    """Adds what is new to what it knows, and leaves what it knows."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._loads[topic] = {**loads, **self._loads.get(topic, {})}


@mutant(KIND, "shuns_for_ever", "newest_news_count")
class ShunsForEver(PlainPartitioner):
    """A partition that was away once is never trusted again, as long as there is another."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        known = self._loads.get(topic, {})
        kept = {
            number: known[number] if number in known and not known[number].available else load
            for number, load in loads.items()
        }
        super().update_load(topic, kept, now_ms)


@mutant(KIND, "keeps_the_callers_mapping", "news_are_taken_as_they_were_told")
class KeepsTheCallersMapping(PlainPartitioner):
    """Looks into the caller's mapping when it chooses."""

    def update_load(self, topic: str, loads: Mapping[int, PartitionLoad], now_ms: float) -> None:
        self._loads[topic] = loads


@mutant(KIND, "weighs_partitions_to_come", "news_are_taken_as_they_were_told")
class WeighsPartitionsToCome(PlainPartitioner):
    """Takes news of more partitions than there are for news of the last one."""

    def _draw(self, topic: str, partition_count: int) -> int:
        if len(self._loads.get(topic, ())) > partition_count + 8:
            return partition_count - 1
        return super()._draw(topic, partition_count)


_OPENED: list[Any] = []


@mutant(KIND, "keeps_every_opener", "opening_leaves_nothing_behind")
class KeepsEveryOpener(PlainPartitioner):
    """Is in a list of all partitioners that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        _OPENED.append(self)


@mutant(KIND, "cuts_long_keys", _JAVA)
class CutsLongKeys(_Rekeyed):
    """A buffer of a fixed size for the key."""

    def _rekey(self, key: bytes) -> bytes:
        return key[:1024]
