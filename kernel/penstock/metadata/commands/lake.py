"""Lake tables of topics are claimed by brokers, which say how it goes."""

from __future__ import annotations

__all__ = ("REASON_LENGTH_MAX", "ClaimLake", "SetLakeState")

import msgspec

from penstock.errors import ConflictError, FencedError
from penstock.metadata.command import Command
from penstock.metadata.deltas import TopicChanged
from penstock.metadata.state import Moment, State
from penstock.metadata.topics import LakeClaim

#: A reason is in every snapshot, and in memory.
REASON_LENGTH_MAX = 1000


class ClaimLake(Command, tag="lake+", frozen=True):
    """The node makes the topic's lake table from now on; whoever did before is fenced by the higher epoch."""

    topic_id: bytes
    node_id: int
    node_epoch: int

    def fold(self, image: State, at: Moment) -> int:
        """The claim's epoch. Refused for a fenced life of the node, and unless it leads the first partition."""
        image.nodes.check_epoch(self.node_id, self.node_epoch)
        topic = image.topics.require(self.topic_id)
        if topic.leaders[0] != self.node_id:
            raise ConflictError(
                f"the lake table of a topic is made by the leader of its first partition: topic={topic.name} "
                f"leader={topic.leaders[0]} node_id={self.node_id}"
            )
        # why the last owner's table stood is known until the new one says that it goes on
        before = topic.lake or LakeClaim(0, -1, state="opening", since_ms=at.now_ms)
        image.topics.change(self.topic_id).lake = msgspec.structs.replace(
            before, epoch=at.index, node_id=self.node_id
        )
        at.tell(TopicChanged(self.topic_id))
        return at.index


class SetLakeState(Command, tag="lake=", frozen=True):
    """The owner of a claim says how it goes; the reason is cut to REASON_LENGTH_MAX characters."""

    topic_id: bytes
    #: Of the claim.
    epoch: int
    state: str
    reason: str = ""

    def fold(self, image: State, at: Moment) -> None:
        """Refused once there is a later claim."""
        claim = image.topics.require(self.topic_id).lake
        if claim is None or claim.epoch != self.epoch:
            raise FencedError(
                f"the lake table was claimed again, leave it alone: topic_id={self.topic_id.hex()} "
                f"epoch={self.epoch} current={claim.epoch if claim else None}"
            )
        image.topics.change(self.topic_id).lake = msgspec.structs.replace(
            claim, state=self.state, reason=self.reason[:REASON_LENGTH_MAX], since_ms=at.now_ms
        )
        at.tell(TopicChanged(self.topic_id))
