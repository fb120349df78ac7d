"""Protobuf messages to Arrow, by descriptors.

A field without presence (proto3's plain fields) has its default where it wasn't set, one with presence is null. Enums
are strings, the number as text where it has no name; ``uint32`` is a long and ``uint64`` a decimal(20,0);
``Timestamp`` is a timestamp, ``Duration`` a long of microseconds, wrappers what they wrap, and ``Struct``, ``Value``
and ``ListValue`` JSON in a string. A message inside itself is binary there: its encoding.
"""

from __future__ import annotations

__all__ = ("ProtobufCodec", "compile_files", "descriptor_pool", "files_of", "message_at")

import base64
import binascii
import contextlib
import errno
import functools
import importlib
import importlib.util
import logging
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from penstock.errors import UnavailableError
from penstock_iceberg_compactor.decode._decoder import (
    MEMORY_MAX,
    Decoded,
    RefusedError,
    memory_of,
    panics_caught,
    parts,
    swelling,
)
from penstock_iceberg_compactor.decode.evolution import conform
from penstock_iceberg_compactor.decode.waits import check_wanted, ended_with_call

_F = FieldDescriptor
_SCALARS = {
    _F.TYPE_DOUBLE: pa.float64(),
    _F.TYPE_FLOAT: pa.float32(),
    _F.TYPE_INT64: pa.int64(),
    _F.TYPE_SINT64: pa.int64(),
    _F.TYPE_SFIXED64: pa.int64(),
    _F.TYPE_UINT64: pa.decimal128(20, 0),
    _F.TYPE_FIXED64: pa.decimal128(20, 0),
    _F.TYPE_INT32: pa.int32(),
    _F.TYPE_SINT32: pa.int32(),
    _F.TYPE_SFIXED32: pa.int32(),
    _F.TYPE_UINT32: pa.int64(),
    _F.TYPE_FIXED32: pa.int64(),
    _F.TYPE_BOOL: pa.bool_(),
    _F.TYPE_STRING: pa.string(),
    _F.TYPE_BYTES: pa.binary(),
    _F.TYPE_ENUM: pa.string(),
}
_WRAPPERS = tuple(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_JSON = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue")
#: Files that every schema may import.
_WELL_KNOWN = tuple(
    f"google/protobuf/{name}.proto"
    for name in ("any", "duration", "empty", "field_mask", "struct", "timestamp", "wrappers", "descriptor")
)
logger = logging.getLogger("penstock.lake.iceberg")

#: Too long, a folder, or below what is no folder.
_NO_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_DEPTH_MAX = 32
#: Of what protoc says of a schema.
_TOLD_MAX = 4096
_CHILD = "the process that compiles a protobuf schema"
#: Of what it says when it failed itself: the end of a traceback.
_CAUSE_MAX = 200
#: What protoc's library logs beside that.
_NOISE = re.compile(r"^(?:WARNING: All log messages .*|[IW]\d{4} .*)$", re.MULTILINE)
#: A schema that uses its messages in each other has few lines and any number of columns.
_COLUMNS_MAX = 10_000
#: The years 1 to 9999, in microseconds: what a ``Timestamp`` may be. Beyond +-292,000 years ptars starts anew.
_TIMES = (-62_135_596_800_000_000, 253_402_300_799_999_999)

#: A type and what makes a Python object for it of a field's value.
_Column = tuple[pa.DataType, Callable[[Any], Any]]


class ProtobufCodec:
    """Decodes values that are messages of one type."""

    def __init__(self, message: Descriptor, *, row_wise: bool = False) -> None:
        self._class = message_factory.GetMessageClass(message)
        columns = _Columns()
        self._type, self._convert = columns.message(message, ())
        self._merges = columns.merges
        self._swell = swelling(self._type)
        self._handler: Any = None
        self._list_class: type[Message] | None = None
        if columns.bulk and not row_wise and importlib.util.find_spec("ptars") is not None:
            import ptars

            config = ptars.PtarsConfig(
                timestamp_unit="us",
                enum_repr="string",
                list_nullable=True,
                map_nullable=True,
                list_value_nullable=True,
                map_value_nullable=True,
            )
            try:
                with panics_caught():
                    self._pool = ptars.HandlerPool([message.file], config)
                    self._handler = self._pool.get_for_message(message)
            except Exception as error:  # noqa: BLE001 - it refuses more schemas than Protobuf does
                logger.info("messages are read one by one: name=%s cause=%s", message.full_name, error)
            else:
                self._list_class = _list_class(message)

    @property
    def type(self) -> pa.DataType:
        """The struct type of rows."""
        return self._type

    def decode(self, items: pa.Array) -> Decoded:
        """Decode an array of binary."""
        bulk = None if self._handler is None else self._bulk
        return parts(items, self._type, bulk, self._row, swell=self._swell)

    def memory_of(self, items: pa.Array) -> int:
        """What rows of these items may take in memory."""
        return memory_of(items, self._type, self._swell)

    def _row(self, item: bytes) -> Any:
        if len(item) * self._swell > MEMORY_MAX:
            _check_messages(item, self._class.DESCRIPTOR)
        try:
            return self._convert(self._class.FromString(item))
        except DecodeError:
            raise ValueError("it is no message of its schema") from None
        except UnicodeDecodeError:
            raise ValueError("it has a string that is no utf-8") from None

    def _check(self, items: pa.Array) -> None:
        """Refuse what Protobuf refuses, or merges: what becomes of a record mustn't depend on those beside it.

        ptars takes unknown groups that end as another one or nest too deep, and overlong tags; of a timestamp that is
        there twice it takes the last. Merged, a message is shorter than what it was read from.
        """
        if self._passes_together(items):
            return
        parse, merged = self._class.FromString, self._merges
        for at, item in enumerate(items.to_pylist()):
            try:
                message = parse(item)
            except (DecodeError, UnicodeDecodeError) as error:
                raise RefusedError(at) from error
            if merged and message.ByteSize() != len(item):
                raise RefusedError(at)

    def _passes_together(self, items: pa.Array) -> bool:
        """Whether all of them pass, by one call of the parser, as the messages that another one has a list of.

        There is no object for each then. One that is nested as deep as the parser goes doesn't pass, being a level
        deeper here.
        """
        if self._list_class is None:
            return False
        lengths = pc.binary_length(items).dictionary_encode()
        heads = pa.array(
            [b"\x0a" + _varint(length) for length in lengths.dictionary.to_pylist()], pa.binary()
        )
        data = pc.binary_join_element_wise(heads.take(lengths.indices), items, b"").buffers()[2]
        try:
            parsed = self._list_class.FromString(memoryview(data))
        except (DecodeError, UnicodeDecodeError):
            return False
        # Sizes of all together tell nothing: one that grows makes up for one that is merged. Maps in another order
        # cost a look at each.
        return not self._merges or parsed.SerializePartialToString() == memoryview(data).cast("B")

    def _bulk(self, items: pa.Array) -> pa.Array:
        if items.null_count or not len(items):
            raise RefusedError
        self._check(items)
        try:
            with panics_caught():
                batch = self._handler.array_to_record_batch(items)
            rows = pa.StructArray.from_arrays(batch.columns, fields=list(batch.schema))
            rows.validate(full=True)
            made = conform(rows, self._type)
        except Exception as error:
            raise RefusedError from error
        if made.bad is not None or len(rows) != len(items) or not _in_range(made.rows):
            raise RefusedError
        if not _is_merged(made.rows, self._class.DESCRIPTOR):
            raise RefusedError
        return made.rows


def _check_messages(data: bytes, message: Descriptor) -> None:
    """Raise ValueError if the messages in it take too much memory: an empty one takes all of its fields.

    What isn't a message's encoding is left to the parser.
    """
    taken, at = 0, 0
    inside: list[tuple[int, Descriptor | None]] = [(len(data), message)]
    try:
        while inside:
            end, kind = inside[-1]
            if at >= end:
                inside.pop()
                continue
            tag, at = _read_varint(data, at)
            wire = tag & 7
            field = None if kind is None else kind.fields_by_number.get(tag >> 3)
            below = None if field is None else field.message_type
            if wire == 4:
                inside.pop()
            elif wire == 3:
                inside.append((end, below))
            elif wire == 2:
                size, at = _read_varint(data, at)
                if below is None:
                    at += size
                else:
                    inside.append((min(end, at + size), below))
            elif wire == 0:
                _, at = _read_varint(data, at)
            else:
                at += {1: 8, 5: 4}[wire]
            if below is not None:
                taken += 8 * len(below.fields)
                if taken > MEMORY_MAX:
                    raise ValueError(f"its messages would take too much memory: bytes_max={MEMORY_MAX}")
    except (IndexError, KeyError):
        return


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while data[at] >= 0x80:
        found |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise IndexError
    return found | data[at] << shift, at + 1


def _list_class(message: Descriptor) -> type[Message] | None:
    """Messages that have a list of ``message`` as their field 1; None if the schema has something of its name."""
    name = f"List{message.full_name.encode().hex()}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"penstock/{name}.proto",
        package="penstock_lists",
        syntax="proto2",
        dependency=[message.file.name],
    )
    file.message_type.add(name=name).field.add(
        name="items",
        number=1,
        type=_F.TYPE_MESSAGE,
        label=_F.LABEL_REPEATED,
        type_name=f".{message.full_name}",
    )
    pool, full_name = message.file.pool, f"penstock_lists.{name}"
    try:
        with contextlib.suppress(TypeError):  # it is there, or something else is
            pool.AddSerializedFile(file.SerializeToString())
        found: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))
    except KeyError:
        return None
    return found


