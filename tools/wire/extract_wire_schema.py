"""Extract the schemas of the Kafka messages from the installed ``kio`` package (a development dependency).

    python tools/wire/extract_wire_schema.py     write kernel/penstock/wire/schema/*.json

Needed only when the protocol grows; tools/wire/generate_wire.py, which explains the format, works from the files.
kio has one class per version; here they are merged to one list of fields with version ranges.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
import re
from pathlib import Path
from typing import Any

SCHEMA_DIR = Path(__file__).resolve().parents[2] / "kernel/penstock/wire/schema"

# The APIs that a handler answers or the client sends; whoever adds one adds its name, and runs both programs.
API_NAMES = """
produce fetch list_offsets metadata offset_commit offset_fetch find_coordinator join_group heartbeat
leave_group sync_group describe_groups list_groups api_versions create_topics delete_topics
delete_records init_producer_id offset_for_leader_epoch describe_acls create_acls delete_acls
describe_configs alter_configs describe_log_dirs create_partitions delete_groups elect_leaders
incremental_alter_configs alter_partition_reassignments list_partition_reassignments offset_delete
describe_client_quotas describe_cluster describe_producers consumer_group_heartbeat
list_config_resources describe_topic_partitions describe_user_scram_credentials describe_transactions
list_transactions sasl_handshake
"""
DATA_NAMES = ("consumer_protocol_subscription", "consumer_protocol_assignment")

IMPLICIT_DEFAULT: dict[str, Any] = {"bool": False, "float64": 0.0, "string": "", "bytes": "", "records": ""}
VARIABLE = ("string", "bytes", "records")


def format_range(versions: set[int], high: int) -> str:
    """The shortest range text; the versions must be contiguous."""
    first, last = min(versions), max(versions)
    if len(versions) != last - first + 1:
        raise ValueError(f"versions have a gap: versions={sorted(versions)}")
    if last == high:
        return f"{first}+"
    return str(first) if first == last else f"{first}-{last}"


KIO_TYPE = {
    "error_code": "int16",
    "timedelta_i32": "int32",
    "timedelta_i64": "int64",
    "datetime_i64": "int64",
}


def _kio_default(item: Any, kind: str, nullable: bool) -> tuple[bool, Any]:
    """(has a default worth writing, the default) of one dataclass field, in schema terms."""
    value = item.default
    if value is dataclasses.MISSING or dataclasses.is_dataclass(value) or value == ():
        return False, None
    if isinstance(value, datetime.timedelta):
        value = round(value.total_seconds() * 1000)
    if value is None and not nullable:  # kio's spelling of the zero uuid and of timestamp -1
        return (False, None) if kind == "uuid" else (True, -1)
    if isinstance(value, bool | str) or value is None:
        return (value is None or value != IMPLICIT_DEFAULT[kind]), value
    return value != 0, int(value)


def _kio_field(item: Any) -> dict[str, Any]:
    """One dataclass field of one version in schema terms."""
    from kio.serial import _introspect

    found = _introspect.classify_field(item)
    tag = _introspect.get_field_tag(item)
    if hasattr(found.type_, "__flexible__"):
        kind, special, nullable = found.type_.__name__, False, "None" in str(item.type)
    else:
        kio_type = _introspect.get_schema_field_type(item)
        kind = KIO_TYPE.get(kio_type, kio_type)
        special = kio_type.startswith(("timedelta", "datetime"))
        text = str(item.type)
        nullable = "None" in text and kind in VARIABLE
        if found.is_array:
            nullable = text.endswith("| None") or text.startswith("typing.Optional")
    has_default, default = _kio_default(item, kind, nullable)
    return {
        "name": item.name + ("_ms" if special else ""),  # kio drops the unit where it changes the type
        "type": ("[]" if found.is_array else "") + kind,
        "nullable": nullable,
        "tag": None if tag is None else int(tag),
        "default": (has_default, default),
        "struct": found.type_ if hasattr(found.type_, "__flexible__") else None,
    }


def _merge_struct(by_version: dict[int, list[dict[str, Any]]], low: int, high: int) -> list[dict[str, Any]]:
    """Fields of one struct over all versions, in an order every version agrees with."""
    order: list[str] = []
    for version in sorted(by_version):
        at = 0
        for item in by_version[version]:
            if item["name"] in order:
                at = max(at, order.index(item["name"]) + 1)
            else:
                order.insert(at, item["name"])
                at += 1
    result = []
    for name in order:
        seen = {v: item for v, items in by_version.items() for item in items if item["name"] == name}
        latest = seen[max(seen)]
        if {item["type"] for item in seen.values()} != {latest["type"]}:
            raise ValueError(f"field changes its type: field={name}")
        entry: dict[str, Any] = {"name": name, "type": latest["type"]}
        if len(seen) != high - low + 1:
            entry["versions"] = format_range(set(seen), high)
        nullable = {v for v, item in seen.items() if item["nullable"]}
        if nullable:
            entry["nullable"] = format_range(nullable, high)
        tagged = {v for v, item in seen.items() if item["tag"] is not None}
        if tagged:
            entry |= {"tag": latest["tag"], "tagged": format_range(tagged, high)}
        if latest["default"][0]:
            entry["default"] = latest["default"][1]
        result.append(entry)
    return result


def _extract_message(classes: dict[int, Any], role: str) -> dict[str, Any]:
    """One schema message from kio's classes by version."""
    low, high = min(classes), max(classes)
    structs: dict[str, dict[int, list[dict[str, Any]]]] = {}

    def walk(version: int, cls: Any) -> None:
        if version in structs.setdefault(cls.__name__, {}):
            return
        structs[cls.__name__][version] = items = [_kio_field(item) for item in dataclasses.fields(cls)]
        for item in items:
            if item["struct"] is not None:
                walk(version, item["struct"])

    for version, cls in classes.items():
        walk(version, cls)
    name = classes[high].__name__
    flexible = {version for version, cls in classes.items() if cls.__flexible__}
    result: dict[str, Any] = {"name": name}
    if role:
        result["role"] = role
    result["versions"] = f"{low}-{high}"
    result["flexible"] = format_range(flexible, high) if flexible else "none"
    result["fields"] = _merge_struct(structs.pop(name), low, high)
    if structs:
        result["structs"] = {key: _merge_struct(value, low, high) for key, value in structs.items()}
    return result


