"""A table by its name: as the catalog knows it, as a lost catalog left it in the warehouse, or made new."""

from __future__ import annotations

__all__ = ("find_table", "is_shared")

import json
import logging
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from pyiceberg.catalog import Catalog, MetastoreCatalog
from pyiceberg.exceptions import (
    NoSuchIcebergTableError,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationError,
)
from pyiceberg.io import FileIO
from pyiceberg.manifest import ManifestEntryStatus
from pyiceberg.schema import Schema
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata

from penstock.errors import NotFoundError
from penstock.spi.lake import LakeTopic
from penstock_iceberg_compactor._catalog import make_namespace
from penstock_iceberg_compactor._columns import RAW_SCHEMA, SYSTEM_SCHEMA
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._io import listed
from penstock_iceberg_compactor._place import Place
from penstock_iceberg_compactor._schema import creation_properties, order_of, spec_of
from penstock_iceberg_compactor._stamp import PREFIX, Stamp

logger = logging.getLogger("penstock.lake.iceberg")

_METADATA = ".metadata.json"
#: What begins metadata that are compressed.
_GZIP = b"\x1f\x8b"


def find_table(
    place: Place, topic: LakeTopic, configs: TableConfigs, name: str, schema: Schema | None, *, may_make: bool
) -> Table:
    """The table of this name, made with ``schema`` if there is none. Blocking.

    Raises NotFoundError if there is none and none may be made.
    """
    identifier = (*place.namespace.split("."), name)
    catalog = place.catalog
    try:
        table = catalog.load_table(identifier)
    except NoSuchIcebergTableError:
        raise  # the name is taken
    except NoSuchTableError:
        if not may_make:
            raise NotFoundError(f"there is no such table: table={name}") from None
        make_namespace(catalog, place.namespace)
        table = _found_again(place, catalog, identifier) or _make(
            place, catalog, topic, configs, identifier, schema
        )
    place.catalogs.saw(name)
    return table


def _make(
    place: Place,
    catalog: Catalog,
    topic: LakeTopic,
    configs: TableConfigs,
    identifier: tuple[str, ...],
    schema: Schema | None,
) -> Table:
    schema = schema or (RAW_SCHEMA if configs.raw else SYSTEM_SCHEMA)
    stamp = Stamp(topic=topic.name, topic_id=topic.topic_id, epoch=0)
    try:
        table = catalog.create_table(
            identifier,
            schema,
            location=_free_location(catalog, identifier),
            partition_spec=spec_of(configs, schema),
            sort_order=order_of(configs, schema),
            properties={**creation_properties(configs), **stamp.properties()},
        )
    except TableAlreadyExistsError:
        return catalog.load_table(identifier)  # another host was faster
    place.step("table made")
    return table


def _found_again(place: Place, catalog: Catalog, identifier: tuple[str, ...]) -> Table | None:
    """The table that a lost catalog no longer knows: its newest metadata are in its folder.

    Its own stamp says which records it has, so it goes on from there exactly. None if there is no such table, or if
    somebody dropped it.
    """
    name = identifier[-1]
    folder = _default_location(catalog, identifier)
    if folder is None or not place.catalogs.forgot(name):
        return None
    io = catalog._load_file_io(location=folder)
    there = [one.location for one in listed(io, f"{folder}/metadata") if one.location.endswith(_METADATA)]
    newest = _newest(io, there)
    if newest is None:
        return None
    try:
        table = catalog.register_table(identifier, newest)
    except TableAlreadyExistsError:
        return catalog.load_table(identifier)  # another host was faster
    logger.warning(
        "the catalog didn't know the table, which is in the warehouse: table=%s metadata=%s", name, newest
    )
    return table


