"""Device reservations, on a model of a device that has them and on a loop device, which has none."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path
from typing import Literal

import anyio
import pytest
from penstock_wal_block import Settings, penstock_register_wal
from penstock_wal_block._reservation import Reservation
from tests.loop_device import loop_device

from penstock.errors import ConfigError, UnavailableError
from penstock.spi import Services
from penstock_tools.cli import main

#: As <linux/pr.h> of x86 and ARM has them.
REGISTER, RESERVE, RELEASE, PREEMPT_ABORT = 0x401870C8, 0x401070C9, 0x401070CA, 0x401870CC


class Namespace:
    """A device with reservations: keys by host, and who holds it. ``nvme``: a host's key is replaced, or stays."""

    def __init__(self, *, conflict: int = 0x18, nvme: bool = False) -> None:
        self.conflict = conflict
        self.nvme = nvme
        self.keys: dict[str, int] = {}
        self.holder: str | None = None

    def may_write(self, host: str) -> bool:
        return self.holder in (None, host)

    def ioctl_of(self, host: str):  # type: ignore[no-untyped-def]
        def ioctl(_fd: int, request: int, argument: bytearray) -> int:
            return self._serve(host, request, bytes(argument))

        return ioctl

    def _serve(self, host: str, request: int, argument: bytes) -> int:
        conflict = self.conflict
        if request == REGISTER:
            old, new, flags = struct.unpack("@QQI4x", argument)
            if self.nvme and (refusal := self._refused_by_nvme(host, old, new)):
                return refusal
            if not flags & 1 and self.keys.get(host, 0) != old:
                return conflict
            if new:
                self.keys[host] = new
            else:
                del self.keys[host]
                if self.holder == host:
                    self.holder = None
            return 0
        if request == PREEMPT_ABORT:
            old, new, kind, _ = struct.unpack("@QQII", argument)
            assert kind == 1
            victims = [name for name, key in self.keys.items() if key == old and name != host]
            if self.keys.get(host) != new or not victims:
                return conflict
            for name in victims:
                del self.keys[name]
                if self.holder == name:
                    self.holder = host
            return 0
        key, kind, _ = struct.unpack("@QII", argument)
        assert kind == 1
        if self.keys.get(host) != key:
            raise OSError(errno.EBADE, os.strerror(errno.EBADE))
        if request == RESERVE:
            if self.holder not in (None, host):
                return conflict
            self.holder = host
            return 0
        assert request == RELEASE
        if self.holder == host:
            self.holder = None
        return 0

    def _refused_by_nvme(self, host: str, old: int, new: int) -> int:
        if not new:
            return 0x4002  # its driver has no way to say it
        return self.conflict if not old and self.keys.get(host, new) != new else 0


def reservation(device: Namespace, host: str) -> Reservation:
    return Reservation(-1, location="/dev/it", required=True, ioctl=device.ioctl_of(host))


def test_a_newer_owner_shuts_the_older_ones_host_out() -> None:
    device = Namespace()
    old = reservation(device, "a")
    assert old.take(5, []) == frozenset()
    assert not device.may_write("b")
    new = reservation(device, "b")
    assert new.take(8, [5, 3]) == {5}, "its writes are refused, those on their way too"
    assert (device.may_write("a"), device.may_write("b")) == (False, True)
    old.release()
    assert device.holder == "b", "who was shut out releases nothing"
    new.release()
    assert device.may_write("a")
    assert not device.keys


@pytest.mark.parametrize(
    ("conflict", "nvme"), [(0x18, False), (0x18, True), (0x83, True), (0x4083, True), (0x02, True)]
)
def test_conflicts_are_told_by_whatever_the_driver_answers(conflict: int, nvme: bool) -> None:
    """Of SCSI, and of NVMe before Linux 6.3, with and without a flag, and after it, when a flag made it a failure."""
    device = Namespace(conflict=conflict, nvme=nvme)
    old = reservation(device, "a")
    old.take(5, [])
    assert reservation(device, "b").take(8, [5, 3]) == {5}
    old.release()
    assert (device.may_write("a"), device.may_write("b")) == (False, True)


