"""However much a request asks for, the loop computes for it in portions, and serves others in between.

Counted exactly, in bytecodes of everything that one callback of the loop runs: decoding, the gate, the handler and
encoding, for a request with thousands of elements in each of its arrays, of each API.
"""

from __future__ import annotations

import asyncio
import socket
import string
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import CodeType, FrameType
from typing import Any, Final

import pytest
from tests.depth import FULL
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeLogs, FakeTopic
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog
from tests.unit.server.harness import serving
from tests.wire_requests import API_REQUESTS, Field, Request, encode_frame, minimal

from penstock.api.dispatch import apis
from penstock.coordinator.group_types import GroupSettings, OffsetAndMetadata
from penstock.threads import run_in_thread
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.version_info >= (3, 12), reason="settrace tells of all bytecodes up to Python 3.11"
    ),
]

#: Of one callback: two milliseconds, about.
STEPS_MAX: Final = 50_000
ELEMENTS: Final = 2_500
#: Of all callbacks together, for each element: 30 microseconds, about.
WORST_STEPS_MAX: Final = 750
#: Metadata makes topics, and keeps what it has encoded of those that are there.
ELEMENT_STEPS_MAX: Final = {ApiKey.METADATA: 2_500}
TABLE: Final = apis()


@pytest.fixture(params=[("asyncio", {"use_uvloop": False})], ids=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    param: tuple[str, dict[str, bool]] = request.param
    return param


class Logs(FakeLogs):
    """Many topics, found by id at once."""

    def __init__(self) -> None:
        super().__init__()
        self.add("t", 500)
        self.ids: dict[bytes, FakeTopic] = {}
        for number in range(ELEMENTS):
            topic = self.add(f"known-{number}")
            self.ids[topic.id] = topic

    def topic_by_id(self, topic_id: bytes) -> FakeTopic | None:
        return self.ids.get(topic_id)


class Meter:
    """The most bytecodes that one callback of the loop took, and of which callback."""

    def __init__(self) -> None:
        self.most = 0
        self.where = ""
        #: All bytecodes, and callbacks.
        self.total = self.callbacks = 0
        #: For each code that this callback has entered, what counts its steps, and says how many they are.
        self._counters: dict[CodeType, tuple[Callable[..., Any], Callable[[], int]]] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        run = asyncio.Handle._run

        def counted(handle: asyncio.Handle) -> None:
            self._counters = {}
            sys.settrace(self._enter)
            try:
                run(handle)
            finally:
                sys.settrace(None)
                counts = {code.co_qualname: steps() for code, (_, steps) in self._counters.items()}
                taken = sum(counts.values())
                self.total += taken
                self.callbacks += 1
                if taken > self.most:
                    self.most = taken
                    top = sorted(counts.items(), key=lambda item: -item[1])[:4]
                    self.where = ", ".join(f"{name}: {steps}" for name, steps in top)

        asyncio.Handle._run = counted  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        if "/tests/" in code.co_filename:
            return None  # fakes
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if code not in self._counters:
            self._counters[code] = counter()
        return self._counters[code][0]


def counter() -> tuple[Callable[..., Any], Callable[[], int]]:
    """A trace function, as quick as can be, since it is called for each bytecode; and how often that was."""
    steps = 0

    def step(frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        nonlocal steps
        if event == "opcode":
            steps += 1
        return step

    return step, lambda: steps


# -- requests with many elements ---------------------------------------------------------------------------------


def arrays(request: Request, version: int) -> Iterator[tuple[str, ...]]:
    """The paths of all arrays, in one another once."""
    for item in request.at(version):
        if item.is_array:
            yield (item.name,)
            if item.type in request.structs:
                yield from ((item.name, one.name) for one in request.at(version, item.type) if one.is_array)


def scalar(item: Field, number: int, prefix: str) -> Any:
    name = item.name.lower()
    if item.type == "string":
        return _string(number, prefix)
    if item.type == "uuid":
        return (number + 2).to_bytes(16, "big")
    if item.type.startswith("int") and any(word in name for word in ("partition", "index")):
        return number
    return None


def _string(number: int, prefix: str) -> str:
    if prefix == NO_NAMES:
        return ""
    if prefix == SHORT_NAMES:
        more, last = divmod(number, len(_LETTERS))
        return _LETTERS[last] + (_LETTERS[more] if more else "")
    return f"{prefix}-{number}"


def element(request: Request, version: int, item: Field, number: int, prefix: str) -> Any:
    """One of many: its strings, ids and numbers are its own."""
    if item.type not in request.structs:
        value = scalar(item, number, prefix)
        return number % 100 if value is None else value
    made = minimal(request, version, item.type)
    for one in request.at(version, item.type):
        own = None if one.is_array else scalar(one, number, prefix)
        if own is not None and not (one.type == "string" and version in one.nullable):
            made[one.name] = own
    return made


def filled(request: Request, version: int, path: Sequence[str], prefix: str, count: int) -> dict[str, Any]:
    """A request whose array at ``path`` has many elements; what is around it is about the topic or the group."""
    value = minimal(request, version)
    for item in request.at(version):
        if item.name in {"group_id", "member_id"} and item.type == "string":
            value[item.name] = "g"
        elif item.name == "timeout_ms":
            value[item.name] = 1000
        elif item.name == path[0]:
            value[item.name] = [element(request, version, item, n, prefix) for n in range(count)]
            if len(path) > 1:
                outer = element(request, version, item, 0, "known")
                for one in request.at(version, item.type):
                    if one.name in {"name", "topic"} and one.type == "string":
                        outer[one.name] = "t"
                    elif one.name == path[1]:
                        outer[one.name] = [element(request, version, one, n, prefix) for n in range(count)]
                value[item.name] = [outer]
    return value


def cases() -> Iterator[tuple[bool, tuple[ApiKey, tuple[str, ...], str]]]:
    """Whether each run tries it, and which array of which API: of each the innermost, others in the full run."""
    for key, api in TABLE.items():
        if key == ApiKey.PRODUCE:
            continue  # what a Produce asks for are records, in as many bytes
        paths = list(arrays(API_REQUESTS[key], api.high))
        innermost = max(paths, key=len, default=())
        for path in paths:
            yield path == innermost, (ApiKey(key), path, "known")
            if key in {ApiKey.METADATA, ApiKey.CREATE_TOPICS}:
                yield path == innermost, (ApiKey(key), path, "absent")
        yield not paths, (ApiKey(key), (), "all")


#: Whose shortest elements take the loop longest, for their bytes or at all; the full run tries all.
OF_SHORT_ELEMENTS: Final = (
    ApiKey.DELETE_TOPICS,
    ApiKey.DESCRIBE_GROUPS,
    ApiKey.ELECT_LEADERS,
    ApiKey.FETCH,
    ApiKey.FIND_COORDINATOR,
    ApiKey.LIST_TRANSACTIONS,
    ApiKey.METADATA,
)
#: Of no characters, and distinct ones of hardly more.
NO_NAMES, SHORT_NAMES = "", "short"
_LETTERS: Final = string.ascii_letters + string.digits


def exchange(port: int, frame: bytes) -> bytes:
    """Send it and read the answer; nothing where the connection ends."""
    with socket.create_connection(("127.0.0.1", port), HANG_S) as sock:
        sock.sendall(frame)
        missing = 4
        size = b""
        while missing:
            got = sock.recv(missing)
            if not got:
                return b""
            size += got
            missing -= len(got)
        missing = int.from_bytes(size, "big")
        answer = bytearray()
        while missing and (got := sock.recv(min(missing, 1 << 20))):
            missing -= len(got)
            answer += got
        return bytes(answer)


@asynccontextmanager
async def serving_groups() -> AsyncIterator[int]:
    """The port of a server with a coordinator of groups."""
    async with (
        serving(Logs()) as harness,
        LedService(MemoryLog(), GroupSettings(), FakeClock(), lambda: "member") as groups,
    ):
        harness.api.groups = groups
        yield harness.server.endpoints[0].port


@pytest.mark.parametrize(
    ("key", "path", "prefix"),
    [
        pytest.param(
            *case,
            id="-".join((case[0].name.lower(), *case[1], case[2])),
            marks=() if each_run else pytest.mark.full,
        )
        for each_run, case in cases()
    ],
)
async def test_a_long_request_is_handled_in_portions(key: ApiKey, path: tuple[str, ...], prefix: str) -> None:
    api = TABLE[key]
    request, version = API_REQUESTS[key], api.high
    value = filled(request, version, path, prefix, ELEMENTS) if path else minimal(request, version)
    frame = encode_frame(request, version, 1, value)
    assert len(frame) < 2**20
    meter = Meter()
    async with serving_groups() as port:
        with meter.measuring():
            await run_in_thread(exchange, port, frame)
    assert meter.most <= STEPS_MAX, meter.where
    assert meter.total <= ELEMENT_STEPS_MAX.get(key, WORST_STEPS_MAX) * ELEMENTS, (
        "a request of 1 MiB takes long"
    )
    assert meter.callbacks <= ELEMENTS // 5, "each is a turn, for which it waits beside others"


@pytest.mark.parametrize("key", [ApiKey.INCREMENTAL_ALTER_CONFIGS, ApiKey.CREATE_TOPICS])
async def test_what_a_request_holds_of_each_of_some_is_looked_at_in_portions(key: ApiKey) -> None:
    """20 resources in one go were 20 lists of any length."""
    request, version = API_REQUESTS[key], TABLE[key].high
    path = next(one for one in arrays(request, version) if one[1:] == ("configs",))
    value = filled(request, version, path, "known", 1_000)
    (whole,) = value[path[0]]
    name = "resource_name" if "resource_name" in whole else "name"
    value[path[0]] = [whole | {name: f"new-{number}", "num_partitions": 1} for number in range(10)]
    for one in whole["configs"]:
        one["config_operation"] = 1
    meter = Meter()
    async with serving_groups() as port:
        with meter.measuring():
            assert await run_in_thread(exchange, port, encode_frame(request, version, 1, value))
    assert meter.most <= STEPS_MAX, meter.where


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        pytest.param(ApiKey.ELECT_LEADERS, {"timeout_ms": 0}, id="no time"),
        pytest.param(
            ApiKey.DESCRIBE_TOPIC_PARTITIONS,
            {"cursor": {"topic_name": "none", "partition_index": 0}},
            id="a cursor of another request",
        ),
        pytest.param(ApiKey.DESCRIBE_TOPIC_PARTITIONS, {}, id="topics that are put in order"),
    ],
)
async def test_what_is_done_to_a_request_as_a_whole_is_done_in_portions(
    key: ApiKey, fault: dict[str, Any]
) -> None:
    request, version = API_REQUESTS[key], TABLE[key].high
    path = next(arrays(request, version))
    value = filled(request, version, path, "known", 3 * ELEMENTS) | fault
    meter = Meter()
    async with serving_groups() as port:
        with meter.measuring():
            assert await run_in_thread(exchange, port, encode_frame(request, version, 1, value))
    assert meter.most <= STEPS_MAX, meter.where


