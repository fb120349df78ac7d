"""Lake compactor: makes a table of each topic that wants one, from what is committed to the object store.

The kernel finds the topics, claims each for one broker at a time, reads what metadata has committed, decodes batches
into columns, and decides when to commit; a compactor turns columns into rows of a table. What ties the two together
is a *position*: for each partition of the topic the offset that the table goes on from. A commit makes rows and
positions visible in one step, so what a table says of itself is always true: it has every record below its positions
once, and none at or above them.

One table is used by one task, one call at a time::

    async with compactor.open_table(topic, epoch) as table:
        positions = await table.positions()
        await table.write(records)        # any number of times, of any partition, in offset order in each
        await table.commit(positions)     # all of it, or nothing

After an error the kernel leaves the table, waits (longer each time), opens it again and goes on from its positions:
a compactor never repeats a commit whose outcome it doesn't know. What it wrote and didn't commit is then gone for
readers, and its files are removed, by ``open_table`` at the latest.
"""

from __future__ import annotations

__all__ = (
    "BinaryColumn",
    "HeaderColumn",
    "LakeCommit",
    "LakeCompactor",
    "LakeCompactorCapabilities",
    "LakeCompactorSpec",
    "LakeMaintenance",
    "LakePolicies",
    "LakeRecord",
    "LakeRecords",
    "LakeTable",
    "LakeTopic",
    "LakeTopicConfig",
    "LakeWritten",
    "one_line",
)

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

from penstock.spi.plugin import Buffer, PluginSpec, S


def one_line(text: str, length_max: int) -> str:
    """``text`` for people: a line of what can be printed, and no more than that; records' bytes may be in it."""
    shown = text[: 2 * length_max]
    if not shown.isprintable():
        shown = "".join(one if one.isprintable() else " " if one.isspace() else "\ufffd" for one in shown)
    shown = " ".join(shown.split())
    return shown if len(text) <= 2 * length_max and len(shown) <= length_max else f"{shown[:length_max]}..."


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeCompactorCapabilities:
    """What a lake compactor promises beside the contract."""

    #: ``maintain`` does something: small files are rewritten, what nothing needs any more is removed.
    maintains: bool = False
    #: Several hosts can open tables of one place; otherwise one host only.
    shareable: bool = False


