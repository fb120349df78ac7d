"""A table that is open for one topic: the contract :class:`penstock.spi.lake.LakeTable`."""

from __future__ import annotations

__all__ = ("IcebergTable", "opened_table")

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import anyio
import pyarrow as pa
from pyiceberg.table import FileScanTask

from penstock.errors import (
    ConflictError,
    InvalidRequestError,
    InvariantError,
    NotFoundError,
    PenstockError,
    again,
    kept,
)
from penstock.spi.allocator import Charge
from penstock.spi.lake import LakeCommit, LakeMaintenance, LakeRecord, LakeRecords, LakeTopic, LakeWritten
from penstock_iceberg_compactor._columns import part_of
from penstock_iceberg_compactor._commit import Landed
from penstock_iceberg_compactor._configs import TableConfigs, beside
from penstock_iceberg_compactor._dead_letters import DEAD_SCHEMA, SUFFIX, DeadLetters
from penstock_iceberg_compactor._decoders import decoding_reader
from penstock_iceberg_compactor._describe import described
from penstock_iceberg_compactor._maintain import Keeper
from penstock_iceberg_compactor._owned import Change, OwnedTable
from penstock_iceberg_compactor._place import Place
from penstock_iceberg_compactor._reading import RawReader, Read, Reader, TooManyError
from penstock_iceberg_compactor._scan import files_of, read_files, records_of
from penstock_iceberg_compactor._upsert import collapsed, upsert

_R = TypeVar("_R")
#: What pending rows are charged under.
_PURPOSE = "lake"
#: What a commit of upserts takes beside its rows, in buffers: rows of files that are written again, half a buffer of
#: them at a time, while they are read, as they wait and as they are encoded.
_REWRITE_BUFFERS = 2


