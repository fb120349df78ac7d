"""The Kafka wire protocol without I/O: message codecs, error codes and record batches.

Message classes live in ``penstock.wire.messages.<api>``, one set of classes over all versions of an API.
"""

from __future__ import annotations

__all__ = (
    "ZERO_UUID",
    "ApiKey",
    "Buffer",
    "DecodeError",
    "EncodeError",
    "ErrorCode",
    "Message",
    "Records",
    "RequestHeader",
    "VersionRange",
    "decode_data",
    "decode_request",
    "decode_request_header",
    "decode_response",
    "encode_data",
    "encode_request",
    "encode_response",
    "is_flexible",
    "is_supported",
    "supported_versions",
)

from penstock.wire._runtime import ZERO_UUID, Buffer, DecodeError, EncodeError, Records
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.registry import (
    Message,
    RequestHeader,
    VersionRange,
    decode_data,
    decode_request,
    decode_request_header,
    decode_response,
    encode_data,
    encode_request,
    encode_response,
    is_flexible,
    is_supported,
    supported_versions,
)