def dump_schema(raw: dict[str, Any]) -> str:
    """JSON with one field per line."""
    text = json.dumps(raw, indent=1)
    return re.sub(r"\{\s*(\"name\": [^{}\[]*?(?:\"\[\][^{}\[]*?)?)\s*\}", _one_line, text) + "\n"


def _one_line(match: re.Match[str]) -> str:
    return "{" + re.sub(r"\s*\n\s*", " ", match.group(1)).strip() + "}"


def extract() -> None:
    """Write one schema file per API and data format kio knows and this broker speaks."""
    from kio.schema.index import api_key_map, schema_name_map

    keys = {name: key for key, name in api_key_map.items()}
    SCHEMA_DIR.mkdir(parents=True, exist_ok=True)
    for name in (*API_NAMES.split(), *DATA_NAMES):
        kinds: dict[str, dict[int, Any]] = {}
        for version, by_kind in schema_name_map[name].items():
            for kind, path in by_kind.items():
                module, _, cls = path.partition(":")
                kinds.setdefault(kind.name, {})[version] = getattr(importlib.import_module(module), cls)
        raw: dict[str, Any] = {"module": name}
        if name in keys:
            raw["api_key"] = keys[name]
        raw["messages"] = [
            _extract_message(kinds[kind], kind if kind in ("request", "response") else "")
            for kind in sorted(kinds)
        ]
        (SCHEMA_DIR / f"{name}.json").write_text(dump_schema(raw))


if __name__ == "__main__":
    extract()
