"""Looking into a log without opening it: nothing is changed, and nobody is fenced."""

from __future__ import annotations

__all__ = ("describe_wal", "identify_wal", "read_wal")

from collections.abc import AsyncIterator

from penstock.errors import NotFoundError, PenstockError, again, kept
from penstock.spi import Services
from penstock.spi.wal import WalEntry, WalSpec
from penstock_wal_s3express_replicated._format import Kind, Members, decode_entry
from penstock_wal_s3express_replicated._replica import chosen_replica, identity_of
from penstock_wal_s3express_replicated._settings import Settings
from penstock_wal_s3express_replicated._wal import WORD


async def read_wal(settings: Settings, services: Services) -> AsyncIterator[WalEntry]:
    """See ``WalSpec.read``: every replica that counts holds all that was acknowledged, so the first one is read."""
    members = await _members(services)
    for table in settings.replicas:
        async with chosen_replica(services, table) as chosen:
            identity = await identity_of(chosen)
            # without a word, metadata are new, and whatever is there speaks against that
            since = members.since.get(identity or "") if members.since else 0
            if identity is None or since is None:
                continue
            assert isinstance(chosen.spec, WalSpec)
            assert chosen.spec.read is not None
            async for raw in chosen.spec.read(chosen.settings, chosen.services):
                entry = decode_entry(raw, chosen.key)
                if entry.epoch >= since and entry.kind is Kind.DATA:
                    yield WalEntry(entry.position, entry.next_position, entry.data)
            return
    raise NotFoundError("there is no wal: no replica holds a recorded log")


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
    failure: PenstockError | None = None
    for table in settings.replicas if members.since else ():
        try:
            async with chosen_replica(services, table) as chosen:
                if await identity_of(chosen) in members.since:
                    return members.log_id
        except PenstockError as error:  # another one may be there
            failure = kept(error)
    if failure is not None:
        raise again(failure)
    return None


async def _members(services: Services) -> Members:
    return Members.decode(await services.words.read(WORD) if services.words is not None else "")
