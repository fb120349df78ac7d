"""The settings of the plugin."""

from __future__ import annotations

__all__ = ("WRITES_MAX", "Settings")

from pydantic import Field

from penstock.spi.settings import Duration, Size
from penstock.spi.settings import Settings as BaseSettings

#: Who takes a log over looks so far behind its end for objects that were on their way.
WRITES_MAX = 64


class Settings(BaseSettings):
    """Settings of wal_s3. The log is at PREFIX, then the node's id; so they are the same on every node."""

    prefix: str = Field(
        default="wal/",
        pattern=r"^[!-~]+/$",
        description="Keys of the logs begin with this; it ends in a slash. The node's id follows.",
    )
    object_bytes_max: Size = Field(
        default=8 * 2**20,
        ge=4096,
        le=64 * 2**20,
        description="Largest object under load; a larger entry gets one of its own.",
    )
    entry_bytes_max: Size = Field(default=64 * 2**20, ge=4096, le=2**30, description="Largest entry.")
    linger: Duration = Field(
        default=50,
        ge=0,
        le=10_000,
        description="What comes in while a request is under way waits so long for company; a lone append doesn't.",
    )
    writes_max: int = Field(
        default=8, ge=1, le=WRITES_MAX, description="Objects that are put at the same time."
    )
    hedge_after: Duration = Field(
        default=0,
        ge=0,
        description="A put that takes longer is made a second time beside it; 0: when it is slower than 95 % were.",
    )
