"""What a long request is counted as, held against what decoding takes: each array of each API, of short elements."""

from __future__ import annotations

import tracemalloc

from tests.unit.server.test_portions import SHORT_NAMES, TABLE, arrays, filled
from tests.wire_requests import API_REQUESTS, encode_frame

from penstock.server.long_request import DECODED_PARTS, ELEMENT_BYTES
from penstock.wire.api_keys import ApiKey
from penstock.wire.elements import count_elements
from penstock.wire.registry import decode_request, decode_request_header

ELEMENTS = 100


def test_decoding_takes_little_more_than_half_of_what_a_request_is_counted_as() -> None:
    """The rest is for what a handler keeps and answers."""
    for key, api in TABLE.items():
        if key == ApiKey.PRODUCE:
            continue  # which is counted by partitions
        for version in {api.low, api.high}:
            for path in arrays(API_REQUESTS[key], version):
                value = filled(API_REQUESTS[key], version, path, SHORT_NAMES, ELEMENTS)
                frame = encode_frame(API_REQUESTS[key], version, 1, value)[4:]
                begin = decode_request_header(frame).body_pos
                decode_request(key, version, frame, begin)  # its codec is imported by that
                tracemalloc.start()
                try:
                    message = decode_request(key, version, frame, begin)
                    taken, _ = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                assert ELEMENTS <= count_elements(message) <= ELEMENTS + 2, (ApiKey(key).name, version, path)
                counted = max(DECODED_PARTS * len(frame), ELEMENT_BYTES * ELEMENTS)
                assert taken <= 0.6 * counted, (ApiKey(key).name, version, path)
