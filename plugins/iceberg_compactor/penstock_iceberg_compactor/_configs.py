"""The topic configs of Iceberg tables, under ``penstock.lake.``: what they are called, mean, and exclude."""

from __future__ import annotations

__all__ = (
    "RAW_CONFIGS",
    "TOPIC_CONFIGS",
    "Field",
    "Order",
    "TableConfigs",
    "beside",
    "fault_of",
    "without_user",
)

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from penstock.errors import ConfigError
from penstock.spi.lake import LakeTopicConfig, one_line
from penstock.units import parse_duration_ms, parse_size

_FORMATS = ("raw", "string", "json", "avro", "protobuf")
_POLICIES = ("stop", "dead_letter", "null")

TOPIC_CONFIGS = (
    LakeTopicConfig(
        name="value.format",
        default="raw",
        choices=_FORMATS,
        doc="What a value is: raw bytes, a string, JSON, or Avro or Protobuf as Confluent's serializers write it.",
    ),
    LakeTopicConfig(
        name="key.format",
        default="raw",
        choices=_FORMATS,
        doc="What a key is. Of raw keys only the column of the record's own key is kept.",
    ),
    LakeTopicConfig(
        name="schema.registry.url",
        default="",
        doc="Where the schemas of avro, protobuf and json are: the URL of a schema registry, one of those that the "
        "broker's configuration has.",
    ),
    LakeTopicConfig(
        name="value.schema.file",
        default="",
        doc="The schema of values, instead of a registry: a file of Avro, Protobuf or JSON Schema in the broker's "
        "directory of schemas.",
    ),
    LakeTopicConfig(name="key.schema.file", default="", doc="The schema of keys, instead of a registry."),
    LakeTopicConfig(
        name="value.message", default="", doc="The message's full name, where a file of Protobuf has several."
    ),
    LakeTopicConfig(name="key.message", default="", doc="The message's full name, of keys."),
    LakeTopicConfig(
        name="value.json.timestamps",
        default="false",
        type="boolean",
        doc="Strings of JSON that are RFC 3339 timestamps become timestamps with zone, in columns that are new.",
    ),
    LakeTopicConfig(
        name="value.json.numbers",
        default="auto",
        choices=("auto", "double"),
        doc="What numbers of JSON become in new columns: a long if they are whole so far, or a double always.",
    ),
    LakeTopicConfig(
        name="value.json.columns.max",
        default="1000",
        type="int",
        doc="How many columns, nested ones included, records of JSON can make; one that wants more doesn't fit.",
    ),
    LakeTopicConfig(
        name="table",
        default="{topic}",
        doc="The table's name; {topic} stands for the topic's, dots become _.",
    ),
    LakeTopicConfig(
        name="partition.by",
        default="",
        type="list",
        doc="How files are divided: columns, or year, month, day, hour, bucket and truncate of one, such as "
        "day(_kafka.timestamp), bucket(16, customer).",
    ),
    LakeTopicConfig(
        name="partition.files.max",
        default="200",
        type="int",
        doc="How many files by partition a commit makes; beyond that, rows of partitions with less than their share "
        "go into one file that isn't divided.",
    ),
    LakeTopicConfig(
        name="sort.by",
        default="",
        type="list",
        doc="The order of rows within files: columns, each with desc after it if it goes down.",
    ),
    LakeTopicConfig(
        name="target.file.bytes",
        default=str(128 * 2**20),
        type="long",
        doc="How large maintenance makes files out of small ones.",
    ),
    LakeTopicConfig(
        name="mode",
        default="append",
        choices=("append", "upsert", "cdc"),
        doc="append: a row for each record. upsert: the last record of a key is its row, and one without value "
        "deletes it. cdc: as upsert, and the record says which operation it is.",
    ),
    LakeTopicConfig(
        name="key.columns",
        default="",
        type="list",
        doc="The columns that tell rows apart, for upsert and cdc; whole ones, without parts.",
    ),
    LakeTopicConfig(
        name="operation.field",
        default="",
        doc="The field that says which operation a record of cdc is: c, r, u, or d to delete.",
    ),
    LakeTopicConfig(
        name="envelope",
        default="none",
        choices=("none", "debezium"),
        doc="debezium: rows are before and after of a change event; its op says which operation it is.",
    ),
    LakeTopicConfig(
        name="on.schema.change",
        default="stop",
        choices=_POLICIES,
        doc="A schema changes in a way that the table can't: stop and wait for a person, send the record to the "
        "table beside it, or leave the column null.",
    ),
    LakeTopicConfig(
        name="on.bad.record",
        default="stop",
        choices=_POLICIES,
        doc="A record can't be read: stop and wait for a person, send it to the table beside it, or keep nulls.",
    ),
    LakeTopicConfig(
        name="snapshot.retention.ms",
        default=str(5 * 24 * 3600 * 1000),
        type="long",
        doc="How long a version of the table can be read before maintenance removes it.",
    ),
    LakeTopicConfig(
        name="snapshot.retention.count",
        default="10",
        type="int",
        doc="So many of the newest versions stay whatever their age.",
    ),
)

