"""Brokers and their WALs."""

from __future__ import annotations

__all__ = ("NodeState", "Nodes", "is_of_wal")

from collections.abc import Iterator

import msgspec

from penstock.errors import FencedError
from penstock.metadata.table import Table


class NodeState(msgspec.Struct):
    """A broker; a higher epoch is a later life of it, or says that another node took its WAL over."""

    node_id: int
    epoch: int
    incarnation: str
    #: Identity of the WAL that it used last, and where that is, for people; empty: that wasn't told.
    wal: str = ""
    wal_location: str = ""
    #: That WAL may hold acknowledged records that aren't uploaded; False after a clean stop.
    wal_in_use: bool = False
    #: Identities of WALs whose records were given up on purpose, oldest first.
    lost_wals: list[str] = []
    #: Streams that the node opened at an earlier index have nothing in that WAL.
    wal_since: int = 0
    #: That WAL had an entry, or was trimmed, up to this position at least; 0: nothing is known.
    wal_end: int = 0
    #: Identity of the WAL that another node took over from it; empty since it started again with another one.
    wal_taken: str = ""
    #: Words of plugins by ``OWNER/NAME``, where OWNER is the key of the plugin's table and its name:
    #: ``wal/wal_x/members``. Their meaning is the plugin's.
    words: dict[str, str] = {}

    @property
    def wal_name(self) -> str:
        """The identity of its WAL; of one that tells none, a name that changes with each life of the node."""
        return self.wal or f"unnamed-{self.node_id}-{self.epoch}"

    @property
    def wal_unknown(self) -> bool:
        """Nothing is known of the WAL that is in use: it was used before that was recorded."""
        return self.wal_in_use and not self.wal and not self.wal_location


def is_of_wal(name: str) -> bool:
    """Whether a word is the WAL's, or of a plugin that the WAL opened: it goes where the WAL goes."""
    return name.startswith(("wal/", "wal.", "wal["))


class Nodes(Table[int, NodeState]):
    """All brokers by id, running or not."""

    noun = "node"

    def with_wal_in_use(self, but: int | None = None) -> Iterator[NodeState]:
        """The nodes, other than ``but``, whose WAL may hold what isn't uploaded."""
        return (node for node in self._rows.values() if node.node_id != but and node.wal_in_use)

    def given_up_wals(self) -> set[str]:
        """Identities of all WALs whose records were given up."""
        return {wal for node in self._rows.values() for wal in node.lost_wals}

    def check_epoch(self, node_id: int, node_epoch: int) -> None:
        """Raise FencedError unless that is the present life of the node (I9)."""
        node = self._rows.get(node_id)
        if node is None or node.epoch != node_epoch:
            raise FencedError(
                f"another process registered as this node, or with its WAL, and took over, this one must stop: "
                f"node_id={node_id} epoch={node_epoch} current={node.epoch if node else None}"
            )

    # -- for the fold ----------------------------------------------------------------------------------------

    def note_wal_end(self, writer: str, wal_end: int) -> list[int]:
        """Of the WAL that the writer has in use; what a fenced one says of its own doesn't count.

        Returns the nodes that changed.
        """
        changed = []
        for node in self._rows.values():
            if node.incarnation == writer and node.wal_in_use and node.wal and wal_end > node.wal_end:
                node.wal_end = wal_end
                changed.append(node.node_id)
        return changed

    @staticmethod
    def give_up(node: NodeState) -> None:
        """Record the node's WAL as lost, with what only it holds: it is never taken again."""
        node.lost_wals = [*node.lost_wals, node.wal_name]
        node.wal = node.wal_location = ""
        node.wal_in_use = False
        node.wal_end = 0
        node.words = {name: word for name, word in node.words.items() if not is_of_wal(name)}

    @staticmethod
    def move_wal(old: NodeState, new: NodeState) -> None:
        """The WAL that ``old`` has in use is ``new``'s from now on."""
        new.wal_since = min(old.wal_since, new.wal_since) if new.wal_in_use else old.wal_since
        new.wal, new.wal_location, new.wal_in_use = old.wal, old.wal_location, True
        new.wal_end = old.wal_end
        new.words = {name: word for name, word in new.words.items() if not is_of_wal(name)}
        new.words |= {name: word for name, word in old.words.items() if is_of_wal(name)}
        old.words = {name: word for name, word in old.words.items() if not is_of_wal(name)}
        old.wal_taken = old.wal
        old.wal = old.wal_location = ""
        old.wal_in_use = False
        old.wal_end = 0
