"""Finding the codec of (API key, version), and whole requests and responses with their headers.

Codec modules are imported on first use of their API; afterwards a call costs one dict lookup.
"""

from __future__ import annotations

__all__ = (
    "Message",
    "RequestHeader",
    "VersionRange",
    "data_encoder",
    "decode_data",
    "decode_request",
    "decode_request_header",
    "decode_response",
    "encode_body",
    "encode_data",
    "encode_request",
    "encode_response",
    "is_flexible",
    "is_supported",
    "smallest_element",
    "supported_versions",
)

import struct
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec

from penstock.wire._runtime import (
    MALFORMED,
    Buffer,
    DecodeError,
    EncodeError,
    Writer,
    bad_length,
    check_text,
    skip_tags,
)
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages._index import INDEX
from penstock.wire.splice import EncodedBody

Message: TypeAlias = msgspec.Struct
"""Any request, response or data message; ``penstock.wire.messages.<api>`` has the concrete classes."""

_T = TypeVar("_T", bound=msgspec.Struct)
_Decode: TypeAlias = Callable[[memoryview, int, int], tuple[Any, int]]
_Encode: TypeAlias = Callable[[Any, Writer], None]

_request_decoders: dict[tuple[int, int], _Decode] = {}
_response_decoders: dict[tuple[int, int], tuple[_Decode, bool]] = {}
_request_encoders: dict[tuple[int, int], tuple[_Encode, bool]] = {}
_response_encoders: dict[tuple[int, int], tuple[_Encode, bool]] = {}

_unpack_header = struct.Struct(">hhih").unpack_from
_unpack_int32 = struct.Struct(">i").unpack_from
_unpack_int16 = struct.Struct(">h").unpack_from
_pack_prefix = struct.Struct(">ii").pack
_pack_request_prefix = struct.Struct(">ihhi").pack
_pack_int16 = struct.Struct(">h").pack
_pack_int32_into = struct.Struct(">i").pack_into

_ENCODE_FAULTS = (struct.error, TypeError, ValueError, AttributeError, OverflowError)


class VersionRange(NamedTuple):
    """The versions of an API with a codec, both ends included."""

    low: int
    high: int


