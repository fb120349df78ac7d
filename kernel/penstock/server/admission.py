"""A connection before the gate: what becomes of a request that is let through, refused, or throttled."""

from __future__ import annotations

__all__ = ("Admitted", "Admitting", "admit", "admit_produce")

from collections.abc import Mapping
from typing import Protocol

from penstock.api.client import Client
from penstock.api.declaration import Api
from penstock.api.gate import Gate, UnidentifiedError
from penstock.api.produce import ProduceCall
from penstock.log.errors import KafkaError
from penstock.server.slots import ProduceSlot, Slot
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceRequest
from penstock.wire.registry import Message


class Admitted(Protocol):
    """A connection, as far as it is admitted."""

    client: Client

    def rest(self, delay_ms: int) -> None:
        """Handle nothing more of this client for so long."""


class Admitting(Protocol):
    """A server, as far as it admits."""

    gate: Gate

    @property
    def apis(self) -> Mapping[int, Api]:
        """What is handled, by API key."""

    def handler_failed(
        self, api_key: int, error: BaseException, *, expected: bool, client: Client | None = None
    ) -> None:
        """Log why a request wasn't done."""


def admit(server: Admitting, connection: Admitted, api: Api, request: Message, slot: Slot) -> None:
    """Return when ``request`` may go to its handler; if its client is over its quota, the connection rests then.

    Raises:
        KafkaError: the gate refuses it.
    """
    rest_ms = server.gate.admit(api, request, connection.client, slot.request_bytes)
    if rest_ms > 0:
        connection.rest(rest_ms)


def admit_produce(
    server: Admitting, connection: Admitted, slot: ProduceSlot, call: ProduceCall, request: ProduceRequest
) -> bool:
    """The same for a Produce; when it is refused, all its partitions are answered with why."""
    api = server.apis[ApiKey.PRODUCE]
    try:
        admit(server, connection, api, request, slot)
    except KafkaError as error:
        server.handler_failed(api.key, error, expected=True, client=connection.client)
        slot.close = isinstance(error, UnidentifiedError)
        call.give_up(error)
        return False
    return True