@dataclass(frozen=True, slots=True)
class BinaryColumn:
    """Byte strings one after the other, in Arrow's layout of variable-size binary (32-bit offsets, little-endian).

    Item ``i`` is ``data[offsets[i]:offsets[i + 1]]``. So ``pyarrow.Array.from_buffers(pyarrow.binary(), len(column),
    [valid, offsets, data])``, each as ``pyarrow.py_buffer``, is this column without a copy.
    """

    data: Buffer
    #: One more than there are items: a memoryview of format ``i``, the first of them 0.
    offsets: memoryview
    #: A bit for each item, the least significant first, 0 for null; None if no item is null. A null item takes no
    #: bytes of ``data``.
    valid: Buffer | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes | None:
        """Item ``index``, from 0 on, as a copy."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.valid is not None and not self.valid[index >> 3] >> (index & 7) & 1:
            return None
        return bytes(memoryview(self.data)[self.offsets[index] : self.offsets[index + 1]])


@dataclass(frozen=True, slots=True)
class HeaderColumn:
    """The headers of records, a list for each: record ``i`` has those ``[starts[i], starts[i + 1])`` of ``names``."""

    #: One more than there are records: a memoryview of format ``i``, the first of them 0.
    starts: memoryview
    #: UTF-8 as far as producers wrote UTF-8; none is null.
    names: BinaryColumn
    values: BinaryColumn


class LakeRecord(NamedTuple):
    """One record, for compactors and checks that go record by record."""

    partition: int
    offset: int
    #: Milliseconds since the epoch; -1 if the record has none.
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeRecords:
    """Committed records of one partition, as columns, in offset order.

    Offsets may have gaps: control records and records of aborted transactions are left out. There may be no record at
    all, only a position that moves on. The kernel bounds a batch (``LakeCompactorSpec.batch_bytes``) and accounts for
    its memory until ``write`` returns; a compactor that keeps any of it longer charges that to
    ``Services.allocator`` itself, and copies what it keeps.
    """

    partition: int
    #: Offset of each record: a memoryview of format ``q``.
    offsets: memoryview
    #: Milliseconds since the epoch, -1 where there is none: a memoryview of format ``q``.
    timestamps: memoryview
    keys: BinaryColumn
    values: BinaryColumn
    headers: HeaderColumn
    #: The position before and after these records; what lies between and isn't here doesn't belong into a table.
    start_offset: int
    next_offset: int

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        columns = (self.keys, self.values, self.headers.names, self.headers.values)
        return (
            sum(memoryview(column.data).nbytes + column.offsets.nbytes for column in columns)
            + self.headers.starts.nbytes
            + self.offsets.nbytes
            + self.timestamps.nbytes
        )

    def rows(self) -> Iterator[LakeRecord]:
        """Each record as an object of its own: slow, simple."""
        starts, names, values = self.headers.starts, self.headers.names, self.headers.values
        for index, (offset, timestamp) in enumerate(zip(self.offsets, self.timestamps, strict=True)):
            headers = tuple((names[at] or b"", values[at]) for at in range(starts[index], starts[index + 1]))
            yield LakeRecord(self.partition, offset, timestamp, self.keys[index], self.values[index], headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeTopic:
    """A topic that wants a table."""

    name: str
    #: Its UUID as text. A topic made again under the same name has another: its offsets begin anew, so it must never
    #: go on in a table of the old one.
    topic_id: str
    #: When it was opened: records of partitions that came since may be written, too.
    partition_count: int
    #: The values of the compactor's own topic configs (``LakeCompactorSpec.topic_configs``), all of them, under their
    #: names there: those of the topic, else of ``lake.defaults``, else the default.
    configs: Mapping[str, str] = field(default_factory=dict)
    #: The table's name, instead of what ``configs`` say: a replay goes into a table of its own.
    table: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeWritten:
    """What became of the records of one ``write``: their sum is their number."""

    #: They will be in the table.
    rows: int
    #: They couldn't be read or didn't fit, and went where the topic's policy sends such records, by policy:
    #: ``{"dead_letter": 2}``.
    rejected: Mapping[str, int] = field(default_factory=dict)
    #: Why the last of them was rejected, one line that names its partition and offset; empty if none was.
    reason: str = ""
    #: What waits for the commit can't be written before it, and takes so much memory that it had better come now.
    is_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeCommit:
    """A commit that happened: what it added, not what the table has."""

    #: What names it in the table's own history: a snapshot id, a file.
    version: str
    files: int
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeMaintenance:
    """What maintenance did, or would do: figures by name (``data files rewritten``), in the order in which to show.

    Bytes are those that the place takes less.
    """

    figures: Mapping[str, int]
    saved_bytes: int
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeTopicConfig:
    """A topic config that the compactor understands; Kafka's tools see it as ``penstock.lake.`` and its name."""

    #: Lowercase words joined by dots: ``value.format``.
    name: str
    default: str
    #: One sentence, as in the reference of topic configs.
    doc: str
    type: Literal["boolean", "int", "long", "list", "string"] = "string"
    #: All values, if they can be listed.
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LakePolicies:
    """Records of which some can't be read, for checks of what becomes of them."""

    #: Topic configs by policy: ``stop``, and others under their names in ``LakeWritten.rejected``.
    configs: Mapping[str, Mapping[str, str]]
    #: A value that can be read under all of them, and one that can't.
    good: bytes
    bad: bytes


