"""A small schema registry: what Confluent's clients ask of one, kept in memory."""

from __future__ import annotations

__all__ = ("SchemaRegistryServer",)

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up in the middle of an answer."""


class SchemaRegistryServer:
    """Serves while it is entered. ``answers`` may be changed at any time; what was asked is kept."""

    def __init__(self) -> None:
        #: Status and answer by path with query: JSON, or bytes as they are.
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[str] = []
        self.authorizations: set[str | None] = set()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, number: int, schema: Any, **more: Any) -> None:
        """Have a schema, text or JSON, under an id."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        self.answers[f"/schemas/ids/{number}"] = 200, {"schema": text, **more}

    def _register(self, subject: str, posted: dict[str, Any]) -> dict[str, Any]:
        version = sum(path.startswith(f"/subjects/{subject}/versions/") for path in self.answers) + 1
        number = sum(path.startswith("/schemas/ids/") for path in self.answers) + 1
        self.answers[f"/schemas/ids/{number}"] = 200, posted
        self.answers[f"/subjects/{subject}/versions/{version}"] = (
            200,
            {**posted, "id": number, "subject": subject, "version": version},
        )
        return {**posted, "id": number, "subject": subject, "version": version}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                registry.authorizations.add(self.headers.get("Authorization"))
                self._answer(*registry.answers.get(self.path, (404, {"error_code": 40403})))

            def do_POST(self) -> None:
                posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                parts = urlsplit(self.path).path.split("/")
                self._answer(200, registry._register(parts[2], posted))

            def _answer(self, status: int, answer: Any) -> None:
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
