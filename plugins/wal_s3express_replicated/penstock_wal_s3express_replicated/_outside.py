"""Looking into a log without opening it: nothing is changed, and nobody is fenced."""

from __future__ import annotations

__all__ = ("describe_wal", "identify_wal", "read_wal")

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from penstock.errors import NotFoundError, PenstockError, kept
from penstock.spi import ChosenPlugin, Services
from penstock.spi.wal import WalEntry, WalSpec, WriteAheadLog
from penstock_wal_s3express_replicated._format import Entry, Kind, Members, decode_entry
from penstock_wal_s3express_replicated._replica import chosen_replica, identity_of, one_for_all
from penstock_wal_s3express_replicated._settings import Settings
from penstock_wal_s3express_replicated._wal import WORD


async def read_wal(settings: Settings, services: Services) -> AsyncIterator[WalEntry]:
    """See ``WalSpec.read``: the union of the replicas that count, as one of them may be an older copy.

    A replica that can't be read is passed over while another one has all that it had.
    """
    members = await _members(services)
    failures: list[PenstockError] = []
    async with AsyncExitStack() as stack:
        sources: list[_Source] = []
        for table in settings.replicas:
            try:
                chosen = await stack.enter_async_context(chosen_replica(services, table))
                identity = await identity_of(chosen)
            except PenstockError as error:
                failures.append(kept(error))
                continue
            # without a word, metadata are new, and whatever is there speaks against that
            since = members.since.get(identity or "") if members.since else 0
            if identity is not None and since is not None:
                sources.append(_Source(chosen, since))
                await sources[-1].advance()
        if not sources:
            if failures:
                raise one_for_all(failures, "no replica that may hold the log can be read")
            raise NotFoundError("there is no wal: no replica holds a recorded log")
        while heads := [source.head for source in sources if source.head is not None]:
            entry = min(heads, key=lambda head: head.position)
            if entry.kind is Kind.DATA:
                yield WalEntry(entry.position, entry.next_position, entry.data)
            for source in sources:
                while source.head is not None and source.head.position < entry.next_position:
                    await source.advance()
        whole = max((source.end for source in sources if source.error is None), default=-1)
        broken = [source for source in sources if source.error is not None]
        if any(source.end > whole for source in broken):
            errors = [source.error for source in broken if source.error is not None]
            raise one_for_all([*errors, *failures], "no replica can be read to its end")


class _Source:
    """A replica that is read: its next entry, where the last one ended, and why there are no more."""

    def __init__(self, chosen: ChosenPlugin[WriteAheadLog], since: int) -> None:
        self.head: Entry | None = None
        self.end = 0
        self.error: PenstockError | None = None
        self._entries = self._read(chosen, since)

    async def advance(self) -> None:
        """Go to the next entry. Nothing is raised."""
        try:
            self.head = await anext(self._entries, None)
        except PenstockError as error:
            self.head, self.error = None, kept(error)
        if self.head is not None:
            self.end = self.head.next_position

    @staticmethod
    async def _read(chosen: ChosenPlugin[WriteAheadLog], since: int) -> AsyncIterator[Entry]:
        assert isinstance(chosen.spec, WalSpec)
        assert chosen.spec.read is not None
        async for raw in chosen.spec.read(chosen.settings, chosen.services):
            if (entry := decode_entry(raw, chosen.key)).epoch >= since:
                yield entry


async def describe_wal(settings: Settings, services: Services) -> dict[str, object]:
    """See ``WalSpec.describe``."""
    members = await _members(services)
    if await identify_wal(settings, services) is None:
        raise NotFoundError("there is no wal: no replica holds a recorded log")
    facts: dict[str, object] = {"identity": members.log_id, "members": len(members.since)}
    for table in settings.replicas:
        async with chosen_replica(services, table) as chosen:
            assert isinstance(chosen.spec, WalSpec)
            try:
                counts = await identity_of(chosen) in members.since
                told = (
                    {}
                    if chosen.spec.describe is None
                    else await chosen.spec.describe(chosen.settings, chosen.services)
                )
            except PenstockError as error:
                facts[chosen.key] = f"can't be read: {error}"
                continue
            facts[chosen.key] = "holds the log" if counts else "doesn't count"
            facts |= {f"{chosen.key} {name}": value for name, value in told.items()}
    return facts


async def identify_wal(settings: Settings, services: Services) -> str | None:
    """See ``WalSpec.identify``: the recorded one, if a replica that holds it is there."""
    members = await _members(services)
    failures: list[PenstockError] = []
    for table in settings.replicas if members.since else ():
        try:
            async with chosen_replica(services, table) as chosen:
                if await identity_of(chosen) in members.since:
                    return members.log_id
        except PenstockError as error:  # another one may be there
            failures.append(kept(error))
    if failures:
        raise one_for_all(failures, "no replica that is there holds the log")
    return None


async def _members(services: Services) -> Members:
    return Members.decode(await services.words.read(WORD) if services.words is not None else "")
