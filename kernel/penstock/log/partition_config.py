"""The topic configs that act on a partition, parsed once, so that an append looks at numbers. Pure."""

from __future__ import annotations

__all__ = ("PartitionConfig",)

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.log.topic_config import LZ4_FAST_LEVEL
from penstock.wire.compression import CODEC_NONE, codec_id
from penstock.wire.validation import BatchRules


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionConfig:
    """The topic configs that act on a partition, parsed."""

    #: What is checked of a batch.
    rules: BatchRules
    retention_ms: int
    retention_bytes: int
    #: The codec that stored batches have, and its level; None: the producer's.
    codec: int | None = None
    codec_level: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, str], *, validate_full: bool) -> PartitionConfig:
        """From effective topic config values (validated already)."""
        codec, codec_level = _codec_and_level(values)
        is_compacted = "compact" in values["cleanup.policy"]
        is_deleted = bool(values["cleanup.policy"])  # nothing: records are kept, whatever the limits say
        return cls(
            rules=BatchRules(
                max_message_bytes=int(values["max.message.bytes"]),
                is_log_append_time=values["message.timestamp.type"] == "LogAppendTime",
                before_max_ms=int(values["message.timestamp.before.max.ms"]),
                after_max_ms=int(values["message.timestamp.after.max.ms"]),
                keys_required=is_compacted,
                full=validate_full or is_compacted,  # which records have keys, no header says
            ),
            retention_ms=int(values["retention.ms"]) if is_deleted else -1,
            retention_bytes=int(values["retention.bytes"]) if is_deleted else -1,
            codec=codec,
            codec_level=codec_level,
        )


def _codec_and_level(values: Mapping[str, str]) -> tuple[int | None, int | None]:
    name = values["compression.type"]
    if name == "producer":
        return None, None
    if name == "uncompressed":
        return CODEC_NONE, None
    level = int(values[f"compression.{name}.level"]) if f"compression.{name}.level" in values else None
    if name == "lz4" and level == LZ4_FAST_LEVEL:
        level = 0
    return codec_id(name), level
