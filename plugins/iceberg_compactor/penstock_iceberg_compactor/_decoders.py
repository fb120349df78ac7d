"""The decoders that a topic's configs ask for."""

from __future__ import annotations

__all__ = ("decoding_reader",)

from collections.abc import Mapping

from penstock.errors import ConfigError
from penstock.spi.lake import LakeTopic
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._reading import Columns, Decoder, DecodingReader, Reader


def decoding_reader(table: Columns, configs: TableConfigs, topic: LakeTopic) -> Reader:
    """The reader of a table that isn't raw."""
    keys = None if topic.configs.get("key.format", "raw") == "raw" else _decoder("key", topic.configs)
    return DecodingReader(
        table, configs, configs.table_of(topic.name), _decoder("value", topic.configs), keys
    )


def _decoder(kind: str, configs: Mapping[str, str]) -> Decoder:
    from penstock_iceberg_compactor import decode

    form = configs.get(f"{kind}.format", "raw")
    if form == "json":
        return decode.JsonDecoder(decode.Fitter())
    if form in ("string", "raw"):
        return decode.PlainDecoder(text=form == "string")
    raise ConfigError(f"this format isn't there yet: name=penstock.lake.{kind}.format value={form}")
