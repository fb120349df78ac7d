"""Schemas by their ids, from a Confluent-compatible schema registry over HTTP."""

from __future__ import annotations

__all__ = ("Schema", "SchemaRegistry")

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import urllib3

from penstock.errors import ConfigError, NotFoundError, UnavailableError

#: What one answer may hold; descriptors of large protobuf schemas take some 100 KB.
_ANSWER_BYTES_MAX = 4 * 2**20
_REFERENCES_MAX = 256
_RETRY_STATUSES = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema as its registry has it."""

    #: ``AVRO``, ``PROTOBUF`` or ``JSON``.
    type: str
    text: str
    #: What it uses, by the name under which it does, each after those that it uses itself.
    references: tuple[tuple[str, str], ...] = ()


class SchemaRegistry:
    """Asks a registry, and remembers the last ``schemas_max`` schemas, which never change.

    ``url`` may have user and password in it; they, and ``token``, are sent and never shown. Calls block, for a few
    seconds if the registry fails; one thread at a time.
    """

    def __init__(
        self, url: str, *, token: str = "", timeout_s: float = 5, attempts: int = 3, schemas_max: int = 1000
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

    def close(self) -> None:
        """Close its connections."""
        self._pool.clear()

    def schema(self, number: int) -> Schema:
        """The schema with the id ``number``, and all that it refers to.

        Raises NotFoundError if the registry has none, UnavailableError if it can't be asked now or refuses to answer.
        """
        known = self._schemas.get(number)
        if known is None:
            known = self._ask(number)
            self._schemas[number] = known
            if len(self._schemas) > self._schemas_max:
                self._schemas.popitem(last=False)
        self._schemas.move_to_end(number)
        return known

    def _ask(self, number: int) -> Schema:
        path = f"/schemas/ids/{number}"
        answer = self._get(path)
        kind = str(answer.get("schemaType", "AVRO"))
        if kind == "PROTOBUF":  # as a descriptor, where the registry can: text has to be compiled
            answer = self._get(f"{path}?format=serialized", answer)
        found: dict[str, str] = {}
        try:
            self._follow(answer, found, set(), kind)
        except (LookupError, TypeError, ValueError) as error:
            raise NotFoundError(
                f"the schema registry's references are none: url={self.location} path={path}"
            ) from error
        return Schema(kind, answer["schema"], tuple(found.items()))

    def _follow(self, answer: dict[str, Any], found: dict[str, str], seen: set[str], kind: str) -> None:
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
            self._follow(referred, found, seen, kind)
            found[name] = referred["schema"]

    def _get(self, path: str, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer, a JSON object with a schema; ``otherwise`` if the registry has none of this form."""
        try:
            response = self._pool.request(
                "GET", self._base + path, headers=self._headers, preload_content=False
            )
            data = response.read(_ANSWER_BYTES_MAX + 1)
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(
                f"the schema registry can't be reached: url={self.location} fault={_fault(error)}"
            ) from None
        if response.status != 200 and otherwise is not None:
            return otherwise
        if response.status == 404:
            raise NotFoundError(f"the schema registry has no such schema: url={self.location} path={path}")
        if response.status != 200:
            raise UnavailableError(
                f"the schema registry refuses: url={self.location} path={path} status={response.status}"
            )
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if (
            len(data) > _ANSWER_BYTES_MAX
            or not isinstance(answer, dict)
            or not isinstance(answer.get("schema"), str)
        ):
            raise UnavailableError(
                f"the schema registry's answer is no schema: url={self.location} path={path}"
            )
        return answer


def _shown(url: str) -> str:
    """The URL without user and password, and without what follows a question mark."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _fault(error: BaseException) -> str:
    """The kind of fault, without the URL, which urllib3 puts into its texts."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, BaseException) else error).__name__
