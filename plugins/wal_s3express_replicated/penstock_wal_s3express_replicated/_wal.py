"""The write-ahead log: appends to all replicas, acknowledges when all have it, and decides which ones count."""

from __future__ import annotations

__all__ = ("CAPABILITIES", "ReplicatedStatistics", "ReplicatedWal", "open_wal")

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Annotated, Any

import anyio
import anyio.lowlevel

from penstock.errors import (
    CapabilityError,
    ClosedError,
    ConfigError,
    ConflictError,
    CorruptError,
    FencedError,
    FullError,
    InvalidRequestError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.spi import Buffer, PluginTable, Services
from penstock.spi.statistics import parts
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics, complete_all
from penstock_wal_s3express_replicated._format import (
    HEADER_BYTES,
    Kind,
    Members,
    check_same,
    encode_header,
)
from penstock_wal_s3express_replicated._replica import (
    CLOSE_TIMEOUT_S,
    Replica,
    ReplicaStatistics,
    known_checksum,
    one_for_all,
)
from penstock_wal_s3express_replicated._settings import Settings

logger = logging.getLogger("penstock.wal.replicated")

CAPABILITIES = WalCapabilities(
    durability_domain="region",
    shareable=True,
    fencing=True,
    bounded=True,
    seal=True,
    identity=True,
    expected_latency_ms_p50=60.0,
)
WORD = "members"
_DOMAINS = ("process", "host", "zone", "region")
_OPEN_TIMEOUT_S = 30.0
#: What is appended while a replica takes its last step back, kept for it.
_BACKLOG_BYTES_MAX = 32 * 2**20
_PAUSES_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatedStatistics(WalStatistics):
    """A snapshot; the log's own positions, and each replica."""

    replicas: Annotated[Mapping[str, ReplicaStatistics], parts("Each replica.")] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Slot:
    """A replica of the settings, whichever log is at its place now."""

    name: str
    table: PluginTable
    replica: Replica | None = None
    reason: str = ""
    dropped: int = 0
    #: When it is tried again, and how long after that.
    due: float = 0.0
    pause_s: float = 0.0


class ReplicatedWal:
    """A WAL whose entries are in several others. Everything lives on the event loop.

    Invariants: an append is acknowledged when every replica of the recorded set has it; the recorded set changes by
    a fenced word, before the first acknowledgement that counts on the change; what isn't in the set holds nothing.
    """

    def __init__(self, settings: Settings, services: Services) -> None:
        if services.words is None:
            raise CapabilityError("a replicated wal keeps its members in metadata, open it by a broker")
        self._services, self._words = services, services.words
        self._limit_s = settings.drop_after / 1000
        self._pause_s = settings.return_after / 1000
        self._slots = [_Slot(f"replicas[{at}]", table) for at, table in enumerate(settings.replicas)]
        self._word = ""
        self._members, self._tag = Members("", {}), b""
        self._epoch = services.epoch
        #: Those that count; those that get entries, one more while it returns; all that were opened.
        self._counting: list[Replica] = []
        self._following: list[Replica] = []
        #: One that returns, from when it has nearly all until metadata says that it counts, or it doesn't return.
        self._joining: Replica | None = None
        self._opened: list[Replica] = []
        self._recording = anyio.Lock()
        self._trimming = anyio.Lock()
        self._returning = False
        self._backlog: list[tuple[int, int, list[Buffer]]] | None = None
        self._backlog_bytes = 0
        self._pending: deque[WalAppend] = deque()
        self._appended = self._completed = self._payload_bytes = 0
        self._tail = self._trimmed = self._confirmed = 0
        self._last_note = -1
        #: (entries, since when the fastest replica has them): who has fewer is behind since then.
        self._marks: deque[tuple[int, float]] = deque()
        self._fastest = 0
        self._watching: asyncio.TimerHandle | None = None
        self._capabilities = CAPABILITIES
        self._state, self._error, self._recovery = "open", "", "before"
        self._refusal: PenstockError | None = InvalidRequestError(
            "recover the wal to its end before appending"
        )
        self._news, self._landed = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()

    # -- open and close ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the replicas, which fences older owners; record those that count."""
        self._word = await self._words.read(WORD)
        self._members = Members.decode(self._word)
        errors = await self._open_all()
        if fenced := next((error for error in errors if isinstance(error, FencedError)), None):
            raise again(fenced)
        opened = [slot.replica for slot in self._slots if slot.replica is not None]
        identities = [replica.identity for replica in opened]
        if len(set(identities)) < len(identities):
            raise ConfigError(
                "two replicas are the same log, give each a place of its own; if one is a copy, empty its place, "
                f"and it is given the log: wal={self.location}"
            )
        if not self._word:
            if errors:
                raise again(errors[0])  # one that never worked is a mistake, and no failure
            await self._create(opened)
        self._counting = [replica for replica in opened if replica.identity in self._members.since]
        for replica in self._counting:
            replica.since = self._members.since[replica.identity]
        for replica in list(self._counting):
            try:
                await replica.begin(replica.since)
            except FencedError:
                raise
            except PenstockError as error:
                errors.append(kept(error))
                replica.fail(error)
        self._counting = [replica for replica in self._counting if replica.error is None]
        if not self._counting:
            raise one_for_all(errors, "no replica that holds the log can be used")
        await self._record()

    async def _open_all(self) -> list[Exception]:
        """Once one that holds the log is open, the others get no longer than if they were behind."""
        waiting = {self._spawn(self._open_one(slot)) for slot in self._slots}
        end, errors = self._loop.time() + _OPEN_TIMEOUT_S, []
        try:
            while waiting and (left := end - self._loop.time()) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                errors += [error for task in done if isinstance(error := task.exception(), Exception)]
                if any(slot.replica and slot.replica.identity in self._members.since for slot in self._slots):
                    end = min(end, self._loop.time() + self._limit_s)
        finally:
            for task in waiting:
                task.cancel()
        for slot in self._slots:
            if slot.replica is None and not slot.reason:
                slot.reason = f"{slot.name} wasn't opened in time"
                errors.append(UnavailableError(slot.reason))
        return errors

    async def _open_one(self, slot: _Slot) -> None:
        replica = self._new(slot)
        try:
            await replica.start(self._services.epoch, _OPEN_TIMEOUT_S)
        except PenstockError as error:
            slot.reason = f"{slot.name} can't be opened: {error}"
            logger.warning("a replica of the wal is out: %s", slot.reason)
            raise
        slot.replica = replica

    def _new(self, slot: _Slot) -> Replica:
        replica = Replica(self._services, slot.table, self._progress, self._lost)
        self._opened = [*(other for other in self._opened if not other.is_closed), replica]
        return replica

    async def _create(self, opened: Sequence[Replica]) -> None:
        for replica in opened:
            await replica.begin(0)
            if replica.head is not None:
                raise ConfigError(
                    "a replica holds entries and nothing says of which log, give it a place of its own; or empty "
                    "this one, if they are of a log that was given up: "
                    f"replica={replica.key} at={replica.wal.location}"
                )
        self._members = Members(secrets.token_hex(8), {replica.identity: 0 for replica in opened})

    async def close(self) -> None:
        """Have what was appended acknowledged, close the replicas, answer everybody."""
        if self._state in ("open", "degraded"):
            self._state, self._refusal = "closed", ClosedError("the wal is closed")
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(CLOSE_TIMEOUT_S):
                while self._pending:
                    self._landed.clear()
                    await self._landed.wait()
            if self._watching is not None:
                self._watching.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(replica.stop() for replica in self._opened))
            self._answer(ClosedError("the wal was closed before the append was durable"))

    # -- recovery ------------------------------------------------------------------------------------------

    async def recover(self) -> AsyncIterator[WalEntry]:
        """See ``WriteAheadLog.recover``: the union of the members, which is copied to whoever lacks the rest."""
        if self._recovery != "before":
            raise InvalidRequestError("recover runs once, open the wal again to read it again")
        self._recovery, self._tag = "runs", self._members.tag
        joining = [
            slot.replica for slot in self._slots if slot.replica and slot.replica not in self._counting
        ]
        for replica in joining:
            await self._guarded(replica, replica.empty(self._tag))
        position: int | None = None
        while heads := [replica for replica in self._counting if replica.error is None and replica.head]:
            ends = [replica for replica in self._counting if replica not in heads]
            entry = min((replica.head for replica in heads if replica.head), key=lambda head: head.position)
            if position is not None and entry.position > position:
                self._give_up_behind(position, entry.position, (*ends, *joining))
            same = [replica for replica in heads if replica.head and replica.head.position <= entry.position]
            keys = ", ".join(replica.key for replica in same)
            for replica in same:
                assert replica.head is not None
                check_same(entry, replica.head, keys)
                await self._guarded(replica, replica.advance())
            for replica in (*ends, *joining):
                await replica.copy(entry, self._tag, self._epoch, self._limit_s)
            position = entry.next_position
            self._last_note = position if entry.kind is Kind.NOTE else -1
            if entry.kind is Kind.DATA:
                yield WalEntry(entry.position, position, entry.data)
        for replica in (*self._counting, *joining):
            await replica.wait_copied(self._limit_s)
        if all(replica.error is not None for replica in self._counting):
            raise one_for_all(
                [replica.error for replica in self._counting if replica.error], "recovery failed"
            )
        self._tail = self._confirmed = position or 0
        self._recovery = "done"
        if self._state == "open":
            await self._record(*joining)
            self._refusal = None
        self._following = list(self._counting)
        ended = [replica for replica in self._counting if replica.wal.statistics().state == "fenced"]
        if ended:
            self._end(FencedError(ended[0].wal.statistics().last_error or "the wal is sealed"), "fenced")
        self._spawn(self._supervise())

    def _give_up_behind(self, position: int, found: int, replicas: Sequence[Replica]) -> None:
        """Fail older copies: replicas that end before the log of the others begins hold what was trimmed long ago.

        One that counts has all that isn't uploaded, so its first entry says where the log begins. Those that were
        given the older entries are given up with them, and come back later.
        """
        for replica in replicas:
            if replica.error is None:
                replica.fail(
                    CorruptError(
                        f"the replica {replica.key} is an older copy, it ends before the log of the others begins: "
                        f"end={position} begin={found}"
                    )
                )

    async def _guarded(self, replica: Replica, step: Any) -> None:
        """One whose medium fails or is damaged is out; the others hold all that was acknowledged."""
        try:
            await step
        except FencedError:
            raise
        except PenstockError as error:
            replica.fail(error)
            replica.head = None

    # -- appending -----------------------------------------------------------------------------------------

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        """See ``WriteAheadLog.append``."""
        if self._refusal is not None:
            raise again(self._refusal)
        size = sum(map(len, data))
        largest = self._capabilities.entry_bytes_max
        if not 0 < size <= largest:
            raise InvalidRequestError(
                f"a wal entry is empty or too large: entry_bytes={size} entry_bytes_max={largest}"
            )
        if not self.would_fit(size):
            raise FullError(f"a replica of the wal is full, trim it and retry: entry_bytes={size}")
        self._payload_bytes += size
        return self._put(Kind.DATA, data, size, checksum)

    def would_fit(self, entry_bytes: int) -> bool:
        """See ``BoundedLog.would_fit``: all of those that count have room."""
        size = entry_bytes + HEADER_BYTES
        return all(
            replica.would_fit is None or replica.error is not None or replica.would_fit(size)
            for replica in self._counting
        )

    def _put(self, kind: Kind, data: Sequence[Buffer], size: int, checksum: int | None) -> WalAppend:
        position = self._tail
        self._tail = end = position + HEADER_BYTES + size
        append = WalAppend(position, end)
        self._pending.append(append)
        number, self._appended = self._appended, self._appended + 1
        header = encode_header(kind, self._tag, position, self._epoch)
        whole, known = [header, *data], known_checksum(header, size, checksum)
        for replica in self._following:
            replica.put(number, position, whole, known)
        if self._backlog is not None:
            self._backlog_bytes += size
            if self._backlog_bytes <= _BACKLOG_BYTES_MAX:
                self._backlog.append((number, position, [header, b"".join(data)]))
            else:
                self._backlog.clear()  # it doesn't return this time
        if all(replica.error is not None for replica in self._counting):
            self._news.set()
        return append

    def _progress(self, replica: Replica) -> None:
        if replica.done > self._fastest:
            self._fastest = replica.done
            now = self._loop.time()
            if self._marks and now - self._marks[-1][1] < self._limit_s / 64:
                now = self._marks.pop()[1]
            self._marks.append((replica.done, now))
            if self._watching is None and len(self._counting) > 1:
                self._watch_in(self._limit_s)
        self._advance()

    def _advance(self) -> None:
        """Acknowledge what all that count have, and who is about to: metadata may say so before it's known here."""
        ready = min(replica.done for replica in self._counting) - self._completed
        if self._joining is not None:
            ready = min(ready, self._joining.done - self._completed)
        if ready > 0:
            done = [self._pending.popleft() for _ in range(ready)]
            self._completed += ready
            self._confirmed = done[-1].next_position
            while self._marks and self._marks[0][0] <= self._completed:
                self._marks.popleft()
            self._landed.set()
            complete_all(done)

    def _watch_in(self, delay_s: float) -> None:
        self._watching = self._loop.call_later(delay_s, self._watch, self._loop.time() + delay_s)

    def _watch(self, expected: float) -> None:
        """Fail those that have been behind for too long; nobody is judged right after the process stood still."""
        self._watching = None
        now = self._loop.time()
        if now - expected > self._limit_s / 4:
            self._marks = deque((count, now) for count, _ in self._marks)
        if not self._marks:
            return
        count, since = self._marks[0]
        if since + self._limit_s > now:
            self._watch_in(since + self._limit_s - now)
            return
        for replica in self._counting:
            if replica.done < count and replica.error is None:
                replica.fail(
                    UnavailableError(
                        f"the replica {replica.key} is too far behind: limit_s={self._limit_s:g}"
                    )
                )

    # -- which replicas count ------------------------------------------------------------------------------

    def _lost(self, replica: Replica) -> None:
        if isinstance(replica.error, FencedError):
            self._end(replica.error, "fenced")
        self._news.set()

    async def _record(self, *joining: Replica) -> None:
        """Have those that didn't fail count, and those that join, once that is in metadata."""
        async with self._recording:
            counting = [replica for replica in (*self._counting, *joining) if replica.error is None]
            if not counting:
                raise one_for_all([r.error for r in self._counting if r.error], "every replica failed")
            members = Members(self._members.log_id, {r.identity: r.since for r in counting})
            if (word := members.encode()) != self._word:
                self._epoch = max(self._epoch, await self._words.write(WORD, word, self._word))
                self._word, self._members = word, members
                for joined in set(joining).intersection(counting):
                    logger.warning(
                        "a replica of the wal was out or empty, and holds the log again: replica=%s",
                        joined.key,
                    )
            for slot in self._slots:
                replica = slot.replica
                if replica is not None and replica.error is not None and replica not in counting:
                    slot.reason = f"{slot.name} is out: {replica.error}"
                    slot.dropped += replica in self._counting
                    slot.replica, slot.due = None, 0.0
                    logger.warning("a replica of the wal is dropped: %s", slot.reason)
                    self._spawn(replica.stop())
                if slot.replica is None and not slot.due:
                    slot.pause_s = self._pause_s
                    slot.due = self._loop.time() + slot.pause_s
            self._counting = counting
            self._following = [replica for replica in self._following if replica.error is None]
            self._set_capabilities()
            out = [slot.reason for slot in self._slots if slot.replica not in counting]
            if self._state in ("open", "degraded") and self._recovery == "done":
                self._state, self._error = ("degraded", "; ".join(out)) if out else ("open", "")
        self._advance()

    async def _supervise(self) -> None:
        """Drop who failed, and bring back who is out."""
        while self._state not in ("fenced", "failed"):
            due = [slot.due for slot in self._slots if slot.replica is None and self._may_return]
            with anyio.move_on_after(max(0.0, min(due) - self._loop.time()) if due else None):
                await self._news.wait()
            self._news.clear()
            if any(replica.error is not None for replica in self._counting):
                await self._ending_on_error(self._record)
            for slot in self._slots:
                if slot.replica is None and slot.due <= self._loop.time() and self._may_return:
                    self._returning = True
                    self._spawn(self._ending_on_error(partial(self._bring_back, slot)))

    @property
    def _may_return(self) -> bool:
        return self._state in ("open", "degraded") and not self._returning

    async def _ending_on_error(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (FencedError, ConflictError) as error:
            self._end(FencedError(str(error)), "fenced")
        except PenstockError as error:
            self._end(kept(error), "failed")

    async def _bring_back(self, slot: _Slot) -> None:
        """Open the replica anew, copy to it what the log holds, have it follow, then have it count."""
        async with self._recording:
            epoch = self._epoch = await self._words.write(WORD, self._word, self._word)
        replica = self._new(slot)
        try:
            await replica.start(epoch, _OPEN_TIMEOUT_S)
            await replica.empty(self._tag)
            await self._catch_up(replica)
        except (PenstockError, TimeoutError) as error:
            slot.pause_s = min(2 * slot.pause_s, _PAUSES_MAX * self._pause_s)
            slot.due = self._loop.time() + slot.pause_s
            slot.reason = f"{slot.name} can't return: {error}"
            if isinstance(error, CorruptError):  # what it says of copies is for a log that is alone
                slot.reason += (
                    f"; the other replicas have all, empty the place of {slot.name} and it's given the log"
                )
            self._following = [other for other in self._following if other is not replica]
            self._spawn(replica.stop())
        else:
            slot.replica, slot.due = replica, 0.0
            await self._record(replica)  # if that is in doubt, the log ends, and nothing more is acknowledged
        finally:
            self._backlog, self._returning = None, False
            self._news.set()
        self._joining = None
        self._advance()

    async def _catch_up(self, replica: Replica) -> None:
        source = min(self._counting, key=lambda member: member.latency_us)
        reached = await self._copy(source, replica, None)
        # the rest: what comes in meanwhile is kept for it, so that it gets everything in order
        self._backlog, self._backlog_bytes = [], 0
        number, position = self._appended, self._tail
        while self._completed < number and self._may_go_on(replica):
            self._landed.clear()
            await self._landed.wait()
        reached = await self._copy(source, replica, reached)
        if reached not in (None, position) or self._backlog_bytes > _BACKLOG_BYTES_MAX:
            raise UnavailableError(f"it was overtaken: reached={reached} position={position}")
        replica.done = number
        backlog, self._backlog = self._backlog, None
        for item, at, whole in backlog:
            replica.put(item, at, whole, None)
        self._following.append(replica)
        self._joining = replica
        target = self._appended  # and all that is acknowledged meanwhile
        with anyio.fail_after(self._limit_s):
            while replica.done < target and self._may_go_on(replica):
                replica.moved.clear()
                await replica.moved.wait()

    def _may_go_on(self, replica: Replica) -> bool:
        """Raises what speaks against a replica's return."""
        if replica.error is not None:
            raise again(replica.error)
        if self._state not in ("open", "degraded"):
            raise ClosedError(f"the wal is {self._state}")
        return True

    async def _copy(self, source: Replica, replica: Replica, reached: int | None) -> int | None:
        """Copy what is behind ``reached``; where it ends."""
        async for entry in source.read():
            if reached is None or entry.position == reached:
                await replica.copy(entry, self._tag, self._epoch, self._limit_s)
                reached = entry.next_position
            elif entry.position > reached:
                raise UnavailableError("the log was trimmed meanwhile")
        await replica.wait_copied(self._limit_s)
        return reached

    def _end(self, error: PenstockError, state: str) -> None:
        """Nothing is acknowledged any more."""
        if self._state in ("open", "degraded", "closed"):
            self._state, self._error = state, str(error)
            self._refusal = error if state == "fenced" else ClosedError(f"the wal {state}: cause={error}")
            self._answer(error)

    def _answer(self, error: PenstockError) -> None:
        pending, self._pending = list(self._pending), deque()
        self._completed += len(pending)
        self._landed.set()
        complete_all(pending, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Not in a task group: a cancelled scope would end what is to be finished, and errors come in groups."""
        task = asyncio.get_running_loop().create_task(work, name="wal-replicated")
        self._tasks.add(task)  # those that are left are ended by ``close``
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the rest of the contract ----------------------------------------------------------------------------

    async def trim(self, position: int) -> None:
        """See ``WriteAheadLog.trim``. The newest entry stays, as it says where the log ends; or a note does."""
        if self._recovery != "done":
            raise InvalidRequestError("recover the wal to its end before trimming")
        position = min(position, self._confirmed)  # what is there now, nothing that comes later
        await anyio.lowlevel.checkpoint()
        async with self._trimming:  # whoever asks for the same gets the room when it is there
            if position <= self._trimmed:
                return
            self._trimmed = position
            await self._trim_all(position)
            if position >= self._tail > self._last_note and self._refusal is None and self.would_fit(0):
                note = self._put(Kind.NOTE, [], 0, None)
                self._last_note = note.next_position
                try:
                    await note.wait_durable()
                except PenstockError:
                    return  # whoever appends is told
                await self._trim_all(note.position)

    async def _trim_all(self, position: int) -> None:
        """For a bounded time: one that hangs is dropped for what it doesn't append."""
        if not self._following:
            reasons = "; ".join(str(replica.error) for replica in self._counting)
            raise UnavailableError(f"no replica is left to be trimmed: reason={reasons}")
        tasks = [self._spawn(replica.trim(position)) for replica in self._following]
        await asyncio.wait(tasks, timeout=self._limit_s)

    async def seal(self) -> None:
        """See ``WriteAheadLog.seal``: as many as count are sealed, so no owner gets all answers any more."""
        if self._recovery != "done":
            raise InvalidRequestError("recover the wal to its end before sealing it")
        for replica in self._counting:
            await replica.wal.seal()
        self._end(
            FencedError(f"the wal is sealed, it takes no appends any more: wal={self.location}"), "fenced"
        )

    @property
    def capabilities(self) -> WalCapabilities:
        """See ``WriteAheadLog.capabilities``: of the replicas that count."""
        return self._capabilities

    def _set_capabilities(self) -> None:
        every = [replica.wal.capabilities for replica in self._counting]
        self._capabilities = replace(
            CAPABILITIES,
            durability_domain=max((each.durability_domain for each in every), key=_DOMAINS.index),
            shareable=any(each.shareable for each in every),
            bounded=any(each.bounded for each in every),
            seal=all(each.seal for each in every),
            entry_bytes_max=min(each.entry_bytes_max for each in every) - HEADER_BYTES,
            expected_latency_ms_p50=max(each.expected_latency_ms_p50 for each in every),
        )

    @property
    def location(self) -> str:
        """See ``WriteAheadLog.location``."""
        return " + ".join(slot.replica.wal.location for slot in self._slots if slot.replica is not None)

    def statistics(self) -> ReplicatedStatistics:
        """See ``WriteAheadLog.statistics``."""
        every = [replica.wal.statistics() for replica in self._counting]
        pending = list(islice(self._pending, 1)) and self._tail - self._pending[0].position
        return ReplicatedStatistics(
            appended_entries=self._appended,
            appended_payload_bytes=self._payload_bytes,
            written_groups=max((each.written_groups for each in every), default=0),
            written_bytes=sum(each.written_bytes for each in every),
            pending_entries=len(self._pending),
            pending_bytes=pending or 0,
            used_bytes=max((each.used_bytes for each in every), default=0),
            capacity_bytes=min((each.capacity_bytes for each in every if each.capacity_bytes), default=0),
            trimmed_position=self._trimmed,
            confirmed_position=self._confirmed,
            end_position=self._tail if self._recovery == "done" else -1,
            last_group_us=max((each.last_group_us for each in every), default=0),
            state=self._state,
            last_error=self._error,
            replicas={slot.name: self._replica_statistics(slot) for slot in self._slots},
        )

    def _replica_statistics(self, slot: _Slot) -> ReplicaStatistics:
        replica = slot.replica
        behind = next((since for count, since in self._marks if replica and replica.done < count), None)
        return ReplicaStatistics(
            state="out" if replica is None else "member" if replica in self._counting else "joining",
            latency_us=replica.latency_us if replica is not None else 0,
            lag_ms=0 if behind is None else int((self._loop.time() - behind) * 1000),
            lag_entries=max(0, self._fastest - replica.done) if replica is not None else 0,
            dropped=slot.dropped,
            last_error=slot.reason if replica is None else "",
        )


@asynccontextmanager
async def open_wal(settings: Settings, services: Services) -> AsyncIterator[ReplicatedWal]:
    """Open, or create, the log of ``services.node_id``, and fence its older owners.

    Raises CapabilityError, ConfigError, FencedError, CorruptError, UnavailableError with a sentence for people.
    """
    wal = ReplicatedWal(settings, services)
    try:
        await wal.open()
        yield wal
    finally:
        await wal.close()
