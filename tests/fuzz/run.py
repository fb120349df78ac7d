"""Runs cases against a broker and watches it: what is wrong is a ``Finding``."""

from __future__ import annotations

__all__ = ("Finding", "Fuzzer", "load_case", "save_case")

import contextlib
import dataclasses
import json
import re
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.fuzz.cases import GOOD_TOPIC, TOPICS, Case, Sent, World, draw_case
from tests.integration.conftest import ServeProcess
from tests.patience import HANG_S

from penstock.wire import DecodeError, encode_request
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages import api_versions, create_topics, fetch, produce
from penstock.wire.records import build_batch
from penstock.wire.registry import decode_response

#: A broker that is asked must answer in this time, however busy the machine is.
ANSWER_S: Final = HANG_S
#: These wait as long as the client lets them: not to be answered at once is right.
PATIENT: Final = frozenset({ApiKey.FETCH, ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP})
#: How long the fuzzer waits for one of those.
PATIENCE_S: Final = 0.3
#: What a broker prints that no input may cause.
_BUG: Final = re.compile(
    r" ERROR |this is a bug|Traceback|never awaited|append failed|invariant|AssertionError"
)


@dataclasses.dataclass(slots=True)
class Finding:
    """Something that is wrong, and the case that brought it about."""

    what: str
    case: Case
    detail: str = ""

    @property
    def signature(self) -> str:
        """Equal for what is probably the same fault."""
        frames = re.findall(r'File "[^"]*/([^"/]+/[^"/]+)", line (\d+)', self.detail)
        lines = [line for line in self.detail.splitlines() if line.strip()]
        return f"{self.what} {frames[-1] if frames else re.sub(r'[0-9]+', 'N', lines[-1][:160] if lines else '')}"

    def __str__(self) -> str:
        lines = [f"{self.what} (case {self.case.number})", self.detail]
        for number, frames in enumerate(self.case.sent):
            for sent in frames:
                lines.append(
                    f"  connection {number}: api_key={sent.api_key} version={sent.version} {sent.frame[:600].hex()}"
                )
        return "\n".join(lines)


def save_case(case: Case, path: Path) -> None:
    """Write a case so that ``load_case`` has it back."""
    frames = [[[sent.frame.hex(), *dataclasses.astuple(sent)[1:]] for sent in each] for each in case.sent]
    path.write_text(json.dumps(frames))


def load_case(path: Path) -> Case:
    """A case that ``save_case`` wrote."""
    connections = json.loads(path.read_text())
    return _again(
        0, [[Sent(bytes.fromhex(frame), *rest) for frame, *rest in frames] for frames in connections]
    )


def _again(number: int, connections: Sequence[Sequence[Sent]], *, is_lockstep: bool = False) -> Case:
    """The same frames once more."""
    return Case(
        number, [[partial(_same, sent) for sent in frames] for frames in connections], is_lockstep=is_lockstep
    )


def _same(sent: Sent) -> Sent:
    return sent


