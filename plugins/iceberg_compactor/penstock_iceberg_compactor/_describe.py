"""A table by words, for people."""

from __future__ import annotations

__all__ = ("described",)

from pyiceberg.table import Table

from penstock_iceberg_compactor._stamp import Stamp


def described(table: Table, stamp: Stamp) -> dict[str, str]:
    """What the newest snapshot says, and where it is."""
    snapshot = table.current_snapshot()
    summary = {} if snapshot is None or snapshot.summary is None else snapshot.summary.additional_properties
    return {
        "place": table.location(),
        "metadata": table.metadata_location,
        "columns": ", ".join(f"{field.name} {field.field_type}" for field in table.schema().fields),
        "partitions": ", ".join(f"{field.transform}({field.name})" for field in table.spec().fields)
        or "none",
        "rows": summary.get("total-records", "0"),
        "files": summary.get("total-data-files", "0"),
        "bytes": summary.get("total-files-size", "0"),
        "snapshot": str(snapshot.snapshot_id) if snapshot else "none",
        "snapshots": str(len(table.metadata.snapshots)),
        "owner epoch": str(stamp.epoch),
    }
