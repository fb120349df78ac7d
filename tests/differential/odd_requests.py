"""Odd requests for any API and version, made from the schemas: a sane one, then one for each thing that is wrong.

A generator for tests that hold two brokers against each other, and for fuzzers. What differs from broker to broker is
written as a symbol (``topic_id_of``, ``MEMBER``, ``TIME_MS`` of the run), for :func:`with_values` to replace.
"""

from __future__ import annotations

__all__ = (
    "GROUP",
    "LIVE_GROUP",
    "MEMBER",
    "TOPIC",
    "VICTIM",
    "OddRequest",
    "load_schema",
    "odd_requests",
    "sane_request",
    "topic_id_of",
    "with_values",
)

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

import penstock.wire
from penstock.wire.messages._index import INDEX
from penstock.wire.record_builder import build_batch

#: A topic with two partitions and some records, which no odd request changes.
TOPIC: Final = "base"
#: A topic that requests may destroy; there again before the next one.
VICTIM: Final = "victim"
#: A group with committed offsets and without members.
GROUP: Final = "group"
#: A group with one member, ``MEMBER``, in generation 1.
LIVE_GROUP: Final = "live"
MEMBER: Final = "@member"
#: One clock for all batches of a run, so that both brokers get the same bytes.
TIME_MS: Final = time.time_ns() // 1_000_000

_SCHEMAS: Final = Path(penstock.wire.__file__).parent / "schema"
_INT_SIZES: Final = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
_LONG: Final = "x" * 300
_fresh = itertools.count(1)


class OddRequest(NamedTuple):
    """A request and what is odd about it."""

    label: str
    message: Any
    client_id: str | None = "odd"
    #: What is done to the frame (without length prefix) once it is encoded.
    edit: Callable[[bytes], bytes] = bytes


class Fresh(NamedTuple):
    """A name that is used once."""

    prefix: str


def topic_id_of(name: str) -> bytes:
    """The symbol for the id that a broker gave to a topic."""
    return b"id:" + name.encode().ljust(13, b"\0")[:13]


def records(count: int = 1, **settings: Any) -> bytes:
    """A valid batch."""
    return bytes(build_batch([(b"key", b"value", (), TIME_MS)] * count, **settings))


def _flipped(at: int) -> bytes:
    data = bytearray(records())
    data[at] ^= 1
    return bytes(data)