def _varint(number: int) -> bytes:
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


class _Columns:
    """The columns of messages, and whether ptars makes the same of them, if none has to be merged for that."""

    def __init__(self) -> None:
        self.bulk = True
        self.merges = False
        self._columns = 0

    def message(self, message: Descriptor, inside: tuple[str, ...]) -> _Column:
        if len(inside) >= _DEPTH_MAX:
            raise ValueError(f"the schema is nested too deep: depth_max={_DEPTH_MAX}")
        inside = (*inside, message.full_name)
        fields = []
        self._columns += len(message.fields)
        if self._columns > _COLUMNS_MAX:
            raise ValueError(f"the schema has too many columns: columns_max={_COLUMNS_MAX}")
        for field in message.fields:
            column = self._field(field, inside)
            if not (pa.types.is_struct(column[0]) and not column[0].num_fields):  # no table has such a column
                fields.append((field.name, field.has_presence, *column))

        def convert(value: Message) -> dict[str, Any]:
            return {
                name: None if presence and not value.HasField(name) else of(getattr(value, name))
                for name, presence, _, of in fields
            }

        return pa.struct([(name, kind) for name, _, kind, _ in fields]), convert

    def _field(self, field: FieldDescriptor, inside: tuple[str, ...]) -> _Column:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            key_type, of_key = self._single(key, inside)
            value_type, of_value = self._single(value, inside)
            if pa.types.is_struct(value_type) and not value_type.num_fields:
                return pa.struct([]), _same
            return (
                pa.map_(key_type, value_type),
                lambda found: [(of_key(key), of_value(found[key])) for key in found],
            )
        kind, of = self._single(field, inside)
        if not field.is_repeated:
            return kind, of
        if pa.types.is_struct(kind) and not kind.num_fields:
            return kind, of
        return pa.list_(pa.field("element", kind)), lambda found: [of(one) for one in found]

    def _single(self, field: FieldDescriptor, inside: tuple[str, ...]) -> _Column:
        message = field.message_type
        if message is None:
            if field.enum_type is not None:
                names = {number: one.name for number, one in field.enum_type.values_by_number.items()}
                return pa.string(), lambda number: names.get(number, str(number))
            return _SCALARS[field.type], _same
        if field.type == _F.TYPE_GROUP:
            self.bulk = False
        name = message.full_name
        if name == "google.protobuf.Timestamp":
            self.merges = True
            return pa.timestamp("us", "UTC"), _timestamp
        if name in _WRAPPERS:
            self.bulk = False  # where one is there twice, ptars takes the last instead of merging them
            kind, _ = self._single(message.fields[0], inside)
            return kind, lambda found: found.value
        if name == "google.protobuf.Duration":
            self.bulk = False
            return pa.int64(), _microseconds
        if name in _JSON:
            self.bulk = False
            return pa.string(), _json
        if name in inside:
            self.bulk = False
            return pa.binary(), lambda found: found.SerializeToString(deterministic=True)
        return self.message(message, inside)


