"""Events of the log layer for other rooms; those that observers get as well are in :mod:`penstock.spi.events`."""

from __future__ import annotations

__all__ = ("AvailabilityChanged", "TopicsDeleted")

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicsDeleted:
    """Topics are gone from metadata, and who deleted them hasn't been answered yet."""

    names: Sequence[str]
    #: Subscribers add what is to be done, one after the other, before the answer. The topics are gone whatever comes
    #: of it, and that is the answer: who adds what may fail tries it again without being asked.
    work: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityChanged:
    """A partition that this broker leads serves nobody from now on, as its data are damaged; or it is back."""

    topic_id: bytes
    partition: int
    available: bool