#: What each field holds in a sane request: by "module.path", else by the path's last name, else by its type.
_SANE: Final[Mapping[str, Any]] = {
    "topic": TOPIC,
    "topic_id": topic_id_of(TOPIC),
    "topics.name": TOPIC,
    "topic_data.name": VICTIM,
    "topic_data.topic_id": topic_id_of(VICTIM),
    "groups.topics.name": TOPIC,
    "groups_names": "victim-group",
    "group_id": GROUP,
    "groups.group_id": GROUP,
    "timeout_ms": 5000,
    "fetch.max_wait_ms": 0,
    "fetch.min_bytes": 0,
    "fetch.max_bytes": 1 << 20,
    "partition_max_bytes": 1 << 20,
    "fetch.session_epoch": -1,
    "fetch.forgotten_topics_data": [],
    "fetch.replica_state": None,
    "replica_id": -1,
    "produce.acks": -1,
    "records": records(),
    "list_offsets.topics.partitions.timestamp": -1,
    "metadata.allow_auto_topic_creation": False,
    "generation_id_or_member_epoch": -1,
    "offset_commit.topics.partitions.committed_offset": 1,
    "offset_commit.retention_time_ms": -1,
    "committed_metadata": "note",
    "coordinator_keys": GROUP,
    "find_coordinator.key": GROUP,
    "join_group.group_id": Fresh("joined"),
    "session_timeout_ms": 10000,
    "rebalance_timeout_ms": 10000,
    "protocol_type": "consumer",
    "protocol_name": "range",
    "protocols.name": "range",
    "heartbeat.group_id": LIVE_GROUP,
    "heartbeat.member_id": MEMBER,
    "heartbeat.generation_id": 1,
    "leave_group.group_id": LIVE_GROUP,
    "leave_group.member_id": MEMBER,
    "leave_group.members.member_id": MEMBER,
    "sync_group.group_id": LIVE_GROUP,
    "sync_group.member_id": MEMBER,
    "sync_group.generation_id": 1,
    "sync_group.assignments.member_id": MEMBER,
    "sync_group.assignments": [],
    "describe_groups.groups": GROUP,
    "list_groups.states_filter": "Empty",
    "list_groups.types_filter": "classic",
    "client_software_name": "odd",
    "client_software_version": "1.0",
    "create_topics.topics.name": Fresh("created"),
    "num_partitions": 1,
    "replication_factor": 1,
    "create_topics.topics.assignments": [],
    "configs.name": "retention.ms",
    "configs.value": "86400000",
    "validate_only": True,
    "delete_topics.topics.name": VICTIM,
    "delete_topics.topic_names": VICTIM,
    "delete_topics.topics.topic_id": bytes(16),
    "metadata.topics.topic_id": bytes(16),
    "delete_records.topics.name": VICTIM,
    "delete_records.topics.partitions.offset": 1,
    "init_producer_id.transactional_id": None,
    "transaction_timeout_ms": 60000,
    "producer_id": -1,
    "producer_epoch": -1,
    "offset_for_leader_epoch.replica_id": -2,
    "resource_type": 2,
    "resource_type_filter": 2,
    "resource_name": TOPIC,
    "resource_name_filter": TOPIC,
    "resource_pattern_type": 3,
    "pattern_type_filter": 3,
    "principal": "User:odd",
    "principal_filter": "User:odd",
    "host": "*",
    "host_filter": "*",
    "operation": 3,
    "permission_type": 3,
    "configuration_keys": "retention.ms",
    "create_partitions.topics.count": 3,
    "create_partitions.topics.assignments": None,
    "replicas": 1,
    "broker_ids": 1,
    "entity_type": "user",
    "match_type": 0,
    "match": "odd",
    "endpoint_type": 1,
    "resource_types": 2,
    "response_partition_limit": 2000,
    "describe_topic_partitions.cursor": None,
    "topic_name": TOPIC,
}

_TOPIC_NAMES: Final = ("", "no-such-topic", "not legal", ".", "..", "a" * 250, "__consumer_offsets", "\u00e4")
_TOPIC_NAMES_ALL: Final = (
    *_TOPIC_NAMES,
    "__cluster_metadata",
    "__transaction_state",
    "ba_se",
    "BASE",
    "a" * 249,
)
_GROUP_NAMES: Final = ("", "no-such-group", " ", _LONG, LIVE_GROUP, "\u00e4")
_MEMBERS: Final = ("", "no-such-member", MEMBER)

