"""What a long request is counted as, held against what it takes: each array of each API, of short elements."""

from __future__ import annotations

import tracemalloc

import pytest
from tests.depth import FULL
from tests.unit.api.fakes import FakeLogs, make_context
from tests.unit.coordinator.conftest import FakeClock, LedService, MemoryLog
from tests.unit.server.test_portions import SHORT_NAMES, TABLE, arrays, filled
from tests.wire_requests import API_REQUESTS, encode_frame

from penstock.coordinator.group_types import GroupSettings
from penstock.server.long_request import DECODED_PARTS
from penstock.wire.api_keys import ApiKey
from penstock.wire.elements import count_elements
from penstock.wire.registry import decode_request, decode_request_header, encode_response

ELEMENTS = 100
#: They wait for other members of their group.
WAITING = (ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP)


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
                counted = max(DECODED_PARTS * len(frame), api.element_bytes * ELEMENTS)
                assert taken <= 0.6 * counted, (ApiKey(key).name, version, path)


@pytest.mark.anyio
async def test_a_request_and_its_answer_take_no_more_than_it_is_counted_as() -> None:
    """Of those that take more than others in each run, of all in the full one."""
    default = min(api.element_bytes for api in TABLE.values())
    async with LedService(MemoryLog(), GroupSettings(), FakeClock(), lambda: "member") as groups:
        for key, api in TABLE.items():
            if key in {ApiKey.PRODUCE, *WAITING} or (api.element_bytes == default and not FULL):
                continue
            for path in arrays(API_REQUESTS[key], api.high):
                context = make_context(FakeLogs(), api.high, auto_create_topics=False)
                context.api.groups = groups
                value = filled(API_REQUESTS[key], api.high, path, SHORT_NAMES, ELEMENTS)
                frame = encode_frame(API_REQUESTS[key], api.high, 1, value)[4:]
                begin = decode_request_header(frame).body_pos
                for _ in range(2):  # what is imported, or remembered, is there the second time
                    tracemalloc.start()
                    try:
                        message = decode_request(key, api.high, frame, begin)
                        response = None if api.nowait is None else api.nowait(message, context)
                        if response is None:
                            assert api.handler is not None
                            response = await api.handler(message, context)
                        buffers = encode_response(key, api.high, 1, response)
                        _, taken = tracemalloc.get_traced_memory()
                    finally:
                        tracemalloc.stop()
                    del buffers, response
                counted = max(DECODED_PARTS * len(frame), api.element_bytes * count_elements(message))
                assert taken <= counted, (ApiKey(key).name, path)
