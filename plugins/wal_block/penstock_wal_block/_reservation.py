"""Persistent reservations (NVMe, SCSI), by the kernel's ioctls: the device refuses writes of old owners.

A second fence beside the header, which lacks what only the device can do: once a host's registration is preempted,
its writes that are on their way are aborted, and none lands later. The key of an owner is its epoch. The reservation
is *write exclusive*: its holder writes, everybody reads. The ioctls and structures are those of <linux/pr.h>.
"""

from __future__ import annotations

__all__ = ("Reservation", "is_conflict", "medium_error")

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from penstock.errors import ConfigError, UnavailableError

logger = logging.getLogger("penstock.wal.block")

_REGISTRATION = struct.Struct("@QQI4x")  # old key, new key, flags
_RESERVATION = struct.Struct("@QII")  # key, type, flags
_PREEMPTION = struct.Struct("@QQII")  # old key, new key, type, flags


def _request(number: int, layout: struct.Struct) -> int:
    """``_IOW('p', number, layout)``, as on all architectures but a few old ones."""
    return 1 << 30 | layout.size << 16 | ord("p") << 8 | number


_REGISTER = _request(200, _REGISTRATION)
_RESERVE = _request(201, _RESERVATION)
_RELEASE = _request(202, _RESERVATION)
_PREEMPT_ABORT = _request(204, _PREEMPTION)
_IGNORE_KEY = 1
_WRITE_EXCLUSIVE = 1
#: The status of a command that a reservation or registration forbids, of SCSI and, until Linux 6.2, of NVMe; drivers
#: answer with it, or with EBADE. The third is any failure: from then to Linux 6.10, NVMe's conflicts are told so.
_CONFLICTS = (0x18, 0x83, 0x02)
#: An operation or a namespace that isn't one, of NVMe until Linux 6.2.
_NONE_STATUSES = (0x01, 0x0B)
#: NVMe's own status codes have flags above these bits, and none beyond the second.
_NVME_CODE, _NVME_MAX = 0x7FF, 0x7FFF

_NONE_ERRORS = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


def is_conflict(error: OSError) -> bool:
    """Whether the device refuses this host, whatever ``wal.reservations`` is, as another one has reserved it."""
    return error.errno == errno.EBADE


def medium_error(what: str, path: Path | str, error: OSError) -> UnavailableError:
    """What a place that fails means for people; ``what`` says in words what can't be done."""
    if is_conflict(error):
        return UnavailableError(
            f"{what}, another host has reserved its device; end what runs there, or clear the reservation "
            f"(nvme resv-release, sg_persist --clear): path={path}"
        )
    return UnavailableError(
        f"{what}, check the path and the disk: path={path} errno={error.errno} error={error.strerror}"
    )


class Reservation:
    """The reservation of one owner on one open device."""

    def __init__(
        self,
        fd: int,
        *,
        location: str,
        required: bool,
        ioctl: Callable[[int, int, bytearray], int] = fcntl.ioctl,
    ) -> None:
        """Nothing is asked of the device yet. ``required``: one without reservations is refused."""
        self._fd = fd
        self._location = location
        self._required = required
        self._ioctl = ioctl
        self._key = 0

    def take(self, epoch: int, earlier: Iterable[int]) -> frozenset[int]:
        """Be the only host that writes; the epochs of ``earlier`` owners, newest first, that were shut out for that.

        An owner that isn't among those may be of this host, which the device doesn't tell apart from us.
        Raises ConfigError if the device has no reservations, UnavailableError if somebody unknown holds one.
        """
        try:
            self._register(epoch)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise ConfigError(
                    "device reservations need the capability CAP_SYS_ADMIN, grant it or set wal.reservations to off: "
                    f"path={self._location}"
                ) from error
            if error.errno not in _NONE_ERRORS:
                raise
            if self._required:
                raise ConfigError(
                    "the device of the wal has no persistent reservations (NVMe, SCSI), set wal.reservations to auto "
                    f"or off: path={self._location} error={error.strerror}"
                ) from error
            logger.info("the device of the wal has no reservations: path=%s", self._location)
            return frozenset()
        self._key = epoch
        shut_out: set[int] = set()
        candidates = list(earlier)
        while not self._call(_RESERVE, _RESERVATION.pack(epoch, _WRITE_EXCLUSIVE, 0)):
            if not candidates:
                raise UnavailableError(
                    "the device of the wal is reserved by a host that isn't in its header; stop it and try again, or "
                    f"clear the reservation (nvme resv-release, sg_persist --clear): path={self._location}"
                )
            old = candidates.pop(0)
            if self._call(_PREEMPT_ABORT, _PREEMPTION.pack(old, epoch, _WRITE_EXCLUSIVE, 0)):
                shut_out.add(old)
        return frozenset(shut_out)

    def _register(self, epoch: int) -> None:
        """Have this host known by the key of its newest owner. Raises OSError."""
        if self._call(_REGISTER, _REGISTRATION.pack(0, epoch, _IGNORE_KEY)):
            return
        # NVMe: the host has another key, of an owner before, which is to be replaced, whatever it is
        if not self._call(_REGISTER, _REGISTRATION.pack(epoch, epoch, _IGNORE_KEY)):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def release(self) -> None:
        """Let others write again; nothing if somebody took it from us."""
        if not self._key:
            return
        try:
            self._call(_RELEASE, _RESERVATION.pack(self._key, _WRITE_EXCLUSIVE, 0))
        except OSError as error:
            logger.warning(
                "the reservation of the wal's device wasn't released: path=%s error=%s", self._location, error
            )
        with suppress(OSError):  # NVMe's driver can't; a key that reserves nothing is in nobody's way
            self._call(_REGISTER, _REGISTRATION.pack(self._key, 0, 0))
        self._key = 0

    def _call(self, request: int, argument: bytes) -> bool:
        """False where a reservation or registration of somebody else is in the way. Raises OSError."""
        try:
            status = self._ioctl(self._fd, request, bytearray(argument))
        except OSError as error:
            if is_conflict(error):
                return False
            raise
        code = status & _NVME_CODE if 0 < status <= _NVME_MAX else status
        if code in _NONE_STATUSES:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if status and code not in _CONFLICTS:
            raise OSError(errno.EIO, f"the device answered a reservation with status {status:#x}")
        return not status
