"""A write-ahead log in a directory: a file for each group of appends, and one that says whose the log is.

To put the log on another medium, write another :class:`Directory`; the rest can stay as it is.
"""

from __future__ import annotations

__all__ = ("Directory", "DirectoryWal", "Owner", "Settings", "penstock_register_wal")

import fcntl
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio
from pydantic import Field

from penstock.errors import CorruptError, FencedError, InvalidRequestError, PenstockError, UnavailableError
from penstock.files import Access, make_directories
from penstock.hookspecs import hookimpl
from penstock.spi import Settings as BaseSettings
from penstock.spi.plugin import Buffer, Services
from penstock.spi.wal import WalAppend, WalCapabilities, WalEntry, WalSpec, WalStatistics, WriteAheadLog
from penstock.wal import Boundaries, Cursor, Group, GroupCommit, WriterThread, decode_group, encode_group

R = TypeVar("R")

_CAPABILITIES = WalCapabilities(
    durability_domain="host",  # an entry survives the process and a crash of the host, not the loss of its disk
    fencing=True,
    identity=True,
    expected_latency_ms_p50=2.0,
    entry_bytes_max=64 * 2**20,
)


class Settings(BaseSettings):
    """What a user may set under ``[wal]``."""

    path: str = Field(default="wal", description="The directory; relative paths start at broker.data_dir.")


class Owner(NamedTuple):
    """Whose the log is, and where it begins. Whoever writes has to find their own epoch here."""

    log_id: int
    epoch: int
    start: Cursor


class Directory:
    """The medium, in blocking calls: groups by position, and the owner. Every call raises OSError if it fails.

    What a medium needs: a group is there whole and durably, or not at all; and looking who owns the log is one
    step with what is then written. Here a file lock makes it one, since the kernel takes it from a process that dies.
    """

    def __init__(self, path: Path, access: Access) -> None:
        self._path = path
        self._mode = access.file_mode
        make_directories(path, access)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)

    def close(self) -> None:
        """Nothing is called after this."""
        os.close(self._lock)

    @staticmethod
    def owner(path: Path) -> Owner | None:
        """Who owns the log at ``path``; None if there is no log. Raises CorruptError."""
        try:
            log_id, epoch, start = json.loads((path / "owner").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptError(f"the wal doesn't say whose it is: path={path / 'owner'}") from error
        return Owner(log_id, epoch, Cursor(*start))

    def take_over(self, epoch: int) -> Owner:
        """From the return of this call on, an older owner writes nothing any more. Raises FencedError."""
        with self._locked():
            last = self.owner(self._path) or Owner(secrets.randbits(63), 0, Cursor())
            if last.epoch >= epoch:
                raise FencedError(
                    f"a newer owner has the wal: path={self._path} epoch={epoch} owner={last.epoch}"
                )
            owner = last._replace(epoch=epoch)
            self._create("owner", [json.dumps(owner).encode()])
            return owner

    def positions(self) -> list[int]:
        """Where the groups begin that are there."""
        return sorted(int(path.stem) for path in self._path.glob("*.group"))

    def read(self, position: int) -> bytes:
        """One group."""
        return (self._path / f"{position:020}.group").read_bytes()

    def write(self, owner: Owner, position: int, parts: Sequence[Buffer]) -> None:
        """Make a group durable. Raises FencedError if ``owner`` isn't the owner any more."""
        with self._locked():
            self._check(owner)
            self._create(f"{position:020}.group", parts)

    def trim(self, owner: Owner, start: Cursor) -> Owner:
        """Let the log begin at ``start``. Raises FencedError."""
        with self._locked():
            self._check(owner)
            trimmed = owner._replace(start=start)
            self._create("owner", [json.dumps(trimmed).encode()])  # first: a group that is missing is a loss
        for position in self.positions():
            if position < start.position:
                (self._path / f"{position:020}.group").unlink(missing_ok=True)
        return trimmed

    def _check(self, owner: Owner) -> None:
        last = self.owner(self._path)
        if last is None or (last.log_id, last.epoch) != (owner.log_id, owner.epoch):
            raise FencedError(f"a newer owner took over the wal: path={self._path} epoch={owner.epoch}")

    def _create(self, name: str, parts: Sequence[Buffer]) -> None:
        """A file that is there whole or not at all, and stays."""
        unfinished = self._path / f"{name}.unfinished"
        # With the calls of os: these the conformance suite can disturb.
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, self._mode)
        try:
            os.fchmod(file, self._mode)  # the umask took from it
            rest = memoryview(b"".join(parts))
            while rest:  # a write may take a part only
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        unfinished.rename(self._path / name)
        directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)  # else a crash of the host may take the name away again
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


