"""The decoders that a topic's configs ask for."""

from __future__ import annotations

__all__ = ("decoding_reader",)

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock.spi.lake import LakeTopic
from penstock_iceberg_compactor._columns import RESERVED
from penstock_iceberg_compactor._configs import TOPIC_CONFIGS, TableConfigs, without_user
from penstock_iceberg_compactor._reading import Columns, DecodingReader
from penstock_iceberg_compactor.decode import (
    Decoder,
    DecodeSettings,
    Limits,
    Outage,
    SchemaRegistry,
    open_decoder,
)


def decoding_reader(
    table: Columns,
    configs: TableConfigs,
    topic: LakeTopic,
    schemas: Path,
    registries: Sequence[str],
    outages: dict[str, Outage],
) -> DecodingReader:
    """The reader of a table that isn't raw; ``schemas`` is the directory of schema files.

    ``registries`` are the URLs of registries that a topic can name, ``outages`` what is known of each.
    Raises ConfigError, also for a schema's file that can't be read.
    """
    values = {**{config.name: config.default for config in TOPIC_CONFIGS}, **topic.configs}
    url = values["schema.registry.url"]
    registry = _registry(url, registries, outages) if url else None
    nulls = configs.on_schema_change == "null"
    try:
        keys = (
            _decoder("key", values, schemas, registry, nulls=nulls) if values["key.format"] != "raw" else None
        )
        decoder = _decoder(
            "value",
            values,
            schemas,
            registry,
            nulls=nulls,
            debezium=values["envelope"] == "debezium",
            operation_field=values["operation.field"],
            timestamps=values["value.json.timestamps"] == "true",
            doubles=values["value.json.numbers"] == "double",
            limits=Limits(
                columns_max=int(values["value.json.columns.max"]),
                reserved=RESERVED,
                rows_depth=2 if values["envelope"] == "debezium" else 1,
            ),
        )
    except BaseException:
        if registry is not None:
            registry.close()
        raise
    return DecodingReader(table, configs, configs.table_of(topic.name), decoder, keys, registry)


def _registry(url: str, registries: Sequence[str], outages: dict[str, Outage]) -> SchemaRegistry:
    """The registry that a topic config names: whoever may set that, may not have the broker ask any other host."""
    for known in registries:
        if without_user(known).rstrip("/") == url.rstrip("/"):
            return SchemaRegistry(known, outage=outages.setdefault(known, Outage()))
    raise ConfigError(
        f"the broker may not ask this schema registry, add it to lake_compactor.registries in its configuration: "
        f"penstock.lake.schema.registry.url={without_user(url)}"
    )


def _schema_file(kind: str, name: str, schemas: Path) -> str:
    """The path of a schema that a topic config names: whoever may set that, may not read the host's other files."""
    if not name:
        return ""
    path = (schemas / name).resolve()
    if not path.is_relative_to(schemas.resolve()):
        raise ConfigError(
            f"penstock.lake.{kind}.schema.file has to name a file in the directory of schemas: "
            f"name={name} directory={schemas}"
        )
    return str(path)


def _decoder(
    kind: str, values: Mapping[str, str], schemas: Path, registry: SchemaRegistry | None, **more: Any
) -> Decoder:
    form = values[f"{kind}.format"]
    file = _schema_file(kind, values[f"{kind}.schema.file"], schemas)
    of_registry = form in ("json", "avro", "protobuf") and not file
    settings = DecodeSettings(
        format=form,  # type: ignore[arg-type] # one of the choices
        schema_file=file,
        message=values[f"{kind}.message"] if form == "protobuf" else "",
        registry=registry if of_registry else None,
        connect=kind == "key" and form == "json" and values["envelope"] == "debezium",
        **more,
    )
    try:
        return open_decoder(settings)
    except ConfigError as error:
        raise ConfigError(f"penstock.lake.{kind}.format can't be that, {error}") from None
