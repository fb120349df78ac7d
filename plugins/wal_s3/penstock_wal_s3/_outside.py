"""Looking into a log without opening it: nothing is put or deleted, also while an owner lives."""

from __future__ import annotations

__all__ = ("describe_wal", "identify_wal", "read_wal")

from collections.abc import AsyncIterator

from penstock.errors import CapabilityError, CorruptError, NotFoundError
from penstock.spi import Services
from penstock.spi.wal import WalEntry
from penstock_wal_s3._log import ObjectLog, Survey, folder_of
from penstock_wal_s3._settings import Settings


async def read_wal(settings: Settings, services: Services) -> AsyncIterator[WalEntry]:
    """See ``WalSpec.read``."""
    log = _log(settings, services)
    found = await _survey(log)
    async for _, group in log.read(found, live=True):
        for entry in group.entries if group is not None else ():
            if entry.next_position > found.trim_position:
                yield entry


async def describe_wal(settings: Settings, services: Services) -> dict[str, object]:
    """See ``WalSpec.describe``."""
    log = _log(settings, services)
    found = await _survey(log)
    groups = entries = payload_bytes = 0
    error = None
    try:
        async for _, group in log.read(found, live=True):
            if group is not None:
                groups += 1
                entries += len(group.entries)
                payload_bytes += sum(len(entry.data) for entry in group.entries)
    except CorruptError as raised:
        error = str(raised)
    return {
        "place": log.location,
        "identity": _identity(found),
        "node_id": services.node_id,
        "owner_epoch": found.end.epoch,
        "sealed": found.sealed,
        "trim_position": found.trim_position,
        "end_position": log.cursor.position,
        "start_slot": found.start.slot,
        "end_slot": found.end.slot,
        "objects": len(found.sizes),
        "object_bytes": sum(found.sizes.values()),
        "groups": groups,
        "entries": entries,
        "payload_bytes": payload_bytes,
        "error": error,
    }


async def identify_wal(settings: Settings, services: Services) -> str | None:
    """See ``WalSpec.identify``."""
    found = await _log(settings, services).survey()
    return None if found is None else _identity(found)


def _log(settings: Settings, services: Services) -> ObjectLog:
    if services.object_store is None:
        raise CapabilityError("wal_s3 needs an object store, choose one")
    return ObjectLog(services.object_store, folder_of(settings, services))


async def _survey(log: ObjectLog) -> Survey:
    found = await log.survey()
    if found is None:
        raise NotFoundError(f"there is no wal: wal={log.location}")
    return found


def _identity(found: Survey) -> str:
    return f"{found.log_id:016x}"
