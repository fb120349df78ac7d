"""Which WAL a node writes is in metadata: a lost, exchanged or forgotten one is noticed before it costs records.

At a start, the identity of the WAL at hand goes with the node's registration, which is refused if another one, of
this node or of any other, may hold what isn't uploaded (I1); so a second broker, whatever its node id, can't fence
the first one by mistake (I3). Once the WAL is open, and before its first append, it is recorded as in use; only a
stop that left nothing in it takes that back. The rules are in ``penstock.metadata.owners``.

A WAL that tells no identity is recorded with its place. Its node takes for its own whatever it finds there after a
crash, as it can't tell; other nodes stay away from it all the same.
"""

from __future__ import annotations

__all__ = ("identify_wal", "register_node", "release_wal", "use_wal", "wal_spec")

import logging
import platform
from typing import Any

from penstock.errors import PluginError
from penstock.metadata.commands.nodes import ReleaseWal, UseWal
from penstock.metadata.service import MetadataService
from penstock.plugins import Selection
from penstock.spi.kinds import WAL
from penstock.spi.plugin import Services
from penstock.spi.wal import WalSpec

logger = logging.getLogger("penstock.broker")


async def identify_wal(selection: Selection, services: Services) -> str:
    """The identity of the WAL at the configured place; empty if there is none, or if its plugin doesn't tell."""
    spec = wal_spec(selection)
    if spec.identify is None:
        return ""
    found = await spec.identify(selection.settings[WAL.name], services) or ""
    if found and (len(found) > 64 or not found.isprintable() or " " in found):
        raise PluginError(
            f"a WAL's identity is at most 64 printable characters without spaces, mend the plugin: "
            f"plugin={spec.name} identity={found!r}"
        )
    return found


async def register_node(
    metadata: MetadataService, selection: Selection, services: Services, accepted: str | None
) -> int:
    """Register the node with the WAL that is there; its epoch.

    ``accepted`` has the identities of lost WALs whose records are given up, between spaces. Raises ConfigError, and
    fences nobody, if acknowledged records may be in another WAL only; CorruptError, UnavailableError of the WAL.
    """
    node_id = services.node_id
    found = await identify_wal(selection, services)
    unnamed = wal_spec(selection).identify is None
    told = f" ({selection.names['wal']} tells no identity)" if unnamed else ""
    before = {node.node_id: node.wal for node in metadata.image.nodes.with_wal_in_use()}
    known_lost = metadata.image.nodes.given_up_wals()
    lost_wals = (accepted or "").split()
    epoch = await metadata.register(
        node_id, wal=found, unnamed=unnamed, place=_here(str(services.data_dir)) + told, lost_wals=lost_wals
    )
    given_up = metadata.image.nodes.given_up_wals() - known_lost
    for lost in sorted(given_up):
        logger.error(
            "ACKNOWLEDGED RECORDS WERE GIVEN UP, as broker.accept_lost_wal demands: what only that WAL holds is lost "
            "and its offsets are given again; take the key out now: node_id=%d wal=%s",
            node_id,
            lost,
        )
    for unneeded in sorted(set(lost_wals) - given_up):
        logger.warning(
            "broker.accept_lost_wal isn't needed, take it out: node_id=%d accept_lost_wal=%s",
            node_id,
            unneeded,
        )
    for other, wal in before.items():
        if other != node_id and wal and wal == found:
            logger.warning(
                "the WAL of node %d, and what it holds, are this node's from now on: node_id=%d wal=%s",
                other,
                node_id,
                wal,
            )
    return epoch


async def use_wal(metadata: MetadataService, selection: Selection, services: Services, location: str) -> str:
    """Record the WAL, which is open now; its identity. Nothing may be appended before this returns."""
    identity = await identify_wal(selection, services)
    if not identity and wal_spec(selection).identify is not None:
        raise PluginError(
            f"the WAL is open and tells no identity, mend the plugin: plugin={selection.names['wal']} at={location}"
        )
    await metadata.submit(UseWal(services.node_id, services.epoch, identity, _here(location)))
    return identity


async def release_wal(metadata: MetadataService, node_id: int, node_epoch: int) -> None:
    """Record that the WAL holds nothing any more. Nothing may be appended after the call."""
    if metadata.image.nodes.require(node_id).wal_in_use:
        await metadata.submit(ReleaseWal(node_id, node_epoch))


def wal_spec(selection: Selection) -> WalSpec[Any]:
    """The WAL plugin's registration."""
    spec = selection.specs[WAL.name]
    assert isinstance(spec, WalSpec)
    return spec


def _here(place: str) -> str:
    """A place, with the machine that it was seen from: paths of two machines look the same."""
    return f"{place} on {platform.node() or 'an unnamed machine'}"
