"""A producer whose latency is measured while something else goes on beside it."""

from __future__ import annotations

__all__ = ("MESSAGE_BYTES", "PARTITIONS", "probe", "probe_load")

from typing import Any, Final

MESSAGE_BYTES: Final = 1024
PARTITIONS: Final = 4


def probe(bootstrap_servers: str, topic: str, *, linger_ms: int) -> dict[str, Any]:
    """What ``Crew.hire`` takes for such a producer."""
    config = {
        "bootstrap.servers": bootstrap_servers,
        "acks": "all",
        "linger.ms": str(linger_ms),
        "queue.buffering.max.kbytes": "32768",
    }
    return {"index": 0, "topic": topic, "config": config}


def probe_load(*, json: bool = False) -> dict[str, Any]:
    """What it sends: messages of ``MESSAGE_BYTES``, half of them random bytes, or JSON objects; without keys."""
    payload = {
        "size": MESSAGE_BYTES,
        "file": None,
        "json": json,
        "random_ratio": 0.5,
        "pool": 100,
        "seed": 0,
    }
    return {"payload": payload, "keys": "NO_KEY"}
