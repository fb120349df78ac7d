"""What the comparison with the floor means for the budgets of design, section 8."""

from __future__ import annotations

__all__ = ("FLOOR_PART", "LATENCY_RATIO", "SMALL_REQUESTS_PER_S", "of_floor")

import statistics
from collections.abc import Iterable
from typing import Any

#: 200 KiB requests: at least this part of the bare server's throughput.
FLOOR_PART = 0.7
#: 1 KiB requests a second and process, pipelined.
SMALL_REQUESTS_PER_S = 20_000
#: One request at a time takes at most this many times as long as with the bare server, which needs one group
#: commit of the medium, and the way there and back.
LATENCY_RATIO = 2.0


def of_floor(rows: Iterable[dict[str, Any]]) -> str:
    """A line for each budget that the rows of ``floor.compare`` bear on."""
    lines = []
    for row in rows:
        ratio = row["ratio"]
        if row["case"] == "200 KiB":
            lines.append(
                _line("200 KiB requests, part of the floor", f"{ratio:.0%}", ">= 70%", ratio >= FLOOR_PART)
            )
            beside = row["ratio_with_objects"]
            lines.append(
                f"{'  of a floor that writes objects too':<40}{beside:>14.0%}  (tells the disk's part)"
            )
        elif row["case"] == "1 KiB":
            rate = statistics.median(result["requests_per_s"] for result in row["penstock"])
            lines.append(
                _line("1 KiB requests", f"{rate:,.0f}/s", ">= 20,000/s", rate >= SMALL_REQUESTS_PER_S)
            )
        elif row["case"] == "1 KiB, depth 1":
            lines.append(
                _line("p50 at depth 1, to the floor's", f"{ratio:.2f}x", "<= 2x", ratio <= LATENCY_RATIO)
            )
    return "\n".join(lines)


def _line(what: str, measured: str, budget: str, met: bool) -> str:
    return f"{what:<40}{measured:>14}{budget:>14}  {'met' if met else 'MISSED'}"
