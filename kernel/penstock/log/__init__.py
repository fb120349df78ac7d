"""A Kafka partition on streams: offsets, leader epochs, producer state, retention.

Knows record batches and streams; knows neither sockets nor which WAL or store lies below.
"""

from __future__ import annotations

__all__ = ()