def _same(value: Any) -> Any:
    return value


def _timestamp(value: Any) -> int:
    found = value.seconds * 10**6 + int(value.nanos / 1000)
    if not _TIMES[0] <= found <= _TIMES[1]:
        raise ValueError("it has a timestamp out of range")
    return int(found)


def _in_range(array: pa.Array) -> bool:
    """Whether all timestamps are such, as Protobuf has them."""
    types = pa.types
    if types.is_timestamp(array.type):
        found = pc.min_max(array.cast(pa.int64())).as_py()
        return found["min"] is None or bool(_TIMES[0] <= found["min"] and found["max"] <= _TIMES[1])
    if types.is_struct(array.type):
        return all(map(_in_range, array.flatten()))
    if types.is_map(array.type):
        return _in_range(array.items)
    return not types.is_list(array.type) or _in_range(array.flatten())


def _is_merged(rows: pa.Array, message: Descriptor) -> bool:
    """Whether of each oneof one field is set, and keys of maps differ: of several the last counts, ptars has all."""
    columns = dict(zip((field.name for field in rows.type), rows.flatten(), strict=True))
    for choice in message.oneofs:
        members = [
            columns[field.name].is_valid().cast(pa.int8()) for field in choice.fields if field.name in columns
        ]
        if len(members) > 1 and (pc.max(functools.reduce(pc.add, members)).as_py() or 0) > 1:
            return False
    for field in message.fields:
        column, inner = columns.get(field.name), field.message_type
        if column is None or inner is None:
            continue
        if inner.GetOptions().map_entry:
            if _repeats_a_key(column):
                return False
            column, inner = column.items, inner.fields_by_name["value"].message_type
        elif field.is_repeated:
            column = column.flatten()
        if inner is not None and pa.types.is_struct(column.type) and not _is_merged(column, inner):
            return False
    return True