class Fuzzer:
    """Sends cases to ``broker`` and remembers what the answers tell."""

    def __init__(self, broker: ServeProcess, seed: int) -> None:
        self.broker = broker
        self.seed = seed
        self.world = World()
        self.sent = self.answered = self.closed = 0
        #: How often an API was answered with which code, for people who look how deep the fuzzer gets.
        self.codes: Counter[tuple[int, int]] = Counter()
        self._seen = self._closed_at = 0
        response = _ask(
            broker,
            ApiKey.API_VERSIONS,
            3,
            api_versions.ApiVersionsRequest(client_software_name="fuzz", client_software_version="1"),
        )
        self.apis = {
            key.api_key: (key.min_version, key.max_version) for key in response.api_keys if key.api_key != 17
        }
        self._make_topics()

    def _make_topics(self) -> None:
        request = create_topics.CreateTopicsRequest(
            topics=[
                create_topics.CreatableTopic(name=name, num_partitions=1, replication_factor=1)
                for name in (GOOD_TOPIC, *TOPICS[:3])
            ],
            timeout_ms=30_000,
        )
        self.world.learn(ApiKey.CREATE_TOPICS, _ask(self.broker, ApiKey.CREATE_TOPICS, 7, request))
        assert self.world.forbidden_id

    def draw(self, number: int) -> Case:
        """One case of this run."""
        return draw_case(self.seed, number, self.world, self.apis)

    def run(self, number: int) -> Finding | None:
        """Draw one case and send it."""
        return self.send(self.draw(number))

    def send(self, case: Case) -> Finding | None:
        """Send one case; what is wrong, if anything is."""
        self._closed_at = len(self.broker.output_so_far)
        with contextlib.ExitStack() as stack:
            connections = [
                _Connection(number, stack.enter_context(_connect(self.broker)), frames)
                for number, frames in enumerate(case.connections)
            ]
            finding = None
            deadline = time.monotonic() + ANSWER_S
            while finding is None and any(one.left for one in connections):
                for one in connections:
                    if case.is_lockstep and one.awaited:
                        finding = finding or one.receive(0.02)
                    else:
                        one.send_next()
                    finding = finding or one.receive(0)
                    self._look(one)
                finding = finding or self._late(deadline, connections)
            while finding is None and any(one.awaited for one in connections):
                for one in connections:
                    finding = finding or one.receive(0.02)
                    self._look(one)
                finding = finding or self._late(deadline, connections)
        case.sent = [one.sent for one in connections]
        self.sent += sum(map(len, case.sent))
        finding = finding or self._watch(case)
        for one in connections:
            if finding is None and one.ended and one.queue:
                finding = self._look_for_reason(one, case)
        if finding is not None:
            finding.case = case
        return finding

    def _late(self, deadline: float, connections: Sequence[_Connection]) -> Finding | None:
        if time.monotonic() < deadline:
            return None
        late = [sent.api_key for one in connections for sent in one.queue]
        return Finding("no answer", Case(0), f"api_keys={late}")

    def _look_for_reason(self, connection: _Connection, case: Case) -> Finding | None:
        """A connection that ended with requests unanswered: the log says why, in one sentence."""
        if any(not sent.is_answered for sent in connection.sent):
            return None  # acks=0 has no other way to tell of an error
        try:
            self.broker.wait_for_output(
                f"peer=127.0.0.1:{connection.port}", after=self._closed_at, timeout_s=ANSWER_S
            )
        except AssertionError:
            late = [(sent.api_key, sent.version) for sent in connection.queue]
            return Finding("closed without a word", case, f"unanswered={late}")
        return None

    def _look(self, connection: _Connection) -> None:
        for sent, message in connection.taken():
            self.answered += 1
            self.codes[sent.api_key, _first_code(message)] += 1
            self.world.learn(sent.api_key, message, sent.group)
        if connection.ended and not connection.counted:
            connection.counted = True
            self.closed += 1

    def _watch(self, case: Case) -> Finding | None:
        """What the broker printed since the last time."""
        if not self.broker.running:
            return Finding("the broker ended", case, self.broker.output_so_far[-4000:])
        new = self.broker.output_so_far[self._seen :]
        if not _BUG.search(new):
            self._seen += len(new)
            return None
        time.sleep(0.3)  # let the traceback be printed whole
        new = self.broker.output_so_far[self._seen :]
        self._seen += len(new)
        found = _BUG.search(new)
        assert found is not None
        return Finding("the broker logs a bug", case, new[max(0, found.start() - 200) :][:6000])

    def minimise(self, finding: Finding) -> Finding:
        """Leave out frames as long as the same is found."""
        best = finding
        number = finding.case.number
        for frames in finding.case.sent:
            for sent in frames:
                if not self.broker.running:
                    return best
                found = self.send(_again(number, [[sent]]))
                if found is not None and found.signature == finding.signature:
                    return found
            found = self.send(_again(number, [frames], is_lockstep=finding.case.is_lockstep))
            if found is not None and found.signature == finding.signature:
                best = found
        return best


class _Connection:
    """One connection of a case: sends frame by frame, and matches answers with requests in order."""

    def __init__(self, number: int, sock: socket.socket, frames: Sequence[Callable[[], Sent]]) -> None:
        self.number = number
        self.port: int = sock.getsockname()[1]
        self._sock = sock
        self.left = list(frames)
        self.sent: list[Sent] = []
        self.queue: list[Sent] = []
        self._buffer = bytearray()
        self._taken: list[tuple[Sent, Any]] = []
        self._is_garbled = False
        self.ended = False
        self.counted = False
        self._patient_until = 0.0

    def send_next(self) -> None:
        """Send the next frame, if there is one."""
        if not self.left:
            return
        draw = self.left.pop(0)
        if self.ended:
            return
        sent = draw()
        self.sent.append(sent)
        try:
            self._sock.sendall(sent.frame)
        except OSError:
            return  # what was answered before is still read
        if not sent.is_whole:
            self._is_garbled = True  # an answer or not: nothing can be said of what comes from here on
        if not self._is_garbled and sent.is_answered:
            self.queue.append(sent)

    @property
    def awaited(self) -> bool:
        """Whether an answer must still come, or the end of the connection."""
        if self.ended or not self.queue:
            return False
        if any(sent.api_key in PATIENT for sent in self.queue):
            if not self._patient_until:
                self._patient_until = time.monotonic() + PATIENCE_S
            return time.monotonic() < self._patient_until
        return True

    def receive(self, timeout_s: float) -> Finding | None:
        """Take what has come."""
        if self.ended or not select.select([self._sock], [], [], timeout_s)[0]:
            return None
        try:
            data = self._sock.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return None
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if len(self._buffer) < 4 + size:
                break
            frame = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            fault = self._answer(frame)
            if fault is not None:
                return fault
        return None

    def _answer(self, frame: bytes) -> Finding | None:
        if not self.queue:
            return (
                None if self._is_garbled else Finding("an answer that nobody asked for", Case(0), frame.hex())
            )
        sent = self.queue.pop(0)
        self._patient_until = 0.0
        try:
            correlation_id, message = decode_response(sent.api_key, sent.version, frame)
        except DecodeError as error:
            return Finding("an answer that doesn't decode", Case(0), f"{error}\n{frame[:400].hex()}")
        if correlation_id != sent.correlation_id:
            return Finding("an answer to another request", Case(0), frame[:400].hex())
        self._taken.append((sent, message))
        return None

    def taken(self) -> list[tuple[Sent, Any]]:
        """The answers since the last call."""
        taken, self._taken = self._taken, []
        return taken


