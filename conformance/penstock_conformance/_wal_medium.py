"""Faults of whatever a WAL is on: an object store, files, or a medium that its plugin lets be disturbed."""

from __future__ import annotations

__all__ = ("History", "WalMedium", "faulty_medium")

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from penstock.spi.wal import WalAppend
from penstock_conformance._clause import not_applicable
from penstock_conformance._disk import BROKEN, FaultyDisk
from penstock_conformance._env import Env
from penstock_conformance._faults import FaultyStore
from penstock_conformance._medium import own_medium
from penstock_conformance._wal_steps import check_same

_STORE_READS = ("get", "list", "head")


class WalMedium:
    """The medium of one clause. Which of the three it is, shows when the log was written to."""

    def __init__(self, env: Env, store: FaultyStore, disk: FaultyDisk) -> None:
        self._env = env
        self.store = store
        self.disk = disk
        self._own_faults: dict[str, list[int]] = {"write": [], "read": [], "sync": []}
        self._own_seen = 0
        self._own_failed = 0

    @asynccontextmanager
    async def open(self, epoch: int) -> AsyncIterator[Any]:
        """Open the log on this medium."""
        async with self._env.open(epoch=epoch, object_store=self.store) as wal:
            if (own := own_medium(wal)) is not None:
                own.step = self._step
            yield wal

    def _step(self, call: str) -> None:
        self._own_seen += 1
        if self._own_faults[call] and (number := self._own_faults[call].pop(0)):
            self._own_failed += 1
            raise OSError(number, os.strerror(number))

    @property
    def is_store(self) -> bool:
        """The log is in the object store."""
        return self.store.calls["put"] + self.store.calls["put_if_absent"] > 0

    @property
    def is_disk(self) -> bool:
        """The log is in files, as far as the suite can see."""
        return not self.is_store and self.disk.seen["write"] > 0

    @property
    def is_own(self) -> bool:
        """The plugin lets the suite disturb its own medium."""
        return self._own_seen > 0

    @property
    def accesses(self) -> int:
        """Calls of the medium so far."""
        return sum(self.store.calls.values()) + sum(self.disk.seen.values()) + self._own_seen

    @property
    def failed(self) -> int:
        """Calls that failed."""
        return self.store.failed + self.disk.failed + self._own_failed

    def require_disk(self) -> None:
        """Leave a clause about files."""
        if not self.is_disk:
            not_applicable("the log isn't written to files with the calls of the module os")

    def require_store(self) -> None:
        """Leave a clause about object stores."""
        if not self.is_store:
            not_applicable("the log isn't in the object store")

    def fail_writes(self, number: int = BROKEN, *, times: int = 1, skip: int = 0) -> None:
        """The writes behind the next ``skip`` fail; a store can't be full, and is away instead."""
        if self.is_store:
            for method in ("put", "put_if_absent"):
                self.store.fail(method, times=times, skip=skip)
        elif self.is_disk:
            self.disk.fail("write", number, times=times, skip=skip)
        else:
            self._fail_own("write", number, times, skip)

    def fail_syncs(self, number: int = BROKEN, *, times: int = 1) -> None:
        """The next syncs fail."""
        if self.is_disk:
            self.disk.fail("sync", number, times=times)
        else:
            self._fail_own("sync", number, times)

    def _fail_own(self, call: str, number: int, times: int, skip: int = 0) -> None:
        if not self.is_own:
            not_applicable(
                "the medium isn't files or the object store: give the opened log a `medium` with a `step`"
            )
        self._own_faults[call] += [0] * skip + [number] * times

    def fail_reads(self, times: int) -> None:
        """The next reads of each kind fail, whatever the medium is."""
        for method in _STORE_READS:
            self.store.fail(method, times=times)
        self.disk.fail("read", errno.EIO, times=times)
        self._own_faults["read"] += [errno.EIO] * times

    def heal(self) -> None:
        """From now on all goes well."""
        self.store.heal()
        self.disk.heal()
        for faults in self._own_faults.values():
            faults.clear()


@asynccontextmanager
async def faulty_medium(env: Env) -> AsyncIterator[WalMedium]:
    """Stand between the log and its medium."""
    async with AsyncExitStack() as stack:
        store = FaultyStore(await env.store_of(stack))
        disk = stack.enter_context(FaultyDisk(env.data_dir, env.store_dir / "conformance-objects"))
        yield WalMedium(env, store, disk)


class History:
    """What a log must hold, by what its owners were told."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        #: Failed, or never answered, with nothing acknowledged behind: may be there, as a continuation.
        self._doubtful: list[bytes] = []

    def add(self, bodies: Sequence[bytes], appends: Sequence[WalAppend]) -> None:
        """How the appends of ``bodies`` ended; those that follow may be less."""
        for body, append in zip(bodies, appends, strict=False):
            if append.done and append.error is None:
                self._kept.append(body)
                self._doubtful = []  # nothing that failed comes back once a later append was acknowledged
            else:
                self._doubtful.append(body)

    def doubt(self, bodies: Sequence[bytes]) -> None:
        """Whether these are there nobody knows."""
        self._doubtful += bodies

    def check(self, found: list[bytes], what: str) -> None:
        """``found`` is recovered: what was acknowledged, and perhaps a continuation. From now on it is the log."""
        check_same(found[: len(self._kept)], self._kept, f"acknowledged entries, {what}")
        rest = found[len(self._kept) :]
        check_same(rest, self._doubtful[: len(rest)], f"behind what was acknowledged, {what}")
        self._kept, self._doubtful = found, []
