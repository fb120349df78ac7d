"""The catalog: loaded once it answers, given up on when it is silent, opened again when its file is another."""

from __future__ import annotations

__all__ = ("OpenCatalog", "make_namespace")

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from pyiceberg.catalog import _ENV_CONFIG, Catalog, infer_catalog_type, load_catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError
from pyiceberg.utils.config import merge_config
from requests import Session
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from penstock.errors import ConfigError, PenstockError, UnavailableError, again, kept
from penstock_iceberg_compactor._errors import Secrets, translated
from penstock_iceberg_compactor._silence import bound_connections, bound_session, bounded_url
from penstock_iceberg_compactor.decode.waits import check_wanted

#: How long the broker's start waits for a catalog that is silent, and how long others are then told the same.
_FIRST_S = 5.0
#: How long a database may take to accept a connection: a wait that can't be ended, and leaves nothing in doubt.
_CONNECT_S = 5.0


class OpenCatalog:
    """A catalog as long as it is used. Blocking; any thread may use it."""

    def __init__(
        self,
        name: str,
        properties: Mapping[str, str],
        namespace: str,
        secrets: Secrets,
        *,
        silence_s: float,
        read_only: bool,
    ) -> None:
        self._name = name
        self._properties = dict(properties)
        self._namespace = namespace
        self._secrets = secrets
        self._silence_s = silence_s
        self._read_only = read_only
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        #: The file of a catalog of SQLite, and which one it was when it was opened.
        self._file = _sqlite_file(properties.get("uri", ""))
        self._opened: tuple[int, int] | None = None
        #: Why it couldn't be loaded, and until when nobody tries again.
        self._fault: PenstockError | None = None
        self._fault_until = 0.0
        #: It knew nothing when it was loaded, so tables that are in the warehouse may be unknown to it.
        self._was_new = False
        self._seen: set[str] = set()

    def get(self, *, silence_s: float = 0) -> Catalog:
        """The catalog. Raises UnavailableError if it doesn't answer, ConfigError for wrong properties."""
        with self._lock:
            if self._catalog is not None and self._is_another():
                self._close()
            if self._catalog is None:
                # who only looks, as a command does, has no time to wait for it again with each table
                if self._fault is not None and (self._read_only or time.monotonic() < self._fault_until):
                    raise again(self._fault)
                try:
                    self._catalog = self._load(silence_s or self._silence_s)
                except UnavailableError as error:
                    self._fault, self._fault_until = kept(error), time.monotonic() + _FIRST_S
                    raise
                self._fault = None
            return self._catalog

    def first_try(self) -> UnavailableError | None:
        """Load it if it answers soon; why not, otherwise. Raises ConfigError."""
        try:
            self.get(silence_s=min(_FIRST_S, self._silence_s))
        except UnavailableError as error:
            return error
        return None

    def check(self) -> None:
        """Raise UnavailableError if the catalog's file was removed or replaced: a commit there is nobody's."""
        if self._is_another():
            raise UnavailableError(
                f"the catalog's file was removed or replaced while it was in use, tables are looked up again in what "
                f"is there now: file={self._file}"
            )

    def forgot(self, table: str) -> bool:
        """Whether the catalog was lost, so that a table that it doesn't know may be in the warehouse."""
        return self._was_new and table not in self._seen

    def saw(self, table: str) -> None:
        """The catalog knows the table: if it isn't there later, somebody dropped it."""
        self._seen.add(table)

    def close(self) -> None:
        """Close its connections."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        catalog, self._catalog = self._catalog, None
        self._seen.clear()
        if catalog is not None:
            with suppress(Exception):
                catalog.close()

    def _is_another(self) -> bool:
        return self._file is not None and self._opened is not None and _identity(self._file) != self._opened

    def _load(self, silence_s: float) -> Catalog:
        check_wanted()
        if self._file is not None and self._read_only and not self._file.exists():
            raise UnavailableError(
                f"the catalog's file isn't there: somebody removed it, or no broker has run yet: file={self._file}"
            )
        with translated("opening the catalog", self._secrets, catalog=self._name):
            catalog = self._made(silence_s)
            self._opened = None if self._file is None else _identity(self._file)
            self._was_new = False
            if not self._read_only and make_namespace(catalog, self._namespace):
                self._was_new = isinstance(catalog, SqlCatalog)
            return catalog

    def _made(self, silence_s: float) -> Catalog:
        try:
            given = merge_config(
                _ENV_CONFIG.get_catalog_config(self._name) or {}, cast(Any, self._properties)
            )
            kind = str(given.get("type") or infer_catalog_type(self._name, given) or "").lower()
            if kind.endswith("rest") and "py-catalog-impl" not in given and given.get("uri"):
                return _rest(self._name, cast(dict[str, str], given), silence_s, self._silence_s)
            if kind.endswith("hive") and "py-catalog-impl" not in given and given.get("uri"):
                return _hive(self._name, cast(dict[str, str], given), silence_s, self._silence_s)
            if kind.endswith("sql") and given.get("uri"):
                uri = str(given["uri"])
                _reach(bounded_url(uri, min(silence_s, _CONNECT_S)))
                catalog = _sql(
                    self._name, {**self._properties, "uri": bounded_url(uri, min(silence_s, _CONNECT_S))}
                )
            else:
                catalog = load_catalog(self._name, **self._properties)
            if isinstance(catalog, SqlCatalog):
                bound_connections(catalog.engine, self._silence_s)
            return catalog
        except (ValueError, KeyError, ModuleNotFoundError) as error:
            raise self._wrong(error) from None
        except Exception as error:
            # pyiceberg's own classes for what is missing in the properties have no base in common
            if type(error).__name__ not in (
                "NoSuchPropertyException",
                "NotInstalledError",
                "ValidationError",
            ):
                raise
            raise self._wrong(error) from None

    def _wrong(self, error: Exception) -> ConfigError:
        missing = isinstance(error, ModuleNotFoundError) or type(error).__name__ == "NotInstalledError"
        if missing and self._properties.get("uri", "").startswith("postgresql"):
            return ConfigError(
                "the catalog's driver isn't installed, run pip install 'penstock[postgres]' and begin "
                "lake_compactor.catalog.uri with postgresql+psycopg://"
            )
        return ConfigError(
            f"the catalog can't be used like this, set lake_compactor.catalog as pyiceberg wants it: "
            f"cause={self._secrets.hide(' '.join(str(error).split()))}"
        )


def _reach(url: str) -> None:
    """Raise if the database can't be reached: pyiceberg takes that for missing tables, and tries once more."""
    if _sqlite_file(url) is None:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect():
            pass