#: Under these a table keeps what was written, whatever it is.
RAW_CONFIGS: Mapping[str, str] = {"value.format": "raw", "key.format": "raw", "mode": "append"}

_DEFAULTS = {config.name: config.default for config in TOPIC_CONFIGS}
#: One part of a partition spec. Whoever may set topic configs writes it, and it is read on the
#: event loop: nothing in it may be matched in more than one way.
_FIELD = re.compile(
    r"(?P<transform>year|month|day|hour|bucket|truncate) ?\( ?(?:(?P<width>[0-9]{1,9}) ?, ?)?(?P<of>[^(),]+)\)"
    r"|(?P<column>[^(),]+)"
)
_BLANKS = re.compile(r"\s+")
#: So many columns divide or sort a table at most.
_PARTS_MAX = 32
_TABLE = re.compile(r"[A-Za-z0-9_]+")
#: A table's name is also a folder's, with more behind it, and catalogs and file systems take 255 bytes.
_TABLE_LENGTH_MAX = 200


class Field(NamedTuple):
    """A part of a partition spec."""

    column: str
    transform: str = "identity"
    width: int = 0


class Order(NamedTuple):
    """A part of a sort order."""

    column: str
    descending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfigs:
    """The configs of one topic, read."""

    table: str
    raw: bool
    partition_by: tuple[Field, ...]
    partition_files_max: int
    sort_by: tuple[Order, ...]
    target_file_bytes: int
    mode: Literal["append", "upsert", "cdc"]
    key_columns: tuple[str, ...]
    on_schema_change: str
    on_bad_record: str
    snapshot_retention_ms: int
    snapshot_retention_count: int

    @classmethod
    def of(cls, configs: Mapping[str, str]) -> TableConfigs:
        """The configs of a topic, some of which may be missing. Raises ConfigError with one sentence."""
        unknown = sorted(set(configs) - set(_DEFAULTS))
        if unknown:
            raise ConfigError(
                f"there is no such topic config: name=penstock.lake.{one_line(unknown[0], 200)}"
            )
        values = {**_DEFAULTS, **configs}
        for config in TOPIC_CONFIGS:
            if config.choices and values[config.name] not in config.choices:
                raise _wrong(config.name, values, f"it is one of {', '.join(config.choices)}")
        table = values["table"]
        if not _TABLE.fullmatch(table.replace("{topic}", "t")) or len(table) > _TABLE_LENGTH_MAX:
            raise _wrong(
                "table", values, f"{_TABLE_LENGTH_MAX} letters, digits, _ and {{topic}} make a table's name"
            )
        read = cls(
            table=table,
            raw=all(values[name] == value for name, value in RAW_CONFIGS.items()),
            partition_by=_fields(values),
            partition_files_max=_number("partition.files.max", values, 1, 10_000),
            sort_by=_orders(values),
            target_file_bytes=_number("target.file.bytes", values, 2**20, 2**32),
            mode=values["mode"],  # type: ignore[arg-type] # one of the choices
            key_columns=tuple(_names(values["key.columns"])),
            on_schema_change=values["on.schema.change"],
            on_bad_record=values["on.bad.record"],
            snapshot_retention_ms=_number("snapshot.retention.ms", values, 0, 2**62),
            snapshot_retention_count=_number("snapshot.retention.count", values, 1, 2**31),
        )
        _check_modes(read, values)
        return read

    def table_of(self, topic: str) -> str:
        """The name of the topic's table; a long one is cut, and a hash tells it from others."""
        name = self.table.replace("{topic}", re.sub(r"[^A-Za-z0-9_]", "_", topic))
        if len(name) <= _TABLE_LENGTH_MAX:
            return name
        return f"{name[: _TABLE_LENGTH_MAX - 17]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def beside(configs: TableConfigs) -> TableConfigs:
    """The configs of the table for records that can't be read."""
    return replace(configs, raw=True, mode="append", key_columns=(), partition_by=(), sort_by=())


