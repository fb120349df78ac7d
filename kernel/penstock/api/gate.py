"""The gate between a decoded request and its handler: identify, authorize, throttle, then dispatch.

Every request passes it, Produce too. Whoever isn't let through is answered with the error that ``admit`` raises, in
the shape that the API's declaration has for a failure.

Today everybody passes: no listener authenticates, there is no authorizer and there are no quotas. ``is_open`` says
so, which spares the hot path a call. An authorizer that permits everything is as none.
"""

from __future__ import annotations

__all__ = ("Gate", "Quotas", "UnidentifiedError")

from typing import Any, Protocol

from penstock.api.authorization import DENIED, deciding
from penstock.api.client import Client
from penstock.api.declaration import Api
from penstock.log.errors import KafkaError
from penstock.spi.authorizer import Authorizer
from penstock.wire.error_codes import ErrorCode


class UnidentifiedError(KafkaError):
    """A client asks before it has authenticated: the connection is closed, as Kafka does."""

    def __init__(self, api: Api) -> None:
        super().__init__(
            ErrorCode.ILLEGAL_SASL_STATE, f"the client must authenticate first: api_key={int(api.key)}"
        )


class Quotas(Protocol):
    """Counts what clients ask for, and slows down those that ask for more than their quota (KIP-13)."""

    def throttle_ms(self, client: Client, api: Api, request_bytes: int) -> int:
        """Count a request; how long its connection isn't read afterwards (KIP-219), 0 for not at all."""


class Gate:
    """One for all connections of a server; a client's own state is in its ``Client``."""

    __slots__ = ("_authorizer", "_quotas", "is_open")

    def __init__(
        self,
        *,
        authorizer: Authorizer | None = None,
        quotas: Quotas | None = None,
        authenticates: bool = False,
    ) -> None:
        self._authorizer = deciding(authorizer)
        self._quotas = quotas
        #: ``admit`` would let every request of every client through at once, so there is no need to ask it.
        self.is_open = self._authorizer is None and quotas is None and not authenticates

    def admit(self, api: Api, request: Any, client: Client, request_bytes: int) -> int:
        """Let ``request`` through to its handler; returns how long the connection is to rest afterwards, in ms.

        Raises:
            UnidentifiedError: the client has to authenticate first.
            KafkaError: the client lacks a permission that the whole request needs.
        """
        if client.principal is None and not api.before_identity:
            raise UnidentifiedError(api)
        if self._authorizer is not None:
            self._authorize(self._authorizer, api, request, client)
        if self._quotas is not None:
            return self._quotas.throttle_ms(client, api, request_bytes)
        return 0

    @staticmethod
    def _authorize(authorizer: Authorizer, api: Api, request: Any, client: Client) -> None:
        if not api.needs:
            return
        requester = client.requester
        for need in api.needs:
            name = None if need.name_of is None else need.name_of(request)
            if name is not None and not authorizer.allowed(requester, need.operation, need.resource, (name,)):
                raise KafkaError(
                    DENIED[need.resource],
                    f"not permitted: principal={client.principal} needs={need} api_key={int(api.key)}",
                )
