"""What the fuzzer sends: cases of a few connections with a few requests each, drawn from one number."""

from __future__ import annotations

__all__ = ("Case", "Sent", "World", "draw_case")

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from crc32c import crc32c
from tests.wire_requests import API_REQUESTS, NULL, Faults, Request, Values, WildFaults, encode_frame, minimal

from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import ATTRIBUTES_POS, CRC_POS, build_batch

TOPICS: Final = tuple(f"fuzz-{number}" for number in range(6))
GROUPS: Final = tuple(f"fuzz-group-{number}" for number in range(4))
#: Never touched: what the well-behaved client uses.
GOOD_TOPIC: Final = "good"


@dataclass(slots=True)
class Sent:
    """One frame, and what it is if it is a request at all."""

    frame: bytes
    api_key: int = -1
    version: int = -1
    correlation_id: int = 0
    #: As the generator wrote it, without a fault in the encoding: an answer is due.
    is_whole: bool = False
    #: Produce with acks=0 has no answer.
    is_answered: bool = True
    #: The group that it is about.
    group: str = ""


@dataclass(slots=True)
class Case:
    """Frames by connection; those of several connections are sent in turn.

    A frame is drawn when it is sent, from what the answers until then have told; ``sent`` has them then.
    """

    number: int
    connections: list[list[Callable[[], Sent]]] = field(default_factory=list)
    #: Whether a connection waits for an answer before it sends the next frame.
    is_lockstep: bool = False
    sent: list[list[Sent]] = field(default_factory=list)


@dataclass(slots=True)
class World:
    """What the answers so far have told: so later requests get further than the first check."""

    topic_ids: dict[str, bytes] = field(default_factory=dict)
    members: dict[str, tuple[str, int]] = field(default_factory=dict)
    producers: list[tuple[int, int]] = field(default_factory=list)
    sequences: dict[tuple[int, str], int] = field(default_factory=dict)
    sessions: list[tuple[int, int]] = field(default_factory=list)
    forbidden_id: bytes = b""

    def learn(self, api_key: int, message: Any, group: str = "") -> None:
        """Take from an answer what names something."""
        if api_key == ApiKey.JOIN_GROUP:
            if message.error_code in {ErrorCode.NONE, ErrorCode.MEMBER_ID_REQUIRED}:
                self.members[group] = (message.member_id, message.generation_id)
            else:
                self.members.pop(group, None)
        elif api_key == ApiKey.INIT_PRODUCER_ID and message.error_code == 0:
            self.producers = [*self.producers[-7:], (message.producer_id, message.producer_epoch)]
        elif api_key == ApiKey.FETCH and message.session_id:
            self.sessions = [*self.sessions[-7:], (message.session_id, 1)]
        elif api_key in {ApiKey.METADATA, ApiKey.CREATE_TOPICS}:
            for topic in message.topics or ():
                if topic.name == GOOD_TOPIC:
                    self.forbidden_id = bytes(topic.topic_id)
                elif topic.name is not None and topic.error_code == 0:
                    self.topic_ids[topic.name] = bytes(topic.topic_id)


class _Focus:
    """One group, member, topic and producer that the requests of a case are about, so that they fit together."""

    def __init__(self, rng: random.Random, world: World) -> None:
        self.rng = rng
        self.world = world
        self.topic = rng.choice(TOPICS)
        self.group = rng.choice(GROUPS)
        self._unknown_id = rng.randbytes(16)
        self._is_idempotent = rng.random() < 0.6
        self._has_session = rng.random() < 0.5

    @property
    def topic_id(self) -> bytes:
        return self.world.topic_ids.get(self.topic, self._unknown_id)

    @property
    def member(self) -> str:
        return self.world.members.get(self.group, ("", -1))[0]

    @property
    def generation(self) -> int:
        return self.world.members.get(self.group, ("", -1))[1]

    @property
    def producer(self) -> tuple[int, int]:
        return self.world.producers[-1] if self.world.producers and self._is_idempotent else (-1, -1)

    @property
    def session(self) -> tuple[int, int]:
        return self.world.sessions[-1] if self.world.sessions and self._has_session else (0, -1)

    def known(self, path: str, kind: str) -> Any:
        """What a field of this name holds in a sensible request."""
        name = path.rpartition(".")[2]
        draw = _KNOWN.get(name)
        if draw is not None:
            value = draw(self, path)
            if value is NULL or (value is not None and _fits(value, kind)):
                return value
        return None


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, str):
        return kind == "string"
    if isinstance(value, (bytes, bytearray)):
        return kind in {"bytes", "records", "uuid"}
    return kind not in {"string", "bytes", "records", "uuid"}


