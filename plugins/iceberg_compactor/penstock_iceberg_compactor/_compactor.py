"""The compactor: a catalog that is open, and the tables in it."""

from __future__ import annotations

__all__ = ("IcebergCompactor",)

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import anyio
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchNamespaceError

from penstock.files import ACCESSES, create_file, make_directories
from penstock.spi import Services
from penstock.spi.lake import LakeCompactorCapabilities, LakeTable, LakeTopic
from penstock.threads import run_in_thread
from penstock_iceberg_compactor._catalog import OpenCatalog
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._errors import Secrets
from penstock_iceberg_compactor._io import ACCESS
from penstock_iceberg_compactor._place import Place
from penstock_iceberg_compactor._settings import CAPABILITIES, Settings
from penstock_iceberg_compactor._upstream import read_whole_doubles

logger = logging.getLogger("penstock.lake.iceberg")

#: The buffer of a table is at most this part of the broker's memory for payload.
_BUFFER_PART = 8


class IcebergCompactor:
    """Keeps the contract :class:`penstock.spi.lake.LakeCompactor`."""

    def __init__(self, place: Place, location: str) -> None:
        self._place = place
        self._location = location

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, services: Services) -> AsyncIterator[IcebergCompactor]:
        """Load the catalog, and make the namespace, if it answers; otherwise the first table that is opened does."""
        read_whole_doubles()
        properties, location = catalog_properties(settings, services)
        secrets = Secrets(properties)

        library = logging.getLogger("pyiceberg")
        if library.level == logging.NOTSET:
            library.setLevel(logging.WARNING)  # it tells of every file system that it opens
        limiter = anyio.CapacityLimiter(settings.threads)
        catalog = OpenCatalog(
            settings.catalog_name,
            properties,
            settings.namespace,
            secrets,
            silence_s=settings.catalog_timeout / 1000,
            read_only=services.read_only,
        )
        fault = await run_in_thread(catalog.first_try, limiter=limiter)
        if fault is not None:  # tables wait for it, and nothing else does
            logger.warning("tables wait for the catalog: %s", fault)
        place = Place(
            catalogs=catalog,
            namespace=settings.namespace,
            secrets=secrets,
            settings=settings,
            services=services,
            limiter=limiter,
            buffer=_buffer(settings.buffer, services),
        )
        try:
            yield cls(place, secrets.hide(location))
        finally:
            with anyio.CancelScope(shield=True):
                await run_in_thread(catalog.close, limiter=limiter)

    @property
    def capabilities(self) -> LakeCompactorCapabilities:
        """Maintains tables, which several hosts may share."""
        return CAPABILITIES

    @property
    def catalog(self) -> Catalog:
        """Where tables are found by name."""
        return self._place.catalog

    @property
    def location(self) -> str:
        """Catalog and warehouse."""
        return self._location

    def watch(self, step: Callable[[str], None]) -> None:
        """Have ``step(name)`` called after each thing that is done on a medium."""
        self._place.step = step

    def open_table(self, topic: LakeTopic, epoch: int) -> AbstractAsyncContextManager[LakeTable]:
        """The table, fenced for whoever has it open with a lower epoch."""
        from penstock_iceberg_compactor._table import opened_table

        return opened_table(self._place, topic, TableConfigs.of(topic.configs), epoch)

    async def tables(self) -> Sequence[str]:
        """The names of all tables in the namespace."""
        namespace = self._place.namespace

        def names() -> list[str]:
            try:
                return sorted(name[-1] for name in self._place.catalog.list_tables(namespace))
            except NoSuchNamespaceError:
                return []

        return await self._place.run("listing the tables", names, namespace=namespace)


def _buffer(wanted: int, services: Services) -> int:
    """What a table may keep in memory: a part of what the broker has, as what is done with it takes as much again."""
    if services.allocator is None:
        return wanted
    return min(wanted, max(2**20, services.allocator.statistics().limit_bytes // _BUFFER_PART))


def catalog_properties(settings: Settings, services: Services) -> tuple[dict[str, str], str]:
    """What pyiceberg is given, and where that is, for people.

    Local directories of it are made, relative ones below the data directory.
    """
    given = dict(settings.catalog)
    warehouse = settings.warehouse
    remote = "://" in warehouse
    if not remote:
        path = services.data_dir / warehouse
        warehouse = path.absolute().as_uri()
    default = settings.warehouse == type(settings).model_fields["warehouse"].default
    if not given.keys() & {"type", "uri", "py-catalog-impl"}:
        file = services.data_dir / "lake" / "catalog.db"
        if not services.read_only:
            make_directories(file.parent, services.access)
            with suppress(FileExistsError):  # SQLite would leave its mode to the umask
                os.close(create_file(file, os.O_RDWR, services.access))
            if remote:
                logger.warning(
                    "the catalog is a file in the data directory and the tables aren't: who loses the directory "
                    "loses sight of them, set lake_compactor.catalog to one that outlives it: warehouse=%s file=%s",
                    warehouse,
                    file,
                )
        given |= {"type": "sql", "uri": f"sqlite:///{file.absolute()}"}
    decides_itself = given.get("type") == "rest" and default
    if "warehouse" not in given and not decides_itself:
        if not remote and not services.read_only:
            make_directories(Path(services.data_dir / settings.warehouse), services.access)
        given["warehouse"] = warehouse
    if "uri" in given and given.get("type", "sql") == "sql":
        given.setdefault("pool_pre_ping", "true")  # a connection that broke while idle is no failure
    given.setdefault("py-io-impl", "penstock_iceberg_compactor._io.WarehouseIO")
    given[ACCESS] = next(name for name, access in ACCESSES.items() if access == services.access)
    shown = settings.catalog.get("uri") or given.get("uri") or given.get("type")
    where = f"{shown} {given.get('warehouse', '')}".strip()
    return given, where
