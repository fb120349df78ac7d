"""Settings of the plugin."""

from __future__ import annotations

__all__ = ("Settings",)

from pydantic import Field

from penstock.spi.settings import Duration, Size
from penstock.spi.settings import Settings as BaseSettings


class Settings(BaseSettings):
    """Where the log is in the object store, and how to look for entries of other brokers."""

    prefix: str = Field(
        default="metadata/",
        pattern=r"^[!-~]+/$",
        description="keys of the log begin with this; it ends in a slash",
    )
    snapshots_kept: int = Field(
        default=2, ge=2, le=100, description="snapshots kept; entries below the oldest kept one are deleted"
    )
    entry_bytes_max: Size = Field(
        default=2**20, ge=1024, le=64 * 2**20, description="the largest entry; an append of more is refused"
    )
    follow: bool = Field(
        default=False,
        description="look for entries of other brokers; a lone broker leaves it off, and costs nothing when idle",
    )
    follow_interval_ms_min: Duration = Field(
        default=100, gt=0, description="how soon to look again after an entry of another broker was met"
    )
    follow_interval_ms_max: Duration = Field(
        default=2000,
        gt=0,
        description="how seldom to look when nothing happens; the interval doubles up to this",
    )
