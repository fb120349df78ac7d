"""One of the two brokers as the comparison sees it: raw frames out, answers as plain values in."""

from __future__ import annotations

__all__ = ("CLOSED", "LATE", "NOTHING", "TEXT", "Side", "records_shown")

import re
import socket
import time
from typing import Any, Final

import msgspec
from tests.differential.odd_requests import OddRequest, topic_id_of, with_values
from tests.patience import HANG_S

from penstock.wire import ApiKey, decode_response, encode_request
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic

#: Answers that aren't messages.
CLOSED: Final = "the connection is closed"
NOTHING: Final = "there is no answer"
LATE: Final = "there was no answer in time"
#: A sentence for people.
TEXT: Final = "<text>"

_MS_PER_HOUR: Final = 3_600_000
#: Ids that a test made up have fewer different bytes than those that a broker drew.
_SET_BYTES: Final = 2
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
#: Fields that say nothing of how a request was understood.
_LEFT_OUT: Final = frozenset({"throttle_time_ms"})
#: Sentences, of which counts whether there is one.
_TEXTS: Final = frozenset({"error_message", "batch_index_error_message", "documentation"})
_TIMES: Final = frozenset({"log_append_time_ms", "last_timestamp"})
#: Numbers that one broker makes up, where they aren't 0 or -1.
_OWN: Final = frozenset({"session_id", "port", "total_bytes", "usable_bytes"})
#: The same where it is an offset that was given out: what was refused on one side only shifts it.
_GIVEN: Final = frozenset({"producer_id", "base_offset"})


def records_shown(records: Any) -> str | None:
    """Batches as hex, without the leader epoch that the broker wrote into each."""
    if records is None:
        return None
    data = bytearray(b"".join(map(bytes, records)) if isinstance(records, list) else bytes(records))
    at = 0
    while at + 61 <= len(data):
        data[at + 12 : at + 16] = bytes(4)
        at += 12 + int.from_bytes(data[at + 8 : at + 12], "big")
    return data.hex()


class Side:
    """A connection to one broker; opened anew when the broker closed it."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        #: What symbols in requests stand for here.
        self.values: dict[Any, Any] = {}
        self._names: dict[Any, str] = {}
        self._socket: socket.socket | None = None
        self._number = 0
        self._pending: list[tuple[int, int, bool]] = []

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def learn(self, symbol: Any, value: Any) -> None:
        """From now on ``symbol`` stands for ``value`` in requests, and is shown for it in answers."""
        old = self.values.get(symbol)
        if old is not None:
            self._names[old] = f"{symbol!s} of before ({len(self._names)})"
        self.values[symbol] = value
        self._names[value] = str(symbol)

    def learn_topic(self, name: str) -> None:
        """Learn the id of a topic, which is there."""
        request = MetadataRequest(topics=[MetadataRequestTopic(name=name)], allow_auto_topic_creation=False)
        (topic,) = self.ask_message(ApiKey.METADATA, 12, request).topics
        assert topic.error_code == 0, (self.name, name, topic)
        self.learn(topic_id_of(name), bytes(topic.topic_id))

    # -- requests -------------------------------------------------------------------------------------------

    def send(self, api_key: int, version: int, request: OddRequest) -> None:
        """Send one request; ``receive`` gets what comes of it."""
        self._number += 1
        message = with_values(request.message, self.values)
        pieces = encode_request(api_key, version, self._number, request.client_id, message)
        frame = request.edit(b"".join(map(bytes, pieces))[4:])
        is_silent = api_key == ApiKey.PRODUCE and getattr(message, "acks", 1) == 0
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S)
        try:
            self._socket.sendall(len(frame).to_bytes(4, "big") + frame)
            if is_silent:  # whether it was the end of the connection is seen by what comes next
                probe = encode_request(ApiKey.API_VERSIONS, 0, -7, "odd", ApiVersionsRequest())
                self._socket.sendall(b"".join(map(bytes, probe)))
        except ConnectionError:
            pass  # told by receive
        self._pending.append((api_key, version, is_silent))

    def receive(self) -> Any:
        """The answer as a message, or one of the other answers."""
        api_key, version, is_silent = self._pending.pop(0)
        try:
            frame = self._frame()
        except TimeoutError:
            self.close()
            return LATE
        if frame is None:
            self.close()
            return CLOSED
        if is_silent:
            return NOTHING
        if api_key == ApiKey.API_VERSIONS and frame[4:6] == b"\0\x23":
            version = 0  # KIP-511
        return decode_response(api_key, version, frame)[1]

    def ask_message(self, api_key: int, version: int, message: Any) -> Any:
        """A request that is not compared: what comes of it as it is."""
        self.send(api_key, version, OddRequest("", message))
        return self.receive()

    def ask(self, api_key: int, version: int, request: OddRequest) -> Any:
        """What comes of a request, to be compared."""
        self.send(api_key, version, request)
        return self.shown(self.receive())

    def _frame(self) -> bytes | None:
        size = self._read(4)
        return None if size is None else self._read(int.from_bytes(size, "big"))

    def _read(self, size: int) -> bytes | None:
        data = bytearray()
        assert self._socket is not None
        while len(data) < size:
            try:
                piece = self._socket.recv(size - len(data))
            except ConnectionError:
                return None
            if not piece:
                return None
            data += piece
        return bytes(data)

    # -- answers --------------------------------------------------------------------------------------------

    def shown(self, answer: Any, field: str = "") -> Any:
        """The answer as dicts, lists and scalars, without what must differ between two brokers."""
        if isinstance(answer, msgspec.Struct):
            return {
                name: self.shown(getattr(answer, name), name)
                for name in answer.__struct_fields__
                if name not in _LEFT_OUT
            }
        if field == "records":
            return records_shown(answer)
        if isinstance(answer, (bytes, memoryview, bytearray)):
            data = bytes(answer)
            unknown = "<id>" if field == "topic_id" and len(set(data)) > _SET_BYTES else data.hex()
            return self._names.get(data, unknown)
        if isinstance(answer, list):
            return sorted((self.shown(each, field) for each in answer), key=repr)
        if field in _TEXTS:
            return TEXT if answer else answer
        if field == "log_dir":
            return "<log_dir>"
        if isinstance(answer, str):
            return self._names.get(answer) or _UUID.sub("<uuid>", answer).replace(str(self.port), "<port>")
        if isinstance(answer, int) and not isinstance(answer, bool):
            return self._number_shown(field, answer)
        return answer

    def _number_shown(self, field: str, value: int) -> int | str:
        if field in _TIMES and abs(value - time.time_ns() // 1_000_000) < _MS_PER_HOUR:
            return "<now>"
        if (field in _OWN and value > 0) or (field in _GIVEN and value >= 0):
            return f"<{field}>"
        return value
