"""The compactor: a catalog that is open, and the tables in it."""

from __future__ import annotations

__all__ = ("IcebergCompactor", "bound_session")

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchNamespaceError
from requests import PreparedRequest, Response, Session
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from penstock.errors import ConfigError
from penstock.files import make_directories
from penstock.spi import Services
from penstock.spi.lake import LakeCompactorCapabilities, LakeTable, LakeTopic
from penstock.threads import run_in_thread
from penstock_iceberg_compactor._configs import TableConfigs
from penstock_iceberg_compactor._errors import Secrets, translated
from penstock_iceberg_compactor._place import Place
from penstock_iceberg_compactor._settings import CAPABILITIES, Settings

logger = logging.getLogger("penstock.lake.iceberg")

#: How long a REST catalog may say nothing. pyiceberg waits for ever, and threads are few.
_SILENCE_S = 60.0


#: Drivers of PostgreSQL that pass a URL's parameters on to libpq, and how long that may hear nothing.
_LIBPQ = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
_LIBPQ_LIMITS = {
    "connect_timeout": "60",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}


class IcebergCompactor:
    """Keeps the contract :class:`penstock.spi.lake.LakeCompactor`."""

    def __init__(self, place: Place, location: str) -> None:
        self._place = place
        self._location = location

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, services: Services) -> AsyncIterator[IcebergCompactor]:
        """Load the catalog, and make the namespace."""
        properties, location = catalog_properties(settings, services)
        secrets = Secrets(properties)

        def load() -> Catalog:
            with translated("opening the catalog", secrets, catalog=settings.catalog_name):
                catalog = _load(settings.catalog_name, properties, secrets)
                session = getattr(catalog, "_session", None)
                if isinstance(session, Session):
                    bound_session(session, _SILENCE_S)
                if not services.read_only:
                    _make_namespace(catalog, settings.namespace)
                return catalog

        library = logging.getLogger("pyiceberg")
        if library.level == logging.NOTSET:
            library.setLevel(logging.WARNING)  # it tells of every file system that it opens
        limiter = anyio.CapacityLimiter(settings.threads)
        catalog = await run_in_thread(load, limiter=limiter)
        place = Place(
            catalog=catalog,
            namespace=settings.namespace,
            secrets=secrets,
            settings=settings,
            services=services,
            limiter=limiter,
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
        catalog, namespace = self._place.catalog, self._place.namespace

        def names() -> list[str]:
            try:
                return sorted(name[-1] for name in catalog.list_tables(namespace))
            except NoSuchNamespaceError:
                return []

        return await self._place.run("listing the tables", names, namespace=namespace)


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
        given["uri"] = bounded_url(given["uri"])
        given.setdefault("pool_pre_ping", "true")  # a connection that broke while idle is no failure
    given.setdefault("py-io-impl", "penstock_iceberg_compactor._io.WarehouseIO")
    shown = settings.catalog.get("uri") or given.get("uri") or given.get("type")
    where = f"{shown} {given.get('warehouse', '')}".strip()
    return given, where


def _load(name: str, properties: Mapping[str, str], secrets: Secrets) -> Catalog:
    try:
        return load_catalog(name, **properties)
    except (ValueError, KeyError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"the catalog can't be used like this, set lake_compactor.catalog as pyiceberg wants it: "
            f"cause={secrets.hide(' '.join(str(error).split()))}"
        ) from None
    except Exception as error:
        # pyiceberg's own classes for what is missing in the properties have no base in common
        if type(error).__name__ not in ("NoSuchPropertyException", "NotInstalledError", "ValidationError"):
            raise
        raise ConfigError(
            f"the catalog can't be used like this, set lake_compactor.catalog as pyiceberg wants it: "
            f"cause={secrets.hide(' '.join(str(error).split()))}"
        ) from None


def bounded_url(url: str) -> str:
    """A URL of PostgreSQL with limits for a server that is gone without a word; what it has stays, as do others."""
    try:
        parts = make_url(url)
    except ArgumentError:
        return url  # the catalog says what is wrong with it
    if parts.drivername not in _LIBPQ:
        return url
    missing = {name: value for name, value in _LIBPQ_LIMITS.items() if name not in parts.query}
    return parts.update_query_dict(missing).render_as_string(hide_password=False)


def bound_session(session: Session, silence_s: float) -> None:
    """Have requests of ``session`` that say nothing of it fail when the other side is silent for so long."""
    send = session.send

    def bounded(request: PreparedRequest, **how: Any) -> Response:
        return send(request, **{**how, "timeout": how.get("timeout") or silence_s})

    session.send = bounded  # type: ignore[method-assign] # what it was, with another default


def _make_namespace(catalog: Catalog, namespace: str) -> None:
    if not catalog.namespace_exists(namespace):
        try:
            catalog.create_namespace(namespace)
        except NamespaceAlreadyExistsError:
            return  # another host was faster