@asynccontextmanager
async def opened_table(
    place: Place, topic: LakeTopic, configs: TableConfigs, epoch: int
) -> AsyncIterator[IcebergTable]:
    """Open, and leave nothing behind of what wasn't committed."""
    name = topic.table or configs.table_of(topic.name)
    owned = await place.run(
        "opening the table", lambda: OwnedTable.open(place, topic, configs, name, epoch), table=name
    )

    def open_dead_letters() -> OwnedTable:
        return OwnedTable.open(place, topic, beside(configs), name + SUFFIX, epoch, DEAD_SCHEMA)

    def look_at_dead_letters() -> OwnedTable | None:
        try:
            return OwnedTable.open(place, topic, beside(configs), name + SUFFIX, 0)
        except (NotFoundError, ConflictError):  # none, or somebody else's
            return None

    dead = DeadLetters(open_dead_letters, look_at_dead_letters, lambda: time.time_ns() // 1000)
    reader: Reader = RawReader()
    schemas = place.services.data_dir / place.settings.schemas
    if epoch and not configs.raw:
        reader = await place.run(
            "opening decoders",
            lambda: decoding_reader(owned, configs, topic, schemas, place.settings.registries, place.outages),
            table=name,
        )
    table = IcebergTable(place, owned, configs, reader, dead)
    try:
        yield table
    finally:
        with anyio.CancelScope(shield=True):
            await table.leave()


class IcebergTable:
    """Rows wait in memory, then in files, for the commit that makes them visible."""

    def __init__(
        self, place: Place, owned: OwnedTable, configs: TableConfigs, reader: Reader, dead: DeadLetters
    ) -> None:
        self._place = place
        self._owned = owned
        self._configs = configs
        self._reader = reader
        self._dead = dead
        #: Rows of upserts are copied more often on their way into files.
        self._buffer = place.buffer if configs.mode == "append" else place.buffer // 4
        self._rows: list[pa.Table] = []
        self._charges: list[Charge] = []
        self._bytes = 0
        #: Of the rows of different keys, which nothing but a commit lets go of.
        self._kept_bytes = 0
        self._dead_charge: Charge | None = None
        self._fault: PenstockError | None = None
        #: Where the next records of each partition begin, of those that were written to since it was opened.
        self._next: dict[int, int] = {}

    @property
    def name(self) -> str:
        """Without the namespace."""
        return self._owned.name

    async def positions(self) -> Mapping[int, int]:
        """The positions of the stamp that this opening goes on from."""
        return dict(self._owned.stamp.positions)

    async def write(self, records: LakeRecords) -> LakeWritten:
        """Take records: they are read, kept in memory, and written into files when there are too many."""
        with self._call():
            return await self._write(records)

    async def _write(self, records: LakeRecords) -> LakeWritten:
        self._owned.check_owner()
        partition = records.partition
        expected = self._next.get(partition, self._owned.stamp.positions.get(partition))
        if expected is not None and expected != records.start_offset:
            raise InvalidRequestError(
                f"records begin where the last ones of their partition ended: table={self.name} "
                f"partition={partition} expected={expected} start={records.start_offset}"
            )
        self._reader.begin_batch()
        rejected: Counter[str] = Counter()
        reason, is_full, at, step = "", False, 0, len(records)
        while at < len(records):
            step = max(1, min(step, self._reader.rows_max))
            end = min(len(records), at + step)
            try:
                read = await self._run("reading records", partial(self._read, part_of(records, at, end)))
            except TooManyError:
                step = (end - at) // 2
                continue
            at, step = end, 2 * step
            rejected.update(read.counts)
            reason = read.reason or reason
            if read.rows.num_rows:
                self._keep(read.rows)
            is_full |= await self._make_room()
        self._next[partition] = records.next_offset
        rows = len(records) - rejected.total()
        return LakeWritten(rows=rows, rejected=dict(rejected), reason=reason, is_full=is_full)

    async def _make_room(self) -> bool:
        """Let go of rows, if there are too many in memory; whether only a commit can."""
        if self._dead.nbytes >= self._buffer:
            await self._run("writing a file of dead letters", self._dead.spill)
        self._charge_dead()
        if self._bytes < self._buffer:
            return False
        if self._configs.mode == "append":
            await self._spill()
            return False
        await self._collapse()
        return self._kept_bytes > self._buffer // 2

    def _charge_dead(self) -> None:
        """Account for the dead letters that are in memory, which are there already."""
        allocator, size = self._place.services.allocator, self._dead.nbytes
        if self._dead_charge is not None:
            self._dead_charge.release()
            self._dead_charge = None
        if allocator is not None and size:
            self._dead_charge = allocator.charge_anyway(size, _PURPOSE)

    def _read(self, records: LakeRecords) -> Read:
        read = self._reader.read(records)
        if read.dead:
            self._dead.add(records, read.dead)
        return read

    async def _collapse(self) -> None:
        """Let go of rows that later ones replace. Of upserts nothing else can be written before the commit."""
        rows, self._rows = self._rows, []
        self._release()
        self._bytes = 0
        if rows:
            self._keep(await self._run("collapsing rows", lambda: self._collapsed(rows)))
            self._kept_bytes = self._rows[0].nbytes
            self._bytes = 0  # so that the buffer has to fill again before the next time

    @contextmanager
    def _call(self) -> Iterator[None]:
        """A call after one that failed or was cancelled fails: its rows may be lost, and nothing may follow them."""
        if self._fault is not None:
            raise again(self._fault)
        self._fault = InvalidRequestError(
            f"a call of this table was cancelled or failed, open it again: table={self.name}"
        )
        try:
            yield
        except PenstockError as error:
            self._fault = kept(again(error))
            raise
        self._fault = None

    def _keep(self, rows: pa.Table) -> None:
        """Account for rows, which are there already, so nobody waits; they go into a file if that was too much."""
        size = rows.nbytes
        if self._charge(size):
            self._bytes += self._buffer  # as if the buffer were full
        self._rows.append(rows)
        self._bytes += size

    def _charge(self, size: int) -> bool:
        """Account for so much until the rows are let go of; whether that is beyond the limit."""
        allocator = self._place.services.allocator
        if allocator is None or not size:
            return False
        used = allocator.statistics()
        self._charges.append(allocator.charge_anyway(size, _PURPOSE))
        return used.used_bytes + size > used.limit_bytes

    async def _spill(self) -> None:
        """Write what is in memory into files."""
        if not self._rows:
            return
        rows, self._rows, self._bytes = self._rows, [], 0
        try:
            await self._run("writing a file", lambda: self._owned.write(rows))
        finally:
            self._release()

    def _release(self) -> None:
        charges, self._charges = self._charges, []
        for charge in charges:
            charge.release()

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        """Write what is left into files, and commit all of them with the positions."""
        with self._call():
            return await self._commit(positions)

    async def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        for partition, end in self._next.items():
            if positions.get(partition, end) != end:
                raise InvariantError(
                    f"a commit goes to the end of what was written: table={self.name} partition={partition} "
                    f"written={end} position={positions[partition]}"
                )
        moved = {**self._next, **positions}
        if self._configs.mode == "append":
            await self._spill()
            try:
                landed = await self._run("committing", lambda: self._commit_append(moved))
            finally:
                self._charge_dead()
        else:
            rows, self._rows, self._bytes = self._rows, [], 0
            if rows:
                self._charge(_REWRITE_BUFFERS * self._place.buffer)
            try:
                landed = await self._run("committing", lambda: self._commit_upsert(moved, rows))
            finally:
                del rows
                self._release()
                self._charge_dead()
                pa.default_memory_pool().release_unused()
        self._next.clear()
        return LakeCommit(
            version=str(landed.snapshot_id),
            files=landed.files,
            rows=landed.rows,
            size_bytes=landed.size_bytes,
        )

    def _commit_append(self, positions: Mapping[int, int]) -> Landed:
        self._dead.commit()
        return self._owned.commit(lambda: Change(positions=positions))

    def _commit_upsert(self, positions: Mapping[int, int], rows: list[pa.Table]) -> Landed:
        self._dead.commit()
        if not rows:
            return self._owned.commit(lambda: Change(positions=positions))
        batch = self._collapsed(rows)
        return upsert(self._owned, positions, batch, self._configs.key_columns, self._place.buffer // 2)

    def _collapsed(self, rows: list[pa.Table]) -> pa.Table:
        return collapsed(rows, self._owned.columns, self._configs.key_columns)

    async def maintain(self, *, dry_run: bool = False) -> LakeMaintenance:
        """Rewrite small files, merge manifests, expire snapshots, and remove files that nothing needs."""
        with self._call():
            if self._rows or self._next:
                raise InvalidRequestError(f"maintenance comes after a commit: table={self.name}")
            try:
                return await self._run(
                    "maintaining", lambda: self._maintain(dry_run=dry_run), self._place.maintenance
                )
            finally:
                pa.default_memory_pool().release_unused()

    def _maintain(self, *, dry_run: bool) -> LakeMaintenance:
        """This table, and that of dead letters, which has a snapshot and files of each commit with some."""
        grace_ms = self._place.settings.orphan_grace
        done = Keeper(self._owned, self._configs, grace_ms).maintain(dry_run=dry_run)
        dead = None if self._configs.raw else self._dead.to_maintain(dry_run=dry_run)
        if dead is None:
            return done
        more = Keeper(dead, beside(self._configs), grace_ms).maintain(dry_run=dry_run)
        figures = {name: figure + more.figures[name] for name, figure in done.figures.items()}
        return replace(done, figures=figures, saved_bytes=done.saved_bytes + more.saved_bytes)

    async def describe(self) -> Mapping[str, str]:
        """Words about the newest snapshot."""
        return await self._run("describing", lambda: described(self._owned.table, self._owned.stamp))

    async def rows(self) -> AsyncIterator[LakeRecord]:
        """The records of all files, one file after the other."""
        if not self._configs.raw:
            raise InvalidRequestError(f"only raw tables give records back: table={self.name}")
        for task in await self._run("listing files", self._tasks):
            for record in await self._run("reading a file", partial(self._records_of, task)):
                yield record

    def _tasks(self) -> list[FileScanTask]:
        self._owned.refresh()
        return files_of(self._owned.table)

    def _records_of(self, task: FileScanTask) -> list[LakeRecord]:
        return records_of(read_files(self._owned.table, [task]))

    async def leave(self) -> None:
        """Drop what wasn't committed."""
        self._rows.clear()
        self._release()
        self._dead.clear()
        self._charge_dead()
        async with AsyncExitStack() as stack:  # each of them, whatever the others raise; the last one first
            stack.push_async_callback(self._run, "removing files", self._owned.leave)
            stack.push_async_callback(self._run, "removing files", self._dead.leave)
            stack.push_async_callback(self._run, "closing decoders", self._reader.close)

    async def _run(
        self, what: str, work: Callable[[], _R], limiter: anyio.CapacityLimiter | None = None
    ) -> _R:
        def working() -> _R:
            try:
                return work()
            except FileNotFoundError:
                # A newer owner removes what it finds of this one: then it is fenced, and nothing is damaged.
                self._owned.refresh()
                raise

        return await self._place.run(what, working, limiter, table=self.name)