@pytest.mark.parametrize(("conflict", "nvme"), [(0x18, False), (0x18, True), (0x4083, True), (0x02, True)])
def test_an_owner_starts_again_on_its_host_whatever_key_was_left(conflict: int, nvme: bool) -> None:
    """After a kill -9, and after a clean end: NVMe leaves the key, and takes another one only in its place."""
    device = Namespace(conflict=conflict, nvme=nvme)
    reservation(device, "a").take(5, [])
    again = reservation(device, "a")
    assert again.take(8, [5]) == frozenset(), "who was before may be at work"
    again.release()
    assert device.may_write("b")
    assert reservation(device, "a").take(9, []) == frozenset()
    assert not device.may_write("b")


@pytest.mark.parametrize("status", [0x4001, 0x4002, 0x400B, 0x02])
def test_a_device_without_reservations_may_say_so_by_a_status(status: int) -> None:
    assert Reservation(-1, location="x", required=False, ioctl=lambda *_: status).take(1, []) == frozenset()
    with pytest.raises(ConfigError, match="no persistent reservations"):
        Reservation(-1, location="x", required=True, ioctl=lambda *_: status).take(1, [])


def test_another_owner_on_the_same_host_is_not_taken_for_shut_out() -> None:
    device = Namespace()
    reservation(device, "a").take(5, [])
    assert reservation(device, "a").take(8, [5]) == frozenset()


def test_a_device_that_somebody_unknown_holds_is_told_with_the_way_out() -> None:
    device = Namespace()
    reservation(device, "a").take(77, [])
    with pytest.raises(UnavailableError, match=r"isn't in its header.*sg_persist --clear.*path=/dev/it"):
        reservation(device, "b").take(80, [5])


def test_what_the_device_says_is_told_apart() -> None:
    def failing(code: int):  # type: ignore[no-untyped-def]
        def ioctl(_fd: int, _request: int, _argument: bytearray) -> int:
            raise OSError(code, os.strerror(code))

        return ioctl

    with pytest.raises(ConfigError, match="CAP_SYS_ADMIN"):
        Reservation(-1, location="x", required=False, ioctl=failing(errno.EPERM)).take(1, [])
    with pytest.raises(OSError, match="Input/output"):
        Reservation(-1, location="x", required=False, ioctl=failing(errno.EIO)).take(1, [])
    with pytest.raises(OSError, match="status 0xe0000"):
        Reservation(-1, location="x", required=True, ioctl=lambda *_: 0xE0000).take(1, [])


@pytest.mark.parametrize("reservations", ["on", "auto"])
def test_a_loop_device_has_none_which_is_one_clear_sentence_if_they_are_asked_for(
    tmp_path: Path, reservations: Literal["on", "auto"]
) -> None:
    async def open_once() -> None:
        with loop_device(tmp_path, 4 * 2**20) as device:
            settings = Settings(path=str(device), capacity=4 * 2**20, shared=True, reservations=reservations)
            services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=tmp_path, clock=lambda: 0.0)
            async with penstock_register_wal().open(settings, services):
                pass

    if reservations == "auto":
        anyio.run(open_once)
    else:
        told = "no persistent reservations .*set wal.reservations to auto or off: path=/dev/loop"
        with pytest.raises(ConfigError, match=told):
            anyio.run(open_once)


def test_a_device_that_another_host_has_reserved_is_told_whatever_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with ``wal.reservations = off``, where nobody asks for reservations: the disk is well."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EBADE, os.strerror(errno.EBADE))

    async def open_once() -> None:
        services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=tmp_path, clock=lambda: 0.0)
        async with penstock_register_wal().open(Settings(path=str(path), capacity=4 * 2**20), services):
            pass

    path = tmp_path / "device"
    for name in ("pwrite", "pwritev"):
        monkeypatch.setattr(os, name, refuse)
    told = f"another host has reserved its device; .*sg_persist --clear.*: path={path}"
    with pytest.raises(UnavailableError, match=f"the wal can't be opened, {told}"):
        anyio.run(open_once)
    path.write_bytes(bytes(2**20))
    assert main(["wal", "format", "--set", f"wal.path={path}", "--set", f"broker.data_dir={tmp_path}"]) == 1
    assert re.search(f"the place for the wal can't be used, {told}", capsys.readouterr().err)