#: What is tried in a field beside what its type offers, found as above.
_ODD: Final[Mapping[str, tuple[Any, ...]]] = {
    "topic": _TOPIC_NAMES_ALL,
    "topics.name": _TOPIC_NAMES_ALL,
    "topic_data.name": _TOPIC_NAMES_ALL,
    "groups.topics.name": _TOPIC_NAMES_ALL,
    "topic_names": _TOPIC_NAMES_ALL,
    "topic_name": _TOPIC_NAMES_ALL,
    "describe_configs.resources.resource_name": (*_TOPIC_NAMES_ALL, "1", "2"),
    "alter_configs.resources.resource_name": (*_TOPIC_NAMES_ALL, "1", "2"),
    "incremental_alter_configs.resources.resource_name": (*_TOPIC_NAMES_ALL, "1", "2"),
    "describe_topic_partitions.topics.name": (*_TOPIC_NAMES_ALL, "__share_group_state"),  # which isn't there
    "metadata.topics.name": (*_TOPIC_NAMES_ALL, "__share_group_state"),  # nor does asking make it
    "create_topics.topics.name": (*_TOPIC_NAMES_ALL, TOPIC, "a_b", "a.b"),
    "topic_id": (bytes(16), b"\x07" * 16, b"\0" * 15 + b"\1"),
    "delete_topics.topics.topic_id": (topic_id_of(VICTIM), b"\x07" * 16),
    "metadata.topics.topic_id": (topic_id_of(TOPIC), b"\x07" * 16),
    "group_id": _GROUP_NAMES,
    "groups.group_id": _GROUP_NAMES,
    "join_group.group_id": ("",),  # others would have to wait for each other
    "describe_groups.groups": _GROUP_NAMES,
    "groups_names": _GROUP_NAMES,
    "find_coordinator.key": _GROUP_NAMES,
    "coordinator_keys": _GROUP_NAMES,
    "member_id": _MEMBERS,
    "group_instance_id": ("", "instance"),
    "acks": (0, 1, 2, -2),
    "isolation_level": (1, 2, -1),
    "replica_id": (-2, -3, 0, 1, 7),
    "records": (
        None,
        b"",
        b"x",
        records(3),
        records() * 2,
        records()[:-1],
        records() + b"x",
        _flipped(16),  # magic
        _flipped(17),  # crc
        _flipped(22),  # codec
        _flipped(60),  # count
    ),
    "timestamp": (-2, -3, -4, -5, -6, -7, 0, TIME_MS, TIME_MS + 1, TIME_MS + 10_000_000),
    "fetch_offset": (1, 3, 4, -2),
    "committed_metadata": ("", _LONG, "x" * 5000),
    "retention_time_ms": (0, 1, -2),
    "key_type": (1, 2, 3),
    "session_timeout_ms": (1, 5999, 6000, 1_800_000, 1_800_001),
    "rebalance_timeout_ms": (1,),
    "protocol_type": ("connect", _LONG),
    "protocols.name": (_LONG,),
    "states_filter": ("Stable", "stable", "Dead", "Nonsense", ""),
    "types_filter": ("consumer", "Classic", "share", "streams", "nonsense", ""),
    "client_software_name": ("-odd", "odd odd", "odd-", "o.d-d"),
    "client_software_version": ("-1", "1 0", "1."),
    "num_partitions": (2, 10_001),
    "replication_factor": (2, 3),
    "configs.name": (
        "no.such.config",
        "cleanup.policy",
        "remote.storage.enable",
        "remote.log.copy.disable",
        "remote.log.delete.on.disable",
        "local.retention.ms",
        "message.format.version",
        "leader.replication.throttled.rate",
        "leader.replication.throttled.replicas",
    ),
    "configs.value": ("-1", "-2", "x", " 1 ", "9223372036854775808"),
    "offset": (0, 2, 3, 4, -2),
    "transactional_id": ("odd",),
    "transaction_timeout_ms": (1, 900_001),
    "resource_type": (1, 4, 8, 16, 32),
    "match_type": (1, 2, 3),
    "entity_type": ("client-id", "ip", "nonsense"),
    "endpoint_type": (2, 3),
    "resource_types": (4, 8, 16, 32, 3),
    "configuration_keys": ("no.such.config", "cleanup.policy"),
    "config_operation": (1, 2, 3, 4),
    "election_type": (1, 2),
    "count": (1, 2, 10_001),
    "replicas": (2, -1),
    "broker_ids": (2, -1),
    "partition_index": (2,),
    "partition": (2,),
    "partitions": (2,),
    "partition_indexes": (2,),
    "index": (2,),
    "response_partition_limit": (1,),
}

#: Values that would only make a broker wait, or work, for long.
_NEVER: Final[Mapping[str, tuple[Any, ...]]] = {
    "fetch.max_wait_ms": (2**31 - 1,),
    "timeout_ms": (1,),  # a matter of luck
    # Kafka's controller meets these with a bug of its own, resigns, and is there again a second or two later.
    "incremental_alter_configs.resources.configs.config_operation": (-1, -128, 127),
    "create_partitions.topics.count": (-(2**31),),
}


