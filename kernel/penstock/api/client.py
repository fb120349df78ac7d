"""The client at the other end of a connection: who it is, where it came in, what it says of itself.

One object per connection, filled in as things become known and read by everything that decides by client: the gate,
handlers, fair shares, log lines.
"""

from __future__ import annotations

__all__ = ("NAME_CHARS_MAX", "Client", "Endpoint")

from dataclasses import dataclass
from typing import Final

from penstock.shares import Member
from penstock.spi.authorizer import ANONYMOUS, Principal, Requester

#: So much is kept of what a client calls itself. On the wire it may be 32 KiB, and there are 10,000 connections.
NAME_CHARS_MAX: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where clients reach a broker by one of its listeners."""

    node_id: int
    host: str
    port: int
    rack: str | None = None
    #: Name and security protocol of the listener.
    listener: str = "PLAINTEXT"
    security_protocol: str = "PLAINTEXT"


@dataclass(slots=True, kw_only=True)
class Client:
    """The other end of a connection."""

    host: str
    port: int
    #: The listener that it came in by, and what Metadata tells this client to connect to.
    advertised: Endpoint
    #: Its share of the bytes on their way to clients.
    outgoing: Member
    #: None until the client has authenticated; then only APIs that are ``Api.before_identity`` are served.
    principal: Principal | None = ANONYMOUS
    client_id: str | None = None
    #: KIP-511, from ApiVersions v3+.
    software_name: str = "unknown"
    software_version: str = "unknown"

    @property
    def requester(self) -> Requester:
        """This client as an authorizer sees it: a value, made for a question. It has to have a principal."""
        assert self.principal is not None
        return Requester(principal=self.principal, host=self.host, listener=self.advertised.listener)
