"""Limits for servers that say nothing: of HTTP, of databases, of metastores. All end with whoever waits for them."""

from __future__ import annotations

__all__ = ("bound_connections", "bound_session", "bounded_url", "closing_if_silent")

import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, cast

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from sqlalchemy import Engine, event, make_url
from sqlalchemy.exc import ArgumentError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

from penstock_iceberg_compactor.decode.waits import check_wanted, ended_with_call

#: Drivers of PostgreSQL that pass a URL's parameters on to libpq, and for how long that may hear nothing of a host.
_LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
_LIBPQ_LIMITS = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}


def bound_session(session: Session, silence_s: Callable[[], float]) -> None:
    """Have requests of ``session`` that say nothing of it fail when the other side is silent for so long.

    They end when whoever waits for them gives up.
    """
    for adapter in session.adapters.values():
        cast(HTTPAdapter, adapter).poolmanager.pool_classes_by_scheme = {
            "http": _HttpPool,
            "https": _HttpsPool,
        }
    send = session.send

    def bounded(request: PreparedRequest, **how: Any) -> Response:
        return send(request, **{**how, "timeout": how.get("timeout") or silence_s()})

    session.send = bounded  # type: ignore[method-assign] # what it was, with another default


class _Http(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as in its base
        with ended_with_call(partial(_shut, self.sock)):
            return super().getresponse()


class _Https(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as in its base
        with ended_with_call(partial(_shut, self.sock)):
            return super().getresponse()


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


def _shut(connection: socket.socket | None) -> None:
    with suppress(OSError):
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)


def bounded_url(url: str, silence_s: float) -> str:
    """A URL of PostgreSQL with limits for a server that is gone without a word; what it has stays, as do others."""
    try:
        parts = make_url(url)
    except ArgumentError:
        return url  # the catalog says what is wrong with it
    if parts.drivername not in _LIBPQ:
        return url
    limits = {"connect_timeout": str(max(2, int(silence_s))), **_LIBPQ_LIMITS}
    missing = {name: value for name, value in limits.items() if name not in parts.query}
    return parts.update_query_dict(missing).render_as_string(hide_password=False)


def bound_connections(engine: Engine, silence_s: float) -> None:
    """Close the socket of a connection that is in use for so long: drivers wait for ever for a silent server.

    Who gave up begins no connection more, which would be waited for until its own limit.
    """

    @event.listens_for(engine, "do_connect")
    def connect(*_: Any) -> None:
        check_wanted()

    def watched(connection: Any) -> Callable[[], None]:
        fileno = getattr(connection, "fileno", None)  # a driver without it bounds itself, or can't be
        return _nothing if fileno is None else closing_if_silent(fileno(), silence_s)

    @event.listens_for(engine, "checkout")
    def begin(connection: Any, record: Any, _: Any) -> None:
        record.info["penstock"] = watched(connection)

    @event.listens_for(engine, "checkin")
    def end(_: Any, record: Any) -> None:
        record.info.pop("penstock", _nothing)()

    ping = engine.dialect.do_ping

    def bounded_ping(connection: Any) -> bool:  # comes before the checkout
        stop = watched(connection)
        try:
            return ping(connection)
        finally:
            stop()

    engine.dialect.do_ping = bounded_ping  # type: ignore[assignment,method-assign] # of this engine only


def _nothing() -> None:
    pass


def closing_if_silent(fileno: int, silence_s: float) -> Callable[[], None]:
    """Shut the socket down after ``silence_s``, or when whoever waits gives up.

    Not after what is returned was called.
    """
    held = socket.socket(fileno=os.dup(fileno))  # the same connection, whatever becomes of the number
    lock = threading.Lock()
    waiting = ExitStack()

    def shut() -> None:
        with lock, suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(silence_s, shut)
    timer.daemon = True
    timer.start()
    waiting.enter_context(ended_with_call(shut))

    def stop() -> None:
        timer.cancel()
        waiting.close()
        with lock:
            held.close()

    return stop