@cache
def load_schema(module: str) -> dict[str, Any]:
    """The request's schema of one API module."""
    messages = json.loads((_SCHEMAS / f"{module}.json").read_text())["messages"]
    found: dict[str, Any] = next(each for each in messages if each["role"] == "request")
    return found


def in_range(versions: str | None, version: int) -> bool:
    """Whether "3+", "2-4", "7" or None (always) has the version."""
    if versions is None:
        return True
    if versions.endswith("+"):
        return version >= int(versions[:-1])
    low, _, high = versions.partition("-")
    return int(low) <= version <= int(high or low)


class _Builder:
    """Builds one request; ``changes`` replaces, by path, what a sane request has there."""

    def __init__(self, module: str, version: int, changes: Mapping[str, Callable[[Any], Any]]) -> None:
        self.module = module
        self.version = version
        self.schema = load_schema(module)
        self.changes = changes
        self.types = import_module(f"penstock.wire.messages.{module}")

    def build(self) -> Any:
        return self._struct(self.schema["name"], self.schema["fields"], "")

    def _struct(self, name: str, fields: list[dict[str, Any]], path: str) -> Any:
        values = {}
        for field in fields:
            if not in_range(field.get("versions"), self.version):
                continue
            here = f"{path}{field['name']}"
            value = self._sane(field, here)
            if here in self.changes:
                value = self.changes[here](value)
            if value is not _DEFAULT:
                values[field["name"]] = value
        # The response has a structure of this name too: the generator put the message's name before it.
        found = getattr(self.types, name, None) or getattr(self.types, f"{self.schema['name']}{name}")
        return found(**values)

    def _sane(self, field: dict[str, Any], path: str) -> Any:
        found, value = _lookup(_SANE, self.module, path)
        kind: str = field["type"]
        is_array = kind.startswith("[]")
        kind = kind.removeprefix("[]")
        structs = self.schema.get("structs", {})
        if found and (value is None or isinstance(value, list)):
            return _DEFAULT if value is None and not field.get("nullable") else value
        if isinstance(value, Fresh):
            value = f"{value.prefix}-{next(_fresh)}"
        if not found:
            if kind in structs:
                value = self._struct(kind, structs[kind], f"{path}.")
            else:
                value = field["default"] if "default" in field and not is_array else _ZERO[kind]
        return [value] if is_array else value


_DEFAULT: Final = object()
_ZERO: Final[Mapping[str, Any]] = {
    **dict.fromkeys(_INT_SIZES, 0),
    "string": "",
    "bool": False,
    "bytes": b"bytes",
    "uuid": bytes(16),
    "float64": 0.0,
    "records": b"",
    "uint16": 0,
}


def _lookup(table: Mapping[str, Any], module: str, path: str) -> tuple[bool, Any]:
    parts = path.split(".")
    for start in range(-1, len(parts)):
        key = f"{module}.{path}" if start < 0 else ".".join(parts[start:])
        if key in table:
            return True, table[key]
    return False, None


def sane_request(api_key: int, version: int) -> Any:
    """A request that both brokers should like."""
    return _Builder(INDEX[api_key][0], version, {}).build()


def odd_requests(api_key: int, version: int) -> list[OddRequest]:
    """The sane request first, then requests with one oddity each; the same list each time, but for fresh names."""
    module = INDEX[api_key][0]
    schema = load_schema(module)
    made = [OddRequest("sane", sane_request(api_key, version))]
    message_type = getattr(import_module(f"penstock.wire.messages.{module}"), schema["name"])
    made.append(OddRequest("nothing but defaults", message_type()))
    for path, label, change in _changes(module, version, schema["fields"], ""):
        made.append(OddRequest(f"{path} {label}", _Builder(module, version, {path: change}).build()))
    return [*made, *_odd_frames(api_key, version)]


