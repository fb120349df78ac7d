"""The bus on which rooms tell each other what happened."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from penstock.bus import EventBus


@dataclass(frozen=True)
class Happened:
    number: int


@dataclass(frozen=True)
class HappenedToo(Happened):
    pass


def test_subscribers_are_called_in_the_order_of_subscription() -> None:
    bus = EventBus()
    heard: list[object] = []
    bus.subscribe(Happened, lambda event: heard.append(("first", event.number)))
    bus.subscribe(Happened, lambda event: heard.append(("second", event.number)))
    bus.publish(Happened(1))
    bus.publish(Happened(2))
    assert heard == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]


def test_an_event_goes_to_subscribers_of_its_own_class_only() -> None:
    bus = EventBus()
    heard: list[object] = []
    bus.subscribe(Happened, heard.append)
    bus.publish(HappenedToo(1))
    bus.publish("something else")
    assert heard == []


def test_an_error_of_a_subscriber_is_the_publishers_and_ends_the_telling() -> None:
    bus = EventBus()
    heard: list[object] = []

    def fail(event: Happened) -> None:
        raise ValueError(event.number)

    bus.subscribe(Happened, fail)
    bus.subscribe(Happened, heard.append)
    with pytest.raises(ValueError, match="7"):
        bus.publish(Happened(7))
    assert heard == []


def test_who_subscribes_while_an_event_is_told_hears_of_the_next_one() -> None:
    bus = EventBus()
    heard: list[object] = []
    bus.subscribe(Happened, lambda _: bus.subscribe(Happened, heard.append))
    bus.publish(Happened(1))
    assert heard == []
    bus.publish(Happened(2))
    assert heard == [Happened(2)]