async def test_requests_that_are_nearly_long_are_handled_in_portions() -> None:
    """With as many elements as are decoded by the loop still, however short they are."""
    meter = Meter()
    async with serving_groups() as port:
        for key in set(TABLE) - {ApiKey.PRODUCE} if FULL else OF_SHORT_ELEMENTS:
            request, version = API_REQUESTS[key], TABLE[key].high
            for path in arrays(request, version):
                for prefix in (NO_NAMES, SHORT_NAMES):
                    frame = nearly_long(request, version, path, prefix)
                    with meter.measuring():
                        await run_in_thread(exchange, port, frame)
                    assert meter.most <= STEPS_MAX, (key, path, prefix, meter.where)


def nearly_long(request: Request, version: int, path: Sequence[str], prefix: str) -> bytes:
    """With one element more it is long."""

    def frame(count: int) -> bytes:
        return encode_frame(request, version, 1, filled(request, version, path, prefix, count))

    limit = TABLE[request.api_key].long_bytes(version)
    few, more = len(frame(0)), len(frame(100))
    count = 100 * (limit - few) // (more - few)
    while len(found := frame(count)) >= limit:
        count -= 1
    return found


async def test_a_short_fetch_is_answered_in_portions_for_all_partitions_of_its_session() -> None:
    meter = Meter()
    request, version = API_REQUESTS[ApiKey.FETCH], TABLE[ApiKey.FETCH].high
    first = filled(request, version, ("topics", "partitions"), "known", 600) | {"session_epoch": 0}
    async with serving_groups() as port:
        answer = await run_in_thread(exchange, port, encode_frame(request, version, 1, first))
        _, _, _, _, session_id = struct.unpack_from(">ibihi", answer)
        goes_on = minimal(request, version) | {"session_id": session_id, "session_epoch": 1}
        with meter.measuring():
            again = await run_in_thread(exchange, port, encode_frame(request, version, 2, goes_on))
    assert len(again) > 10_000, "each is unknown, which is told each time"
    assert meter.most <= STEPS_MAX, meter.where


async def test_a_long_commit_is_decided_and_becomes_visible_in_short_steps() -> None:
    """5,000 offsets, new and then once more."""
    meter = Meter()
    offsets = {("t", index): OffsetAndMetadata(index) for index in range(5_000)}
    async with LedService(MemoryLog(), GroupSettings(), FakeClock(), lambda: "member") as groups:
        with meter.measuring():
            for _ in range(2):
                assert set((await groups.commit_offsets("g", offsets)).values()) == {ErrorCode.NONE}
    assert meter.most <= STEPS_MAX, meter.where