class GoodClient(threading.Thread):
    """Writes to a topic of its own and reads it back, all the time; ``fault`` says what went wrong."""

    def __init__(self, broker: ServeProcess) -> None:
        super().__init__(daemon=True)
        self._broker = broker
        self._stopped = threading.Event()
        self.rounds = 0
        self.fault = ""

    def run(self) -> None:
        """Until ``stop``."""
        try:
            with _connect(self._broker) as sock:
                sock.settimeout(ANSWER_S)
                while not self._stopped.wait(0.05):
                    self._round(sock)
                    self.rounds += 1
        except Exception as error:  # noqa: BLE001 - handed over
            self.fault = f"{type(error).__name__}: {error}"

    def _round(self, sock: socket.socket) -> None:
        payload = b"round %d" % self.rounds
        data = produce.PartitionProduceData(
            index=0, records=build_batch([(None, payload, (), time.time_ns() // 1_000_000)])
        )
        response = _roundtrip(
            sock,
            ApiKey.PRODUCE,
            9,
            produce.ProduceRequest(
                acks=-1,
                timeout_ms=30_000,
                topic_data=[produce.TopicProduceData(name=GOOD_TOPIC, partition_data=[data])],
            ),
        )
        result = response.responses[0].partition_responses[0]
        assert result.error_code == 0, f"produce was answered {result.error_code}"
        asked = fetch.FetchPartition(partition=0, fetch_offset=result.base_offset, partition_max_bytes=10_000)
        answer = _roundtrip(
            sock,
            ApiKey.FETCH,
            12,
            fetch.FetchRequest(
                max_wait_ms=1000,
                min_bytes=1,
                max_bytes=10_000,
                topics=[fetch.FetchTopic(topic=GOOD_TOPIC, partitions=[asked])],
            ),
        )
        found = answer.responses[0].partitions[0]
        assert found.error_code == 0, f"fetch was answered {found.error_code}"
        assert payload in bytes(found.records), "a record isn't there"

    def stop(self) -> None:
        """End it, after the round that it is in."""
        self._stopped.set()
        self.join(ANSWER_S)


def statistics(broker: ServeProcess) -> dict[str, Any]:
    """What the broker says of itself, with the descriptors that the system counts."""
    seen = len(broker.output_so_far)
    broker.signal(signal.SIGUSR1)
    line = broker.wait_for_output('"resident_bytes"', after=seen)
    numbers: dict[str, Any] = json.loads(line[line.index("{") :])
    numbers["descriptors"] = len(list(Path(f"/proc/{broker.pid}/fd").iterdir()))
    return numbers


def _connect(broker: ServeProcess) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", broker.port), timeout=ANSWER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _ask(broker: ServeProcess, api_key: int, version: int, request: Any) -> Any:
    with _connect(broker) as sock:
        return _roundtrip(sock, api_key, version, request)


def _roundtrip(sock: socket.socket, api_key: int, version: int, request: Any) -> Any:
    sock.sendall(b"".join(encode_request(api_key, version, 1, "good", request)))
    (size,) = struct.unpack(">i", _exactly(sock, 4))
    return decode_response(api_key, version, _exactly(sock, size))[1]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("the broker closed the connection")
        data += piece
    return data


def _first_code(message: Any) -> int:
    """The first error code in a message that isn't 0."""
    code = getattr(message, "error_code", 0)
    if code:
        return int(code)
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, list):
            for item in value:
                if hasattr(item, "__struct_fields__"):
                    code = _first_code(item)
                    if code:
                        return code
    return 0