class LakeTable(Protocol):
    """The contract of a table that is open for one topic.

    Each call may raise UnavailableError (catalog, store, registry), FencedError once somebody opened the table with
    a higher epoch, CorruptError if the table contradicts itself, ConflictError if somebody else changed it in a way
    that this compactor can't go on from, InvalidRequestError if records don't fit and the topic's policy is to stop.
    Texts are one sentence, shown to people as the reason why the topic stands.
    """

    @property
    def name(self) -> str:
        """The table's name, for people and for ``penstock lake`` commands."""

    async def positions(self) -> Mapping[int, int]:
        """For each partition the offset that the newest commit goes on from; a partition that isn't named has none.

        Raises ConflictError if the table is of another topic, or was changed so that they aren't known.
        """

    async def write(self, records: LakeRecords) -> LakeWritten:
        """Take the records for the next commit. They begin where the last ones of their partition ended.

        Nothing is visible before ``commit``. Cancelled or failed, the table is left and opened again.
        """

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        """Make all that was written visible, with ``positions`` of these partitions, in one step.

        Those of other partitions stay. It may be that nothing was written, and positions move on. Durable when it
        returns. If the outcome isn't known it raises UnavailableError; what then holds, ``positions`` of the table
        opened again tells.
        """

    async def maintain(self, *, dry_run: bool = False) -> LakeMaintenance:
        """Bring the table into good shape; with ``dry_run``, say what that would do. Rows and positions don't change.

        Called with nothing written since the last commit. Another writer may be at work; it isn't disturbed.
        Cancelled or failed, the table is as good as before. Raises InvalidRequestError if unclaimed.
        """

    async def describe(self) -> Mapping[str, str]:
        """The table for people, by words: place, schema, files, size, newest commit."""

    def rows(self) -> AsyncIterator[LakeRecord]:
        """Every record that is committed, in any order, for checks: raw tables only.

        Keys, values and headers are those that were written, under ``LakeCompactorSpec.raw_configs``.
        """


class LakeCompactor(Protocol):
    """The contract of a lake compactor."""

    @property
    def capabilities(self) -> LakeCompactorCapabilities:
        """What this instance promises."""

    @property
    def location(self) -> str:
        """Where tables are, for people (without secrets)."""

    def open_table(self, topic: LakeTopic, epoch: int) -> AbstractAsyncContextManager[LakeTable]:
        """The topic's table, made if there is none.

        ``epoch`` fences: it grows with each claim of the topic. Once a table was opened with an epoch, commits and
        maintenance of whoever has it open with a lower one fail with FencedError, in any process, and change nothing;
        opening it with a lower one fails likewise. An opening that is refused fences nobody. It holds for an owner,
        too, that was fenced while the reply to its own commit was lost: it may find that its commit was done, and
        goes on behind nobody else's.

        After an error its owner opens it again with the same epoch, which should leave no trace in the table: it may
        find over and over that it can't go on. What an earlier opening sent and didn't hear of is then in
        ``positions``, or never happens, or fails the next commit.

        Epoch 0 only looks: it fences nobody, makes nothing and removes nothing, and of its methods ``positions``,
        ``describe``, ``rows`` and ``maintain(dry_run=True)`` are called; a table that isn't there is a NotFoundError,
        and so may be one of a former topic of this name, or a ConflictError as for its owner.
        They tell of the table as it was when it was opened, or of a later state of it.

        Leaving it drops what wasn't committed. Raises what the methods of :class:`LakeTable` raise.
        """

    async def tables(self) -> Sequence[str]:
        """The names of the tables that it keeps, sorted."""


def _no_contradiction(configs: Mapping[str, str]) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeCompactorSpec(PluginSpec[S, LakeCompactor]):
    """Registration of a lake compactor."""

    kind: ClassVar[str] = "lake_compactor"
    capabilities: LakeCompactorCapabilities
    #: What may be set per topic, beside the kernel's own (``enable``, ``commit.interval.ms``, ``commit.bytes``,
    #: ``gap``, ``maintenance.request``).
    topic_configs: Sequence[LakeTopicConfig] = ()
    #: What is wrong with the values of all of them together, one sentence for people, whatever is in the values;
    #: empty if nothing is, as of the defaults, ``raw_configs`` and ``policies``. Called whenever one is set, and
    #: before a table is opened. Must not raise.
    fault_of: Callable[[Mapping[str, str]], str] = _no_contradiction
    #: Topic configs under which a table keeps keys, values and headers as they are, whatever they hold.
    raw_configs: Mapping[str, str] = field(default_factory=dict)
    #: The most that one ``write`` gets, in bytes of its columns; one larger record comes alone.
    batch_bytes: int = 8 * 2**20
    #: For checks of policies; None if there are none.
    policies: LakePolicies | None = None
    #: For checks: ``watch(compactor, step)`` has ``step(name)`` called after each thing that a commit or an opening
    #: does on a medium: a data file is written, the catalog has swapped. It may raise UnavailableError, as if the
    #: reply to that were lost, and where the plugin looks up what became of it, it does so then; or end the process.
    #: Any thread may call it. None: the plugin can't.
    watch: Callable[[LakeCompactor, Callable[[str], None]], None] | None = None
