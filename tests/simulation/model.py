"""What clients of a simulated broker know, and so what may be found there."""

from __future__ import annotations

__all__ = ("GROUPS", "NAMES", "Committed", "Place", "Producer", "Sent", "Written")

from dataclasses import dataclass, field

#: Groups and topics that clients use.
GROUPS = ("g", "h")
NAMES = ("a", "b", "c")

#: (topic id, partition)
Place = tuple[bytes, int]


@dataclass
class Written:
    """What the model knows of one partition."""

    #: Acknowledged values by offset: they must be there (I1).
    acked: dict[int, bytes] = field(default_factory=dict)
    #: Everything that was ever sent: nothing else may be there.
    sent: set[bytes] = field(default_factory=set)
    #: The log start that was acknowledged, and the greatest that was asked for.
    start: int = 0
    start_max: int = 0
    #: Offsets [start, end) that were trimmed before anything began to upload them.
    never_uploaded: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Sent:
    """What one idempotent producer knows of one partition."""

    next: int = 0
    epoch: int = 0
    #: (first sequence, values) of batches whose outcome isn't known yet, as many as a client has in flight at most.
    unknown: list[tuple[int, list[bytes]]] = field(default_factory=list)
    #: (first sequence, values, base offset) of the last acknowledged batch.
    last: tuple[int, list[bytes], int] | None = None
    #: The same of the epoch before, once a batch of this one is acknowledged.
    fenced: tuple[int, list[bytes], int] | None = None

    def begin_epoch(self) -> None:
        """As clients do that give batches up: everything after them is of another epoch, and counts from 0."""
        self.epoch += 1
        self.next, self.last, self.fenced = 0, None, self.last or self.fenced


@dataclass
class Producer:
    """A client with a producer id; -1 for one without."""

    producer_id: int
    number: int
    sequences: dict[Place, Sent] = field(default_factory=dict)
    count: int = 0


@dataclass
class Committed:
    """What a group may have as its offset of a partition: the newest of these that is certain, or a later one."""

    topic_id: bytes
    #: None: it has none.
    history: list[int | None] = field(default_factory=lambda: [None])
    certain: int = 0
    #: (end of the group's log by then, place among all) of what was acknowledged.
    acked: list[tuple[int, int]] = field(default_factory=list)

    def begin(self, value: int | None) -> int:
        """The value is on its way; its place among all."""
        self.history.append(value)
        return len(self.history) - 1

    def settle(self, at: int, log_end: int | None = None) -> None:
        """The value at this place is durable, in a log that goes so far."""
        self.certain = max(self.certain, at)
        if log_end is not None:
            self.acked.append((log_end, at))

    def lose(self, uploaded_end: int) -> None:
        """Of the log, only this is left."""
        self.acked = [one for one in self.acked if one[0] <= uploaded_end]
        self.certain = max((at for _, at in self.acked), default=0)

    def allowed(self) -> set[int | None]:
        """What may be found."""
        return set(self.history[self.certain :])
