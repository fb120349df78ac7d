"""The Kafka API keys that Penstock answers or sends, under a public name."""

from __future__ import annotations

__all__ = ("ApiKey",)

from penstock.wire.messages._index import ApiKey
