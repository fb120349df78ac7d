"""Schemas by their ids, from a Confluent-compatible schema registry over HTTP."""

from __future__ import annotations

__all__ = ("Outage", "Schema", "SchemaRegistry")

import json
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from sys import getsizeof
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from penstock.errors import ConfigError, NotFoundError, UnavailableError, again, kept
from penstock_iceberg_compactor.decode.waits import ended_with_call, is_wanted

#: What one answer may hold; descriptors of large protobuf schemas take some 100 KB.
_ANSWER_BYTES_MAX = 4 * 2**20
_REFERENCES_MAX = 256
#: What a schema may take in memory together with those that it refers to, and what is kept of all.
_SCHEMA_BYTES_MAX = 16 * 2**20
_KEPT_BYTES_MAX = 64 * 2**20
_RETRY_STATUSES = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema as its registry has it."""

    #: ``AVRO``, ``PROTOBUF`` or ``JSON``.
    type: str
    text: str
    #: What it uses, by the name under which it does, each after those that it uses itself.
    references: tuple[tuple[str, str], ...] = ()

    @property
    def nbytes(self) -> int:
        """What its texts take in memory."""
        return sum(map(getsizeof, (self.text, *chain.from_iterable(self.references))))


class _UnreachableError(UnavailableError):
    """A registry that doesn't answer, or not in time."""


