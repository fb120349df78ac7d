"""Tells what is at ``wal.path``: a log, nothing yet, or something of somebody else's, which is left as it is."""

from __future__ import annotations

__all__ = ("check_different", "check_place", "find_header", "mounted_type", "real_path", "signature")

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.errors import ConfigError, CorruptError
from penstock_wal_block._format import (
    BLOCK_BYTES,
    HEADER_AREA_BYTES,
    Header,
    is_begun,
    newest_header,
    newest_of,
    parse_slots,
)

#: File systems and the like: (offset, magic, name). Many leave the first 8 KiB of a device empty.
_SIGNATURES: Sequence[tuple[int, bytes, str]] = (
    (0x1FE, b"\x55\xaa", "a partition table"),
    (0x200, b"EFI PART", "a partition table"),
    (0x1000, b"EFI PART", "a partition table"),
    (0x438, b"\x53\xef", "ext"),
    (0, b"XFSB", "xfs"),
    (0, b"LUKS", "luks"),
    (0x200, b"LABELONE", "lvm"),
    (0x2000, b"OCFSV2", "ocfs2"),
    (0x4000, b"\x11\x22\x33\x44", "vdo"),
    (0x8000, b"JFS1", "jfs"),
    (0x8001, b"CD001", "iso9660"),
    (0x8001, b"BEA01", "udf"),
    (0x10000, b"\x01\x16\x19\x70", "gfs2"),
    (0x10034, b"ReIsEr", "reiserfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0x1055C, b"\x19\x01\x54\x19", "ufs"),
    (0x10FF6, b"SWAPSPACE2", "swap"),
    (0x200000, b"\x0d\xd0\x01\xc0", "vmfs"),
)
#: RAID superblocks of versions 0.9 and 1.0 are at the end of a device, ZFS's labels at both ends.
_RAID_MAGICS = (b"\xfc\x4e\x2b\xa9", b"\xa9\x2b\x4e\xfc")
_RAID_BYTES = 2**17
_ZFS_MAGICS = (b"\x0c\xb1\xba\x00\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00\xba\xb1\x0c")
_ZFS_UBERBLOCKS = range(0x20000, 0x40000, 1024)


def mounted_type(mounts: str, device: int) -> str:
    """The type of the file system ``device`` (a device number), by ``/proc/self/mountinfo``; "" if it isn't in it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, system = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) > 2 and fields[2] == number:
            return system.partition(" ")[0]
    return ""


def real_path(path: Path) -> Path:
    """The path of the log itself: ``path``, or the block device that it links to, as those in /dev/disk do.

    Raises ConfigError for another link: what is behind it may be anything, and belong to anybody.
    """
    try:
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            return path
        target = path.resolve()
        if stat.S_ISBLK(os.stat(target).st_mode):
            return target
    except FileNotFoundError:
        if not path.is_symlink():
            return path
        target = path.resolve()
    raise ConfigError(
        f"wal.path is a symbolic link and isn't followed, set it to the file itself: path={path} target={target}"
    )


def check_different(paths: Sequence[Path]) -> None:
    """Raise ConfigError if two of the real ``paths`` are one file or device, whatever they are called; OSError."""
    found: dict[object, Path] = {}
    for path in paths:
        try:
            status = os.stat(path)
            is_device = stat.S_ISBLK(status.st_mode)
            place: object = status.st_rdev if is_device else (status.st_dev, status.st_ino)
        except FileNotFoundError:
            place = path.resolve()
        if place in found:
            raise ConfigError(
                f"two of wal.paths are one place, name each once, nothing was changed: path={path} "
                f"other={found[place]}"
            )
        found[place] = path


def check_place(path: Path) -> bool:
    """Whether something is at the real ``path``. Raises ConfigError if a log can't be there, OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        _refuse_missing_device(path)
        return False
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ConfigError(f"the wal must be a regular file or a block device: path={path}")
    return True


def _refuse_missing_device(path: Path) -> None:
    """A file in its place would be in memory, and nobody would notice before the power goes."""
    path = path.resolve()
    if path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm"):  # noqa: S108 - tmpfs, by wish
        raise ConfigError(f"there is no such device for the wal, is the path right? path={path}")


def find_header(
    area: bytes, size_bytes: int, read: Callable[[int, int], bytes], location: str, *, is_block_device: bool
) -> Header | None:
    """The header that counts; None where a log may be made, because nothing is there.

    ``area`` is the beginning, with the slots of a shared log; ``size_bytes`` is that of the file or device, and
    ``read(offset, size)`` gives bytes of it. Raises CorruptError for what is neither a log nor empty,
    NewerVersionError.
    """
    pair = area[:HEADER_AREA_BYTES]
    header = newest_header(pair, location)
    if header is not None:
        if header.shared:
            slots = parse_slots(area, location)
            header = newest_of(slot for slot in slots if slot is not None and not slot.claim)
        return header
    if is_block_device:
        found = signature(read, size_bytes)
        is_empty = not any(pair) and not found
    else:
        found = ""
        is_empty = size_bytes <= HEADER_AREA_BYTES and (not any(pair) or is_begun(pair))
    if is_empty:
        return None
    kind = f" found={found}" if found else ""
    raise CorruptError(
        "what is at wal.path has no valid header of a wal and isn't empty, so nothing was changed; set wal.path to a "
        f"place of its own, or if this was the wal, restore it from a copy: path={location}{kind}"
    )


def signature(read: Callable[[int, int], bytes], size_bytes: int) -> str:
    """What uses a device whose header area may be empty; empty if nothing known does."""
    for offset, magic, name in _SIGNATURES:
        if read(offset, len(magic)) == magic:
            return name
    uberblocks = read(_ZFS_UBERBLOCKS.start, len(_ZFS_UBERBLOCKS) * _ZFS_UBERBLOCKS.step)
    for at in range(0, len(uberblocks), _ZFS_UBERBLOCKS.step):
        if uberblocks[at : at + 8] in _ZFS_MAGICS:
            return "zfs"
    tail_at = max(0, size_bytes - _RAID_BYTES) // BLOCK_BYTES * BLOCK_BYTES
    tail = read(tail_at, size_bytes - tail_at)
    if any(tail[at : at + 4] in _RAID_MAGICS for at in range(0, len(tail), BLOCK_BYTES)):
        return "raid"
    return ""
