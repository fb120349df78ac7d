"""The event bus: a room of the kernel announces what happened to rooms that it doesn't know.

A room publishes events, frozen dataclasses, on the bus that it was given; who wants to hear of one subscribes to its
class. That is for moments of the life cycle, some per second at most; what happens per record is a plain call.
"""

from __future__ import annotations

__all__ = ("EventBus",)

from collections.abc import Callable
from typing import Any, TypeVar

E = TypeVar("E")


class EventBus:
    """Synchronous: when :meth:`publish` returns, every subscriber has been called, in the order of subscription.

    An error of a subscriber is the publisher's: it is raised at once, and those after it aren't called. Rooms trust
    each other; strangers (the observers of plugins) are kept apart by whoever subscribes them.
    """

    def __init__(self) -> None:
        self._subscribers: dict[type[Any], list[Callable[[Any], None]]] = {}

    def subscribe(self, event: type[E], subscriber: Callable[[E], None]) -> None:
        """Call ``subscriber`` with each event of this class, not of its subclasses, from now on."""
        self._subscribers.setdefault(event, []).append(subscriber)

    def publish(self, event: object) -> None:
        """Tell whoever has subscribed. A subscriber that comes meanwhile hears of the next one."""
        for subscriber in tuple(self._subscribers.get(type(event), ())):
            subscriber(event)
