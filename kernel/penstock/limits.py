"""Limits of memory, write-ahead log, uploads and requests: which must fit which, and what follows from them. Pure.

``RELATIONS`` are the rules between settings: a configuration that breaks one is refused when it is checked, with the
two settings that don't fit and what would. :class:`Budget` is how a broker divides its memory and its WAL; its
assertions hold for every configuration that isn't refused. A number that another room's number depends on belongs
here, with its reason.
"""

from __future__ import annotations

__all__ = (
    "ALLOCATOR_BYTES_MIN",
    "COMMIT_RANGES_MAX",
    "ENTRY_BYTES_MIN",
    "FETCH_BYTES_MAX",
    "GROUP_REQUEST_BYTES_MAX",
    "PARTITION_BYTES",
    "PART_BYTES",
    "RELATIONS",
    "SNAPSHOT_ENTRIES",
    "STREAM_HEADER_BYTES",
    "UPLOADS_PARALLEL",
    "Budget",
    "Limit",
    "Relation",
    "refusals",
    "written",
)

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NamedTuple

from penstock.units import format_duration, format_size, parse_size

KIB: Final = 2**10
MIB: Final = 2**20

#: Entries of metadata between two snapshots, unless configured: they bound what a start folds to about a second.
SNAPSHOT_ENTRIES: Final = 1000
#: With less than this for payload, caches, uploads and requests have no room beside each other.
ALLOCATOR_BYTES_MIN: Final = 16 * MIB
#: What the image and the log layer hold of a partition, about: two streams, the partition, its part of the topic.
PARTITION_BYTES: Final = 1800
#: The stream engine's header in front of each payload in the WAL (``penstock.stream.entry``).
STREAM_HEADER_BYTES: Final = 41
#: Largest request that carries the metadata of a group: JoinGroup, SyncGroup, OffsetCommit.
GROUP_REQUEST_BYTES_MAX: Final = 4 * MIB
#: Kafka's ``fetch.max.bytes``; less where the memory is small.
FETCH_BYTES_MAX: Final = 55 * MIB
#: Blocks of the log cache that are put into the object store at the same time; one more fills meanwhile.
UPLOADS_PARALLEL: Final = 2
#: Parts of an object that is written in parts. S3 takes parts of 5 MiB or more, and 10,000 of them.
PART_BYTES: Final = 16 * MIB
#: Ranges in one commit of an upload at most: it is folded in one go, in some milliseconds, and fits an entry of
#: metadata.
COMMIT_RANGES_MAX: Final = 2500
#: Such a commit at its longest, encoded: an object for each range, every number of it with nine bytes.
ENTRY_BYTES_MIN: Final = COMMIT_RANGES_MAX * 68 + 512

#: Parts of the allocator. State of clients (groups, producers, fetch sessions) may be over the limit for a moment,
#: and payload makes up for it; so state and the WAL's buffers together leave a quarter that only payload takes.
_WAL_PART: Final = 4
_GROUPS_PART_MAX: Final = 4
_STATE_PART: Final = 8
_CARRIED_PART: Final = 16
_PARKED_PART: Final = 8
_APPEND_PART: Final = 8
_FETCH_PART: Final = 4
_RECEIVE_PART: Final = 2
_LAKE_PART: Final = 8
_UPLOAD_PART: Final = 6
#: A block is at most this part of the WAL: two on their way and one that fills must fit, or the WAL is full before it
#: is trimmed.
_WAL_BLOCKS: Final = 4
_BLOCK_BYTES_MIN: Final = MIB // 4
_FETCHES: Final = 8

assert _WAL_BLOCKS > UPLOADS_PARALLEL + 1, "blocks on their way and one that fills leave room in the WAL"
assert _UPLOAD_PART > UPLOADS_PARALLEL + 1, "and so they do in memory"
assert Fraction(1, _WAL_PART) + Fraction(1, _GROUPS_PART_MAX) + Fraction(2, _STATE_PART) <= Fraction(3, 4), (
    "the WAL's buffers and the state of clients leave a quarter of the allocator to payload"
)
assert PART_BYTES >= 5 * MIB, "S3 refuses smaller parts, but for the last one"
assert FETCH_BYTES_MAX < 2**31, "a response's length is an int32"