def _repeats_a_key(maps: pa.MapArray) -> bool:
    if not len(maps.keys):
        return False
    lists = pa.ListArray.from_arrays(maps.offsets, maps.keys)
    pairs = pa.table({"row": pc.list_parent_indices(lists), "key": lists.flatten()})
    return bool(pairs.group_by(["row", "key"]).aggregate([]).num_rows < pairs.num_rows)


def _microseconds(value: Any) -> int:
    found = value.seconds * 10**6 + int(value.nanos / 1000)
    if not -(2**63) <= found < 2**63:
        raise ValueError("it has a duration out of range")
    return int(found)


def _json(value: Message) -> str:
    try:
        return str(json_format.MessageToJson(value, indent=None))
    except (json_format.Error, ValueError):
        raise ValueError("it has a value that json doesn't know") from None


def files_of(data: bytes) -> list[descriptor_pb2.FileDescriptorProto]:
    """The files of a file descriptor set, as ``protoc --descriptor_set_out`` writes it. Raises ValueError."""
    try:
        files = list(descriptor_pb2.FileDescriptorSet.FromString(data).file)
    except DecodeError:
        files = []
    if not files:
        raise ValueError("the schema's file is no file descriptor set")
    return files


def descriptor_pool(files: Sequence[descriptor_pb2.FileDescriptorProto]) -> DescriptorPool:
    """A pool of files, in any order, and of the well-known ones that they import. Raises ValueError."""
    pool = DescriptorPool()
    by_name = {one.name: one for one in files}
    done: set[str] = set()

    def add(name: str, depth: int) -> None:
        if name in done:
            return
        done.add(name)
        file = by_name.get(name)
        if file is None:
            if name not in _WELL_KNOWN:
                raise ValueError(f"the schema imports a file that isn't there: name={name}")
            file = descriptor_pb2.FileDescriptorProto()
            module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
            module.DESCRIPTOR.CopyToProto(file)
        if depth > _DEPTH_MAX:
            raise ValueError(f"the schema's imports are nested too deep: depth_max={_DEPTH_MAX}")
        for imported in file.dependency:
            add(imported, depth + 1)
        try:
            pool.AddSerializedFile(file.SerializeToString())
        except TypeError as error:
            raise ValueError(f"the schema is no protobuf schema: {error}") from None

    for one in files:
        add(one.name, 0)
    return pool