class RequestHeader(msgspec.Struct, frozen=True, gc=False):
    """Header of a request, and where in the frame its body starts."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    body_pos: int


def supported_versions(api_key: int) -> VersionRange | None:
    """The versions with a codec, None for an unknown API."""
    entry = INDEX.get(api_key)
    return None if entry is None else VersionRange(entry[1], entry[2])


def is_supported(api_key: int, version: int) -> bool:
    """Whether there is a codec."""
    entry = INDEX.get(api_key)
    return entry is not None and entry[1] <= version <= entry[2]


def is_flexible(api_key: int, version: int) -> bool:
    """Whether this version has tagged fields (KIP-482), hence request header v2; False without a codec."""
    entry = INDEX.get(api_key)
    return entry is not None and entry[3] <= version <= entry[2]


def smallest_element(api_key: int, version: int) -> int:
    """The fewest bytes of an element of a request's arrays, but for those of numbers; 0 if it has none.

    For supported versions only.
    """
    _, low, _, _, sizes = INDEX[api_key]
    return sizes[version - low]


def decode_request_header(buf: Buffer) -> RequestHeader:
    """Read the header of a request frame (without length prefix).

    For an API version without a codec, ``body_pos`` is where the client id ends: enough to name the request when
    closing the connection. Of ApiVersions, which is answered with UNSUPPORTED_VERSION then (KIP-511), a header of
    any later version is read whole, as Kafka does.

    Raises:
        DecodeError: the header is malformed.
    """
    view = buf if type(buf) is memoryview else memoryview(buf)
    end = len(view)
    try:
        api_key, version, correlation_id, size = _unpack_header(view, 0)
        client_id = None
        pos = 10
        if size >= 0:
            pos += size
            if pos > end:
                raise bad_length("RequestHeader.client_id", size, end - 10)
            client_id = str(view[10:pos], "utf-8", "kafka")
            check_text("RequestHeader.client_id", size, client_id)
        entry = INDEX.get(api_key)
        if (
            entry is not None
            and entry[3] <= version
            and (version <= entry[2] or api_key == ApiKey.API_VERSIONS)
        ):
            count = view[pos]
            pos += 1
            if count:
                pos = skip_tags(view, pos, end, count)
    except MALFORMED as error:
        raise DecodeError(f"request header is malformed: bytes={end}") from error
    return RequestHeader(api_key, version, correlation_id, client_id, pos)


def decode_request(
    api_key: int, version: int, buf: Buffer, pos: int = 0, *, lenient: bool = False
) -> Message:
    """Read a request's body, from ``pos`` to the end of ``buf``. Bytes and records are views of ``buf``.

    ``lenient`` ignores bytes behind the message, as Kafka does: librdkafka's Metadata v13 for all topics ends
    in three of them.

    Raises:
        DecodeError: no codec, malformed, or (unless ``lenient``) bytes left over.
    """
    decode = _request_decoders.get((api_key, version))
    if decode is None:
        _load(api_key, version, DecodeError)
        decode = _request_decoders[api_key, version]
    message: Message
    if lenient:
        view = buf if type(buf) is memoryview else memoryview(buf)
        message, _ = decode(view, pos, len(view))
        return message
    message = _decode_all(decode, buf, pos)
    return message


def decode_response(api_key: int, version: int, buf: Buffer) -> tuple[int, Message]:
    """Read a response frame (without length prefix); returns (correlation id, message).

    Raises:
        DecodeError: no codec, malformed, or bytes left over.
    """
    found = _response_decoders.get((api_key, version))
    if found is None:
        _load(api_key, version, DecodeError)
        found = _response_decoders[api_key, version]
    decode, has_tags = found
    view = buf if type(buf) is memoryview else memoryview(buf)
    pos = 4
    try:
        (correlation_id,) = _unpack_int32(view, 0)
        if has_tags:
            pos = skip_tags(view, 5, len(view), view[4])
    except MALFORMED as error:
        raise DecodeError(f"response header is malformed: bytes={len(view)}") from error
    return correlation_id, _decode_all(decode, view, pos)


def encode_response(api_key: int, version: int, correlation_id: int, msg: Message) -> list[Buffer]:
    """A whole response frame, length prefix included, as buffers for ``writelines``; records aren't copied.

    Raises:
        EncodeError: no codec, or a value the version can't carry.
    """
    encode, has_tags = _response_encoder(api_key, version)
    out = Writer(bytearray(_pack_prefix(0, correlation_id)))
    if has_tags:
        out.data.append(0)
    if type(msg) is EncodedBody:
        _pack_int32_into(out.data, 0, len(out.data) - 4 + sum(map(len, msg.buffers)))
        return [out.data, *msg.buffers]
    return _encode_frame(encode, out, msg, version)


def encode_body(api_key: int, version: int, msg: Message) -> bytes:
    """A response without frame and header, to be taken apart (``penstock.wire.splice``).

    Raises:
        EncodeError: no codec, or a value the version can't carry.
    """
    encode, _ = _response_encoder(api_key, version)
    out = Writer(bytearray())
    _run_encoder(encode, out, msg, version)
    return bytes(out.data)


def _response_encoder(api_key: int, version: int) -> tuple[_Encode, bool]:
    found = _response_encoders.get((api_key, version))
    if found is None:
        _load(api_key, version, EncodeError)
        found = _response_encoders[api_key, version]
    return found


def encode_request(
    api_key: int, version: int, correlation_id: int, client_id: str | None, msg: Message
) -> list[Buffer]:
    """A whole request frame, length prefix included, as buffers for ``writelines``; records aren't copied.

    Raises:
        EncodeError: no codec, or a value the version can't carry.
    """
    found = _request_encoders.get((api_key, version))
    if found is None:
        _load(api_key, version, EncodeError)
        found = _request_encoders[api_key, version]
    encode, has_tags = found
    out = Writer(bytearray(_pack_request_prefix(0, api_key, version, correlation_id)))
    if client_id is None:
        out.data += b"\xff\xff"
    else:
        # Kafka keeps the client id an int16 string in header v2 (RequestHeader.json, flexibleVersions none).
        text = client_id.encode()
        if len(text) > 0x7FFF:
            raise EncodeError(f"client id is too long: bytes={len(text)}")
        out.data += _pack_int16(len(text))
        out.data += text
    if has_tags:
        out.data.append(0)
    return _encode_frame(encode, out, msg, version)


def decode_data(message_type: type[_T], buf: Buffer, *, lenient: bool = False) -> tuple[int, _T]:
    """Read a data message stored behind its int16 version; returns (version, message).

    For ConsumerProtocolSubscription/Assignment and the keys and values of __consumer_offsets.
    ``lenient`` reads a newer version as the newest known one and ignores what follows it, as Kafka does for the
    consumer protocol, whose bytes come from other clients.

    Raises:
        DecodeError: unknown version, malformed, or bytes left over.
    """
    decoders: dict[int, _Decode] = sys.modules[message_type.__module__].DECODERS
    view = buf if type(buf) is memoryview else memoryview(buf)
    if len(view) < 2:
        raise DecodeError(f"data message has no version: message={message_type.__name__} bytes={len(view)}")
    (version,) = _unpack_int16(view, 0)
    decode = decoders.get(min(version, max(decoders)) if lenient else version)
    if decode is None:
        raise DecodeError(
            f"data message has an unknown version: message={message_type.__name__} version={version}"
        )
    if lenient:
        message, _ = decode(view, 2, len(view))
        return version, message
    return version, _decode_all(decode, view, 2)


def encode_data(version: int, msg: Message) -> bytes:
    """A data message behind its int16 version, the inverse of :func:`decode_data`.

    Raises:
        EncodeError: unknown version, or a value the version can't carry.
    """
    encoders: dict[int, _Encode] = sys.modules[type(msg).__module__].ENCODERS
    encode = encoders.get(version)
    if encode is None:
        raise EncodeError(f"data message has no such version: message={type(msg).__name__} version={version}")
    out = Writer(bytearray(_pack_int16(version)))
    _run_encoder(encode, out, msg, version)
    return bytes(out.data)


def data_encoder(version: int, encoders: Mapping[int, _Encode]) -> Callable[[Any], bytes]:
    """:func:`encode_data` of one version of one data message, found once; ``encoders`` are those of its module.

    What the version can't carry raises whatever the codec meets: its caller has checked that.
    """
    encode, prefix = encoders[version], _pack_int16(version)

    def encoded(msg: Any) -> bytes:
        out = Writer(bytearray(prefix))
        encode(msg, out)
        return bytes(out.data)

    return encoded


def _decode_all(decode: _Decode, buf: Buffer, pos: int) -> Any:
    view = buf if type(buf) is memoryview else memoryview(buf)
    end = len(view)
    message, pos = decode(view, pos, end)
    if pos != end:
        raise DecodeError(
            f"bytes are left over after the message: message={type(message).__name__} bytes_left={end - pos}"
        )
    return message


def _encode_frame(encode: _Encode, out: Writer, msg: Message, version: int) -> list[Buffer]:
    _run_encoder(encode, out, msg, version)
    size = out.size() - 4
    if size > 0x7FFF_FFFF:
        raise EncodeError(f"message exceeds a frame: message={type(msg).__name__} bytes={size}")
    _pack_int32_into(out.data, 0, size)
    return out.segments()


def _run_encoder(encode: _Encode, out: Writer, msg: Message, version: int) -> None:
    try:
        encode(msg, out)
    except _ENCODE_FAULTS as error:
        raise EncodeError(
            f"message holds a value its version can't carry: "
            f"message={type(msg).__name__} version={version} reason={error}"
        ) from error


def _load(api_key: int, version: int, error: type[DecodeError] | type[EncodeError]) -> None:
    """Import one API's codecs and enter all its versions into the tables."""
    if not is_supported(api_key, version):
        raise error(f"there is no codec for this request: api_key={api_key} version={version}")
    module = import_module(f"penstock.wire.messages.{INDEX[api_key][0]}")
    for each in range(INDEX[api_key][1], INDEX[api_key][2] + 1):
        flexible = is_flexible(api_key, each)
        # Clients can't know the version an ApiVersions answer comes in, so its header stays v0 (KIP-511).
        response_tags = flexible and api_key != ApiKey.API_VERSIONS
        _request_decoders[api_key, each] = module.REQUEST_DECODERS[each]
        _request_encoders[api_key, each] = (module.REQUEST_ENCODERS[each], flexible)
        _response_decoders[api_key, each] = (module.RESPONSE_DECODERS[each], response_tags)
        _response_encoders[api_key, each] = (module.RESPONSE_ENCODERS[each], response_tags)
