"""What the plugin can do, and its settings: the catalog, the place of tables, what is the same for all of them."""

from __future__ import annotations

__all__ = ("CAPABILITIES", "Settings")

from collections.abc import Mapping

from pydantic import Field

from penstock.spi.lake import LakeCompactorCapabilities
from penstock.spi.settings import Duration, Size
from penstock.spi.settings import Settings as BaseSettings

CAPABILITIES = LakeCompactorCapabilities(maintains=True, shareable=True)


class Settings(BaseSettings):
    """Settings of iceberg_compactor."""

    catalog: Mapping[str, str] = Field(
        default={},
        description="The catalog, by pyiceberg's own properties: { type = 'rest', uri = 'https://...' }; also sql, "
        "glue and hive. Empty: an SQLite file in the data directory. Credentials come from where pyiceberg and the "
        "cloud's SDK look for them.",
    )
    catalog_name: str = Field(
        default="penstock",
        min_length=1,
        description="The catalog's name, which some catalogs keep with each table.",
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
        description="Rows of one table that are kept in memory; beyond that a file is written before the commit.",
    )
    threads: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Threads for all tables: they decode, write files and talk to the catalog.",
    )
    orphan_grace: Duration = Field(
        default=3 * 24 * 3600 * 1000,
        ge=0,
        description="How old a file has to be that no snapshot knows before maintenance removes it. Another writer "
        "may need that long between a file and its commit.",
    )