def fault_of(configs: Mapping[str, str]) -> str:
    """The contradiction between the configs of a topic, one sentence; empty if there is none."""
    try:
        TableConfigs.of(configs)
    except ConfigError as error:
        return str(error)
    return ""


def without_user(url: str) -> str:
    """The URL without user and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url)


def _check_modes(read: TableConfigs, values: Mapping[str, str]) -> None:
    if read.mode == "append" and read.key_columns:
        raise _wrong(
            "key.columns",
            values,
            "only tables of mode upsert and cdc have keys, leave it empty or set the mode",
        )
    if read.mode != "append" and not read.key_columns:
        raise _wrong(
            "mode", values, "rows have to be told apart, so key.columns must name at least one column"
        )
    if read.mode != "append" and values["value.format"] == "raw":
        raise _wrong("mode", values, "raw values have no columns to tell rows apart, set value.format")
    debezium = values["envelope"] == "debezium"
    if debezium and values["value.format"] not in ("json", "avro", "protobuf"):
        raise _wrong(
            "envelope", values, "change events of Debezium are json, avro or protobuf, set value.format"
        )
    if read.mode == "cdc" and not (debezium or values["operation.field"]):
        raise _wrong(
            "mode", values, "who says which operation a record is? set operation.field, or envelope=debezium"
        )
    if values["operation.field"] and (debezium or read.mode != "cdc"):
        raise _wrong("operation.field", values, "it is for mode=cdc without an envelope, which has its own")
    url = values["schema.registry.url"]
    if without_user(url) != url:  # whoever may describe a topic sees its configs
        raise ConfigError(
            "penstock.lake.schema.registry.url can't have a user in it, name the registry without one; the broker's "
            "configuration has it, with its user, in lake_compactor.registries"
        )
    for kind in ("value", "key"):
        form = values[f"{kind}.format"]
        source = url or values[f"{kind}.schema.file"]
        if form in ("avro", "protobuf") and not source:
            raise _wrong(
                f"{kind}.format",
                values,
                f"its schema must come from somewhere, set schema.registry.url or {kind}.schema.file",
            )


def _fields(values: Mapping[str, str]) -> tuple[Field, ...]:
    text = _BLANKS.sub(" ", values["partition.by"]).strip()
    found: list[Field] = []
    at = 0
    while at < len(text):
        match = _FIELD.match(text, at)
        end = match.end() if match else at
        rest = text[end : end + 2].lstrip()
        if match is None or (rest and not rest.startswith(",")) or len(found) == _PARTS_MAX:
            raise _wrong("partition.by", values, "write columns, or transforms as in day(ts), bucket(16, id)")
        transform, width = match["transform"] or "identity", int(match["width"] or 0)
        if (width > 0) != (transform in ("bucket", "truncate")) or (match["width"] and not width):
            raise _wrong(
                "partition.by",
                values,
                "bucket and truncate have a number in front of their column, others none",
            )
        field = Field((match["of"] or match["column"]).strip(), transform, width)
        if any((field.column, field.transform) == (one.column, one.transform) for one in found):
            raise _wrong(
                "partition.by", values, f"a part stands there twice, column={one_line(field.column, 200)}"
            )
        found.append(field)
        at = text.find(",", end) + 1 or len(text)
        at += text[at : at + 1] == " "
    return tuple(found)


def _orders(values: Mapping[str, str]) -> tuple[Order, ...]:
    found: list[Order] = []
    for item in _names(values["sort.by"]):
        column, _, direction = item.partition(" ")
        if direction.strip().lower() not in ("", "asc", "desc"):
            raise _wrong("sort.by", values, "after a column comes asc, desc or nothing")
        if any(column == one.column for one in found) or len(found) == _PARTS_MAX:
            raise _wrong("sort.by", values, f"a column stands there once, and at most {_PARTS_MAX} do")
        found.append(Order(column, direction.strip().lower() == "desc"))
    return tuple(found)


def _names(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _number(name: str, values: Mapping[str, str], least: int, most: int) -> int:
    text = values[name]
    try:
        if name.endswith(".ms"):
            number = int(text) if text.isdecimal() else parse_duration_ms(text)
        else:
            number = parse_size(text)
    except (ValueError, TypeError):
        raise _wrong(name, values, "it is a number") from None
    if not least <= number <= most:
        raise _wrong(name, values, f"it is between {least} and {most}")
    return number


def _wrong(name: str, values: Mapping[str, str], why: str) -> ConfigError:
    return ConfigError(f"penstock.lake.{name} can't be that, {why}: value={one_line(values[name], 200)}")