class Limit(NamedTuple):
    """A size, number or duration as configured, and the setting that decides it."""

    value: int
    #: The setting that decides it, and that setting's own value as people write it.
    setting: str
    shown: str
    #: Where it was set: ``penstock.toml:12``; None if it has its default.
    place: str | None = None
    #: The setting is so many times the value, plus this.
    ratio: Fraction = Fraction(1)
    offset: int = 0
    #: How values of the setting are written: as ``size``, ``number`` or ``duration``.
    unit: str = "size"

    def setting_for(self, value: int, *, at_least: bool) -> str:
        """What to set for a limit of ``value``, or at least or at most that: sizes in whole KiB or MiB."""
        exact = value * self.ratio + self.offset
        step = 1
        if self.unit == "size":
            step = MIB if exact >= 8 * MIB else KIB if exact >= 8 * KIB else 1
        steps = math.ceil(exact / step) if at_least else math.floor(exact / step)
        return written(steps * step, self.unit)


#: Nobody's sizes: what follows from a number with hundreds of digits is told as it is.
_SIZES_END: Final = 2**70


def written(value: int, unit: str) -> str:
    """``value`` as people write it, and never rounded."""
    if unit == "duration":
        return format_duration(value)
    if unit == "size" and value < _SIZES_END:
        texts = (format_size(value), f"{value // MIB}MiB", f"{value // KIB}KiB")
        return next((text for text in texts if parse_size(text) == value), str(value))
    return str(value)


