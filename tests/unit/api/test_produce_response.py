"""A response filled into a template is the one that the codec writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.api.produce_response import ResponseTemplates
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import PartitionProduceResponse, ProduceResponse, TopicProduceResponse
from penstock.wire.registry import encode_response

_INT64 = st.integers(-(2**63), 2**63 - 1)
_TEMPLATES = ResponseTemplates()


@given(
    version=st.integers(3, 13),
    correlation_id=st.integers(-(2**31), 2**31 - 1),
    topic=st.tuples(st.sampled_from(["a", "zz{|}", "x" * 249]), st.sampled_from([bytes(16), b"z" * 16])),
    index=st.integers(0, 2**31 - 1),
    offsets=st.tuples(_INT64, _INT64, _INT64),
)
def test_template_gives_what_the_codec_gives(
    version: int, correlation_id: int, topic: tuple[str, bytes], index: int, offsets: tuple[int, int, int]
) -> None:
    partition = PartitionProduceResponse(
        index=index, base_offset=offsets[0], log_append_time_ms=offsets[1], log_start_offset=offsets[2]
    )
    response = ProduceResponse(
        responses=[TopicProduceResponse(name=topic[0], topic_id=topic[1], partition_responses=[partition])]
    )
    for _ in range(2):
        assert _TEMPLATES.encode(version, correlation_id, topic, index, offsets) == b"".join(
            encode_response(ApiKey.PRODUCE, version, correlation_id, response)
        )


def test_table_of_templates_is_bounded() -> None:
    templates = ResponseTemplates()
    for index in range(5000):
        templates.encode(9, 1, ("t", bytes(16)), index, (0, -1, 0))
    assert len(templates._templates) <= 4096
