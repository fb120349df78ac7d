"""Write-ahead logs with which a whole broker loses what it acknowledged."""

from __future__ import annotations

__all__ = ()

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.errors import FencedError, UnavailableError
from penstock.hookspecs import hookimpl
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer, Services
from penstock.spi.wal import WalAppend, WalEntry, WalSpec
from penstock_conformance._target import STRATEGY
from penstock_conformance.mutants._mutant import SUMMARY, Defective, make, mutant
from penstock_conformance.mutants._wal_in_store import _HEAD, StoreWal, open_store_wal
from penstock_conformance.reference._wal import FileWal

_AT_ONCE = "what_is_acknowledged_at_once_survives_the_next_moment"
_STORE = "random_lives_with_a_failing_store_agree_with_a_model"
_TAKEOVERS = "random_lives_with_takeovers_agree_with_a_model"
_LARGE = {"wal.capacity": "64MiB"}
_SHARED = "mutant_in_store"
_SEEN_BY_ALL = {"wal.plugin": _SHARED, "object_store.url": "file://{dir}/objects"}


@mutant(
    STRATEGY,
    "trims_one_entry_too_many",
    "what_is_acknowledged_during_an_upload_survives_its_end",
    level=3,
    part="wal",
    settings=_LARGE,
)
class TrimsOneEntryTooMany(FileWal):
    """Takes the entry at the position for one below it, if there are more behind it."""

    def _drop(self, position: int) -> None:
        above = [end for end in self._ends if end > position]
        super()._drop(above[0] if len(above) > 1 else position)


@mutant(STRATEGY, "acknowledges_small_groups_early", _AT_ONCE, level=3, part="wal", settings=_LARGE)
class AcknowledgesSmallGroupsEarly(FileWal):
    """The quicker of two places has it, the slower one gets it a moment later; only that one is read."""

    def __init__(self, path: Path, epoch: int, capacity: int) -> None:
        super().__init__(path, epoch, capacity)
        self._slow: list[tuple[WalAppend, list[Buffer]]] = []

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        if not self._slow:
            asyncio.get_running_loop().call_later(0.02, self._catch_up)
        self._slow += group

    def _catch_up(self) -> None:
        slow, self._slow = self._slow, []
        if slow and self._state == "open":
            super()._write(slow)

    def close(self) -> None:
        self._flush()
        self._catch_up()
        super().close()


@mutant(STRATEGY, "loses_the_end_of_a_large_group", _AT_ONCE, level=3, part="wal", settings=_LARGE)
class LosesTheEndOfALargeGroup(FileWal):
    """Writes at most four entries at once, and acknowledges what is behind them as well."""

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        super()._write(group[:4])


@mutant(
    STRATEGY,
    "acknowledges_the_third_of_many_early",
    _AT_ONCE,
    level=3,
    part="wal",
    settings=_LARGE,
)
class AcknowledgesTheThirdOfManyEarly(FileWal):
    """Writes two entries of a group, and those that came together with them a moment after all are acknowledged."""

    def _write(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        super()._write(group[:2])
        if len(group) > 2:
            asyncio.get_running_loop().call_later(0.02, self._catch_up, group[2:])

    def _catch_up(self, group: list[tuple[WalAppend, list[Buffer]]]) -> None:
        if self._state == "open":
            super()._write(group)


@mutant(
    STRATEGY,
    "recovers_all_but_the_last_of_a_page",
    _AT_ONCE,
    level=3,
    part="wal",
    settings=_LARGE,
)
class RecoversAllButTheLastOfAPage(FileWal):
    """Has pages of 257 entries, one more than it reads of each."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        count = 0
        async for entry in super().recover():
            count += 1
            if count % 257:
                yield entry


@mutant(
    STRATEGY,
    "drops_what_was_recovered_twice",
    "what_a_start_recovers_survives_its_end",
    level=3,
    part="wal",
    settings=_LARGE,
)
class DropsWhatWasRecoveredTwice(FileWal):
    """Takes the end of a second recovery for the end of the upload."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        async for entry in super().recover():
            yield entry
        path = self._path.with_suffix(f".{self._header.start}")
        if path.exists():
            self._drop(self._confirmed)
        path.touch()


class _Shared(StoreWal):
    """A log of objects that any host can take over."""

    capabilities = replace(StoreWal.capabilities, shareable=True)


@mutant(STRATEGY, "fences_nobody_at_takeover", _TAKEOVERS, level=4, part="wal", settings=_SEEN_BY_ALL)
class FencesNobodyAtTakeover(_Shared):
    """Takes the next number, whoever has it."""

    async def _put_once(self, slot: int, body: list[Buffer]) -> None:
        await self._store.put(self._key(slot), body)


@mutant(STRATEGY, "acknowledges_what_the_store_refused", _STORE, level=4, part="wal", settings=_SEEN_BY_ALL)
class AcknowledgesWhatTheStoreRefused(_Shared):
    """Tries three times."""

    async def _put(self, slot: int, parts: list[Buffer]) -> None:
        try:
            await asyncio.wait_for(super()._put(slot, parts), 0.05)
        except TimeoutError:
            return


@mutant(
    STRATEGY,
    "takes_what_is_there_after_an_outage_for_its_own",
    "a_second_owner_fences_the_first",
    level=4,
    part="wal",
    settings=_SEEN_BY_ALL,
)
class TakesWhatIsThereAfterAnOutageForItsOwn(_Shared):
    """A number that is taken when the store is back was taken by a put whose reply was lost."""

    async def _put(self, slot: int, parts: list[Buffer]) -> None:
        failed = False
        while True:
            try:
                await self._put_once(slot, [_HEAD.pack(self._epoch, self._nonce), *parts])
            except UnavailableError:
                failed = True
                await asyncio.sleep(0.005)
            except FencedError:
                if failed:
                    return
                raise
            else:
                return


@mutant(
    STRATEGY,
    "takes_over_what_was_acknowledged_long_ago",
    _TAKEOVERS,
    level=4,
    part="wal",
    settings=_SEEN_BY_ALL,
)
class TakesOverWhatWasAcknowledgedLongAgo(_Shared):
    """Recovers what the owner before had confirmed in its last object but one."""

    async def recover(self) -> AsyncIterator[WalEntry]:
        entries = [entry async for entry in super().recover()]
        for entry in entries[: -1 if len(entries) > 2 else None]:
            yield entry


@mutant(
    STRATEGY,
    "puts_a_few_records_at_a_time",
    "records_that_come_together_share_requests",
    level=5,
    part="wal",
    settings=_SEEN_BY_ALL,
)
class PutsAFewRecordsAtATime(_Shared):
    """Puts an object for each few kilobytes: a hundred thousand for a gibibyte."""

    async def _write(self, begun: tuple[int, list[Buffer]]) -> None:
        whole = b"".join(begun[1])
        for start in range(0, len(whole), 10_000):
            await self._store.put(f"wal-parts/{start}", [whole[start : start + 10_000]])
        await super()._write(begun)


@hookimpl(specname="penstock_register_wal")
def penstock_register_wal_in_store() -> WalSpec[Defective]:
    """Register the broken logs that another host can take over."""

    def opened(settings: Defective, services: Services) -> AbstractAsyncContextManager[Any]:
        def made(store: ObjectStore, epoch: int) -> StoreWal:
            wal = make("wal", settings.defect, store, epoch)
            assert isinstance(wal, StoreWal)
            return wal

        return open_store_wal(made, services)

    return WalSpec(
        name=_SHARED,
        summary=SUMMARY,
        settings=Defective,
        capabilities=_Shared.capabilities,
        open=opened,
    )