class Relation(NamedTuple):
    """``low * times + plus`` must be at most ``high * parts``, for the reason ``why``.

    ``low`` and ``high`` name limits. Without ``high`` the bound is ``parts`` itself, without ``low`` what must fit is
    ``plus``. A limit that isn't known (yet) breaks nothing.
    """

    low: str
    high: str
    why: str
    times: int = 1
    plus: int = 0
    parts: int = 1
    #: The demand on the setting behind ``low`` (``high`` if there is no ``low``), where ``{high}`` and ``{value}``
    #: are the setting behind ``high`` and the value of that limit, ``{most}`` what the first may be.
    must: str = "must be at most {high}"
    #: A default of ``low`` means "or less, where less fits": only a value that somebody set is refused.
    default_gives_way: bool = False

    def refusal(self, limits: Mapping[str, Limit]) -> str | None:
        """The sentence about the settings if they break it, or None."""
        low = limits.get(self.low) if self.low else _NOTHING
        high = limits.get(self.high) if self.high else _ONE
        if low is None or high is None or low.value * self.times + self.plus <= high.value * self.parts:
            return None
        if self.default_gives_way and low.place is None:
            return None
        least = -(-(low.value * self.times + self.plus) // self.parts)
        most = max(0, (high.value * self.parts - self.plus) // self.times)
        settings = [side for side in (low, high) if side.setting]
        ways = []
        if self.low and most:
            ways.append(f"lower {low.setting} to {low.setting_for(most, at_least=False)}")
        if self.high:
            ways.append(f"raise {high.setting} to {high.setting_for(least, at_least=True)}")
        must = self.must.format(
            high=high.setting,
            value=written(high.value, high.unit),
            most=low.setting_for(most, at_least=False) if self.low else "",
        )
        place = next((side.place for side in settings if side.place is not None), "default")
        values = dict.fromkeys(
            f"{side.setting}={side.shown} ({side.place or 'default'})" for side in settings
        )
        return f"{place}: {settings[0].setting} {must}, {self.why}; {' or '.join(ways)}: {' '.join(values)}"


_NOTHING = Limit(0, "", "")
_ONE = Limit(1, "", "")


def _allocator(
    low: str, why: str, *, times: int = 1, parts: int = 1, most: str, gives_way: bool = False
) -> Relation:
    return Relation(
        low, "allocator.limit", why, times=times, parts=parts, must=most, default_gives_way=gives_way
    )


#: What must hold. A limit has the name of its key, but what only a plugin can tell from its settings: ``wal.memory``,
#: what an open WAL keeps of the allocator; ``wal.entry`` and ``metadata_log.entry``, the largest entry of a log;
#: ``block_cache.capacity``.
RELATIONS: Final[tuple[Relation, ...]] = (
    Relation(
        "memory.reserve",
        "memory.limit",
        "since caches, uploads and requests share what is left",
        plus=ALLOCATOR_BYTES_MIN,
        must=f"must leave at least {format_size(ALLOCATOR_BYTES_MIN)} of {{high}}",
    ),
    Relation(
        "allocator.limit",
        "memory.limit",
        "since that is what the whole process aims to stay under",
        must="must be at most {high}, {value}",
    ),
    Relation(
        "",
        "allocator.limit",
        "since caches, uploads and requests share it",
        plus=ALLOCATOR_BYTES_MIN,
        must=f"must be at least {format_size(ALLOCATOR_BYTES_MIN)}",
    ),
    *(
        _allocator(
            f"stream.{name}",
            "since these bytes are in its memory",
            most="must fit into the allocator, {value}",
        )
        for name in ("upload_bytes", "append_in_flight_bytes_max", "fetch_in_flight_bytes_max")
    ),
    _allocator(
        "lake.memory_max",
        "since these bytes are in its memory",
        most="must fit into the allocator, {value}",
    ),
    _allocator(
        "wal.memory",
        "since the WAL's buffers take at most a quarter of the allocator and never give it back",
        times=_WAL_PART,
        most="must be at most {most}",
    ),
    _allocator(
        "groups.memory_max",
        "since groups, producers and fetch sessions must leave memory to records",
        times=_GROUPS_PART_MAX,
        most="must be at most a quarter of the allocator",
    ),
    _allocator(
        "topics.message_bytes_max",
        "since no more of it is certain to be free of the state of clients and the WAL's buffers",
        times=4,
        most="must be at most a quarter of the allocator",
        gives_way=True,
    ),
    _allocator(
        "listener.request_bytes_max",
        "since a longer request waits for memory that the WAL's buffers have",
        times=_WAL_PART,
        parts=_WAL_PART - 1,
        most="must be at most three quarters of the allocator",
        gives_way=True,
    ),
    Relation(
        "topics.message_bytes_max",
        "listener.request_bytes_max",
        "since a longer request is refused before its batches are looked at",
    ),
    Relation(
        "topics.message_bytes_max",
        "wal.entry",
        "since a batch and its header are one entry of the WAL",
        plus=STREAM_HEADER_BYTES,
        must="must be at most {most}",
        default_gives_way=True,
    ),
    Relation(
        "groups.member_bytes_max",
        "groups.memory_max",
        "since a member is part of what all groups may take",
        default_gives_way=True,
    ),
    Relation(
        "groups.member_bytes_max",
        "",
        "since a longer JoinGroup closes the connection",
        parts=GROUP_REQUEST_BYTES_MAX,
        must="must be at most {most}",
    ),
    Relation(
        "groups.session_timeout_min", "groups.session_timeout_max", "since no timeout is allowed otherwise"
    ),
    Relation(
        "topics.partitions", "topics.partitions_max", "since no topic could be created without a number"
    ),
    Relation(
        "topics.partitions_max",
        "memory.reserve",
        f"since a partition takes {PARTITION_BYTES} bytes of it",
        times=PARTITION_BYTES,
        must="must fit into {high}",
        default_gives_way=True,
    ),
    Relation(
        "stream.block_bytes",
        "block_cache.capacity",
        "since a block that doesn't fit is read anew each time",
        default_gives_way=True,
    ),
    Relation(
        "",
        "metadata_log.entry",
        f"since a commit of {COMMIT_RANGES_MAX} ranges is one entry, and without it nothing is uploaded",
        plus=ENTRY_BYTES_MIN,
        must=f"must be at least {-(-ENTRY_BYTES_MIN // KIB)}KiB",
    ),
)


def refusals(limits: Mapping[str, Limit]) -> Iterator[str]:
    """A sentence for each relation that ``limits`` break."""
    for relation in RELATIONS:
        sentence = relation.refusal(limits)
        if sentence is not None:
            yield sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How a broker divides its memory and its WAL, in bytes."""

    #: What all payload and state share, and what the WAL holds (0: without bound).
    allocator: int
    wal: int
    #: The log cache freezes a block at this size.
    upload: int
    #: Appends that aren't durable yet.
    append_in_flight: int
    #: Fetch responses that haven't left, and the largest one of them.
    fetch_in_flight: int
    fetch: int
    #: Requests that aren't whole or not handled yet, of all connections.
    receive: int
    #: Those of them that are carried between reads, beyond the first MiB.
    carried: int
    #: What fetches keep that wait for data.
    parked: int
    #: State that clients make the broker remember.
    groups: int
    producers: int
    sessions: int
    #: Records on their way into tables of the lake, if there are any.
    lake: int

    @classmethod
    def of(
        cls,
        *,
        allocator: int,
        wal: int,
        upload: int = 0,
        append_in_flight: int = 0,
        fetch_in_flight: int = 0,
        groups: int = 0,
        lake: int = 0,
    ) -> Budget:
        """The budget of a broker with so much memory and such a WAL; the rest is as configured, 0 for what fits."""
        upload = upload or max(MIB, min(64 * MIB, allocator // _UPLOAD_PART))
        if wal:
            upload = min(upload, max(_BLOCK_BYTES_MIN, wal // _WAL_BLOCKS))
        fetch_in_flight = fetch_in_flight or max(4 * MIB, allocator // _FETCH_PART)
        groups_bytes = groups or max(MIB, allocator // _STATE_PART)
        return cls(
            allocator=allocator,
            wal=wal,
            upload=upload,
            append_in_flight=append_in_flight or max(MIB, allocator // _APPEND_PART),
            fetch_in_flight=fetch_in_flight,
            # several slow readers at once must leave room for others
            fetch=min(FETCH_BYTES_MAX, max(MIB, fetch_in_flight // _FETCHES)),
            # what requests hold before they are handled leaves as much to those that were
            receive=allocator // _RECEIVE_PART,
            # not at the cost of the quarter that only payload takes
            carried=max(0, min(allocator // _CARRIED_PART, allocator // _GROUPS_PART_MAX - groups_bytes)),
            # like requests that are handled, and beside them: payload makes up for it
            parked=max(MIB, allocator // _PARKED_PART),
            groups=groups_bytes,
            producers=max(MIB, allocator // _STATE_PART),
            # without room for a session, clients are served without one
            sessions=max(MIB, allocator // _STATE_PART),
            lake=lake or max(MIB, allocator // _LAKE_PART),
        )

    def check(self, wal_memory: int) -> None:
        """Assert what every configuration that isn't refused keeps.

        ``wal_memory`` is what the open WAL has charged to the allocator.
        """
        blocks = (UPLOADS_PARALLEL + 1) * self.upload
        assert not self.wal or blocks <= max(self.wal, MIB), "the WAL holds all blocks on their way"
        assert self.upload <= self.allocator, "a block fits the memory"
        assert self.append_in_flight <= self.allocator, "appends fit the memory"
        assert self.fetch_in_flight <= self.allocator, "responses fit the memory"
        assert self.fetch <= max(MIB, self.fetch_in_flight), "a response fits what all responses may take"
        assert self.lake <= self.allocator, "records on their way into tables fit the memory"
        assert 2 * self.receive <= self.allocator, (
            "requests on their way in leave as much to those that are handled"
        )
        state = self.groups + self.producers + self.sessions + self.carried
        assert state + wal_memory <= self.allocator * 3 // 4, "state and the WAL leave a quarter to payload"
        assert self.upload <= 10_000 * PART_BYTES, "an object has as many parts as S3 takes"
