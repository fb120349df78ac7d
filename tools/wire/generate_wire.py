"""Generate the Kafka wire codecs in kernel/penstock/wire/messages from the schemas in kernel/penstock/wire/schema.

    python tools/wire/generate_wire.py generate  write the modules
    python tools/wire/generate_wire.py check     fail if ``generate`` would change anything

A schema file describes one API (or one data format): its messages, each with fields in wire order; ``versions``,
``nullable``, ``flexible`` and ``tagged`` are ranges ("3-13", "9+", "4"). Most were written by
tools/wire/extract_wire_schema.py; those of __consumer_offsets by hand.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_DIR = ROOT / "kernel/penstock/wire/schema"
MESSAGES_DIR = ROOT / "kernel/penstock/wire/messages"

FIXED = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "int64": "q",
    "float64": "d",
    "uuid": "16s",
}
#: Numbers whose arrays may be decoded into flat ones.
FLAT = ("int8", "int16", "int32", "int64")
PYTHON_TYPE = {"bool": "bool", "float64": "float", "uuid": "bytes", "string": "str", "bytes": "Buffer"}
IMPLICIT_DEFAULT: dict[str, Any] = {"bool": False, "float64": 0.0, "string": "", "bytes": "", "records": ""}
VARIABLE = ("string", "bytes", "records")
#: Strings up to here stay below Kafka's limit of 32,767 bytes even if each byte is replaced by the three of U+FFFD.
SHORT_TEXT_BYTES = 32_767 // 3
#: How many elements are taken of what may be megabytes long, where an element has three bytes or a few, and takes a
#: hundred times that in memory. No client sends as many.
COUNT_MAX = {
    "JoinGroupRequest.protocols": 1_000,
    "SyncGroupRequest.assignments": 20_000,
    "OffsetCommitRequest.topics": 20_000,
    "OffsetCommitRequest.topics.partitions": 100_000,
    "DescribeTransactionsRequest.transactional_ids": 100_000,
    "FindCoordinatorRequest.coordinator_keys": 100_000,
    # those of one resource are looked at in one go
    "AlterConfigsRequest.resources.configs": 10_000,
    "CreateTopicsRequest.topics.configs": 10_000,
    "IncrementalAlterConfigsRequest.resources.configs": 10_000,
}


# --- the model -----------------------------------------------------------------------------------------------


def parse_range(text: str, low: int, high: int) -> frozenset[int]:
    """The versions of a range text within [low, high]."""
    if text == "none":
        return frozenset()
    if text.endswith("+"):
        return frozenset(range(max(int(text[:-1]), low), high + 1))
    first, _, last = text.partition("-")
    return frozenset(range(int(first), int(last or first) + 1))


@dataclass(frozen=True)
class Field:
    """One field over all versions of its message."""

    name: str
    type: str  # element type, without "[]"
    is_array: bool
    versions: frozenset[int]
    nullable: frozenset[int]
    tag: int | None
    tagged: frozenset[int]
    flexible: frozenset[int] | None  # only where it differs from the message's
    default: Any
    has_default: bool

    @property
    def is_struct(self) -> bool:
        return self.type not in FIXED and self.type not in VARIABLE

    @property
    def may_be_null(self) -> bool:
        return bool(self.nullable)


@dataclass(frozen=True)
class Message:
    """One message over all its versions. ``role`` prefixes the function names ("request_", "response_" or "")."""

    name: str
    role: str
    low: int
    high: int
    flexible: frozenset[int]
    fields: tuple[Field, ...]
    structs: dict[str, tuple[Field, ...]]
    class_names: dict[str, str] = field(default_factory=dict)

    @property
    def versions(self) -> range:
        return range(self.low, self.high + 1)


def load_field(raw: dict[str, Any], low: int, high: int) -> Field:
    kind: str = raw["type"]
    versions = parse_range(raw.get("versions", f"{low}+"), low, high)
    return Field(
        name=raw["name"],
        type=kind.removeprefix("[]"),
        is_array=kind.startswith("[]"),
        versions=versions,
        nullable=parse_range(raw.get("nullable", "none"), low, high) & versions,
        tag=raw.get("tag"),
        tagged=parse_range(raw.get("tagged", "none"), low, high) & versions,
        flexible=parse_range(raw["flexible"], low, high) if "flexible" in raw else None,
        default=raw.get("default"),
        has_default="default" in raw,
    )


def load_message(raw: dict[str, Any]) -> Message:
    low, _, last = raw["versions"].partition("-")
    first, high = int(low), int(last or low)

    def fields(items: list[dict[str, Any]]) -> tuple[Field, ...]:
        return tuple(load_field(item, first, high) for item in items)

    role = raw.get("role", "")
    return Message(
        name=raw["name"],
        role=f"{role}_" if role else "",
        low=first,
        high=high,
        flexible=parse_range(raw["flexible"], first, high),
        fields=fields(raw["fields"]),
        structs={name: fields(items) for name, items in raw.get("structs", {}).items()},
    )


def load_api(raw: dict[str, Any]) -> list[Message]:
    """The messages of one schema file, struct classes named; a name both messages define gets its message's name."""
    messages = [load_message(item) for item in raw["messages"]]
    for message in messages:
        others = {name for other in messages if other is not message for name in other.structs}
        for name in message.structs:
            message.class_names[name] = message.name + name if name in others else name
    return messages