def message_at(pool: DescriptorPool, file: str, indexes: Sequence[int]) -> Descriptor:
    """The message of a file by its indexes, as Confluent's wire format has them. Raises ValueError."""
    proto = descriptor_pb2.FileDescriptorProto()
    pool.FindFileByName(file).CopyToProto(proto)
    name, messages = proto.package, proto.message_type
    for index in indexes:
        if not 0 <= index < len(messages):
            raise ValueError(f"its schema has no message at these indexes: indexes={list(indexes)}")
        name = f"{name}.{messages[index].name}" if name else messages[index].name
        messages = messages[index].nested_type
    return pool.FindMessageTypeByName(name)


def compile_files(sources: Mapping[str, str]) -> list[descriptor_pb2.FileDescriptorProto]:
    """Descriptors of schemas by the names of their files: base64 of a descriptor, or .proto text.

    Text is compiled by ``grpcio-tools`` where that is installed. Raises ValueError with the reason.
    """
    files, texts = [], {}
    for name, source in sources.items():
        try:
            file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(source, validate=True))
        except (binascii.Error, ValueError, DecodeError):
            texts[name] = source
        else:
            file.name = name
            files.append(file)
    if not texts:
        return files
    if importlib.util.find_spec("grpc_tools") is None:
        raise ValueError(
            "the schema is .proto text, and nothing that compiles it is installed: pip install grpcio-tools"
        )
    return files + _compiled(texts, files)


def _written(folder: Path, name: str, text: str) -> Path:
    """The file of this name in ``folder``. Raises ValueError if it can't be one, or leads elsewhere."""
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise ValueError(f"the schema has a file name that leads elsewhere: name={name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        if error.errno not in _NO_NAME:
            raise
        raise ValueError(f"the schema has a file name that no file can have: name={name[:100]}") from None
    return path


#: Compiles in a process of its own: nested deep enough, a schema overflows the stack of the one that compiles it, or
#: keeps it busy for hours.
_COMPILER = """
import ctypes, resource, sys
from grpc_tools import protoc
getattr(ctypes.CDLL(None), "prctl", print)(1, 9)  # killed with who waits for it
for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, 20), (resource.RLIMIT_AS, 2**31)):
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
sys.exit(3 if protoc.main(["protoc", *sys.argv[1:]]) else 0)
"""
#: How it says that protoc refuses the schema; any other code is its own failure.
_REFUSED = 3


def _compile(arguments: Sequence[str], folder: str) -> None:
    """Run protoc. Raises ValueError with what it says, without ``folder``, UnavailableError if it couldn't say it."""
    command = [sys.executable, "-P", "-c", _COMPILER, *arguments]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except OSError as error:  # of processes, descriptors or memory
        raise UnavailableError(f"{_CHILD} can't be started: cause={error}") from None
    with process, ended_with_call(process.kill):
        assert process.stderr is not None
        told = process.stderr.read(_TOLD_MAX).decode(errors="replace").replace(f"{folder}/", "")
        while process.stderr.read(_TOLD_MAX):
            pass  # it says more than anybody reads
    said = " ".join(_NOISE.sub("", told).split())
    if process.returncode == -signal.SIGKILL:
        check_wanted()
        raise UnavailableError(f"{_CHILD} was ended by SIGKILL")
    if process.returncode < 0:
        raise ValueError("the schema can't be compiled: it is nested too deep, or too large")
    if process.returncode == _REFUSED:
        raise ValueError(f"the schema can't be compiled: {said}")
    if process.returncode:
        raise UnavailableError(f"{_CHILD} failed: cause={said[-_CAUSE_MAX:]}")


def _compiled(
    texts: Mapping[str, str], others: Sequence[descriptor_pb2.FileDescriptorProto]
) -> list[descriptor_pb2.FileDescriptorProto]:
    spec = importlib.util.find_spec("grpc_tools")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    include = Path(spec.submodule_search_locations[0]) / "_proto"
    with tempfile.TemporaryDirectory(prefix="penstock-protoc-") as folder:
        root = Path(folder)
        # Whole paths: a name is whatever somebody registered, and protoc takes "--python_out=..." for an option.
        sources = [_written(root / "in", name, text) for name, text in texts.items()]
        known = root / "known"
        known.write_bytes(descriptor_pb2.FileDescriptorSet(file=others).SerializeToString())
        out = root / "out"
        command = [f"-I{root / 'in'}", f"-I{include}", f"--descriptor_set_out={out}"]
        if others:
            command.append(f"--descriptor_set_in={known}")
        _compile([*command, *map(str, sources)], str(root / "in"))
        made = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return list(made.file)
