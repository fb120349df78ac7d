"""One replica: a log of another plugin, opened and closed by a task of its own, and what is known of it."""

from __future__ import annotations

__all__ = ("Replica", "ReplicaStatistics", "chosen_replica", "identity_of", "known_checksum", "one_for_all")

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio

from penstock.checksum import COMBINE_BYTES_MIN, checksum, combine
from penstock.errors import (
    CapabilityError,
    ClosedError,
    ConfigError,
    CorruptError,
    FencedError,
    FullError,
    NewerVersionError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.spi import Buffer, ChosenPlugin, PluginTable, Services
from penstock.spi.statistics import counter, gauge, text
from penstock.spi.wal import BoundedLog, WalAppend, WalEntry, WalSpec, WriteAheadLog
from penstock_wal_s3express_replicated._format import (
    Entry,
    check_follows,
    decode_entry,
    encode_header,
    is_tagged,
)

logger = logging.getLogger("penstock.wal.replicated")

#: The log is cut at entries that are so far from each other, at least.
_BOUNDARY_BYTES = 32 * 1024
CLOSE_TIMEOUT_S = 30.0
#: So much is copied before it is waited for.
_COPY_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatistics:
    """A replica as it is now."""

    state: Annotated[str, text("``member``, ``joining``, or ``out``: it doesn't count.")]
    latency_us: Annotated[
        int, gauge("us", "From an append until this replica held it, the last one measured.")
    ]
    lag_ms: Annotated[int, gauge("ms", "How long it has been behind the fastest replica.")]
    lag_entries: Annotated[int, gauge("entries", "Entries that the fastest has, and this one hasn't.")]
    dropped: Annotated[int, counter("times", "How often it was dropped.")]
    last_error: Annotated[str, text("Why it is out: one sentence.")]


class Replica:
    """``progress(replica)`` and ``lost(replica)`` are called when it got further, and once when it can't be used."""

    def __init__(
        self,
        services: Services,
        table: PluginTable,
        progress: Callable[[Replica], None],
        lost: Callable[[Replica], None],
    ) -> None:
        self._services = services
        self._progress = progress
        self._lost = lost
        self.table = table
        self.error: PenstockError | None = None
        #: Entries of this life that it has, counted as the log counts them.
        self.done = 0
        #: The next entry in recovery; None: there is none any more.
        self.head: Entry | None = None
        self.latency_us = 0
        self._sample: tuple[int, float] | None = None
        self._boundaries: deque[tuple[int, int]] = deque()
        self._copies: list[WalAppend] = []
        self._copied_bytes = 0
        self._leave, self.moved = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._entries: AsyncIterator[Entry] | None = None
        self.completed = (
            self._completed
        )  # one object, by which the replica knows that appends belong together

    # -- life ----------------------------------------------------------------------------------------------

    async def start(self, epoch: int, timeout_s: float) -> None:
        """Open it, in a task of its own. Raises what the plugin raises; UnavailableError when time is up."""
        self.since = epoch  # that of the members is older
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opened.add_done_callback(asyncio.Future.exception)  # told to who waits, if anybody does
        self._task = asyncio.get_running_loop().create_task(self._live(epoch), name="wal-replica")
        try:
            # not shielded: of a shielded future Python 3.14 logs an error that nobody waits for
            await asyncio.wait([self._opened], timeout=timeout_s)
            if not self._opened.done():
                raise UnavailableError(f"a replica wasn't opened in time: timeout_s={timeout_s:g}")
            self._opened.result()
        except BaseException:
            self._task.cancel()
            raise

    async def _live(self, epoch: int) -> None:
        try:
            async with chosen_replica(self._services, self.table, epoch) as chosen:
                self.chosen: ChosenPlugin[WriteAheadLog] = chosen
                self.key = chosen.key
                _check(chosen)
                async with chosen.open() as wal:
                    self.wal = wal
                    self.would_fit = wal.would_fit if isinstance(wal, BoundedLog) else None
                    self.identity = await identity_of(chosen) or ""
                    self._opened.set_result(None)
                    await self._leave.wait()
        except Exception as error:  # noqa: BLE001 - told to who waits, or logged
            failure = kept(error) if isinstance(error, PenstockError) else UnavailableError(f"bug: {error!r}")
            if not self._opened.done():
                self._opened.set_exception(failure)
            else:
                logger.warning("a replica was closed with an error: replica=%s error=%s", self.key, error)
        finally:
            if not self._opened.done():
                self._opened.set_exception(ClosedError("the wal was closed while a replica was opened"))

    @property
    def is_closed(self) -> bool:
        """Whether the log was closed, or couldn't be opened: then nothing of it is held any more."""
        return self._task is not None and self._task.done()

    async def stop(self) -> None:
        """Close it: what was appended is written. Nothing is raised."""
        self._leave.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)  # a medium that hangs keeps its thread

    def fail(self, error: Exception) -> None:
        """Give the replica up; the first error counts."""
        if self.error is None:
            self.moved.set()
            self.error = kept(error) if isinstance(error, PenstockError) else UnavailableError(repr(error))
            self._lost(self)

    # -- recovery ------------------------------------------------------------------------------------------

    async def begin(self, since: int) -> None:
        """Look at the first entry that was written under ``since`` or later, once."""
        if self._entries is not None:
            return
        self._entries = self._filtered(self.wal.recover(), since)
        await self.advance()

    async def _filtered(self, entries: AsyncIterator[WalEntry], since: int) -> AsyncIterator[Entry]:
        async for raw in entries:
            entry = decode_entry(raw, self.key)
            if entry.epoch >= since:
                yield entry

    async def advance(self) -> None:
        """Go to the next entry. Raises CorruptError if it doesn't follow the one before."""
        assert self._entries is not None, "begin comes first"
        before, self.head = self.head, await anext(self._entries, None)
        if self.head is not None:
            check_follows(before, self.head, self.key)
            self._bound(self.head.position, self.head.replica_position)

    async def empty(self, tag: bytes) -> None:
        """Drop all that the replica holds, as it doesn't count. Raises ConfigError if it is of another log."""
        found = ours = False
        async for entry in self.wal.recover():
            found, ours = True, ours or is_tagged(entry, tag)
        if found and not ours:
            raise ConfigError(
                f"the replica {self.key} holds entries of another log, which aren't touched, give it a place of its "
                f"own: at={self.wal.location}"
            )
        await self.wal.trim(self.wal.statistics().end_position)

    async def read(self) -> AsyncIterator[Entry]:
        """The entries, read from outside while the replica is written."""
        assert isinstance(self.chosen.spec, WalSpec)
        assert self.chosen.spec.read is not None
        async for entry in self._filtered(
            self.chosen.spec.read(self.chosen.settings, self.chosen.services), self.since
        ):
            yield entry

    async def copy(self, entry: Entry, tag: bytes, epoch: int, timeout_s: float) -> None:
        """Append what other replicas have. Errors are its own: ``fail``."""
        if self.error is not None:
            return
        try:
            append = self.wal.append([encode_header(entry.kind, tag, entry.position, epoch), entry.data])
        except PenstockError as error:
            self.fail(error)
            return
        self._bound(entry.position, append.position)
        self._copies.append(append)
        self._copied_bytes += len(entry.data)
        if self._copied_bytes >= _COPY_BYTES:
            await self.wait_copied(timeout_s)

    async def wait_copied(self, timeout_s: float) -> None:
        """Wait until it has what was copied."""
        copies, self._copies, self._copied_bytes = self._copies, [], 0
        try:
            with anyio.fail_after(timeout_s):
                for append in copies:
                    await append.wait_durable()
        except TimeoutError:
            self.fail(UnavailableError(f"the replica {self.key} is too slow: timeout_s={timeout_s:g}"))
        except PenstockError as error:
            self.fail(error)

    # -- writing -------------------------------------------------------------------------------------------

    def put(self, number: int, position: int, parts: Sequence[Buffer], known: int | None) -> None:
        """Append the entry ``number`` of this life; a note, which is a header alone, is where the log can be cut."""
        if self.error is not None:
            return
        try:
            append = self.wal.append(parts, known)
        except PenstockError as error:
            self.fail(error)
            return
        self._bound(position, append.position, cut=len(parts) == 1)
        if self._sample is None:
            self._sample = number, asyncio.get_running_loop().time()
        append.set_run_callback(self.completed)

    def _completed(self, appends: Sequence[WalAppend], error: Exception | None) -> None:
        if error is not None:
            self.fail(again(error))
        elif self.error is None:
            self.done += len(appends)
            self.moved.set()
            if self._sample is not None and self.done > self._sample[0]:
                self.latency_us = int((asyncio.get_running_loop().time() - self._sample[1]) * 1e6)
                self._sample = None
            self._progress(self)

    def _bound(self, position: int, replica_position: int, *, cut: bool = False) -> None:
        if cut or not self._boundaries or position - self._boundaries[-1][0] >= _BOUNDARY_BYTES:
            self._boundaries.append((position, replica_position))

    async def trim(self, position: int) -> None:
        """Drop entries that end at ``position`` or before, but for the newest one. Errors are its own."""
        cut = 0
        while self._boundaries and self._boundaries[0][0] <= position:
            _, cut = self._boundaries.popleft()
        if cut:
            try:
                await self.wal.trim(cut)
            except PenstockError as error:
                self.fail(error)