# --- code generation: shared ---------------------------------------------------------------------------------


class Code:
    """Lines with indentation, fresh variable names and the module's precompiled structs."""

    def __init__(self, module: Module, depth: int = 1) -> None:
        self.module = module
        self.lines: list[str] = []
        self.depth = depth
        self.used: dict[str, int] = {}

    def add(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def fresh(self, stem: str) -> str:
        count = self.used.get(stem, 0)
        self.used[stem] = count + 1
        return f"{stem}_{count}" if count else f"{stem}_"

    def body(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Module:
    """What one generated module needs besides its functions."""

    unpackers: dict[str, str] = field(default_factory=dict)
    packers: dict[str, str] = field(default_factory=dict)
    default_structs: set[str] = field(default_factory=set)

    def unpack(self, codes: list[str]) -> str:
        return self._name(self.unpackers, "_unpack_", codes)

    def pack(self, codes: list[str]) -> str:
        return self._name(self.packers, "_pack_", codes)

    @staticmethod
    def _name(table: dict[str, str], stem: str, codes: list[str]) -> str:
        joined = "".join(codes)
        return table.setdefault(joined, stem + joined.replace("?", "t"))


def width(codes: list[str]) -> int:
    return struct.calcsize(">" + "".join(codes))


def is_compact(message: Message, item: Field, version: int) -> bool:
    return version in (message.flexible if item.flexible is None else item.flexible)


def fields_at(message: Message, struct_name: str | None, version: int) -> tuple[list[Field], list[Field]]:
    """(untagged in wire order, tagged in ascending tag order) fields at one version."""
    items = message.fields if struct_name is None else message.structs[struct_name]
    present = [item for item in items if version in item.versions]
    tagged = sorted((item for item in present if version in item.tagged), key=lambda item: item.tag or 0)
    return [item for item in present if version not in item.tagged], tagged


def min_size(message: Message, item: Field, version: int, element: bool = False) -> int:
    """The fewest bytes a field (or one element of an array) takes."""
    compact = is_compact(message, item, version)
    if item.is_array and not element:
        return 1 if compact else 4
    if item.type in FIXED:
        return width([FIXED[item.type]])
    if item.type in VARIABLE:
        return 1 if compact else (2 if item.type == "string" else 4)
    if version in item.nullable and not item.is_array:
        return 1
    return struct_min_size(message, item.type, version)


def struct_min_size(message: Message, name: str, version: int) -> int:
    untagged, _ = fields_at(message, name, version)
    return sum(min_size(message, item, version) for item in untagged) + (version in message.flexible)


def smallest_element(message: Message, version: int) -> int:
    """The fewest bytes that an element of the message's arrays takes, 0 if it has none.

    Numbers aside: they are decoded together.
    """
    fields = [item for items in (message.fields, *message.structs.values()) for item in items]
    return min(
        (
            min_size(message, item, version, element=True)
            for item in fields
            if item.is_array and version in item.versions and (item.is_struct or item.type == "string")
        ),
        default=0,
    )


def python_type(message: Message, item: Field) -> str:
    if item.is_struct:
        base = message.class_names[item.type]
    elif item.type == "records":
        base = "Records" if message.role == "response_" else "Buffer"
    else:
        base = PYTHON_TYPE.get(item.type, "int")
    if item.is_array:
        base = f"{'Sequence' if item.type in FLAT else 'list'}[{base}]"
    return f"{base} | None" if item.may_be_null else base


def default_value(message: Message, item: Field) -> str:
    """The default as an expression that makes a fresh value."""
    if item.has_default and item.default is None:
        return "None"
    if item.is_array:
        return "[]"
    if item.is_struct:
        return f"{message.class_names[item.type]}()"
    if item.type == "uuid":
        return "ZERO_UUID"
    if item.type in ("bytes", "records"):
        return 'b""'
    value = item.default if item.has_default else IMPLICIT_DEFAULT.get(item.type, 0)
    return f'"{value}"' if isinstance(value, str) else repr(value)


# --- code generation: decoding -------------------------------------------------------------------------------


class Decoder:
    """Emits the decoder of one message at one version, nested structs inline."""

    def __init__(self, module: Module, message: Message, version: int) -> None:
        self.code = Code(module, depth=2)
        self.message = message
        self.version = version
        self.run: list[tuple[str, str]] = []

    def emit(self) -> str:
        result = self.struct(None, self.message.name)
        self.code.add("if pos > end:")
        self.code.add(f'    raise bad_length("{self.message.name}", 0, end - pos)')
        self.code.add(f"return {result}, pos")
        return self.code.body()

    def flush(self) -> None:
        """Read the pending run of fixed-width values in one unpack."""
        run, self.run = self.run, []
        if not run:
            return
        codes = [code for code, _ in run]
        if codes == ["B"]:
            self.code.add(f"{run[0][1]} = buf[pos]")
        else:
            names = ", ".join(name for _, name in run) if len(run) > 1 else f"({run[0][1]},)"
            self.code.add(f"{names} = {self.code.module.unpack(codes)}(buf, pos)")
        self.code.add(f"pos += {width(codes)}")

    def struct(self, name: str | None, path: str) -> str:
        """Emit one struct's fields; returns the expression that builds it."""
        untagged, tagged = fields_at(self.message, name, self.version)
        values = {item.name: self.field(item, path) for item in untagged}
        if self.version in self.message.flexible:
            count = self.code.fresh("tags")
            self.run.append(("B", count))
            self.flush()
            values |= self.tags(tagged, count, path)
        else:
            self.flush()
        class_name = self.message.name if name is None else self.message.class_names[name]
        items = self.message.fields if name is None else self.message.structs[name]
        given = ", ".join(f"{item.name}={values[item.name]}" for item in items if item.name in values)
        return f"{class_name}({given})"

    def tags(self, tagged: list[Field], count: str, path: str) -> dict[str, str]:
        code = self.code
        if not tagged:
            code.add(f"if {count}:")
            code.add(f"    pos = skip_tags(buf, pos, end, {count})")
            return {}
        values = {}
        for item in tagged:
            values[item.name] = name = code.fresh(item.name)
            code.add(f"{name}: {python_type(self.message, item)} = {default_value(self.message, item)}")
        code.add(f"if {count}:")
        code.depth += 1
        code.add(f"if {count} >= 128:")
        code.add(f"    {count}, pos = tag_count(buf, pos, {count})")
        code.add(f"for _ in range({count}):")
        code.depth += 1
        tag, stop = code.fresh("tag"), code.fresh("stop")
        code.add(f"{tag}, pos, {stop} = tag_header(buf, pos, end)")
        for index, item in enumerate(tagged):
            code.add(f"{'elif' if index else 'if'} {tag} == {item.tag}:")
            code.depth += 1
            self.value(item, f"{path}.{item.name}", values[item.name])
            code.add(f"if pos != {stop}:")
            code.add(f'    raise wrong_tag_size("{path}.{item.name}")')
            code.depth -= 1
        code.add("else:")
        code.add(f"    pos = {stop}")
        code.depth -= 2
        return values

    def field(self, item: Field, path: str) -> str:
        """Emit one untagged field; returns the variable that holds it."""
        name = self.code.fresh(item.name)
        if item.type in FIXED and not item.is_array:
            self.run.append((FIXED[item.type], name))
            return name
        if item.is_struct and not item.is_array and self.version not in item.nullable:
            return self.plain_struct(item, f"{path}.{item.name}", name)
        self.value(item, f"{path}.{item.name}", name)
        return name

    def plain_struct(self, item: Field, path: str, name: str) -> str:
        expression = self.struct(item.type, path)
        self.code.add(f"{name} = {expression}")
        return name

    def value(self, item: Field, path: str, name: str) -> None:
        """Emit reading one value into ``name``, its length prefix joining the pending run."""
        if item.is_array:
            self.array(item, path, name)
        elif item.type in FIXED:  # tagged
            self.run.append((FIXED[item.type], name))
            self.flush()
        elif item.is_struct:
            self.nullable_struct(item, path, name)
        else:
            self.blob(item, path, name, nullable=self.version in item.nullable)

    def nullable_struct(self, item: Field, path: str, name: str) -> None:
        if self.version not in item.nullable:  # tagged
            self.plain_struct(item, path, name)
            return
        flag = self.code.fresh("present")
        self.run.append(("b", flag))
        self.flush()
        if self.version not in item.tagged:
            self.code.add(f"{name}: {python_type(self.message, item)} = None")
        else:
            self.code.add(f"{name} = None")
        self.code.add(f"if {flag} >= 0:")  # KIP-893: -1 is null, 1 is present
        self.code.depth += 1
        self.plain_struct(item, path, name)
        self.code.depth -= 1

    def length(self, item: Field, legacy: str) -> str:
        """Emit the length prefix; returns the variable with the length, -1 (or less) for null."""
        compact = is_compact(self.message, item, self.version)
        size = self.code.fresh("size")
        self.run.append(("B" if compact else legacy, size))
        self.flush()
        if compact:
            self.code.add(f"if {size} >= 128:")
            self.code.add(f"    {size}, pos = uvarint_rest(buf, pos, {size})")
        return size

    def blob(self, item: Field, path: str, name: str, nullable: bool) -> None:
        code = self.code
        size = self.length(item, "h" if item.type == "string" else "i")
        less = " - 1" if is_compact(self.message, item, self.version) else ""
        if nullable:
            base = "str" if item.type == "string" else "memoryview"
            if self.version in item.tagged:
                code.add(f"if {size} == 0:")
            else:
                code.add(f"{name}: {base} | None")
                code.add(f"if {size} == 0:" if less else f"if {size} < 0:")
            code.add(f"    {name} = None")
            code.add("else:")
            code.depth += 1
        stop = code.fresh("stop")
        code.add(f"{stop} = pos + {size}{less}")
        code.add(f"if not pos <= {stop} <= end:")
        code.add(f'    raise bad_length("{path}", {size}{less}, end - pos)')
        if item.type == "string":
            code.add(f'{name} = str(buf[pos:{stop}], "utf-8", "kafka")')
            code.add(f"if {stop} - pos > {SHORT_TEXT_BYTES}:")
            code.add(f'    check_text("{path}", {stop} - pos, {name})')
        else:
            code.add(f"{name} = buf[pos:{stop}]")
        code.add(f"pos = {stop}")
        if nullable:
            code.depth -= 1

    def array(self, item: Field, path: str, name: str) -> None:
        code = self.code
        compact = is_compact(self.message, item, self.version)
        count = self.length(item, "i")
        if compact:
            code.add(f"{count} -= 1")
        element = min_size(self.message, item, self.version, element=True)
        if element < 1:
            raise ValueError(f"array elements take no bytes: field={path}")
        nullable = self.version in item.nullable
        check = f"{count} * {element} > end - pos" if element > 1 else f"{count} > end - pos"
        code.add(f"if {check}:" if nullable else f"if {count} < 0 or {check}:")
        code.add(f'    raise bad_length("{path}", {count}, end - pos)')
        if path in COUNT_MAX:
            code.add(f"if {count} > {COUNT_MAX[path]}:")
            code.add(f'    raise too_many("{path}", {count}, {COUNT_MAX[path]})')
        full = python_type(self.message, item)
        declared = (
            "" if self.version in item.tagged else f": {full if nullable else full.removesuffix(' | None')}"
        )
        if nullable:
            code.add(f"{name}{declared} = None")
            code.add(f"if {count} >= 0:")
            code.depth += 1
            declared = ""
        if item.type in FIXED:
            call = (
                "decode_uuid_array(buf, pos, %s)"
                if item.type == "uuid"
                else "decode_fixed_array(buf, pos, %s, %r)"
            )
            arguments = (count,) if item.type == "uuid" else (count, FIXED[item.type])
            code.add(f"{name}{declared} = " + (call % arguments).replace("'", '"'))
            code.add(f"pos += {count} * {element}" if element > 1 else f"pos += {count}")
        else:
            code.add(f"{name}{declared} = []")
            code.add(f"for _ in range({count}):")
            code.depth += 1
            if item.is_struct:
                code.add(f"{name}.append({self.struct(item.type, path)})")
            else:
                text = code.fresh("item")
                self.blob(item, path, text, nullable=False)
                code.add(f"{name}.append({text})")
            code.depth -= 1
        if nullable:
            code.depth -= 1


# --- code generation: encoding -------------------------------------------------------------------------------


class Encoder:
    """Emits the encoder of one message at one version, nested structs inline."""

    def __init__(self, module: Module, message: Message, version: int) -> None:
        self.code = Code(module)
        self.message = message
        self.version = version
        self.run: list[tuple[str, str]] = []
        self.out = "data"

    def emit(self) -> str:
        self.code.add("data = out.data")
        self.struct(None, "msg", self.message.name)
        self.flush()
        return self.code.body()

    def flush(self) -> None:
        run, self.run = self.run, []
        if not run:
            return
        codes = [code for code, _ in run]
        values = ", ".join(value for _, value in run if value)
        if codes == ["x"]:
            self.code.add(f"{self.out}.append(0)")
        else:
            self.code.add(f"{self.out} += {self.code.module.pack(codes)}({values})")

    def struct(self, name: str | None, source: str, path: str) -> None:
        untagged, tagged = fields_at(self.message, name, self.version)
        for item in untagged:
            self.value(item, f"{source}.{item.name}", f"{path}.{item.name}")
        if self.version not in self.message.flexible:
            return
        if tagged:
            self.tags(tagged, source, path)
        else:
            self.run.append(("x", ""))  # no tagged fields: their count, 0

    def tags(self, tagged: list[Field], source: str, path: str) -> None:
        self.flush()
        code, outer = self.code, self.out
        count, tags = code.fresh("tags"), code.fresh("tag_data")
        code.add(f"{count} = 0")
        code.add(f"{tags} = bytearray()")
        for item in tagged:
            assert item.type != "records", "records inside a tag can't be spliced"
            value = code.fresh(item.name)
            code.add(f"{value} = {source}.{item.name}")
            code.add(f"if {self.differs(item, value)}:")
            code.depth += 1
            code.add(f"{count} += 1")
            self.out = code.fresh("one_tag")
            code.add(f"{self.out} = bytearray()")
            self.value(item, value, f"{path}.{item.name}", bound=True)
            self.flush()
            code.add(f"{tags}.append({item.tag})")  # tags are below 128 in every schema
            code.add(f"encode_uvarint({tags}, len({self.out}))")
            code.add(f"{tags} += {self.out}")
            self.out = outer
            code.depth -= 1
        code.add(f"{outer}.append({count})")
        code.add(f"{outer} += {tags}")

    def differs(self, item: Field, value: str) -> str:
        """The test whether a tagged field differs from its default and must be written."""
        default = default_value(self.message, item)
        if default == "None":
            return f"{value} is not None"
        if item.is_array or default in ("False", '""', 'b""'):
            return f"{value} is None or {value}" if item.may_be_null else value
        if default == "True":
            return f"not {value}"
        if item.is_struct:
            class_name = self.message.class_names[item.type]
            self.code.module.default_structs.add(class_name)
            return f"{value} != _DEFAULT_{class_name}"
        return f"{value} != {default}"

    def value(self, item: Field, source: str, path: str, bound: bool = False) -> None:
        """Emit one field. ``bound``: ``source`` is already a local variable."""
        if item.type in FIXED and not item.is_array:
            self.run.append((FIXED[item.type], source))
            return
        code = self.code
        if not bound and (item.type != "string" or item.is_array or item.may_be_null):
            local = code.fresh(item.name)
            code.add(f"{local} = {source}")
            source = local
        nullable = self.version in item.nullable
        if bound and item.has_default and item.default is None:
            nullable = False  # a tagged null is its default, which isn't written
        elif item.may_be_null and not nullable:
            code.add(f"if {source} is None:")
            code.add(f'    raise missing("{path}")')
        if item.is_struct and not item.is_array:
            self.struct_value(item, source, path, nullable)
            return
        if nullable:
            self.null_branch(item, source)
            self.flush()
        if item.is_array:
            self.array(item, source, path)
        else:
            self.blob(item, source)
        self.flush()
        if nullable:
            code.depth -= 1

    def null_branch(self, item: Field, source: str) -> None:
        """Open ``if null: write null`` / ``else:``; the pending run goes out first."""
        self.flush()
        self.code.add(f"if {source} is None:")
        self.code.depth += 1
        if is_compact(self.message, item, self.version):
            self.code.add(f"{self.out}.append(0)")
        else:
            short = item.type == "string" and not item.is_array
            self.code.add(f'{self.out} += b"{(chr(92) + "xff") * (2 if short else 4)}"')
        self.code.depth -= 1
        self.code.add("else:")
        self.code.depth += 1

    def struct_value(self, item: Field, source: str, path: str, nullable: bool) -> None:
        if not nullable:
            self.struct(item.type, source, path)
            return
        self.flush()
        self.code.add(f"if {source} is None:")
        self.code.add(f"    {self.out}.append(255)")  # KIP-893: -1 is null, 1 is present
        self.code.add("else:")
        self.code.depth += 1
        self.code.add(f"{self.out}.append(1)")
        self.struct(item.type, source, path)
        self.flush()
        self.code.depth -= 1

    def length(self, item: Field, source: str, legacy: str, size: str | None = None) -> None:
        """Emit the length prefix of ``source`` (its length is the expression ``size``)."""
        size = size or f"len({source})"
        if not is_compact(self.message, item, self.version):
            self.run.append((legacy, size))
            return
        name = self.code.fresh("size")
        self.code.add(f"{name} = {size} + 1")
        self.code.add(f"if {name} < 128:")
        run = self.run
        self.code.depth += 1
        if run:  # the run and a length of one byte in one go
            self.run = [*run, ("B", name)]
            self.flush()
        else:
            self.code.add(f"{self.out}.append({name})")
        self.code.depth -= 1
        self.code.add("else:")
        self.code.depth += 1
        self.run = run
        self.flush()
        self.code.add(f"encode_uvarint({self.out}, {name})")
        self.code.depth -= 1

    def blob(self, item: Field, source: str) -> None:
        if item.type == "string":
            text = self.code.fresh("text")
            self.code.add(f"{text} = {source}.encode()")
            self.length(item, text, "h")
            self.flush()
            self.code.add(f"{self.out} += {text}")
        elif item.type == "records":
            several = self.message.role == "response_"  # a fetch answer may hand over batch by batch
            self.length(item, source, "i", f"records_size({source})" if several else f"len({source})")
            self.flush()
            self.code.add(f"out.splices.append((len({self.out}), {source}))")
        else:
            self.length(item, source, "i")
            self.flush()
            self.code.add(f"{self.out} += {source}")

    def array(self, item: Field, source: str, path: str) -> None:
        code = self.code
        self.length(item, source, "i")
        self.flush()
        if item.type in FIXED and item.type != "uuid":
            code.add(f'{self.out} += pack(f">{{len({source})}}{FIXED[item.type]}", *{source})')
            return
        one = code.fresh("one")
        code.add(f"for {one} in {source}:")
        code.depth += 1
        if item.is_struct:
            self.struct(item.type, one, path)
        elif item.type == "uuid":
            self.run.append(("16s", one))
        else:
            self.blob(item, one)
        self.flush()
        code.depth -= 1


# --- code generation: modules --------------------------------------------------------------------------------


def class_source(message: Message, name: str, items: tuple[Field, ...]) -> str:
    """One msgspec class: trees of plain values, so no cycle can form and gc=False is safe."""
    lines = [f"class {name}(msgspec.Struct, kw_only=True, gc=False):"]
    for item in items:
        default = default_value(message, item)
        if item.is_struct and default.endswith("()"):
            default = f"msgspec.field(default_factory={default[:-2]})"
        lines.append(f"    {item.name}: {python_type(message, item)} = {default}")
    if not items:
        lines.append("    pass")
    return "\n".join(lines)


def class_order(message: Message) -> list[str]:
    """Struct names, used before users, so that defaults resolve."""
    order: list[str] = []

    def visit(items: tuple[Field, ...]) -> None:
        for item in items:
            if item.is_struct and item.type not in order:
                visit(message.structs[item.type])
                if item.type not in order:
                    order.append(item.type)

    visit(message.fields)
    return order


def functions_source(module: Module, message: Message, verb: str) -> str:
    """The decoders or encoders of all versions; versions with one layout share one function."""
    parts: list[str] = []
    seen: dict[str, str] = {}
    table: list[str] = []
    for version in message.versions:
        emitter = Decoder if verb == "decode" else Encoder
        body = emitter(module, message, version).emit()
        name = f"{verb}_{message.role}v{version}"
        table.append(f"    {version}: {name},")
        if body in seen:
            parts.append(f"{name} = {seen[body]}")
            continue
        seen[body] = name
        if verb == "decode":
            parts.append(
                f"\ndef {name}(buf: memoryview, pos: int, end: int) -> tuple[{message.name}, int]:\n"
                f"    try:\n{body}\n"
                f'    except MALFORMED as error:\n        raise malformed("{message.name}", error) from error\n'
            )
        else:
            parts.append(f"\ndef {name}(msg: {message.name}, out: Writer) -> None:\n{body}\n")
    kind = f"tuple[{message.name}, int]" if verb == "decode" else "None"
    arguments = "memoryview, int, int" if verb == "decode" else f"{message.name}, Writer"
    constant = f"{message.role.upper()}{verb.upper()}RS"
    parts.append(
        f"\n{constant}: dict[int, Callable[[{arguments}], {kind}]] = {{\n" + "\n".join(table) + "\n}"
    )
    return "\n".join(parts)


RUNTIME_NAMES = """
MALFORMED ZERO_UUID Buffer Records Writer bad_length check_text decode_fixed_array decode_uuid_array
encode_uvarint malformed missing records_size skip_tags tag_count tag_header too_many uvarint_rest wrong_tag_size
"""


def module_source(raw: dict[str, Any]) -> str:
    """The whole text of one generated module."""
    module = Module()
    messages = load_api(raw)
    classes: list[str] = []
    functions: list[str] = []
    names: list[str] = []
    for message in messages:
        for name in class_order(message):
            classes.append(class_source(message, message.class_names[name], message.structs[name]))
            names.append(message.class_names[name])
        classes.append(class_source(message, message.name, message.fields))
        names.append(message.name)
        functions += [functions_source(module, message, verb) for verb in ("decode", "encode")]
    constants = [
        f'{name} = struct.Struct(">{codes}").unpack_from' for codes, name in module.unpackers.items()
    ]
    constants += [f'{name} = struct.Struct(">{codes}").pack' for codes, name in module.packers.items()]
    constants += [f"_DEFAULT_{name} = {name}()" for name in sorted(module.default_structs)]
    code = "\n\n\n".join([*classes, "\n".join(constants), *functions])
    runtime = [name for name in RUNTIME_NAMES.split() if re.search(rf"\b{name}\b", code)]
    pack = "from struct import pack\n" if re.search(r"(?<!\.)\bpack\(", code) else ""
    abc = "Callable, Sequence" if "Sequence[" in code else "Callable"
    exported = ", ".join(f'"{name}"' for name in sorted(names))
    title = raw["module"].replace("_", " ")
    key = f", API key {raw['api_key']}" if "api_key" in raw else ""
    return (
        f"# generated by tools/wire/generate_wire.py; do not edit\n"
        f'"""Messages and codecs of {title}{key}, from schema/{raw["module"]}.json."""\n\n'
        f"from __future__ import annotations\n\n__all__ = ({exported},)\n\n"
        f"import struct\nfrom collections.abc import {abc}\n{pack}\nimport msgspec\n\n"
        f"from penstock.wire._runtime import {', '.join(runtime)}\n\n\n{code}\n"
    )


def index_source(schemas: list[dict[str, Any]]) -> str:
    """The module that tells, without importing any codec, which APIs there are, and in which versions."""
    lines = []
    keys = []
    for raw in sorted((raw for raw in schemas if "api_key" in raw), key=lambda raw: int(raw["api_key"])):
        request, response = load_api(raw)
        if request.versions != response.versions or request.flexible != response.flexible:
            raise ValueError(f"request and response differ in versions: module={raw['module']}")
        flexible = min(request.flexible, default=request.high + 1)
        smallest = tuple(smallest_element(request, version) for version in request.versions)
        entry = (raw["module"], request.low, request.high, flexible, smallest)
        lines.append(f"    {raw['api_key']}: {entry!r},".replace("'", '"'))
        keys.append(f"    {raw['module'].upper()} = {raw['api_key']}")
    return (
        "# generated by tools/wire/generate_wire.py; do not edit\n"
        '"""The Kafka APIs with codecs."""\n\n'
        "from __future__ import annotations\n\n"
        '__all__ = ("INDEX", "ApiKey")\n\n'
        "from enum import IntEnum\n\n\n"
        'class ApiKey(IntEnum):\n    """API key of a request."""\n\n' + "\n".join(keys) + "\n\n\n"
        "#: API key -> (module, lowest version, highest version, first flexible version, and of each version the\n"
        "#: fewest bytes that an element of the request's arrays takes, 0 if there are none but of numbers).\n"
        "INDEX: dict[int, tuple[str, int, int, int, tuple[int, ...]]] = {\n" + "\n".join(lines) + "\n}\n"
    )


def render() -> dict[str, str]:
    """Every generated file: name -> text."""
    schemas = [json.loads(path.read_text()) for path in sorted(SCHEMA_DIR.glob("*.json"))]
    files = {f"{raw['module']}.py": module_source(raw) for raw in schemas}
    files["_index.py"] = index_source(schemas)
    files["__init__.py"] = (
        "# generated by tools/wire/generate_wire.py; do not edit\n"
        '"""One module per Kafka API: message classes and codecs of every version."""\n'
    )
    return files


def generate() -> None:
    """Write the generated modules and remove those whose schema is gone."""
    MESSAGES_DIR.mkdir(parents=True, exist_ok=True)
    files = render()
    for path in MESSAGES_DIR.glob("*.py"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (MESSAGES_DIR / name).write_text(text)


def check() -> int:
    """1 if the checked-in modules differ from what the schema files give, naming them."""
    stale = [name for name, text in render().items() if (MESSAGES_DIR / name).read_text() != text]
    if stale:
        sys.stderr.write(f"stale: run tools/wire/generate_wire.py generate: files={stale}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command == "generate":
        generate()
    elif command == "check":
        sys.exit(check())
    else:
        sys.exit(__doc__)