class DirectoryWal:
    """The log: order, batching and recovery. The medium is used in the writer thread, all else on the event loop."""

    def __init__(self, path: Path, medium: Directory, owner: Owner, thread: WriterThread) -> None:
        self._path = path
        self._medium = medium
        self._owner = owner
        self._thread = thread
        self._commit = GroupCommit(entry_bytes_max=_CAPABILITIES.entry_bytes_max)
        self._cursor = owner.start
        #: Where the log can be cut. Only whole groups are dropped, so every boundary counts (steps of a byte).
        self._boundaries = Boundaries(owner.start, step_bytes=1)
        self._progress = anyio.Event()

    @property
    def capabilities(self) -> WalCapabilities:
        return _CAPABILITIES

    @property
    def location(self) -> str:
        return str(self._path)

    def statistics(self) -> WalStatistics:
        return self._commit.statistics()

    async def recover(self) -> AsyncIterator[WalEntry]:
        # whoever came before may have stopped half-way
        self._cursor, self._boundaries = self._owner.start, Boundaries(self._owner.start, step_bytes=1)
        confirmed = 0
        positions = await self._run(self._medium.positions)
        for position in positions:
            if position < self._cursor.position:
                continue  # trimmed, and a crash came before the file was deleted
            body = await self._run(partial(self._medium.read, position))
            # raises CorruptError for damage, and for a group that doesn't continue the one before: one is missing
            group = decode_group(memoryview(body), self._cursor, log_id=self._owner.log_id)
            header = group.header
            confirmed = max(confirmed, header.confirmed_position)
            self._advance(header.position + header.length, header.digest)
            for entry in group.entries:
                yield entry
        if self._cursor.position < confirmed:
            raise CorruptError(
                f"the wal lost acknowledged entries: position={self._cursor.position} confirmed_position={confirmed}"
            )
        start = self._owner.start.position
        self._commit.start(self._cursor.position, self._cursor.sequence, start_position=start)

    def _advance(self, end: int, digest: int) -> None:
        self._cursor = Cursor(end, self._cursor.sequence + 1, digest)
        self._boundaries.add(end, self._cursor)

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        append = self._commit.append(data, checksum)
        self._pump()
        return append

    def _pump(self) -> None:
        """One group at a time: while it is written and synced, the next one fills up."""
        if self._commit.in_flight or (group := self._commit.take()) is None:
            return
        parts, digest = encode_group(
            log_id=self._owner.log_id,
            cursor=self._cursor,
            epoch=self._owner.epoch,
            confirmed_position=self._commit.confirmed_position,
            appends=group.appends,
            payloads=group.payloads,
        )
        self._advance(group.end_position, digest)
        write = partial(self._medium.write, self._owner, group.position, parts)
        self._thread.submit(write, partial(self._written, group))

    def _written(self, group: Group, _: None, error: Exception | None) -> None:
        try:
            if error is None:
                self._commit.finish(group)
            else:
                state = "fenced" if isinstance(error, FencedError) else "failed"
                self._commit.fail(_translated(error, self._path), state=state)
        finally:
            self._pump()
            self._progress.set()

    async def trim(self, position: int) -> None:
        position = min(position, self._commit.confirmed_position)  # not what comes later
        start = self._boundaries.trim(position)
        if start.position > self._owner.start.position:
            self._owner = await self._run(partial(self._medium.trim, self._owner, start))
            self._commit.release(start.position, position)

    async def seal(self) -> None:
        raise InvalidRequestError("this wal can't be sealed, it doesn't claim to")

    async def close(self) -> None:
        """Write what was appended, and answer everybody."""
        self._commit.close()
        with anyio.CancelScope(shield=True):  # also when the broker is cancelled
            while not self._commit.idle:
                self._progress = anyio.Event()
                await self._progress.wait()
            await self._thread.run(self._medium.close)

    async def _run(self, work: Callable[[], R]) -> R:
        """Do something on the medium, with its errors as Penstock's."""
        try:
            return await self._thread.run(work)
        except OSError as error:
            raise _translated(error, self._path) from error


def _translated(error: Exception, path: Path) -> PenstockError:
    if isinstance(error, PenstockError):
        return error
    return UnavailableError(f"the wal's directory fails: path={path} reason={error}")


def _taken_over(path: Path, epoch: int, access: Access) -> tuple[Directory, Owner]:
    """The medium, and who owns it from now on. Raises FencedError, and leaves nothing open then."""
    medium = Directory(path, access)
    try:
        return medium, medium.take_over(epoch)
    except BaseException:
        medium.close()
        raise


@asynccontextmanager
async def _open(settings: Settings, services: Services) -> AsyncIterator[WriteAheadLog]:
    path = services.data_dir / settings.path
    async with WriterThread("wal-directory") as thread:
        try:
            medium, owner = await thread.run(partial(_taken_over, path, services.epoch, services.access))
        except OSError as error:
            raise _translated(error, path) from error
        wal = DirectoryWal(path, medium, owner, thread)
        try:
            yield wal
        finally:
            await wal.close()


async def _identify(settings: Settings, services: Services) -> str | None:
    """Tells this log from every other, so that the broker notices when it is gone or exchanged."""
    await anyio.lowlevel.checkpoint()
    owner = Directory.owner(services.data_dir / settings.path)
    return None if owner is None else f"{owner.log_id:016x}"


@hookimpl
def penstock_register_wal() -> WalSpec[Settings]:
    """Called when the plugin is loaded; ``_open`` when a broker starts on it."""
    return WalSpec(
        name="template_name",
        summary="A write-ahead log in a directory, one file per group of appends.",
        settings=Settings,
        capabilities=_CAPABILITIES,
        open=_open,
        identify=_identify,
    )
