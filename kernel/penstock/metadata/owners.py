"""Who may take what: the rules that keep a second owner away from records that only the first one's WAL holds.

A stream belongs to the node that opened it last. What it acknowledged and didn't upload is in that node's WAL, and
nobody else can know of it. So a stream has a *holder* as long as its owner's WAL may hold something of it; the next
owner can only be

- the holder itself,
- anybody, after the holder closed it: ``ReleaseWal``, everything was uploaded,
- the node that took the holder's WAL over, which recovers it before it opens anything (``RegisterNode``); the old
  holder doesn't take it back by being started as it was,
- anybody, after what that WAL holds was given up by name (``RegisterNode``).

That is the rule for streams (``OpenStreams``), and it holds for any number of nodes. As long as a cluster has one
broker, there is a stricter one at the door, so that a mistaken start is refused before it fences anybody: no node
registers, or begins to use a WAL, while any other node's is in use.

Everything here only reads; the commands of nodes and streams change.
"""

from __future__ import annotations

__all__ = ("FoundWal", "check_registration", "check_use", "holder_of", "is_own", "taken_over")

from collections.abc import Collection
from dataclasses import dataclass

from penstock.errors import ConfigError
from penstock.metadata.nodes import Nodes, NodeState
from penstock.metadata.streams import StreamState


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWal:
    """What a node that registers says of the WAL at hand, and of those that it gives up."""

    node_id: int
    #: Its identity; empty: there is none, or its plugin doesn't tell.
    wal: str
    #: Where it is, for people.
    place: str
    #: Its plugin tells no identity.
    unnamed: bool
    #: The WALs whose records are given up, if they are in use and aren't this one.
    given_up: Collection[str]


def holder_of(nodes: Nodes, stream: StreamState) -> NodeState | None:
    """The node whose WAL may hold records of the stream that aren't uploaded; None: nobody's does."""
    owner = nodes.get(stream.node_id)
    if owner is None or not owner.wal_in_use or stream.epoch < owner.wal_since:
        return None
    return owner


def is_own(node: NodeState, found: FoundWal) -> bool:
    """Whether the node found the WAL that it has in use, as far as can be told."""
    if node.wal_unknown:
        return True
    return found.wal == node.wal if node.wal else found.unnamed


def taken_over(nodes: Nodes, found: FoundWal) -> list[NodeState]:
    """The other nodes whose WAL, in use, is the one that was found."""
    if not found.wal:
        return []
    return [node for node in nodes.with_wal_in_use(but=found.node_id) if node.wal == found.wal]


def check_registration(nodes: Nodes, found: FoundWal, version: int) -> None:
    """Raise ConfigError if the node may not start with the WAL that it found (I1, I3)."""
    own = nodes.get(found.node_id)
    lost = found.given_up
    for node in nodes.all():
        if found.wal and found.wal in node.lost_wals and (version > 1 or node is own):
            raise ConfigError(
                f"the records of this WAL were given up and their offsets may have been given again, point "
                f"broker.data_dir or wal.path to another place: node_id={found.node_id} wal={found.wal} "
                f"at={found.place}"
            )
    if own is not None and own.wal_in_use and not is_own(own, found) and own.wal_name not in lost:
        raise ConfigError(
            f"acknowledged records of this node may be in another WAL only, nothing was changed; "
            f"{_way_back(own.wal_location)}, whose clean stop leaves everything to any other, or stop the broker "
            f"that uses it, or give up what only it holds with broker.accept_lost_wal={own.wal_name}: "
            f"node_id={own.node_id} recorded={own.wal_name} recorded_at={own.wal_location} "
            f"found={found.wal or 'none'} found_at={found.place}"
        )
    if version > 1:
        if own is not None and own.wal_taken:
            _check_not_taken(own.wal_taken, taken_over(nodes, found), found)
        _check_alone(nodes, found.node_id, found.wal, found.place, lost)


def check_use(nodes: Nodes, node_id: int, wal: str, location: str, version: int) -> None:
    """Raise ConfigError if this isn't the WAL that the node registered with, or another node uses one meanwhile."""
    node = nodes.require(node_id)
    recorded = node if node.wal_in_use and not node.wal_unknown and node.wal != wal else None
    if version > 1 and wal:
        # another node made it, or took it, since this one looked
        recorded = next((n for n in nodes.with_wal_in_use(but=node_id) if n.wal == wal), recorded)
    if recorded is not None:
        raise ConfigError(
            f"the WAL was exchanged while the broker started, start it again: node_id={node.node_id} "
            f"recorded={recorded.wal_name} of node {recorded.node_id} found={wal or 'none'} "
            f"found_at={location}"
        )
    if version > 1:
        _check_alone(nodes, node_id, wal, location)


def _check_not_taken(taken: str, holders: Collection[NodeState], found: FoundWal) -> None:
    """A node whose WAL was taken over, started again as it was, doesn't take it back: that would fence the taker."""
    for holder in holders:
        if holder.wal == taken:
            raise ConfigError(
                f"node {holder.node_id} took this WAL over, so this node doesn't start with it, and nothing was "
                f"changed; use node {holder.node_id}, or stop it cleanly, which leaves everything to others: "
                f"node_id={found.node_id} holder={holder.node_id} wal={taken} at={found.place}"
            )


def _check_alone(nodes: Nodes, node_id: int, found: str, found_at: str, lost: Collection[str] = ()) -> None:
    """The rule of a cluster of one broker: nobody else's WAL is in use, but for the one that was found."""
    for holder in nodes.with_wal_in_use(but=node_id):
        if holder.wal_name in lost or (found and holder.wal == found):
            continue
        # one in an object store is at a place of its node's id, one in several places has its node's word, so no
        # other node can be pointed to it
        can_point = holder.wal and not (
            _is_in_store(holder.wal_location) or _is_in_several(holder.wal_location)
        )
        key = _path_key(holder.wal_location)
        take_over = f"take its WAL over by pointing {key} to it, " if can_point else ""
        raise ConfigError(
            f"acknowledged records may be in the WAL of node {holder.node_id} only, so no other node starts, and "
            f"nothing was changed; start that node again (a clean stop of it leaves everything to others), "
            f"{take_over}or give up what only it holds with broker.accept_lost_wal={holder.wal_name}: "
            f"node_id={node_id} holder={holder.node_id} recorded={holder.wal_name} "
            f"recorded_at={holder.wal_location or 'unknown'} found={found or 'none'} found_at={found_at}"
        )


def _is_in_store(location: str) -> bool:
    """Whether a WAL's place is one in an object store; else it's a file or a device."""
    return "://" in location


def _is_in_several(location: str) -> bool:
    """Whether a WAL is made of others, each in a place of its own."""
    return " + " in location


def _way_back(location: str) -> str:
    if _is_in_several(location):
        return "point the tables in [wal] back to the places of that WAL, one of which is enough"
    if _is_in_store(location):
        return "set wal.plugin, wal.prefix and [object_store] back to that WAL"
    key = _path_key(location)
    return f"point broker.data_dir or {key} back to that WAL, with the wal.plugin that wrote it"


def _path_key(location: str) -> str:
    """The key that names a WAL's place outside of an object store: one that is striped has several."""
    return "wal.paths" if ", " in location else "wal.path"
