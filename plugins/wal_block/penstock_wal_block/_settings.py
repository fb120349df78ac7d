"""The settings of the plugin."""

from __future__ import annotations

__all__ = ("Settings",)

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from penstock.spi.settings import Settings as BaseSettings
from penstock.spi.settings import Size


class Settings(BaseSettings):
    """Settings of wal_block."""

    @field_validator("paths")
    @classmethod
    def _several(cls, paths: list[str], info: ValidationInfo) -> list[str]:
        if len(paths) == 1 or len(set(paths)) != len(paths):
            raise ValueError("two or more different places, or none and path")
        if paths and info.data.get("path") not in (None, cls.model_fields["path"].default):
            raise ValueError("path is set, too: take one of the two out")
        return paths

    path: str = Field(
        default="wal/penstock.wal",
        description=(
            "File or block device; relative paths start at the data directory, and {node_id} becomes the node's id."
        ),
    )
    paths: list[str] = Field(
        default_factory=list,
        max_length=8,
        description=(
            "Instead of path: two to eight files or devices of one size that the log is striped over, for the speed "
            "of all together. Their order is part of the log."
        ),
    )
    shared: bool = Field(
        default=False,
        description=(
            "Several hosts can have the block device attached, so that another one can take the log over; fixed when "
            "the log is created."
        ),
    )
    capacity: Size = Field(
        default=256 * 2**20,
        ge=2**20,
        description="Size of the file or device, fixed when the log is created. A file grows to it as it is used.",
    )
    reservations: Literal["off", "auto", "on"] = Field(
        default="off",
        description=(
            "With shared: have the device itself refuse writes of older owners (persistent reservations of NVMe and "
            "SCSI, as root); auto takes them where the device has them."
        ),
    )
    io: Literal["auto", "direct", "buffered"] = Field(
        default="auto",
        description="direct bypasses the page cache (O_DIRECT); auto takes it where the medium does.",
    )
    sync: Literal["auto", "fdatasync", "dsync"] = Field(
        default="auto",
        description=(
            "How a group becomes durable: one fdatasync after the write, or a write with RWF_DSYNC; auto takes the "
            "latter for small groups, where the medium is known to do both alike (block devices, ext4, XFS)."
        ),
    )
    group_bytes_max: Size = Field(
        default=4 * 2**20,
        ge=4096,
        le=64 * 2**20,
        description=(
            "Largest group commit, at most a quarter of the capacity (a sixteenth if shared); a larger entry is "
            "written alone."
        ),
    )
    entry_bytes_max: Size = Field(
        default=64 * 2**20,
        ge=4096,
        le=2**31,
        description="Largest entry; at most a quarter of the capacity, a sixteenth if shared.",
    )
    groups_in_flight_max: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Groups that are written and synced at the same time, a thread each; more for slow cloud disks.",
    )

    def paths_of(self, data_dir: Path, node_id: int) -> list[Path]:
        """Where the log of a node is; several if it is striped."""
        return [data_dir / path.replace("{node_id}", str(node_id)) for path in self.paths or [self.path]]
