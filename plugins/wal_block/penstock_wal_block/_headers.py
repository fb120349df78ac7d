"""The header of an open log: how a newer owner takes it over, and how the older one sees that.

On one host both hold a lock while they judge and replace the header. Between hosts there is no lock, only a device
on which a read sees every write that ended before it began. There each owner has slots of its own: nobody overwrites
what another one says, however late a write lands. The taker writes its header, and only then reads what the old owner
left; the old owner looks for a newer header after each write that somebody will rely on. Whichever of the two is
later sees the other.
"""

from __future__ import annotations

__all__ = ("Headers", "Owner", "SharedHeaders")

from dataclasses import dataclass, replace
from typing import Any

from penstock.errors import ConfigError, CorruptError, FencedError, NewerVersionError
from penstock.wal import Cursor
from penstock_wal_block._device import Device
from penstock_wal_block._format import (
    HEADER_AREA_BYTES,
    PAIRS,
    SHARED_AREA_BYTES,
    Header,
    area_bytes,
    newest_header,
    newest_of,
    parse_slots,
    slot_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who opens the log."""

    cluster_id: str
    node_id: int
    epoch: int
    #: 16 random bytes, new at each opening.
    incarnation: bytes
    #: Random; becomes the id of the log if it is created now.
    log_id: int


class Headers:
    """The two slots of a log that one host uses."""

    is_shared = False
    #: Whoever had the log before may still write past its end.
    haunted = False

    def __init__(self, device: Device, owner: Owner, *, location: str, ring_bytes: int) -> None:
        self.device = device
        self.owner = owner
        self.location = location
        self.ring_bytes = ring_bytes
        #: As this owner wrote it last.
        self.header: Header
        self._area = b""

    def take_over(self, window_bytes: int) -> Header:
        """Become the owner; the header that was found.

        Raises ConfigError (another cluster, node or capacity), FencedError (a newer owner has it), CorruptError,
        NewerVersionError.
        """
        with self.device.header_lock():
            found = self.find()
            self.put(self.claim(found, window_bytes))
        # The old owner judges the header under this lock before it writes a group. So once we have had it, the
        # old owner's last group is on the device, and it writes no other.
        with self.device.data_lock():
            pass
        return found

    def claim(self, found: Header, window_bytes: int, generation: int = 0) -> Header:
        """The header ``found`` as one of this owner's."""
        owner = self.owner
        return replace(
            found,
            generation=generation,
            seat=self.device.seat if self.is_shared else found.seat,
            sequence=found.sequence + 1,
            node_id=owner.node_id,
            epoch=owner.epoch,
            incarnation=owner.incarnation,
            window_bytes=max(found.window_bytes, window_bytes),
            clean=False,
        )

    def find(self) -> Header:
        """The header on the medium, or that of a new log."""
        header = self.device.find_header(self.location)
        if header is not None:
            self._judge(header)
            return header
        return Header(
            sequence=0,
            log_id=self.owner.log_id,
            cluster_id=self.owner.cluster_id,
            node_id=self.owner.node_id,
            epoch=self.owner.epoch,
            incarnation=self.owner.incarnation,
            ring_bytes=self.ring_bytes,
            trim_position=0,
            start=Cursor(),
            confirmed_position=0,
            window_bytes=0,
            clean=True,
            shared=self.is_shared,
            devices=self.device.devices,
            stripe_bytes=self.device.stripe_bytes,
        )

    def _judge(self, header: Header) -> None:
        owner, path = self.owner, self.location
        if header.cluster_id != owner.cluster_id:
            raise ConfigError(
                f"the wal belongs to another cluster, point this broker to another path: path={path} "
                f"found={header.cluster_id!r} expected={owner.cluster_id!r}"
            )
        if header.shared != self.is_shared:
            raise ConfigError(
                f"the wal was created {'with' if header.shared else 'without'} wal.shared, set it back (or drain the "
                f"broker and format the device): path={path} shared={header.shared}"
            )
        if header.devices != self.device.devices:
            raise ConfigError(
                f"the wal is striped over several devices, name them all in wal.paths, in order: path={path} "
                f"found={header.devices} expected={self.device.devices}"
            )
        # another node's is taken over as an older life's is: epochs grow over all nodes, and whether that node's
        # records are this one's was decided when this one got its epoch
        if header.ring_bytes != self.ring_bytes:
            area = area_bytes(shared=self.is_shared)
            raise ConfigError(
                f"the wal was created with another capacity, set it back (or drain the broker and delete the file): "
                f"path={path} found={header.ring_bytes + area} expected={self.ring_bytes + area}"
            )
        if header.epoch > owner.epoch:
            raise FencedError(
                f"a newer owner holds the wal: path={path} owner_epoch={header.epoch} epoch={owner.epoch}"
            )
        if header.epoch == owner.epoch and not self.is_ours(header):
            raise FencedError(
                f"this epoch had the wal before, open it with a newer one: path={path} epoch={header.epoch}"
            )

    def update(self, *, final: bool = False, **changes: Any) -> None:
        """Replace the header, unless it isn't ours any more. ``final``: on return, it was ours.

        Raises FencedError.
        """
        with self.device.header_lock():
            self.check()
            self.put(replace(self.header, sequence=self.header.sequence + 1, **changes))

    def put(self, header: Header) -> None:
        """Write the header; from then on it is ours."""
        self.device.write_header_slot(slot_of(header), header.encode())
        # Only what is durable counts. If the write failed, the next try takes the same slot, torn or not.
        self.header = header
        self._area = self._read()

    def _read(self) -> bytes:
        return self.device.read_header_area(0, HEADER_AREA_BYTES)

    def check(self) -> None:
        """Raise FencedError if a newer owner shows; CorruptError if the header was damaged."""
        area = self._read()
        if area == self._area:
            return
        header = self._parse(area)
        if header is None:
            raise CorruptError(f"the wal's header was damaged while it was open: path={self.location}")
        if not self.is_ours(header):
            raise self.fenced(header)
        self._area = area

    def is_ours(self, header: Header) -> bool:
        """This very opening wrote it."""
        return (header.epoch, header.incarnation) == (self.owner.epoch, self.owner.incarnation)

    def fenced(self, header: Header) -> FencedError:
        """The error of an owner that sees another one's header."""
        return FencedError(
            f"a newer owner took over the wal: path={self.location} owner_epoch={header.epoch} "
            f"epoch={self.owner.epoch}"
        )

    def _parse(self, area: bytes) -> Header | None:
        try:
            return newest_header(area, self.location)
        except NewerVersionError as error:
            raise FencedError(f"a newer penstock took over the wal: path={self.location}") from error


class SharedHeaders(Headers):
    """The slots of a log that several hosts may have open. No lock is held: who holds it might be stopped.

    A taker first writes a *claim* into the pair after that of the owner before. It says nothing but who claims, so
    one that comes late is harmless: it can hit only the first slot of a pair, and who finds it is either older than
    the owner, and ends, or newer, and begins again behind that one. What an owner says of the log is in both slots
    before anything relies on it, and it says nothing before it has recovered.
    """

    is_shared = True

    def take_over(self, window_bytes: int) -> Header:
        """See :meth:`Headers.take_over`."""
        found = self.find()
        shut_out: frozenset[int] = frozenset()
        while True:
            is_new = self.is_ours(found)
            generation = 0 if is_new else found.generation + 1
            self.header = self.claim(found, window_bytes, generation)
            slots = self._all()
            self._refuse_older(slots, found)
            earlier = sorted({one.epoch for one in slots} - {self.owner.epoch}, reverse=True)
            shut_out |= self.device.reserve(self.owner.epoch, earlier)
            claim = replace(self.header, sequence=0, claim=True, zoned=None)
            self.device.write_header_slot(slot_of(claim), claim.encode())
            slots = self._all()
            newest = max(slots, key=_age)
            if not self.is_ours(newest):
                raise self.fenced(newest)
            # What the old owner said until our claim was there counts. What it says later doesn't: it looks for the
            # claim before it relies on that.
            last = newest_of(one for one in slots if not one.claim)
            if last is None or last == found:
                break
            found = last
            if last.generation + 1 == generation:
                self.header = replace(
                    self.claim(last, window_bytes), generation=claim.generation, seat=claim.seat
                )
                break
        if is_new:
            self.update()  # there is nothing to recover
        else:
            self.haunted = not (found.clean or found.epoch in shut_out or self._is_gone(found))
        return found

    def _refuse_older(self, slots: list[Header], found: Header) -> None:
        for other in slots:
            if other.epoch >= self.owner.epoch:
                self._judge(other)

    def _is_gone(self, found: Header) -> bool:
        """The process of its owner has ended, and with it all that it wrote."""
        return found.seat == self.device.seat and self.device.is_free(found.epoch)

    def update(self, *, final: bool = False, **changes: Any) -> None:
        """See :meth:`Headers.update`."""
        for _ in range(2):
            self.check()
            self.put(replace(self.header, sequence=self.header.sequence + 1, **changes))
        if final:
            self.check()

    def put(self, header: Header) -> None:
        """See :meth:`Headers.put`. The next check judges what is there afterwards."""
        self.device.write_header_slot(slot_of(header), header.encode())
        self.header = header
        self._area = b""

    def _all(self) -> list[Header]:
        slots = parse_slots(self.device.read_header_area(0, SHARED_AREA_BYTES), self.location)
        return [header for header in slots if header is not None]

    def _read(self) -> bytes:
        """Our pair, then that of whoever comes after us."""
        pair = self.header.generation % PAIRS
        if pair + 1 < PAIRS:
            return self.device.read_header_area(pair * HEADER_AREA_BYTES, 2 * HEADER_AREA_BYTES)
        ours = self.device.read_header_area(pair * HEADER_AREA_BYTES, HEADER_AREA_BYTES)
        return ours + self.device.read_header_area(0, HEADER_AREA_BYTES)

    def check(self) -> None:
        """See :meth:`Headers.check`."""
        area = self._read()
        if area == self._area:
            return
        ours, next_ = self._parse(area[:HEADER_AREA_BYTES]), self._parse(area[HEADER_AREA_BYTES:])
        if ours is None:
            raise CorruptError(f"the wal's header was damaged while it was open: path={self.location}")
        if not self.is_ours(ours):
            raise self.fenced(ours)
        if next_ is not None and next_.epoch > self.owner.epoch:
            raise self.fenced(next_)
        self._area = area


def _age(header: Header) -> tuple[int, int]:
    return header.epoch, header.sequence
