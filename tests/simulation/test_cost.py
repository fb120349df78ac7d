"""What wal_s3 costs in simulated time: requests for a GiB, for an idle hour, and what grows in an hour."""

from __future__ import annotations

import pytest

from penstock_conformance.simulation import measure_cost


@pytest.mark.parametrize(
    ("rate_mib_s", "seconds", "entry_bytes", "requests_per_gib_max"),
    [(1, 60, 2**14, 15_000), (10, 15, 2**16, 1_400), (100, 3, 2**18, 320)],
)
def test_requests_for_a_gibibyte_are_few(
    rate_mib_s: float, seconds: float, entry_bytes: int, requests_per_gib_max: float
) -> None:
    """The faster it comes in, the fuller the objects; a put takes about 60 ms."""
    cost = measure_cost(rate_mib_s, seconds=seconds, entry_bytes=entry_bytes)
    assert cost.requests_per_gib < requests_per_gib_max, cost
    assert cost.latency_ms_p50 < 60 + 60 + 50, (
        "a put, what it waits for company, and what it waits for a put before"
    )
    assert cost.idle_requests == 0, "an idle log costs no request"
    assert cost.more_descriptors <= 0, cost


def test_nothing_grows_in_an_hour() -> None:
    """A lone writer, an entry a second, for an hour: no task, no descriptor, and no object more than is needed."""
    cost = measure_cost(0.001, seconds=3600, entry_bytes=1000)
    assert cost.more_tasks <= 0, cost
    assert cost.more_descriptors <= 0, cost
    assert cost.idle_requests == 0, cost
    assert cost.objects_left < 5000, "what is trimmed is deleted"
