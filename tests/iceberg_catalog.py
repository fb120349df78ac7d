"""A small Iceberg REST catalog for tests, in front of pyiceberg's SQL catalog, that can lose replies."""

from __future__ import annotations

__all__ = ("RestCatalogServer",)

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest, Table

_CODES: tuple[tuple[type[Exception], int], ...] = (
    (NoSuchNamespaceError, 404),
    (NoSuchTableError, 404),
    (NamespaceAlreadyExistsError, 409),
    (TableAlreadyExistsError, 409),
    (CommitFailedException, 409),
)
_PATH = re.compile(r"/v1/namespaces/([^/]+)(?:/tables(?:/([^/]+))?)?")


class RestCatalogServer:
    """Serves ``url`` as long as ``running`` is entered."""

    def __init__(self, place: Path) -> None:
        self._sql = SqlCatalog("rest", uri=f"sqlite:///{place}/rest.db", warehouse=(place / "rest").as_uri())
        self._lock = threading.Lock()
        self.url = ""
        #: What becomes of the next commits: "lose" (done, and no reply), "twice" (sent again by a proxy, which passes
        #: on the second reply), "503" or another code (nothing done), "done 504" or another code (done all the same).
        self.faults: list[str] = []

    @contextmanager
    def running(self) -> Iterator[RestCatalogServer]:
        """Serve on a free port."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            self._sql.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _serve(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(size)) if size else {}
                is_commit = self.command == "POST" and bool((_PATH.fullmatch(self.path) or [None] * 3)[2])
                fault = outer.faults.pop(0) if is_commit and outer.faults else ""
                code, answer = 0, None
                if not fault.isdecimal():
                    code, answer = outer.answer(self.command, self.path, body)
                if fault == "twice":
                    code, answer = outer.answer(self.command, self.path, body)
                if fault[-3:].isdecimal():
                    code = int(fault[-3:])
                    answer = {"error": {"message": "busy", "type": "Busy", "code": code}}
                if fault == "lose":
                    self.close_connection = True
                    self.connection.close()
                    return
                data = b"" if code == 204 or self.command == "HEAD" else json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - names of the base

        return Handler

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Do what is asked, the status code and the body of the reply."""
        try:
            with self._lock:
                return self._route(method, path.partition("?")[0], body)
        except Exception as error:  # noqa: BLE001 - each becomes a reply
            code = next((code for kind, code in _CODES if isinstance(error, kind)), 500)
            return code, {"error": {"message": str(error), "type": type(error).__name__, "code": code}}

    def _route(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/config":
            return 200, {"defaults": {}, "overrides": {}}
        if path == "/v1/namespaces":
            self._sql.create_namespace(tuple(body["namespace"]))
            return 200, {"namespace": body["namespace"], "properties": {}}
        match = _PATH.fullmatch(path)
        assert match is not None, path
        namespace = tuple(unquote(match[1]).split("\x1f"))
        if match[2] is not None:
            return self._table(method, (*namespace, unquote(match[2])), body)
        if not path.endswith("/tables"):
            return (204 if method == "HEAD" else 200), {
                "namespace": list(namespace),
                "properties": dict(self._sql.load_namespace_properties(namespace)),
            }
        if method == "GET":
            found = self._sql.list_tables(namespace)
            return 200, {"identifiers": [{"namespace": list(one[:-1]), "name": one[-1]} for one in found]}
        more: dict[str, Any] = {}
        if body.get("partition-spec"):
            more["partition_spec"] = PartitionSpec.model_validate(body["partition-spec"])
        schema = Schema.model_validate(body["schema"])
        made = self._sql.create_table(
            (*namespace, body["name"]), schema, properties=body.get("properties") or {}, **more
        )
        return 200, _loaded(made)

    def _table(self, method: str, identifier: tuple[str, ...], body: dict[str, Any]) -> tuple[int, Any]:
        table = self._sql.load_table(identifier)
        if method != "POST":
            return (204 if method == "HEAD" else 200), _loaded(table)
        body.setdefault("identifier", {"namespace": list(identifier[:-1]), "name": identifier[-1]})
        request = CommitTableRequest.model_validate(body)
        done = self._sql.commit_table(table, request.requirements, request.updates)
        return 200, {
            "metadata-location": done.metadata_location,
            "metadata": json.loads(done.metadata.model_dump_json()),
        }


def _loaded(table: Table) -> dict[str, Any]:
    return {
        "metadata-location": table.metadata_location,
        "metadata": json.loads(table.metadata.model_dump_json()),
        "config": {},
    }
