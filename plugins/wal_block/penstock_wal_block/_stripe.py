"""Several files or devices as one log: stripes in turn, so that they work at the same time.

The first one has the header. Each of the others begins with a label::

    label, 32 bytes, in the first two blocks
        0   8  magic "PSTKWALM"
        8   2  version, 1
       10   2  number of this device, from 0 on
       12   2  how many there are
       14   2  reserved, 0
       16   4  stripe bytes
       20   8  log id
       28   4  CRC-32C of the bytes before
"""

from __future__ import annotations

__all__ = ("STRIPE_BYTES", "Label", "StripedDevice", "check_labels", "not_first", "places")

import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from crc32c import crc32c

from penstock.errors import ConfigError, NewerVersionError, again, kept
from penstock.spi import Buffer
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES, Header, joined

#: What follows each other on one device. A group of some size is spread over all, a small one is one write.
STRIPE_BYTES = 2**16

_MAGIC = b"PSTKWALM"
_VERSION = 1
_LABEL = struct.Struct(">8sHHHHIQ")
_CRC = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Whose and which a device of a striped log is."""

    number: int
    count: int
    log_id: int
    stripe_bytes: int = STRIPE_BYTES

    def encode(self) -> bytes:
        """The label as one block."""
        fixed = _LABEL.pack(_MAGIC, _VERSION, self.number, self.count, 0, self.stripe_bytes, self.log_id)
        return (fixed + _CRC.pack(crc32c(fixed))).ljust(BLOCK_BYTES, b"\0")

    @classmethod
    def decode(cls, area: Buffer, path: str) -> Label | None:
        """The label in either of the first two blocks; None if there is none. Raises NewerVersionError."""
        for start in (0, BLOCK_BYTES):
            fixed = bytes(area[start : start + _LABEL.size])
            if len(fixed) < _LABEL.size or fixed[:8] != _MAGIC:
                continue
            _, version, number, count, _, stripe_bytes, log_id = _LABEL.unpack(fixed)
            if version > _VERSION:
                raise NewerVersionError.of("the wal", f"path={path}", version=version, known=_VERSION)
            if bytes(area[start + _LABEL.size :][: _CRC.size]) == _CRC.pack(crc32c(fixed)):
                return cls(number=number, count=count, log_id=log_id, stripe_bytes=stripe_bytes)
        return None


def places(
    offset: int, size: int, count: int, area_bytes: int, stripe_bytes: int = STRIPE_BYTES
) -> list[tuple[int, int, int]]:
    """Where bytes of the log are: number of the device, offset on it, and length, in order."""
    found: list[tuple[int, int, int]] = []
    at = offset - area_bytes
    while size > 0:
        stripe, within = divmod(at, stripe_bytes)
        length = min(size, stripe_bytes - within)
        found.append((stripe % count, area_bytes + stripe // count * stripe_bytes + within, length))
        at += length
        size -= length
    return found


def check_labels(header: Header | None, labels: Sequence[Label | None], paths: Sequence[str]) -> None:
    """Refuse a set of which a device is missing, of another set, or in another's place; ``labels`` are in order.

    The first device has none but the header. A log that nothing was written to yet may lack labels.
    Raises ConfigError.
    """
    count = len(paths)
    if header is None:
        for path, label in zip(paths, labels, strict=True):
            if label is not None:
                raise ConfigError(
                    f"a device of a striped wal is there, but its first one is empty or another; put that back, or "
                    f"format all: first={paths[0]} path={path} number={label.number + 1}"
                )
        return
    if header.devices != count:
        raise ConfigError(
            f"the wal is striped over another number of devices, name them all in wal.paths, in order: "
            f"first={paths[0]} found={header.devices} expected={count}"
        )
    for number, (path, label) in enumerate(zip(paths, labels, strict=True)):
        if number == 0:
            continue
        if label is None:
            if header.settled_epoch:
                raise ConfigError(
                    f"a device isn't one of the striped wal, was it exchanged or emptied? put back the right one: "
                    f"path={path} number={number + 1} first={paths[0]}"
                )
        elif label.log_id != header.log_id:
            raise ConfigError(
                f"a device is one of another striped wal, put back the right one: path={path} number={number + 1} "
                f"first={paths[0]}"
            )
        elif (label.number, label.count) != (number, count):
            raise ConfigError(
                f"the devices of the striped wal are in another order, name them in wal.paths as they were: "
                f"path={path} found={label.number + 1} expected={number + 1}"
            )


def not_first(label: Label, path: object) -> ConfigError:
    """The first of the devices is another one of a striped log, or the only one that was named."""
    return ConfigError(
        f"what is in the place of a wal's first device is a later one of a striped wal, name all its devices in "
        f"wal.paths, in order: path={path} found={label.number + 1} of={label.count} expected=1"
    )


class StripedDevice:
    """See ``Device``. The header and all locks are on the first member."""

    def __init__(
        self,
        members: Sequence[FileDevice],
        paths: Sequence[str],
        *,
        area_bytes: int,
        writers: int,
        stripe_bytes: int = STRIPE_BYTES,
    ) -> None:
        """Own ``members``, which are of one kind and size, and have ``writers`` threads each."""
        self._members = members
        self._first = members[0]
        self._paths = paths
        self._area_bytes = area_bytes
        self.devices = len(members)
        self.stripe_bytes = stripe_bytes
        room = (self._first.capacity_bytes - area_bytes) // stripe_bytes * stripe_bytes
        self.capacity_bytes = area_bytes + room * len(members)
        self.direct = all(member.direct for member in members)
        self.is_block_device = all(member.is_block_device for member in members)
        self._pools = [
            ThreadPoolExecutor(writers, thread_name_prefix=f"penstock-wal-{number}")
            for number in range(len(members))
        ]

    def close(self) -> None:
        """Close all; ends the locks."""
        for pool in self._pools:
            pool.shutdown()
        for member in self._members:
            member.close()

    @property
    def extent_bytes(self) -> int:
        """See ``Device``. Groups go to all of them."""
        return min(member.extent_bytes for member in self._members) * len(self._members)

    @property
    def in_place(self) -> bool:
        """See ``Device``."""
        return all(member.in_place for member in self._members)

    @property
    def is_linked(self) -> bool:
        """See ``Device``."""
        return all(member.is_linked for member in self._members)

    @property
    def shareable(self) -> bool:
        """See ``Device``."""
        return self._first.shareable

    @property
    def seat(self) -> bytes:
        """See ``Device``."""
        return self._first.seat

    def find_header(self, location: str) -> Header | None:
        """See ``Device``. Refuses devices that aren't those of the log, or hold something else."""
        labels = self._labels()
        if labels[0] is not None:
            raise not_first(labels[0], self._paths[0])
        header = self._first.find_header(self._paths[0])
        check_labels(header, labels, self._paths)
        for member, path, label in zip(self._members[1:], self._paths[1:], labels[1:], strict=True):
            if label is None and member.find_header(path) is not None:
                raise ConfigError(
                    f"a device for the striped wal holds another wal, choose another: path={path}"
                )
        return header

    def _labels(self) -> list[Label | None]:
        return [
            Label.decode(member.read_header_area(0, HEADER_AREA_BYTES), path)
            for member, path in zip(self._members, self._paths, strict=True)
        ]

    def label(self, log_id: int) -> None:
        """See ``Device``."""
        for number, (member, label) in enumerate(zip(self._members, self._labels(), strict=True)):
            if number and label is None:
                block = Label(number=number, count=self.devices, log_id=log_id).encode()
                for slot in (0, 1):
                    member.write_header_slot(slot, block)

    def read_header_area(self, offset: int, size: int) -> bytes:
        """See ``Device``."""
        return self._first.read_header_area(offset, size)

    def write_header_slot(self, index: int, slot: bytes) -> None:
        """See ``Device``."""
        self._first.write_header_slot(index, slot)

    def read(self, offset: int, size: int) -> memoryview:
        """See ``Device``."""
        found = places(offset, size, self.devices, self._area_bytes, self.stripe_bytes)
        return joined((self._members[number].read(at, length), length) for number, at, length in found)

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        """See ``Device``. All members write at the same time, and what was written is durable on return."""
        found = places(offset, length, self.devices, self._area_bytes, self.stripe_bytes)
        if len(found) == 1:
            number, at, _ = found[0]
            self._write_durably(number, at, parts, length)
            return
        data = memoryview(b"".join(parts))
        work: dict[int, tuple[int, list[Buffer]]] = {}
        done = 0
        for number, at, size in found:  # a member's stripes follow each other on it
            work.setdefault(number, (at, []))[1].append(data[done : done + size])
            done += size
        jobs: list[Future[Exception | None]] = [
            self._pools[number].submit(self._try_to_write, number, at, views)
            for number, (at, views) in work.items()
        ]
        failed: Exception | None = None
        for job in jobs:  # all have ended when the first error is raised
            failed = job.result() or failed
        if failed is not None:
            raise again(failed)

    def _try_to_write(self, number: int, offset: int, views: Sequence[Buffer]) -> Exception | None:
        """In a thread of a member: the error of its part."""
        try:
            self._write_durably(number, offset, views, sum(map(len, views)))
        except Exception as error:  # noqa: BLE001 - raised again by who waits for all parts
            return kept(error)
        return None

    def _write_durably(self, number: int, offset: int, parts: Sequence[Buffer], length: int) -> None:
        member = self._members[number]
        member.write(offset, parts, length)
        member.sync()

    def sync(self) -> None:
        """See ``Device``. Nothing is left to do after :meth:`write`."""

    def sync_all(self) -> None:
        """See ``Device``."""
        for member in self._members:
            member.sync_all()

    def header_lock(self) -> AbstractContextManager[None]:
        """See ``Device``."""
        return self._first.header_lock()

    def data_lock(self) -> AbstractContextManager[None]:
        """See ``Device``."""
        return self._first.data_lock()

    def claim(self, epoch: int) -> bool:
        """See ``Device``."""
        return self._first.claim(epoch)

    def is_free(self, epoch: int) -> bool:
        """See ``Device``."""
        return self._first.is_free(epoch)

    def reserve(self, epoch: int, earlier: Sequence[int]) -> frozenset[int]:
        """See ``Device``: of all members."""
        shut_out = [member.reserve(epoch, earlier) for member in self._members]
        return frozenset.intersection(*shut_out)
