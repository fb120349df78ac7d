"""The write-ahead log: joins group commit, the writer thread and the log on its device."""

from __future__ import annotations

__all__ = ("CAPABILITIES", "BlockWal", "open_wal")

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel

from penstock.direct_io import filler_bytes
from penstock.errors import (
    ClosedError,
    ConfigError,
    FencedError,
    FullError,
    InvalidRequestError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.files import Access
from penstock.spi import Buffer, Services
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalStatistics
from penstock.wal import DecodedGroup, Group, GroupCommit, WriterThread
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import BLOCK_BYTES, area_bytes
from penstock_wal_block._headers import Owner
from penstock_wal_block._log import NO_SPACE, BlockLog, Flight
from penstock_wal_block._lone import LoneWrites
from penstock_wal_block._place import check_different, real_path
from penstock_wal_block._reservation import is_conflict, medium_error
from penstock_wal_block._settings import Settings
from penstock_wal_block._sizes import LogSizes
from penstock_wal_block._stripe import StripedDevice

logger = logging.getLogger("penstock.wal.block")

CAPABILITIES = WalCapabilities(
    durability_domain="host",
    fencing=True,
    bounded=True,
    seal=True,
    identity=True,
    expected_latency_ms_p50=0.5,
)
_CLOSE_TIMEOUT_S = 30.0
_SPACE_RETRY_S = (0.05, 1.0)
_RECOVERY_BATCH_BYTES = 4 * 2**20
#: An owner lets go of the lock on its data when nothing was written for so long. Taking it for each of many lone
#: groups costs five system calls each, and each of them lets go of the interpreter.
_REST_AFTER_S = 0.01
#: So often an owner that writes nothing looks whether its file is still there.
_LOOK_S = 1.0
#: So many entries, or bytes, are worth a group, whatever else comes: it costs each entry less than its own request.
_GATHERED_MAX = 8
_GATHERED_BYTES_MAX = 2**16
#: A group waits no longer for company, but for the end of the turn in which it began: turns of a busy loop take
#: longer than a quick disk does for a group of its own.
_GATHER_NS = 1_000_000


class BlockWal:
    """A WAL on one file or block device. Appends and completions live on the event loop, I/O in the thread."""

    def __init__(
        self,
        log: BlockLog,
        thread: WriterThread,
        commit: GroupCommit,
        settings: Settings,
        sizes: LogSizes,
        capabilities: WalCapabilities,
        location: str,
    ) -> None:
        self._log = log
        self._thread = thread
        self._commit = commit
        self._groups_in_flight_max = settings.groups_in_flight_max
        self._capabilities = capabilities
        self._location = location
        self._loop = asyncio.get_running_loop()
        self._pump_scheduled = False
        #: The last group had several entries, or another one beside it.
        self._has_company = False
        #: Entries of the open group when :meth:`_gather` looked at it last, and until when it may wait for more.
        self._gathered = self._gather_until = 0
        #: Taken and not yet begun, in order; whoever holds the lock begins the first.
        self._taken: deque[Group] = deque()
        self._lone = LoneWrites()
        self._order = threading.Lock()
        #: Recovery looks so far behind a hole for a group that proves a loss: the first one that began when the
        #: missing one was confirmed. So groups in flight must not span more.
        self._span_bytes_max = sizes.span
        self._stalled = 0
        #: Set when nothing is in flight any more, while somebody seals; nothing is taken meanwhile.
        self._landed: anyio.Event | None = None
        self._sealing = anyio.Lock()
        self._recovery_started = False
        self._recovered = False
        self._last_group_us = 0
        self._closing = threading.Event()
        thread.idle = partial(log.rest_after, _REST_AFTER_S * 0.9)  # a timeout may come a little early
        self._drained: anyio.Event | None = None
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def capabilities(self) -> WalCapabilities:
        """See ``WriteAheadLog.capabilities``."""
        return self._capabilities

    @property
    def location(self) -> str:
        """See ``WriteAheadLog.location``."""
        return self._location

    async def recover(self) -> AsyncIterator[WalEntry]:
        """See ``WriteAheadLog.recover``."""
        if self._recovery_started:
            raise InvalidRequestError("recover runs once, open the wal again to read it again")
        self._recovery_started = True
        log = self._log
        trimmed = log.header.trim_position
        groups = log.scan()

        def next_batch() -> list[DecodedGroup]:
            batch: list[DecodedGroup] = []
            size = 0
            for group in groups:
                batch.append(group)
                size += group.header.length
                if size >= _RECOVERY_BATCH_BYTES:
                    break
            return batch

        try:
            while batch := await self._thread.run(next_batch):
                for group in batch:
                    for entry in group.entries:
                        if entry.next_position > trimmed:
                            yield entry
            await self._thread.run(log.settle)
        except OSError as error:
            raise self._medium_error(error) from error
        except FencedError as error:
            self._fail(error)
            raise
        self._recovered = True
        cursor = log.cursor
        start = log.header.start.position - log.left_bytes
        self._commit.start(cursor.position, cursor.sequence, start_position=start, trimmed=trimmed)
        if log.header.sealed:
            self._fail(self._sealed())

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        """See ``WriteAheadLog.append``."""
        append = self._commit.append(data, checksum)
        if not self._pump_scheduled:
            # Not at once: what the current turn of the event loop appends goes into one group.
            if self._has_company:
                self._gather_soon()
            else:
                self._pump_scheduled = True
                self._loop.call_soon(self._pump)
        return append

    def would_fit(self, entry_bytes: int) -> bool:
        """See ``BoundedLog.would_fit``."""
        return self._commit.would_fit(entry_bytes)

    async def trim(self, position: int) -> None:
        """See ``WriteAheadLog.trim``. On return it is durable. Raises UnavailableError when the medium fails."""
        if not self._recovered:
            raise InvalidRequestError("recover the wal to its end before trimming")
        position = min(
            position, self._commit.confirmed_position
        )  # what is there now, nothing that comes later
        if position <= self._commit.trimmed_position:
            await anyio.lowlevel.checkpoint()
            return
        try:
            start = await self._thread.run(lambda: self._log.trim(position))
        except OSError as error:
            raise self._medium_error(error) from error
        except FencedError as error:
            self._fail(error)
            raise
        self._commit.release(start - self._log.left_bytes, position)

    async def seal(self) -> None:
        """See ``WriteAheadLog.seal``. Appends that were handed to the medium before are acknowledged."""
        async with self._sealing:
            try:
                self._landed = anyio.Event()
                self._pump()
                await self._landed.wait()
                await self._thread.run(self._log.seal)
            except OSError as error:
                raise self._medium_error(error) from error
            except FencedError as error:
                self._fail(error)
                raise
            finally:
                self._landed = None
                self._pump()
            self._fail(self._sealed())

    def statistics(self) -> WalStatistics:
        """See ``WriteAheadLog.statistics``."""
        return self._commit.statistics(last_group_us=self._last_group_us)

    # -- writing -------------------------------------------------------------------------------------------

    def _gather_soon(self) -> None:
        self._pump_scheduled = True
        self._gather_until = time.perf_counter_ns() + _GATHER_NS
        self._loop.call_soon(self._gather)

    def _gather(self) -> None:
        """Pump, once a turn of the event loop brings nothing more for the open group, or it is worth a write anyway.

        Clients that wait for their answers get them together then, ask again together, and share the next group, too;
        else they are written for one by one, and wait for each other's syncs.
        """
        commit = self._commit
        entries = commit.open_entries
        is_worth_it = entries >= _GATHERED_MAX or commit.open_bytes > _GATHERED_BYTES_MAX or commit.has_ready
        if is_worth_it or entries <= self._gathered or time.perf_counter_ns() >= self._gather_until:
            self._pump()
        else:
            self._gathered = entries
            self._loop.call_soon(self._gather)

    def _pump(self) -> None:
        """Hand groups to the threads."""
        self._pump_scheduled = False
        self._gathered = 0
        commit = self._commit
        if self._landed is not None:
            if not commit.in_flight:
                self._landed.set()
            return
        while (group := commit.take_beside(self._groups_in_flight_max, self._span_bytes_max)) is not None:
            self._has_company = commit.in_flight_entries > 1
            if self._lone.on_loop(group.length) and self._write_here(group):
                break
            self._taken.append(group)
            self._thread.submit(self._write_next, self._written)
        if self._drained is not None and commit.idle:
            self._drained.set()

    def _write_here(self, group: Group) -> bool:
        """Write a small group on the event loop, if nothing else is in flight; whether that was possible."""
        if self._commit.in_flight > 1 or self._drained is not None or self._failed is not None:
            return False
        started = time.perf_counter_ns()
        outcome = self._log.write_at_once(group)
        if outcome is None:
            return False
        flight, error = outcome
        elapsed_us = (time.perf_counter_ns() - started) // 1000
        if error is not None:
            self._thread.submit(partial(self._put_again, group, flight, error), self._written)
            return True
        self._lone.wrote_on_loop(elapsed_us)
        self._last_group_us = elapsed_us
        # What the callbacks append has a turn of its own, else they could keep the loop for ever. What came while
        # the loop wrote waits for whoever is being answered, if that one asks again at once.
        self._gather_soon()
        self._commit.finish(group)
        return True

    def _written(self, outcome: tuple[Group, int, Exception | None] | None, bug: Exception | None) -> None:
        try:
            if bug is not None:
                self._fail(bug)
            assert outcome is not None, "a job has a result or an error"
            group, elapsed_us, error = outcome
            if error is not None:
                self._fail(self._medium_error(error) if isinstance(error, OSError) else error, group)
            else:
                commit = self._commit
                self._last_group_us = elapsed_us
                alone = commit.in_flight == 1 and not commit.open_entries
                self._lone.wrote_in_thread(elapsed_us, alone=alone)
                if not group.done:
                    commit.finish(group)
        finally:
            self._pump()

    def _write_next(self) -> tuple[Group, int, Exception | None]:
        """In a thread: make the next group durable; the group, the microseconds that it took, and why it failed."""
        started = time.perf_counter_ns()
        error: Exception | None = None
        flight: Flight | None = None
        try:
            with self._order:
                group = self._taken.popleft()
                if self._failed is not None:
                    raise again(self._failed)
                flight = self._log.begin(group)
            self._put(flight)
        except Exception as raised:  # noqa: BLE001 - the loop answers the appends with it
            error = kept(raised)
            if flight is not None:
                flight.let_go()
            if self._failed is None:
                self._failed = again(error)
        if self._failed is not None:
            self._log.rest()
        elif not self._thread.has_more:
            self._log.look_before_next()
        return group, (time.perf_counter_ns() - started) // 1000, error

    def _put_again(
        self, group: Group, flight: Flight, error: Exception
    ) -> tuple[Group, int, Exception | None]:
        """In a thread: what ``_write_next`` does, for a group that the event loop has begun and couldn't put."""
        started = time.perf_counter_ns()
        failed: Exception | None = error
        try:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                self._put(flight)
                failed = None
        except Exception as raised:  # noqa: BLE001 - the loop answers the appends with it
            failed = kept(raised)
        if failed is not None:
            flight.let_go()
            self._failed = self._failed or again(failed)
            self._log.rest()
        return group, (time.perf_counter_ns() - started) // 1000, failed

    def _put(self, flight: Flight) -> None:
        """Make a group durable. While the medium is full, waits for room.

        A failed fdatasync may have dropped the pages it couldn't write, also those of groups beside it, which fail
        alike. Writing a group again from memory loses nothing. That is done for want of space; after any other error
        the medium isn't trusted, and the WAL fails.
        """
        delay_s, delay_max_s = _SPACE_RETRY_S
        stalled = False
        while True:
            try:
                self._log.put(flight)
                break
            except OSError as error:
                if error.errno not in NO_SPACE or self._closing.is_set():
                    raise
                self._log.rest()
                if not stalled:
                    stalled = True
                    self._thread.notify(lambda error=error: self._stall(error))  # type: ignore[misc]
            self._closing.wait(delay_s)
            delay_s = min(2 * delay_s, delay_max_s)
            if self._failed is not None:
                raise again(self._failed)
        if stalled:
            self._thread.notify(self._resume)

    #: Set in a thread at the first fatal error: what hasn't begun isn't written past the missing group any more.
    _failed: Exception | None = None

    def look_later(self) -> None:
        """Notice that the file was removed or replaced while nothing is written; a writer notices by itself."""
        self._next_look = self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        def done(_: None, error: Exception | None) -> None:
            if self._commit.state != "open":
                return
            if isinstance(error, PenstockError):
                self._fail(error)
                return
            if error is not None:
                logger.debug("the wal's place can't be looked at: path=%s error=%s", self._location, error)
            self.look_later()

        if self._commit.state == "open":
            self._thread.submit(self._log.look, done)

    def _stall(self, error: OSError) -> None:
        self._stalled += 1
        if self._stalled > 1:
            return
        logger.warning(
            "the wal waits for disk space, appends are refused: path=%s error=%s", self._location, error
        )
        self._commit.pause(
            FullError(f"no space left for the wal, free some: path={self._location} error={error.strerror}")
        )

    def _resume(self) -> None:
        self._stalled -= 1
        if not self._stalled:
            self._commit.resume()

    def _medium_error(self, error: OSError) -> PenstockError:
        if is_conflict(error):
            return FencedError(f"another host has reserved the device of the wal: path={self._location}")
        wrapped = UnavailableError(
            f"the wal's medium failed, check the disk and restart the broker: path={self._location} "
            f"errno={error.errno} error={error.strerror}"
        )
        wrapped.__cause__ = error
        return wrapped

    def _sealed(self) -> FencedError:
        return FencedError(f"the wal is sealed, it takes no appends any more: path={self._location}")

    def _fail(self, error: Exception, group: Group | None = None) -> None:
        """Answer everything with ``error``; with ``group``, what was appended before it by its own end."""
        is_first = self._commit.state in ("open", "closed")
        if is_first:
            logger.error("the wal stops: %s", error)
        elif group is None:
            return
        if isinstance(error, FencedError):
            self._commit.fail(error, state="fenced", refusal=error, group=group)
        elif isinstance(error, PenstockError):
            self._commit.fail(error, group=group)
        else:
            self._commit.fail(
                UnavailableError(f"the wal's writer failed: path={self._location} error={error!r}"),
                group=group,
            )
            if is_first:
                raise again(error) from error

    # -- closing -------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what was appended, mark the end, answer everybody."""
        self._commit.close()
        self._closing.set()
        if self._next_look is not None:
            self._next_look.cancel()
        with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
            self._drained = anyio.Event()
            self._pump()
            await self._drained.wait()
            # Without recovery the end isn't known, so it can't be marked.
            if self._commit.state == "closed" and self._recovered:
                await self._mark_clean()
        self._commit.fail(ClosedError("the wal was closed before the append was durable"), state="closed")

    async def _mark_clean(self) -> None:
        try:
            await self._thread.run(self._log.close)
        except (OSError, PenstockError) as error:
            # Everything acknowledged is durable; only the next start takes a little longer.
            logger.warning("the wal's end wasn't marked: path=%s error=%s", self._location, error)


@asynccontextmanager
async def open_wal(settings: Settings, services: Services) -> AsyncIterator[BlockWal]:
    """Open, or create, the log and fence its older owners.

    Raises ConfigError, FencedError, CorruptError, UnavailableError with a sentence for people.
    """
    paths = settings.paths_of(services.data_dir, services.node_id)
    if len(services.cluster_id.encode()) > 128:
        raise ConfigError(f"the cluster id is longer than 128 bytes: cluster_id={services.cluster_id!r}")
    sizes = LogSizes.of(settings)
    charge = None
    if services.allocator is not None:
        charge = await services.allocator.charge(sizes.buffers, "wal")
    #: Not what the thread returns: whoever is cancelled while the device is opened doesn't get it, and closes it.
    devices: list[FileDevice | StripedDevice] = []
    try:
        async with WriterThread(
            "penstock-wal", threads=settings.groups_in_flight_max, idle_after_s=_REST_AFTER_S
        ) as thread:
            await thread.run(lambda: devices.append(_open_device(paths, settings, sizes, services.access)))
            (device,) = devices
            location = ", ".join(map(str, paths))
            wal = await _open_block_wal(device, thread, settings, sizes, services, location)
            wal.look_later()
            try:
                yield wal
            finally:
                await wal.close()
    finally:
        if charge is not None:
            charge.release()
        if not thread.running:  # a thread that hangs in a write keeps its descriptors
            for device in devices:
                device.close()


def _open_device(
    paths: Sequence[Path], settings: Settings, sizes: LogSizes, access: Access
) -> FileDevice | StripedDevice:
    if settings.reservations != "off" and not settings.shared:
        raise ConfigError(
            "wal.reservations is for a device that hosts share, set wal.shared, too, or turn it off: "
            f"path={paths[0]} reservations={settings.reservations}"
        )
    try:
        check_different([real_path(path) for path in paths])
    except OSError as error:
        raise medium_error("the wal can't be opened", paths[0], error) from error
    members: list[FileDevice] = []
    try:
        for path in paths:
            members.append(_open_member(path, settings, sizes, len(paths), access))
        if len({member.is_block_device for member in members}) > 1:
            raise ConfigError(f"wal.paths are all files or all block devices: first={paths[0]}")
    except BaseException:
        for member in members:
            member.close()
        raise
    if len(members) == 1:
        return members[0]
    return StripedDevice(
        members,
        [str(path) for path in paths],
        area_bytes=area_bytes(shared=settings.shared),
        writers=settings.groups_in_flight_max,
    )


def _open_member(path: Path, settings: Settings, sizes: LogSizes, count: int, access: Access) -> FileDevice:
    try:
        device = FileDevice(
            path,
            capacity_bytes=settings.capacity // count // BLOCK_BYTES * BLOCK_BYTES,
            io=settings.io,
            sync=settings.sync,
            buffer_bytes=sizes.buffer
            if count == 1
            else sizes.buffer // (2 * count) // BLOCK_BYTES * BLOCK_BYTES,
            writers=settings.groups_in_flight_max,
            access=access,
            reservations=settings.reservations,
        )
    except OSError as error:
        raise medium_error("the wal can't be opened", path, error) from error
    if settings.shared and not (device.is_block_device and device.direct):
        device.close()
        raise ConfigError(
            "wal.shared is for a block device with direct writes, since the caches of two hosts don't know of each "
            f"other; attach one (and leave wal.io at auto), or turn it off: path={path}"
        )
    return device


async def _open_block_wal(
    device: FileDevice | StripedDevice,
    thread: WriterThread,
    settings: Settings,
    sizes: LogSizes,
    services: Services,
    location: str,
) -> BlockWal:
    owner = Owner(
        cluster_id=services.cluster_id,
        node_id=services.node_id,
        epoch=services.epoch,
        incarnation=os.urandom(16),
        log_id=int.from_bytes(os.urandom(8), "big"),
    )
    try:
        log = await thread.run(
            lambda: BlockLog(
                device, owner, location=location, window_bytes=sizes.window, shared=settings.shared
            )
        )
    except OSError as error:
        raise medium_error("the wal can't be opened", location, error) from error
    commit = GroupCommit(
        alignment=BLOCK_BYTES,
        group_bytes_max=sizes.group,
        entry_bytes_max=sizes.entry,
        capacity_bytes=log.ring_bytes,
        filler_bytes=filler_bytes if device.direct else None,
    )
    capabilities = replace(
        CAPABILITIES,
        entry_bytes_max=sizes.entry,
        durability_domain="zone" if settings.shared else "host",
        # another node must find this one's log with the same settings
        shareable=settings.shared and all("{node_id}" in path for path in settings.paths or [settings.path]),
    )
    return BlockWal(log, thread, commit, settings, sizes, capabilities, location)
