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

Everything here only reads; the fold (:mod:`penstock.metadata.image`) changes.
"""

from __future__ import annotations

__all__ = ("check_registration", "check_use", "given_up", "holder_of", "is_own", "taken_over", "wals_in_use")

from collections.abc import Collection, Iterator, Mapping

from penstock.errors import ConfigError
from penstock.metadata import commands as c
from penstock.metadata.rows import NodeState, StreamState

Nodes = Mapping[int, NodeState]


def holder_of(nodes: Nodes, stream: StreamState) -> NodeState | None:
    """The node whose WAL may hold records of the stream that aren't uploaded; None: nobody's does."""
    owner = nodes.get(stream.node_id)
    if owner is None or not owner.wal_in_use or stream.epoch < owner.wal_since:
        return None
    return owner


def wals_in_use(nodes: Nodes, but: int) -> Iterator[NodeState]:
    """The nodes other than ``but`` whose WAL may hold what isn't uploaded."""
    return (node for node in nodes.values() if node.node_id != but and node.wal_in_use)


def given_up(command: c.RegisterNode) -> Collection[str]:
    """The WALs whose records the registration gives up, if they are in use and aren't the one that was found."""
    return {*command.lost_wals, command.lost_wal} - {""}


def is_own(node: NodeState, command: c.RegisterNode) -> bool:
    """Whether the node found the WAL that it has in use, as far as can be told."""
    if node.wal_unknown:
        return True
    return command.wal == node.wal if node.wal else command.unnamed


def taken_over(nodes: Nodes, command: c.RegisterNode) -> list[NodeState]:
    """The other nodes whose WAL, in use, is the one that was found."""
    if not command.wal:
        return []
    return [node for node in wals_in_use(nodes, command.node_id) if node.wal == command.wal]


def check_registration(nodes: Nodes, command: c.RegisterNode, version: int) -> None:
    """Raise ConfigError if the node may not start with the WAL that it found (I1, I3)."""
    own = nodes.get(command.node_id)
    lost = given_up(command)
    for node in nodes.values():
        if command.wal and command.wal in node.lost_wals and (version > 1 or node is own):
            raise ConfigError(
                f"the records of this WAL were given up and their offsets may have been given again, point "
                f"broker.data_dir or wal.path to another place: node_id={command.node_id} wal={command.wal} "
                f"at={command.place}"
            )
    if own is not None and own.wal_in_use and not is_own(own, command) and own.wal_name not in lost:
        raise ConfigError(
            f"acknowledged records of this node may be in another WAL only, nothing was changed; point "
            f"broker.data_dir or wal.path back to that WAL, or stop the broker that uses it, or give up what "
            f"only it holds with broker.accept_lost_wal={own.wal_name}: node_id={own.node_id} "
            f"recorded={own.wal_name} recorded_at={own.wal_location} found={command.wal or 'none'} "
            f"found_at={command.place}"
        )
    if version > 1:
        if own is not None and own.wal_taken:
            _check_not_taken(own.wal_taken, taken_over(nodes, command), command)
        _check_alone(nodes, command.node_id, command.wal, command.place, lost)


def check_use(nodes: Nodes, command: c.UseWal, version: int) -> None:
    """Raise ConfigError if this isn't the WAL that the node registered with, or another node uses one meanwhile."""
    node = nodes[command.node_id]
    recorded = node if node.wal_in_use and not node.wal_unknown and node.wal != command.wal else None
    if version > 1 and command.wal:
        # another node made it, or took it, since this one looked
        recorded = next((n for n in wals_in_use(nodes, node.node_id) if n.wal == command.wal), recorded)
    if recorded is not None:
        raise ConfigError(
            f"the WAL was exchanged while the broker started, start it again: node_id={node.node_id} "
            f"recorded={recorded.wal_name} of node {recorded.node_id} found={command.wal or 'none'} "
            f"found_at={command.location}"
        )
    if version > 1:
        _check_alone(nodes, command.node_id, command.wal, command.location)


def _check_not_taken(taken: str, holders: Collection[NodeState], command: c.RegisterNode) -> None:
    """A node whose WAL was taken over, started again as it was, doesn't take it back: that would fence the taker."""
    for holder in holders:
        if holder.wal == taken:
            raise ConfigError(
                f"node {holder.node_id} took this WAL over, so this node doesn't start with it, and nothing was "
                f"changed; use node {holder.node_id}, or stop it cleanly, which leaves everything to others: "
                f"node_id={command.node_id} holder={holder.node_id} wal={taken} at={command.place}"
            )


def _check_alone(nodes: Nodes, node_id: int, found: str, found_at: str, lost: Collection[str] = ()) -> None:
    """The rule of a cluster of one broker: nobody else's WAL is in use, but for the one that was found."""
    for holder in wals_in_use(nodes, node_id):
        if holder.wal_name in lost or (found and holder.wal == found):
            continue
        take_over = "take its WAL over by pointing wal.path to it, " if holder.wal else ""
        raise ConfigError(
            f"acknowledged records may be in the WAL of node {holder.node_id} only, so no other node starts, and "
            f"nothing was changed; start that node again (a clean stop of it leaves everything to others), "
            f"{take_over}or give up what only it holds with broker.accept_lost_wal={holder.wal_name}: "
            f"node_id={node_id} holder={holder.node_id} recorded={holder.wal_name} "
            f"recorded_at={holder.wal_location or 'unknown'} found={found or 'none'} found_at={found_at}"
        )