def _name(focus: _Focus, path: str) -> str | None:
    if "Config" in path:
        return focus.rng.choice(_CONFIG_NAMES)
    if "JoinGroupRequestProtocol" in path:
        return focus.rng.choice(["range", "roundrobin"])
    return focus.rng.choice([focus.topic, focus.topic, focus.rng.choice(TOPICS), "__consumer_offsets"])


def _subscription(focus: _Focus) -> bytes:
    topics = b"".join(struct.pack(">h", len(name)) + name.encode() for name in TOPICS[:2])
    return focus.rng.choice(
        [struct.pack(">hi", 0, 2) + topics + struct.pack(">i", -1), b"", b"\0", focus.rng.randbytes(30)]
    )


def _records(focus: _Focus, _path: str) -> bytes:
    rng = focus.rng
    producer_id, epoch = focus.producer
    count = rng.choice([1, 1, 3, 50])
    sequences = focus.world.sequences
    sequence = sequences.get((producer_id, focus.topic), 0) if producer_id >= 0 else -1
    if rng.random() < 0.2:
        sequence = rng.choice([-1, 0, 1, 2**31 - 1, 2**31 - count])
    if producer_id >= 0 and sequence >= 0:
        sequences[producer_id, focus.topic] = (sequence + count) % 2**31
    now_ms = rng.choice([1_700_000_000_000, -1, 0, 2**63 - 1, 2**62])
    batch = build_batch(
        [(rng.choice([None, b"", b"key"]), rng.choice([None, b"value" * 20]), (), now_ms)] * count,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
        codec=rng.choice([0, 0, 0, 1, 2, 3, 4]),
    )
    if rng.random() < 0.4:
        _damage(rng, batch)
    return bytes(batch) * (2 if rng.random() < 0.03 else 1)


#: Position and struct format of the fields in a batch header.
_HEADER: Final = (
    (0, ">q"),
    (8, ">i"),
    (12, ">i"),
    (16, ">b"),
    (21, ">h"),
    (23, ">i"),
    (27, ">q"),
    (35, ">q"),
    (43, ">q"),
    (51, ">h"),
    (53, ">i"),
    (57, ">i"),
)