def _sql(name: str, properties: dict[str, Any]) -> Catalog:
    """A catalog in a database. Where its tables are missing pyiceberg makes them, as another broker may meanwhile."""
    try:
        return load_catalog(name, **properties)
    except Exception as error:
        if not any(words in str(error) for words in ("already exists", "unique constraint")):
            raise
    return load_catalog(name, **properties)


def _hive(name: str, properties: dict[str, str], first_s: float, silence_s: float) -> Catalog:
    """A metastore's catalog, if the driver is there. Raises pyiceberg's NotInstalledError otherwise."""
    try:
        from penstock_iceberg_compactor._hive import hive_catalog
    except ModuleNotFoundError:
        return load_catalog(name, **properties)  # says what to install
    return hive_catalog(name, properties, first_s, silence_s)


def make_namespace(catalog: Catalog, namespace: str) -> bool:
    """Make it if there is none; whether there was none."""
    if catalog.namespace_exists(namespace):
        return False
    try:
        catalog.create_namespace(namespace)
    except NamespaceAlreadyExistsError:
        pass  # another host was faster
    except Exception:
        # which a catalog in a database tells as a constraint that would be broken
        if not catalog.namespace_exists(namespace):
            raise
    return True


def _rest(name: str, properties: dict[str, str], first_s: float, silence_s: float) -> RestCatalog:
    """A REST catalog whose requests are bounded, also the one that its constructor sends."""

    class Bounded(RestCatalog):
        silence_s = first_s

        def _create_session(self) -> Session:
            session = super()._create_session()
            bound_session(session, lambda: self.silence_s)
            return session

    catalog = Bounded(name, **properties)
    catalog.silence_s = silence_s
    return catalog


def _sqlite_file(uri: str) -> Path | None:
    path = uri.partition(":///")[2].partition("?")[0] if uri.startswith("sqlite") else ""
    return Path(path) if path and path != ":memory:" and not path.startswith("file:") else None


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        there = file.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino
