"""Lake tables of topics are claimed by brokers, which say how it goes."""

from __future__ import annotations

__all__ = ("REASON_LENGTH_MAX", "ClaimLake", "SetLakeMaintained", "SetLakeState")

from itertools import islice

import msgspec

from penstock.errors import ConflictError, FencedError
from penstock.metadata.command import Command
from penstock.metadata.deltas import TopicChanged
from penstock.metadata.state import Moment, State
from penstock.metadata.topics import LakeClaim, LakeMaintained

#: A reason is in every snapshot, and in memory.
REASON_LENGTH_MAX = 1000
#: So are figures, whose names are the compactor's.
_FIGURES_MAX = 32
_NAME_LENGTH_MAX = 100


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
        claim = _current_claim(image, self.topic_id, self.epoch)
        image.topics.change(self.topic_id).lake = msgspec.structs.replace(
            claim, state=self.state, reason=self.reason[:REASON_LENGTH_MAX], since_ms=at.now_ms
        )
        at.tell(TopicChanged(self.topic_id))


class SetLakeMaintained(Command, tag="lake!", frozen=True):
    """The owner of a claim says how maintenance of the table ended; what is long is cut."""

    topic_id: bytes
    #: Of the claim.
    epoch: int
    request: int
    reason: str
    saved_bytes: int
    figures: dict[str, int]

    def fold(self, image: State, at: Moment) -> None:
        """Refused once there is a later claim."""
        claim = _current_claim(image, self.topic_id, self.epoch)
        maintained = LakeMaintained(
            ended_ms=at.now_ms,
            request=self.request,
            reason=self.reason[:REASON_LENGTH_MAX],
            saved_bytes=self.saved_bytes,
            figures={
                name[:_NAME_LENGTH_MAX]: value for name, value in islice(self.figures.items(), _FIGURES_MAX)
            },
        )
        image.topics.change(self.topic_id).lake = msgspec.structs.replace(claim, maintained=maintained)
        at.tell(TopicChanged(self.topic_id))


def _current_claim(image: State, topic_id: bytes, epoch: int) -> LakeClaim:
    """The claim of this epoch. Raises FencedError once there is a later one."""
    claim = image.topics.require(topic_id).lake
    if claim is None or claim.epoch != epoch:
        raise FencedError(
            f"the lake table was claimed again, leave it alone: topic_id={topic_id.hex()} "
            f"epoch={epoch} current={claim.epoch if claim else None}"
        )
    return claim