def _damage(rng: random.Random, batch: bytearray) -> None:
    """Change fields of the header, or bytes of the records, and mend the checksum as a wicked client would."""
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.7:
            at, code = rng.choice(_HEADER)
            bits = 8 * struct.calcsize(code)
            value = rng.choice([0, 1, -1, 2, 7, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 64, 100])
            struct.pack_into(code, batch, at, min(max(value, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1))
        else:
            batch[rng.randrange(len(batch))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.9:
        batch[CRC_POS : CRC_POS + 4] = crc32c(bytes(batch[ATTRIBUTES_POS:])).to_bytes(4, "big")


_CONFIG_NAMES: Final = (
    "retention.ms",
    "retention.bytes",
    "cleanup.policy",
    "compression.type",
    "max.message.bytes",
    "message.timestamp.type",
    "message.timestamp.before.max.ms",
    "segment.bytes",
    "min.insync.replicas",
    "unknown.key",
)
_CONFIG_VALUES: Final = (
    "-1",
    "0",
    "1",
    "100000",
    "9223372036854775807",
    "9223372036854775808",
    "gzip",
    "zstd",
    "producer",
    "delete",
    "compact",
    "compact,delete",
    "LogAppendTime",
    "",
    "x" * 1000,
)

_KNOWN: Final[Mapping[str, Callable[[_Focus, str], Any]]] = {
    "name": _name,
    "topic": _name,
    "topic_name": _name,
    "topics": _name,
    "topic_names": _name,
    "resource_name": _name,
    "value": lambda focus, _: focus.rng.choice(_CONFIG_VALUES),
    "resource_type": lambda focus, _: focus.rng.choice([2, 2, 2, 4, 8, 16]),
    "topic_id": lambda focus, _: focus.topic_id,
    "records": _records,
    "metadata": lambda focus, _: _subscription(focus),
    "assignment": lambda focus, _: _subscription(focus),
    "acks": lambda focus, _: focus.rng.choice([-1, -1, 1, 0]),
    "index": lambda focus, _: focus.rng.choice([0, 0, 0, 1]),
    "partition": lambda focus, _: focus.rng.choice([0, 0, 0, 1]),
    "partition_index": lambda focus, _: focus.rng.choice([0, 0, 0, 1]),
    "partition_indexes": lambda focus, _: focus.rng.choice([0, 0, 0, 1]),
    "partitions": lambda focus, _: focus.rng.choice([0, 0, 0, 1]),
    "count": lambda focus, _: focus.rng.choice([1, 2, 3, 4]),
    "num_partitions": lambda focus, _: focus.rng.choice([-1, 1, 2, 3]),
    "replication_factor": lambda focus, _: focus.rng.choice([-1, 1]),
    "broker_ids": lambda focus, _: 1,
    "assignments": lambda focus, _: NULL,
    "validate_only": lambda focus, _: focus.rng.random() < 0.2,
    "group_id": lambda focus, _: focus.group,
    "groups": lambda focus, _: focus.group,
    "groups_names": lambda focus, _: focus.group,
    "member_id": lambda focus, _: focus.member,
    "group_instance_id": lambda focus, _: focus.rng.choice([NULL, NULL, NULL, "static-1"]),
    "transactional_id": lambda focus, _: NULL,
    "cursor": lambda focus, _: NULL,
    "resource_type_filter": lambda focus, _: focus.rng.choice([1, 2, 3]),
    "generation_id": lambda focus, _: focus.generation,
    "generation_id_or_member_epoch": lambda focus, _: focus.rng.choice([focus.generation, -1]),
    "protocol_type": lambda focus, _: "consumer",
    "protocol_name": lambda focus, _: "range",
    "session_timeout_ms": lambda focus, _: focus.rng.choice([100, 1000, 6000]),
    "rebalance_timeout_ms": lambda focus, _: focus.rng.choice([100, 300]),
    "key": lambda focus, _: focus.group,
    "key_type": lambda focus, _: focus.rng.choice([0, 0, 0, 1, 2]),
    "coordinator_keys": lambda focus, _: focus.group,
    "producer_id": lambda focus, _: focus.producer[0],
    "producer_epoch": lambda focus, _: focus.producer[1],
    "max_wait_ms": lambda focus, _: focus.rng.choice([0, 0, 1, 20]),
    "min_bytes": lambda focus, _: focus.rng.choice([0, 1, 1]),
    "max_bytes": lambda focus, _: focus.rng.choice([0, 1, 100_000, 2**31 - 1]),
    "partition_max_bytes": lambda focus, _: focus.rng.choice([0, 1, 100_000]),
    "fetch_offset": lambda focus, _: focus.rng.choice([0, 0, 1, 10]),
    "session_id": lambda focus, _: focus.session[0],
    "session_epoch": lambda focus, _: focus.rng.choice([focus.session[1], 0, -1]),
    "isolation_level": lambda focus, _: focus.rng.choice([0, 1]),
    "timestamp": lambda focus, _: focus.rng.choice([-1, -2, -3, 0, 1_700_000_000_000]),
    "offset": lambda focus, _: focus.rng.choice([-1, 0, 1]),
    "timeout_ms": lambda focus, _: focus.rng.choice([1000, 30_000]),
    "client_software_name": lambda focus, _: "fuzz",
    "client_software_version": lambda focus, _: "1.0",
    "endpoint_type": lambda focus, _: 1,
    "config_operation": lambda focus, _: focus.rng.choice([0, 1, 2, 3]),
}

#: Requests that go through states in an order that gets somewhere.
_STORIES: Final = (
    (ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP, ApiKey.HEARTBEAT, ApiKey.OFFSET_COMMIT, ApiKey.OFFSET_FETCH),
    (ApiKey.OFFSET_COMMIT, ApiKey.OFFSET_FETCH, ApiKey.OFFSET_DELETE, ApiKey.DESCRIBE_GROUPS),
    (ApiKey.HEARTBEAT, ApiKey.LEAVE_GROUP, ApiKey.DELETE_GROUPS, ApiKey.LIST_GROUPS),
    (ApiKey.INIT_PRODUCER_ID, ApiKey.PRODUCE, ApiKey.PRODUCE, ApiKey.PRODUCE, ApiKey.DESCRIBE_PRODUCERS),
    (ApiKey.PRODUCE, ApiKey.PRODUCE, ApiKey.PRODUCE, ApiKey.FETCH, ApiKey.PRODUCE),
    (ApiKey.FETCH, ApiKey.FETCH, ApiKey.LIST_OFFSETS, ApiKey.FETCH),
    (ApiKey.CREATE_TOPICS, ApiKey.METADATA, ApiKey.PRODUCE, ApiKey.CREATE_PARTITIONS, ApiKey.DELETE_TOPICS),
    (ApiKey.INCREMENTAL_ALTER_CONFIGS, ApiKey.DESCRIBE_CONFIGS, ApiKey.PRODUCE, ApiKey.DELETE_RECORDS),
    (ApiKey.METADATA, ApiKey.FETCH, ApiKey.OFFSET_FOR_LEADER_EPOCH),
)


def draw_case(seed: int, number: int, world: World, apis: Mapping[int, tuple[int, int]]) -> Case:
    """Case ``number`` of a run: always the same for the same seed and the same answers."""
    rng = random.Random(f"{seed}/{number}")
    case = Case(number, is_lockstep=rng.random() < 0.5)
    focus = _Focus(rng, world)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        wildness = rng.choice([0.0, 0.02, 0.1, 0.3])
        faults = WildFaults(rng, rng.choice([0.0, 0.0, 0.0, 0.01, 0.05]))
        if rng.random() < 0.6:
            keys = [int(key) for key in rng.choice(_STORIES)]
        else:
            keys = [rng.choice(sorted(apis)) for _ in range(rng.randrange(1, 6))]
        broken = rng.randrange(len(keys)) if rng.random() < 0.15 else -1
        case.connections.append(
            [
                partial(_draw, rng, focus, key, wildness, faults, apis, is_broken=place == broken)
                for place, key in enumerate(keys)
            ]
        )
    return case


def _draw(
    rng: random.Random,
    focus: _Focus,
    key: int,
    wildness: float,
    faults: WildFaults,
    apis: Mapping[int, tuple[int, int]],
    *,
    is_broken: bool,
) -> Sent:
    low, high = apis[key]
    request = API_REQUESTS[key]
    version = rng.choice([high, high, rng.randint(max(low, request.versions.start), high)])
    values = Values(rng, focus.known, wildness=wildness)
    value = minimal(request, version) if rng.random() < 0.02 else values.draw(request, version)
    _spare(request, version, value, focus)
    correlation_id = rng.randrange(2**31)
    client_id: str | bytes | None = rng.choice(["fuzz", "fuzz", None, ""])
    if rng.random() < wildness / 2:
        text = values.text()
        client_id = text.encode() if isinstance(text, str) else text
    struck = _Counted(faults)
    frame = encode_frame(request, version, correlation_id, value, client_id=client_id, faults=struck)
    sent = Sent(
        frame,
        key,
        version,
        correlation_id,
        is_whole=struck.lies == 0 and not _has_long_text(value, client_id),
        is_answered=key != ApiKey.PRODUCE or value["acks"] != 0,
        group=str(value.get("group_id", "")),
    )
    return _break(rng, sent) if is_broken else sent


def _spare(request: Request, version: int, value: dict[str, Any], focus: _Focus) -> None:
    """Keep the well-behaved client's topic out of it."""
    if request.api_key == ApiKey.DELETE_TOPICS and "topics" in value:
        for state in value["topics"]:
            if state["topic_id"] == focus.world.forbidden_id:
                state["topic_id"] = bytes(16)


class _Counted(Faults):
    """Passes faults on and counts the lengths that lie."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.lies = 0

    def length(self, length: int) -> int:
        written = self._faults.length(length)
        self.lies += written != length
        return written

    def tags(self) -> list[tuple[int, bytes]]:
        return self._faults.tags()

    def content(self, data: bytes) -> bytes:
        return self._faults.content(data)


def _has_long_text(value: Any, client_id: str | bytes | None) -> bool:
    """Whether a string is so long, replaced as Java does it, that Kafka couldn't send it back."""
    if isinstance(value, Mapping):
        return any(_has_long_text(item, client_id) for item in value.values())
    if isinstance(value, list):
        return any(_has_long_text(item, client_id) for item in value)
    if isinstance(value, (str, bytes)) and len(value) > 10_000:
        return True
    return client_id is not None and len(client_id) > 10_000


def _break(rng: random.Random, sent: Sent) -> Sent:
    """Something like the frame that isn't one."""
    data = bytearray(sent.frame)
    kind = rng.randrange(6)
    if kind == 0:  # cut off, with a length that says so
        data = data[: rng.randrange(5, len(data))]
        data[:4] = (len(data) - 4).to_bytes(4, "big")
    elif kind == 1:  # cut off
        data = data[: rng.randrange(1, len(data))]
    elif kind == 2:  # longer, with a length that says so
        data += rng.randbytes(rng.choice([1, 4, 100]))
        data[:4] = (len(data) - 4).to_bytes(4, "big")
    elif kind == 3:  # another version, as if it were the same
        data[6:8] = struct.pack(">h", rng.choice([-1, 0, 1, 5, 9, 12, 99, 32767]))
    elif kind == 4:
        data[:4] = struct.pack(">i", rng.choice([0, -1, 9, 2**31 - 1, len(data), 101 * 2**20]))
    else:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(4, len(data))] ^= 1 << rng.randrange(8)
    return Sent(bytes(data), int.from_bytes(data[4:6].ljust(2, b"\0"), "big", signed=True))