def _check(chosen: ChosenPlugin[Any]) -> None:
    spec = chosen.spec
    assert isinstance(spec, WalSpec)
    lacks = [name for name in ("identity", "fencing") if not getattr(spec.capabilities, name)]
    if spec.read is None:
        lacks.append("read")
    if lacks:
        raise CapabilityError(
            f"{chosen.key}: a replica needs {' and '.join(lacks)}, choose another plugin: plugin={spec.name}"
        )


def chosen_replica(
    services: Services, table: PluginTable, epoch: int | None = None
) -> AbstractAsyncContextManager[ChosenPlugin[WriteAheadLog]]:
    """The plugin of a replica; ``{node}`` in its keys is the node's id, as each node's log has a place of its own."""
    keys = {
        name: value.replace("{node}", str(services.node_id))
        for name, value in table.settings.items()
        if isinstance(value, str)
    }
    return services.choose_plugin(WalSpec, table, epoch=epoch, keys=keys)


#: Of several errors the first of these kinds is told: a newer owner ends everything; a replica that can't be reached,
#: has no room, or waits for a newer Penstock may hold the whole log, so nothing is known to be lost.
_FIRST = (FencedError, UnavailableError, FullError, NewerVersionError)


def one_for_all(errors: Sequence[Exception], what: str) -> PenstockError:
    """One error for those of several replicas, of the kind that leaves most open, and with all their reasons."""
    if not errors:
        return CorruptError(f"{what}: each replica is another log than the recorded one")
    by_kind = (error for kind in _FIRST for error in errors if isinstance(error, kind))
    first = next(by_kind, errors[0])
    kind = type(first) if isinstance(first, PenstockError) else UnavailableError
    return kind(f"{what}: reason={'; '.join(map(str, errors))}")


async def identity_of(chosen: ChosenPlugin[Any]) -> str | None:
    """The identity of a replica's log; None if there is none."""
    assert isinstance(chosen.spec, WalSpec)
    assert chosen.spec.identify is not None
    return await chosen.spec.identify(chosen.settings, chosen.services)


def known_checksum(header: bytes, size: int, known: int | None) -> int | None:
    """The checksum of an entry with its header, if it takes less than going over the bytes."""
    if known is None or size < COMBINE_BYTES_MIN:
        return None
    return combine(checksum(header), known, size)
