"""What the plugin can do, and its settings: the catalog, the place of tables, what is the same for all of them."""

from __future__ import annotations

__all__ = ("CAPABILITIES", "Settings")

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator

from penstock.spi.lake import LakeCompactorCapabilities
from penstock.spi.settings import Duration, Size
from penstock.spi.settings import Settings as BaseSettings

CAPABILITIES = LakeCompactorCapabilities(maintains=True, shareable=True)


class Settings(BaseSettings):
    """Settings of iceberg_compactor."""

    catalog: Mapping[str, str] = Field(
        default={},
        description="The catalog, by pyiceberg's own properties: { type = 'rest', uri = 'https://...' }; also sql, "
        "glue and hive. Without type and uri: an SQLite file in the data directory. The warehouse's properties stand "
        "here, too: { s3.endpoint = 'http://...' }. Credentials come from where pyiceberg and the cloud's SDK look "
        "for them.",
    )
    catalog_name: str = Field(
        default="penstock",
        min_length=1,
        description="The catalog's name, which some catalogs keep with each table.",
    )
    catalog_timeout: Duration = Field(
        default=30 * 1000,
        ge=1000,
        description="How long the catalog may be silent before a call of it is given up; the table is tried again.",
    )
    warehouse: str = Field(
        default="lake/warehouse",
        min_length=1,
        description="Where tables are, a URL such as s3://bucket/lake, or a directory; a relative one is below the "
        "data directory. A REST catalog decides itself; it gets this if it isn't the default.",
    )
    namespace: str = Field(
        default="kafka",
        pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$",
        description="The namespace of tables; it is made if there is none.",
    )
    schemas: str = Field(
        default="lake/schemas",
        min_length=1,
        description="The directory of schemas that topic configs can name; a relative one is below the data "
        "directory. Nothing outside of it is read.",
    )
    registries: tuple[str, ...] = Field(
        default=(),
        description="URLs of the schema registries that topic configs can name; no other is asked. User and password "
        "stand here: https://user:password@host.",
    )
    buffer: Size = Field(
        default=64 * 2**20,
        ge=2**20,
        le=2**30,
        description="Rows of one table that are kept in memory, at most an eighth of the allocator's; beyond that a "
        "file is written before the commit, and upserts are committed early.",
    )
    threads: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Threads for all tables: they decode, write files and talk to the catalog.",
    )
    own_process: bool = Field(
        default=True,
        description="Whether a broker makes tables in a process of its own, of lower priority, so that producers "
        "don't wait for it.",
    )
    orphan_grace: Duration = Field(
        default=3 * 24 * 3600 * 1000,
        ge=0,
        description="How old a file has to be that no snapshot knows before maintenance removes it. Another writer "
        "may need that long between a file and its commit.",
    )

    @field_validator("catalog", mode="before")
    @classmethod
    def _flatten(cls, given: Any) -> Any:
        """Take ``s3.endpoint = "..."``, which TOML reads as a table, for the property of this name."""
        return dict(_flat(given)) if isinstance(given, Mapping) else given


def _flat(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield prefix + key, str(value).lower()
        elif isinstance(value, int | float):
            yield prefix + key, str(value)
        else:
            yield prefix + key, value