def _newest(io: FileIO, locations: Iterable[str]) -> str | None:
    """The newest metadata that were written to their end; None if there are none.

    Catalogs write metadata before they compare and swap, so those of a commit that lost stay beside the winner's,
    with the same number.
    """
    by_number: dict[int, list[str]] = {}
    for location in locations:
        by_number.setdefault(_number(location), []).append(location)
    for _, same in sorted(by_number.items(), reverse=True):
        whole = [location for location in same if _is_whole(io, location)]
        if whole:
            return whole[0] if len(whole) == 1 else max(whole, key=partial(_likelihood, io))
    return None


def _likelihood(io: FileIO, location: str) -> tuple[bool, int, int, int, str]:
    """What tells a commit that was taken from those of its number that lost: the greater one is more likely.

    Files of a commit that lost are removed. If whoever made it had no time for that, it was killed on its way, and
    the winner made a snapshot, has a higher epoch, or is younger.
    """
    try:
        metadata = FromInputFile.table_metadata(io.new_input(location))
    except (ValidationError, ValueError):
        return False, 0, 0, 0, location
    epoch = metadata.properties.get(f"{PREFIX}epoch", "")
    return (
        _has_files(io, metadata),
        getattr(metadata, "last_sequence_number", 0),  # which the first version of the format has not
        int(epoch) if epoch.isdecimal() else -1,
        metadata.last_updated_ms,
        location,
    )


def _has_files(io: FileIO, metadata: TableMetadata) -> bool:
    """Whether what the newest snapshot wrote is there: its list of manifests, manifests and files of rows."""
    snapshot = metadata.current_snapshot()
    if snapshot is None:
        return True
    if not io.new_input(snapshot.manifest_list).exists():
        return False
    for manifest in snapshot.manifests(io):
        if manifest.added_snapshot_id != snapshot.snapshot_id:
            continue
        if not io.new_input(manifest.manifest_path).exists():
            return False
        for entry in manifest.fetch_manifest_entry(io):
            is_new = entry.status == ManifestEntryStatus.ADDED
            if is_new and not io.new_input(entry.data_file.file_path).exists():
                return False
    return True


def _is_whole(io: FileIO, location: str) -> bool:
    """Whether metadata were written to their end: otherwise no catalog ever named them."""
    with io.new_input(location).open() as file:
        found = file.read()
    try:
        return found.startswith(_GZIP) or bool(json.loads(found))
    except ValueError:
        logger.warning("metadata that weren't written to their end are left out: metadata=%s", location)
        return False


def _free_location(catalog: Catalog, identifier: tuple[str, ...]) -> str | None:
    """A place that no other table has; None if a server decides that.

    A table that was renamed or dropped keeps its files: two in one place would remove each other's as orphans.
    """
    folder = _default_location(catalog, identifier)
    if folder is None:
        return None
    taken = next(listed(catalog._load_file_io(location=folder), folder), None)
    return folder if taken is None else f"{folder}-{uuid.uuid4().hex[:8]}"


def is_shared(table: Table, unknown: Iterable[str]) -> bool:
    """Whether files that the table doesn't know are another table's: its metadata are among them. Blocking."""
    topic_id = f"{PREFIX}topic-id"
    for location in unknown:
        if location.endswith(_METADATA):
            with suppress(Exception):  # what can't be read is nobody's
                found = FromInputFile.table_metadata(table.io.new_input(location))
                # of two owners that made the table at once one left this, and no catalog ever named it
                lost = not found.snapshots and found.properties.get(topic_id) == table.properties.get(
                    topic_id
                )
                if found.table_uuid != table.metadata.table_uuid and not lost:
                    return True
    return False


def _default_location(catalog: Catalog, identifier: tuple[str, ...]) -> str | None:
    """Where the catalog would put the table; None if a server decides that."""
    if not isinstance(catalog, MetastoreCatalog):
        return None
    *namespace, name = identifier
    return catalog._resolve_table_location(None, ".".join(namespace), name)


def _number(location: str) -> int:
    """Metadata are called ``00012-UUID.metadata.json``."""
    number = location.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdecimal() else -1
