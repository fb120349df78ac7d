"""Where a table goes that the catalog doesn't know, and the one that is there already if the catalog was lost."""

from __future__ import annotations

__all__ = ("found_again", "free_location", "is_shared")

import logging
import uuid
from collections.abc import Iterable
from contextlib import suppress

from pyiceberg.catalog import Catalog, MetastoreCatalog
from pyiceberg.exceptions import TableAlreadyExistsError
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table

from penstock_iceberg_compactor._io import listed
from penstock_iceberg_compactor._place import Place

logger = logging.getLogger("penstock.lake.iceberg")

_METADATA = ".metadata.json"


def found_again(place: Place, catalog: Catalog, identifier: tuple[str, ...]) -> Table | None:
    """The table that a lost catalog no longer knows: its newest metadata are in its folder. Blocking.

    Its own stamp says which records it has, so it goes on from there exactly. None if there is no such table, or if
    somebody dropped it.
    """
    name = identifier[-1]
    folder = _default_location(catalog, identifier)
    if folder is None or not place.catalogs.forgot(name):
        return None
    io = catalog._load_file_io(location=folder)
    there = [one.location for one in listed(io, f"{folder}/metadata") if one.location.endswith(_METADATA)]
    if not there:
        return None
    newest = max(there, key=_version)
    try:
        table = catalog.register_table(identifier, newest)
    except TableAlreadyExistsError:
        return catalog.load_table(identifier)  # another host was faster
    logger.warning(
        "the catalog didn't know the table, which is in the warehouse: table=%s metadata=%s", name, newest
    )
    return table


def free_location(catalog: Catalog, identifier: tuple[str, ...]) -> str | None:
    """A place that no other table has; None if a server decides that. Blocking.

    A table that was renamed or dropped keeps its files: two in one place would remove each other's as orphans.
    """
    folder = _default_location(catalog, identifier)
    if folder is None:
        return None
    taken = next(listed(catalog._load_file_io(location=folder), folder), None)
    return folder if taken is None else f"{folder}-{uuid.uuid4().hex[:8]}"


def is_shared(table: Table, unknown: Iterable[str]) -> bool:
    """Whether files that the table doesn't know are another table's: its metadata are among them. Blocking."""
    for location in unknown:
        if location.endswith(_METADATA):
            with suppress(Exception):  # what can't be read is nobody's
                found = FromInputFile.table_metadata(table.io.new_input(location))
                if found.table_uuid != table.metadata.table_uuid:
                    return True
    return False


def _default_location(catalog: Catalog, identifier: tuple[str, ...]) -> str | None:
    """Where the catalog would put the table; None if a server decides that."""
    if not isinstance(catalog, MetastoreCatalog):
        return None
    *namespace, name = identifier
    return catalog._resolve_table_location(None, ".".join(namespace), name)


def _version(location: str) -> tuple[int, str]:
    """Metadata are called ``00012-UUID.metadata.json``."""
    name = location.rpartition("/")[2]
    number = name.partition("-")[0]
    return (int(number) if number.isdecimal() else -1), name
