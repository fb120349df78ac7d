"""Looking into a log without opening it: pure reading, no locks, also on a live file."""

from __future__ import annotations

__all__ = (
    "InspectedGroup",
    "Inspection",
    "describe_wal",
    "identify_wal",
    "inspect_wal",
    "read_header",
    "read_wal",
)

import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigError, CorruptError, NotFoundError, UnavailableError
from penstock.files import open_own
from penstock.spi.plugin import Services
from penstock.spi.wal import WalEntry
from penstock.threads import run_in_thread
from penstock.wal import DecodedGroup
from penstock_wal_block._format import (
    BLOCK_BYTES,
    HEADER_AREA_BYTES,
    SHARED_AREA_BYTES,
    Header,
    area_bytes,
    joined,
    newest_of,
    parse_slots,
)
from penstock_wal_block._log import scan_from
from penstock_wal_block._place import check_different, check_place, find_header, real_path
from penstock_wal_block._reservation import medium_error
from penstock_wal_block._settings import Settings
from penstock_wal_block._stripe import Label, check_labels, not_first, places

#: So often a log may be trimmed beyond what is about to be read of it.
_ROUNDS_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedGroup:
    """One group commit on the medium."""

    position: int
    sequence: int
    epoch: int
    confirmed_position: int
    #: Where it is in the file or device; a group may wrap around the end of the ring.
    offset: int
    length_bytes: int
    #: Position and payload size of each entry.
    entries: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The facts about a log, read from outside; ``groups`` reads it as it is iterated."""

    #: Several if it is striped.
    paths: tuple[Path, ...]
    #: None where a slot is blank or torn.
    slots: tuple[Header | None, ...]
    #: The one that counts.
    header: Header
    medium_bytes: int

    @property
    def path(self) -> str:
        """Where the header is."""
        return str(self.paths[0])

    def groups(self) -> Iterator[InspectedGroup]:
        """All groups from the start on. Raises CorruptError, as recovery would, where entries are lost."""
        ring = self.header.ring
        for group in self._scan():
            found = group.header
            yield InspectedGroup(
                position=found.position,
                sequence=found.sequence,
                epoch=found.epoch,
                confirmed_position=found.confirmed_position,
                offset=area_bytes(shared=self.header.shared) + ring.pieces(found.position, 1)[0][0],
                length_bytes=found.length,
                entries=tuple((entry.position, len(entry.data)) for entry in group.entries),
            )

    def entries(self) -> Iterator[Sequence[WalEntry]]:
        """The entries past the trim point, group by group; what recovery would return. Raises CorruptError."""
        for group in self._scan():
            yield [entry for entry in group.entries if entry.next_position > self.header.trim_position]

    def _scan(self) -> Iterator[DecodedGroup]:
        header, start = self.header, self.header.start
        for _ in range(_ROUNDS_MAX):
            with _ReadOnlySet(self.paths, header) as medium:
                scan = scan_from(start, header, medium.read)
                try:
                    yield from scan
                except CorruptError:
                    # An owner that lives goes on meanwhile. What was missing may have been trimmed, and written over;
                    # or it wasn't there yet when what follows it was: then all that was there at first was given.
                    header = _read_slots(self.paths[0])[1]
                    if header.log_id != self.header.log_id:
                        raise
                    if header.start.position <= scan.cursor.position:
                        if next(iter(scan_from(scan.cursor, header, medium.read)), None) is None:
                            raise
                        return
                    start = header.start
                else:
                    return
        raise UnavailableError(f"the wal changes faster than it can be read: path={self.path}")

    def summary(self) -> dict[str, object]:
        """Header fields, totals and the first error, ready to be printed or dumped as JSON."""
        header = self.header
        groups = entries = payload_bytes = 0
        end, error = header.start.position, None
        try:
            for group in self.groups():
                groups += 1
                entries += len(group.entries)
                payload_bytes += sum(size for _, size in group.entries)
                end = group.position + group.length_bytes
        except CorruptError as raised:
            error = str(raised)
        return {
            "path": ", ".join(map(str, self.paths)),
            "identity": _identity(header),
            "cluster_id": header.cluster_id,
            "node_id": header.node_id,
            "epoch": header.epoch,
            "capacity_bytes": header.ring_bytes + area_bytes(shared=header.shared),
            "medium_bytes": self.medium_bytes,
            "valid_header_slots": sum(slot is not None for slot in self.slots),
            "shared": header.shared,
            "block_bytes": BLOCK_BYTES,
            "used_bytes": end - header.start.position,
            "left_alone_bytes": header.ring_bytes - header.ring.room_bytes,
            "full": f"{100 * (end - header.start.position) / header.ring.room_bytes:.1f} %",
            "sealed": header.sealed,
            "closed_cleanly": header.clean,
            "trim_position": header.trim_position,
            "start_position": header.start.position,
            "header_confirmed_position": header.confirmed_position,
            "end_position": end,
            "groups": groups,
            "entries": entries,
            "payload_bytes": payload_bytes,
            "error": error,
        }


def inspect_wal(*paths: str | Path) -> Inspection:
    """Look into the log at a file or block device, or several if it is striped; nothing is written or locked.

    On a live log the last group may look torn while it is being written, and a trim may overtake the reading.

    Raises NotFoundError when there is nothing at ``path``, ConfigError when a log can't be there, CorruptError when
    neither header slot is valid, NewerVersionError, UnavailableError.
    """
    places_ = tuple(_real(Path(path)) for path in paths)
    path = places_[0]
    slots, header, medium_bytes = _read_slots(path)
    _check_set(header, places_)
    return Inspection(paths=places_, slots=tuple(slots), header=header, medium_bytes=medium_bytes)


def read_header(path: Path) -> Header:
    """The header that counts, of a log that may be striped. Raises what :func:`inspect_wal` does."""
    return _read_slots(_real(path))[1]


def _read_slots(path: Path) -> tuple[list[Header | None], Header, int]:
    with _ReadOnlyFile(path) as file:
        slots = parse_slots(file.read(0, HEADER_AREA_BYTES), str(path))
        if any(slot is not None and slot.shared for slot in slots):
            slots = parse_slots(file.read(0, SHARED_AREA_BYTES), str(path))
        medium_bytes = file.size
    header = newest_of(slot for slot in slots if slot is not None and not slot.claim)
    if header is None and any(slots):
        raise NotFoundError(f"the wal was claimed, but not begun yet: path={path}")
    if header is None:
        raise CorruptError(
            f"neither header slot is valid, this is no wal_block log or it is damaged: path={path}"
        )
    return slots, header, medium_bytes


async def read_wal(settings: Settings, services: Services) -> AsyncIterator[WalEntry]:
    """See ``WalSpec.read``."""
    inspection = await run_in_thread(inspect_wal, *settings.paths_of(services.data_dir, services.node_id))
    groups = inspection.entries()
    while (entries := await run_in_thread(next, groups, None)) is not None:
        for entry in entries:
            yield entry


async def describe_wal(settings: Settings, services: Services) -> dict[str, object]:
    """See ``WalSpec.describe``."""
    inspection = await run_in_thread(inspect_wal, *settings.paths_of(services.data_dir, services.node_id))
    return await run_in_thread(inspection.summary)


async def identify_wal(settings: Settings, services: Services) -> str | None:
    """See ``WalSpec.identify``."""
    return await run_in_thread(_identify, settings.paths_of(services.data_dir, services.node_id))


def _identify(paths: Sequence[Path]) -> str | None:
    """What opening would refuse is refused here, before anybody has changed anything."""
    path = _real(paths[0])
    try:
        check_different([_real(one) for one in paths])
        if not check_place(path):
            return None
    except OSError as error:
        raise _unreadable(path, error) from error
    with _ReadOnlyFile(path) as file:
        area = bytes(file.read(0, SHARED_AREA_BYTES))
        if (label := Label.decode(area, str(path))) is not None:
            raise not_first(label, path)
        header = find_header(
            area,
            file.size,
            lambda offset, size: bytes(file.read(offset, size)),
            str(path),
            is_block_device=file.is_block_device,
        )
    if header is not None:
        _check_set(header, [_real(one) for one in paths])
    return None if header is None else _identity(header)


def _identity(header: Header) -> str:
    return f"{header.log_id:016x}"


class _ReadOnlyFile:
    """Raises NotFoundError, UnavailableError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _ReadOnlyFile:
        try:
            self._fd = open_own(self._path, os.O_RDONLY, block_device=True)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no wal: path={self._path}") from error
        except OSError as error:
            raise _unreadable(self._path, error) from error
        self.is_block_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
        if self.is_block_device:
            # another host may have written since the system read it
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes at ``offset``; fewer where the file ends."""
        try:
            return memoryview(os.pread(self._fd, size, offset))
        except OSError as error:
            raise _unreadable(self._path, error) from error


class _ReadOnlySet:
    """The files of a log as one. Raises NotFoundError, UnavailableError."""

    def __init__(self, paths: Sequence[Path], header: Header) -> None:
        self._files = [_ReadOnlyFile(path) for path in paths]
        self._stripe_bytes = header.stripe_bytes
        self._area_bytes = area_bytes(shared=header.shared)
        self._stack = ExitStack()

    def __enter__(self) -> _ReadOnlySet:
        with ExitStack() as stack:
            for file in self._files:
                stack.enter_context(file)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes of the ring; fewer where a file ends."""
        if len(self._files) == 1:
            return self._files[0].read(offset, size)
        found = places(offset, size, len(self._files), self._area_bytes, self._stripe_bytes)
        return joined((self._files[number].read(at, length), length) for number, at, length in found)


def _check_set(header: Header, paths: Sequence[Path]) -> None:
    """Raise ConfigError if these aren't the devices of the log, in order."""
    if header.devices == 0 and len(paths) == 1:
        return
    labels: list[Label | None] = [None]
    for path in paths[1:]:
        try:
            with _ReadOnlyFile(path) as file:
                labels.append(Label.decode(file.read(0, HEADER_AREA_BYTES), str(path)))
        except NotFoundError as error:
            if not header.settled_epoch:
                labels.append(None)  # creating the log broke off before its other devices were labelled
                continue
            raise ConfigError(
                f"a device of the striped wal is missing, put it back: path={path} number={len(labels) + 1} "
                f"first={paths[0]}"
            ) from error
    check_labels(header, labels, [str(path) for path in paths])


def _real(path: Path) -> Path:
    """Where the log is; reading looks at the place that opening does. Raises ConfigError, UnavailableError."""
    try:
        return real_path(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UnavailableError:
    return medium_error("the wal can't be read", path, error)