class Outage:
    """What all who ask one registry know of it: one that is silent isn't asked again for a while.

    Who waits for it takes a thread from the other tables. Any thread may use it.
    """

    def __init__(self, pause_s: float = 5, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._until = 0.0
        self._fault: _UnreachableError | None = None
        self._probing = threading.Lock()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask within. After a wait for nothing one asks at a time, and not at once; others are told of it."""
        fault = self._fault
        if fault is not None and (self._clock() < self._until or not self._probing.acquire(blocking=False)):
            raise again(fault)
        try:
            yield
        except _UnreachableError as error:
            if is_wanted():  # who gave up ended the wait, so nothing is known of the registry
                self._fault, self._until = kept(error), self._clock() + self._pause_s
            raise
        except Exception:
            self._fault = None  # one that answers, whatever that is, keeps nobody waiting
            raise
        else:
            self._fault = None
        finally:
            if fault is not None:
                self._probing.release()


class SchemaRegistry:
    """Asks a registry, and remembers the last schemas, which never change: ``schemas_max``, and 64 MiB of them.

    ``url`` may have user and password in it; they, and ``token``, are sent and never shown. Calls block, for
    ``deadline_s`` at most, whatever the registry sends meanwhile; one thread at a time.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        timeout_s: float = 5,
        attempts: int = 3,
        deadline_s: float = 10,
        schemas_max: int = 1000,
        outage: Outage | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the schema registry's url is no http url: url={_shown(url)}")
        self._headers = {
            "Accept": "application/vnd.schemaregistry.v1+json, application/json",
            "User-Agent": "penstock",
        }
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers |= urllib3.make_headers(basic_auth=user)
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        #: Where it is, without secrets.
        self.location = _shown(url)
        self._base = self.location.rstrip("/")
        self._schemas_max = schemas_max
        self._schemas: OrderedDict[int, Schema] = OrderedDict()
        self._kept_bytes = 0
        #: Ids that the registry hasn't, and how it said so, since ``begin_batch``.
        self._missing: dict[int, NotFoundError] = {}
        self._deadline_s = deadline_s
        self._outage = outage or Outage()
        self._connections = _Connections()
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            retries=urllib3.Retry(
                total=attempts - 1,
                backoff_factor=0.2,
                status_forcelist=_RETRY_STATUSES,
                redirect=2,
                raise_on_status=False,
            ),
        )
        self._pool.pool_classes_by_scheme = self._connections.pools()

    def close(self) -> None:
        """Close its connections."""
        self._pool.clear()

    def begin_batch(self) -> None:
        """Records follow that may have been written after what the registry hadn't when it was asked last."""
        self._missing.clear()

    def schema(self, number: int) -> Schema:
        """The schema with the id ``number``, and all that it refers to.

        Raises NotFoundError if the registry has none, or one that is too large, UnavailableError if it can't be asked
        now or refuses to answer.
        """
        known = self._schemas.get(number)
        if known is None:
            if number in self._missing:
                raise again(self._missing[number])
            try:
                with self._outage.asking(), self._connections.ending_after(self._deadline_s):
                    known = self._ask(number)
            except NotFoundError as error:
                self._missing[number] = kept(error)
                raise
            self._keep(number, known)
        self._schemas.move_to_end(number)
        return known

    def _keep(self, number: int, schema: Schema) -> None:
        self._schemas[number] = schema
        self._kept_bytes += schema.nbytes
        while len(self._schemas) > self._schemas_max or self._kept_bytes > _KEPT_BYTES_MAX:
            self._kept_bytes -= self._schemas.popitem(last=False)[1].nbytes

    def _ask(self, number: int) -> Schema:
        path = f"/schemas/ids/{number}"
        answer = self._get(path)
        kind = str(answer.get("schemaType", "AVRO"))
        if kind == "PROTOBUF":  # as a descriptor, where the registry can: text has to be compiled
            answer = self._get(f"{path}?format=serialized", answer)
        found: dict[str, str] = {}
        try:
            self._follow(answer, found, set(), kind, _SCHEMA_BYTES_MAX - getsizeof(answer["schema"]))
        except (LookupError, TypeError, ValueError) as error:
            raise NotFoundError(
                f"the schema registry's references are none: url={self.location} path={path}"
            ) from error
        return Schema(kind, answer["schema"], tuple(found.items()))

    def _follow(
        self, answer: dict[str, Any], found: dict[str, str], seen: set[str], kind: str, left: int
    ) -> int:
        """Find what ``answer`` refers to; how many of ``left`` bytes are left then."""
        if left < 0:
            raise NotFoundError(
                f"a schema is larger than is read with those that it refers to: bytes_max={_SCHEMA_BYTES_MAX}"
            )
        for reference in answer.get("references") or ():
            name = str(reference["name"])
            if name in seen:
                continue
            seen.add(name)
            if len(seen) > _REFERENCES_MAX:
                raise NotFoundError(f"a schema has too many references: references_max={_REFERENCES_MAX}")
            subject, version = quote(str(reference["subject"]), safe=""), int(reference["version"])
            path = f"/subjects/{subject}/versions/{version}"
            referred = self._get(path)
            if kind == "PROTOBUF":
                referred = self._get(f"{path}?format=serialized", referred)
            left = self._follow(referred, found, seen, kind, left - getsizeof(referred["schema"]))
            found[name] = referred["schema"]
        return left

    def _fault(self, error: Exception) -> str:
        return f"no whole answer in {self._deadline_s:g} s" if self._connections.is_late else _fault(error)

    def _get(self, path: str, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer, a JSON object with a schema; ``otherwise`` if the registry has none of this form."""
        try:
            response = self._pool.request(
                "GET", self._base + path, headers=self._headers, preload_content=False
            )
            data = response.read(_ANSWER_BYTES_MAX + 1)
            if len(data) > _ANSWER_BYTES_MAX:
                response.close()  # what comes after it isn't read
            response.release_conn()
            if self._connections.is_late:
                raise TimeoutError("the answer takes too long")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _UnreachableError(
                f"the schema registry can't be reached: url={self.location} fault={self._fault(error)}"
            ) from None
        if response.status != 200 and otherwise is not None:
            return otherwise
        if response.status == 404:
            if not _says_no_schema(data):
                raise UnavailableError(
                    f"what answers for the schema registry knows no schemas, check its url and what is in front of "
                    f"it: url={self.location} path={path} status=404"
                )
            raise NotFoundError(f"the schema registry has no such schema: url={self.location} path={path}")
        if response.status != 200:
            raise UnavailableError(
                f"the schema registry refuses: url={self.location} path={path} status={response.status}"
            )
        if len(data) > _ANSWER_BYTES_MAX and data.startswith(b"{"):
            raise NotFoundError(
                f"the schema registry's schema is larger than is read: url={self.location} path={path} "
                f"bytes_max={_ANSWER_BYTES_MAX}"
            )
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("schema"), str):
            raise UnavailableError(
                f"the schema registry's answer is no schema: url={self.location} path={path}"
            )
        return answer


def _says_no_schema(answer: bytes) -> bool:
    """Whether an answer with status 404 is a registry's, of what it doesn't have, and not a proxy's."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    code = found.get("error_code") if isinstance(found, dict) else None
    return isinstance(code, int) and code // 100 == 404


class _Connections:
    """The sockets of a registry's connections, which are shut when a call takes too long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        #: The time is over: what came of an answer is cut off.
        self.is_late = False

    def pools(self) -> dict[str, Any]:
        """Classes of connection pools whose connections are known here."""
        connected = self._connected

        class Http(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                connected(self.sock)

        class Https(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                connected(self.sock)

        class HttpPool(HTTPConnectionPool):
            ConnectionCls = Http

        class HttpsPool(HTTPSConnectionPool):
            ConnectionCls = Https

        return {"http": HttpPool, "https": HttpsPool}

    def _connected(self, connection: Any) -> None:
        with self._lock:
            self._sockets = [one for one in self._sockets if one.fileno() >= 0]
            self._sockets.append(connection)
            is_late = self.is_late
        if is_late:
            raise TimeoutError("the time for all attempts is over")

    @contextmanager
    def ending_after(self, deadline_s: float) -> Iterator[None]:
        """What waits for any of them gets an error after so long."""
        self.is_late = False
        timer = threading.Timer(deadline_s, self._shut)
        timer.daemon = True
        timer.start()
        try:
            with ended_with_call(self._shut):
                yield
        finally:
            timer.cancel()

    def _shut(self) -> None:
        with self._lock:
            self.is_late = True
            for one in self._sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


def _shown(url: str) -> str:
    """The URL without user and password, and without what follows a question mark."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _fault(error: BaseException) -> str:
    """The kind of fault, without the URL, which urllib3 puts into its texts."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, BaseException) else error).__name__
