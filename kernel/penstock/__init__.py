"""Penstock: a Kafka-compatible streaming broker that keeps its data in object storage."""

from __future__ import annotations

__all__ = ("Broker", "SyncBroker", "__version__")

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from penstock.broker import Broker, SyncBroker


def __getattr__(name: str) -> Any:
    """Import the broker on first use, so that ``import penstock.spi`` in a plugin stays light."""
    if name in {"Broker", "SyncBroker"}:
        from penstock import broker

        return getattr(broker, name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
