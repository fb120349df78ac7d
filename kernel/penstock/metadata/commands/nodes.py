"""Brokers start, use a WAL, and stop."""

from __future__ import annotations

__all__ = ("WORDS_MAX", "WORD_BYTES_MAX", "RegisterNode", "ReleaseWal", "SetWord", "UseWal")

from typing import ClassVar

import msgspec

from penstock.errors import ConflictError, InvalidRequestError
from penstock.metadata import owners
from penstock.metadata.command import Command
from penstock.metadata.deltas import ControllerChanged, LeadersChanged, NodesChanged, StreamsChanged
from penstock.metadata.nodes import NodeState
from penstock.metadata.state import Moment, State


class RegisterNode(Command, tag="node", frozen=True):
    """A broker starts: its epoch becomes the index of this entry, which fences its earlier lives.

    Refused, so that nobody is fenced, if acknowledged records may be in a WAL that this broker didn't find: the one
    recorded for the node, or (version 2) for any other. If it found another node's, that node is fenced, and its WAL
    and streams are this node's from now on. It leads nothing yet, and is the controller.
    """

    node_id: int
    #: Distinguishes two processes that register the same node.
    incarnation: str
    #: Identity of the WAL that the broker found; empty: there is none, or its plugin doesn't tell.
    wal: str = ""
    #: Where it looked, for people.
    place: str = ""
    #: Identity of the recorded WAL if what only that one holds is given up on purpose; version 1 wrote it.
    lost_wal: str = ""
    #: The same of any number of WALs, of whatever nodes.
    lost_wals: list[str] = msgspec.field(default_factory=list)
    #: The WAL's plugin tells no identity: the broker goes on with whatever is there.
    unnamed: bool = False

    def found(self) -> owners.FoundWal:
        """The command's fields about WALs, for the rules of owners."""
        return owners.FoundWal(
            node_id=self.node_id,
            wal=self.wal,
            place=self.place,
            unnamed=self.unnamed,
            given_up={*self.lost_wals, self.lost_wal} - {""},
        )

    def fold(self, image: State, at: Moment) -> int:
        """The node's epoch."""
        nodes = image.nodes
        found = self.found()
        owners.check_registration(nodes, found, at.rules)
        node = nodes.get(self.node_id)
        if node is None:
            node = NodeState(self.node_id, 0, "")
            nodes.put(self.node_id, node)
        if node.wal_in_use and not owners.is_own(node, found):
            nodes.give_up(node)
        node.epoch, node.incarnation = at.index, self.incarnation
        node.wal_taken = ""
        changed = [node.node_id]
        if at.rules > 1:
            for other in owners.taken_over(nodes, found):
                self._take_over(image, at, other, node)
                other.epoch = at.index
                changed.append(other.node_id)
            for other in list(nodes.with_wal_in_use(but=self.node_id)):
                if other.wal_name in found.given_up:
                    nodes.give_up(other)
                    other.epoch = at.index
                    changed.append(other.node_id)
        at.tell(NodesChanged(changed))
        # in version 1 whoever started took everything over; since then nobody else leads who isn't among them
        at.tell(LeadersChanged(image.topics.unlead(changed if at.rules > 1 else nodes.ids())))
        if image.controller != self.node_id:
            image.controller = self.node_id
            at.tell(ControllerChanged())
        return at.index

    @staticmethod
    def _take_over(image: State, at: Moment, old: NodeState, new: NodeState) -> None:
        """The WAL of ``old``, and the streams that have something in it, are ``new``'s."""
        nodes, streams = image.nodes, image.streams
        held = [
            stream.stream_id
            for stream in streams.all()
            if stream.node_id == old.node_id and owners.holder_of(nodes, stream) is old
        ]
        for stream_id in held:
            streams.change(stream_id).node_id = new.node_id
        nodes.move_wal(old, new)
        at.tell(StreamsChanged(held))


class UseWal(Command, tag="wal+", frozen=True):
    """From now on the node's acknowledged records may be in this WAL only; comes before the first append.

    Refused (version 2) while another node's WAL is in use.
    """

    node_id: int
    node_epoch: int
    #: Empty: its plugin doesn't tell.
    wal: str
    #: Where it is, for people.
    location: str

    def fold(self, image: State, at: Moment) -> None:
        """Refused for a fenced life of the node, and for a WAL that isn't the one that it registered with."""
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        owners.check_use(image.nodes, self.node_id, self.wal, self.location, at.rules)
        node = image.nodes.require(self.node_id)
        if not node.wal_in_use:
            node.wal_since = at.index
        if not node.wal_in_use or node.wal != self.wal:
            node.wal_end = 0
        node.wal, node.wal_location, node.wal_in_use = self.wal, self.location, True
        at.tell(NodesChanged([self.node_id]))


#: Words of one node, and the size of each with its name: they are in every snapshot, and in memory.
WORDS_MAX = 16
WORD_BYTES_MAX = 1024


class SetWord(Command, tag="word", frozen=True):
    """A plugin of the node changes one of its words (``penstock.spi.plugin.FencedWords``)."""

    node_id: int
    node_epoch: int
    #: As in ``NodeState.words``.
    name: str
    #: Empty: the word goes.
    value: str
    #: The word that is there now; empty: none.
    expected: str

    #: A WAL may acknowledge nothing, and no mark, before its word is there.
    waits_for_mark: ClassVar[bool] = False

    def fold(self, image: State, at: Moment) -> int:
        """The entry's index: an epoch. Refused for a fenced life of the node, and where another word is."""
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        node = image.nodes.require(self.node_id)
        size = len(self.name.encode()) + len(self.value.encode())
        if size > WORD_BYTES_MAX or (self.name not in node.words and len(node.words) >= WORDS_MAX):
            raise InvalidRequestError(
                f"a node keeps {WORDS_MAX} words of {WORD_BYTES_MAX} bytes with their names: name={self.name} "
                f"bytes={size} words={len(node.words)}"
            )
        present = node.words.get(self.name, "")
        if present != self.expected:
            raise ConflictError(
                f"another word is there: name={self.name} expected={self.expected!r} present={present!r}"
            )
        node.words = {name: word for name, word in node.words.items() if name != self.name}
        if self.value:
            node.words[self.name] = self.value
        at.tell(NodesChanged([self.node_id]))
        return at.index


class ReleaseWal(Command, tag="wal-", frozen=True):
    """A clean stop: all that the node's WAL held is uploaded and trimmed, and nothing is appended any more.

    This closes the node's streams: whoever comes may open them, and until then its partitions have no leader.
    """

    node_id: int
    node_epoch: int

    def fold(self, image: State, at: Moment) -> None:
        """Refused for a fenced life of the node."""
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        image.nodes.require(self.node_id).wal_in_use = False
        at.tell(NodesChanged([self.node_id]))
        at.tell(LeadersChanged(image.topics.unlead([self.node_id])))
