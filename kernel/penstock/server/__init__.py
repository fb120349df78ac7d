"""Listeners and connections: bytes in, requests to the API handlers, bytes out. The only rim that owns sockets."""

from __future__ import annotations

__all__ = ("ListenerSettings", "Server", "ServerSettings", "ServerStatistics")

from penstock.server.server import Server
from penstock.server.settings import ListenerSettings, ServerSettings, ServerStatistics
