"""The settings of the plugin."""

from __future__ import annotations

__all__ = ("Replica", "Settings")

from pydantic import Field, field_validator

from penstock.spi.settings import Duration, PluginTable
from penstock.spi.settings import Settings as BaseSettings


class Replica(PluginTable):
    """A WAL that keeps all entries."""

    kind = "wal"


class Settings(BaseSettings):
    """Settings of wal_s3express_replicated."""

    @field_validator("replicas")
    @classmethod
    def _each_elsewhere(cls, replicas: tuple[Replica, ...]) -> tuple[Replica, ...]:
        if any(table in replicas[:at] for at, table in enumerate(replicas)):
            raise ValueError("each replica has a place of its own")
        return replicas

    replicas: tuple[Replica, ...] = Field(
        default=(
            Replica.model_validate({"plugin": "wal_s3", "prefix": "wal-replica/", "linger": "5ms"}),
            Replica.model_validate({"plugin": "wal_block", "path": "wal/replica-{node}.wal"}),
        ),
        min_length=2,
        max_length=5,
        description="The logs that keep every entry, each a table with plugin and its keys, in which {node} "
        "is the node's id. A zonal bucket is a wal_s3 with a table object_store.",
    )
    drop_after: Duration = Field(
        default=5000,
        ge=1,
        description="A replica that is so far behind the fastest one is dropped; until then, all wait for it.",
    )
    return_after: Duration = Field(
        default=10_000,
        ge=1,
        description="A replica that is out is tried again after so long, then after twice as long each time, up to "
        "16 times that.",
    )