def _odd_frames(api_key: int, version: int) -> list[OddRequest]:
    def sane() -> Any:
        return sane_request(api_key, version)

    return [
        OddRequest("client id is null", sane(), None),
        OddRequest("client id is empty", sane(), ""),
        OddRequest("client id is long", sane(), "x" * 1000),
        OddRequest("client id isn't ascii", sane(), "\u00e4\u20ac"),
        OddRequest("client id isn't utf-8", sane(), "odd", lambda frame: frame.replace(b"odd", b"\xffdd", 1)),
        OddRequest("bytes behind the end", sane(), "odd", lambda frame: frame + b"\0\1\2"),
        OddRequest(
            "correlation id is negative", sane(), "odd", lambda frame: frame[:4] + b"\xff" * 4 + frame[8:]
        ),
        OddRequest("last byte is missing", sane(), "odd", lambda frame: frame[:-1]),
        OddRequest("body is missing", sane(), "odd", lambda frame: frame[:13]),
    ]


def _changes(
    module: str, version: int, fields: list[dict[str, Any]], path: str
) -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    structs = load_schema(module).get("structs", {})
    for field in fields:
        if not in_range(field.get("versions"), version):
            continue
        here = f"{path}{field['name']}"
        kind = field["type"].removeprefix("[]")
        is_array = field["type"].startswith("[]")
        if "nullable" in field and in_range(field["nullable"], version):
            yield here, "is null", _constant(None)
        if is_array:
            yield here, "is empty", _constant([])
            yield here, "holds all twice", _doubled
        if kind in structs:
            found, sane = _lookup(_SANE, module, here)
            if found and (sane is None or sane == []):
                yield here, "is there", _constant(_filled(module, version, kind, here, is_array))
            else:
                yield from _changes(module, version, structs[kind], f"{here}.")
            continue
        for value in _odd_values(module, here, kind):
            if is_array:
                yield here, f"is [{_shown(value)}]", _constant([value])
                yield here, f"has {_shown(value)} too", partial(_extended, value)
            else:
                yield here, f"is {_shown(value)}", _constant(value)


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _doubled(sane: Any) -> list[Any]:
    return [*(sane or []), *(sane or [])]


def _extended(more: Any, sane: Any) -> list[Any]:
    return [*(sane or []), more]


def _filled(module: str, version: int, kind: str, path: str, is_array: bool) -> Any:
    builder = _Builder(module, version, {})
    value = builder._struct(kind, builder.schema["structs"][kind], f"{path}.")
    return [value] if is_array else value


def _odd_values(module: str, path: str, kind: str) -> list[Any]:
    _, own = _lookup(_ODD, module, path)
    values: list[Any] = list(own or ())
    if kind in _INT_SIZES:
        top = 2 ** (_INT_SIZES[kind] - 1)
        values += [-1, 0, 1, top - 1, -top]
    elif kind == "bool":
        values += [True, False]
    elif kind == "string" and not own:
        values += ["", "odd", _LONG]
    elif kind == "bytes":
        values += [b"", b"\xff" * 8, bytes(100)]
    never = _lookup(_NEVER, module, path)[1] or ()
    found, sane = _lookup(_SANE, module, path)
    if not found:
        sane = _ZERO[kind]
    # True == 1: compare types too.
    distinct = {
        (type(v), v): v for v in values if v not in never and not (type(v) is type(sane) and v == sane)
    }
    return list(distinct.values())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(value)})"


def with_values(message: Any, values: Mapping[Any, Any]) -> Any:
    """A copy in which each symbol is replaced by what it stands for."""
    if isinstance(message, msgspec.Struct):
        fields = {name: with_values(getattr(message, name), values) for name in message.__struct_fields__}
        return type(message)(**fields)
    if isinstance(message, list):
        return [with_values(each, values) for each in message]
    if type(message) in {str, bytes, int}:
        return values.get(message, message)
    return message
