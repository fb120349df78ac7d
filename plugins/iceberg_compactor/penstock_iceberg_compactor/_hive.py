"""A Hive metastore as a catalog: bounded, for many threads, with a compare-and-swap. Imported where one is wanted.

pyiceberg 0.12 has one connection for all threads, which waits for a silent metastore for ever, and relies on the
metastore's lock alone. A metastore ends the lock of whom it hears nothing of for five minutes
(``metastore.txn.timeout``), so an owner that was paused for longer would put its table over what others committed
since. Metastores with HIVE-26882 (Hive 4, late releases of older lines) compare the table's ``metadata_location``
when they are asked to, in one transaction with the change; others don't see the question, and those on Derby can't
answer it: they have the lock only.
"""

from __future__ import annotations

__all__ = ("hive_catalog",)

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from hive_metastore.ThriftHiveMetastore import Client
from hive_metastore.ttypes import (
    EnvironmentContext,
    GetTableRequest,
    MetaException,
    NoSuchLockException,
    UnlockRequest,
)
from hive_metastore.ttypes import Table as HiveTable
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.hive import HIVE_KERBEROS_AUTH, HIVE_KERBEROS_SERVICE_NAME, HiveCatalog, _HiveClient
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.utils.properties import property_as_bool
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.Thrift import TApplicationException
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import (
    TBufferedTransport,
    TSaslClientTransport,
    TTransportBase,
    TTransportException,
)

from penstock_iceberg_compactor._silence import closing_if_silent
from penstock_iceberg_compactor.decode.waits import check_wanted

_PORT = 9083
#: How a metastore begins to say that it found another value than the expected one.
_MODIFIED = "the table has been modified"
#: What one on Derby says, its database for trials, which compares no long texts; nothing was changed then.
_CANNOT_COMPARE = ("param_value", "clob", "not supported")


def hive_catalog(name: str, properties: Mapping[str, str], first_s: float, silence_s: float) -> Catalog:
    """The catalog of these properties of pyiceberg, once its metastore answers within ``first_s`` seconds.

    Of several addresses in ``uri``, with commas between, a connection takes the first that accepts it; it lasts for
    ``silence_s`` seconds at most. Raises Thrift's TTransportException if none answers.
    """
    catalog = HiveCatalog(name, **properties)
    with _Connections(catalog.properties, first_s) as metastore:
        metastore.get_all_databases()
    catalog._client = cast(_HiveClient, _Connections(catalog.properties, silence_s))
    return catalog


class _Connections:
    """Stands for the catalog's one client: each thread that enters it has a connection of its own."""

    def __init__(self, properties: Mapping[str, str], silence_s: float) -> None:
        self._uris = [uri.strip() for uri in properties["uri"].split(",")]
        self._properties = properties
        self._silence_s = silence_s
        self._own = threading.local()
        #: Set once its database is found to compare nothing.
        self._locks_only = threading.Event()

    def __enter__(self) -> Client:
        check_wanted()
        for uri in self._uris:
            connection = self._own.connection = _Connection(
                uri, self._properties, self._silence_s, self._locks_only
            )
            try:
                return connection.__enter__()
            except TTransportException:
                connection.socket.close()
                if uri == self._uris[-1]:
                    raise
            except BaseException:
                connection.socket.close()
                raise
        raise AssertionError("a string split has a part")

    def __exit__(self, *error: Any) -> None:
        self._own.connection.socket.close()


class _Connection(_HiveClient):
    """One of pyiceberg's, on a socket that doesn't wait for ever."""

    def __init__(
        self, uri: str, properties: Mapping[str, str], silence_s: float, locks_only: threading.Event
    ) -> None:
        where = urlsplit(uri)
        if not where.hostname:
            raise ValueError(f"the uri of a metastore is thrift://host:port: uri={uri}")
        self.socket = _Socket(where.hostname, where.port or _PORT, silence_s)
        self._again = partial(_Connection, uri, properties, silence_s, locks_only)
        self._locks_only = locks_only
        super().__init__(
            uri,
            properties.get("ugi"),
            property_as_bool(dict(properties), HIVE_KERBEROS_AUTH, False),
            properties.get(HIVE_KERBEROS_SERVICE_NAME, "hive"),
        )

    def _init_thrift_transport(self) -> TTransportBase:
        if self._kerberos_auth:
            return TSaslClientTransport(
                self.socket, host=self.socket.host, service=self._kerberos_service_name
            )
        return TBufferedTransport(self.socket)

    def _client(self) -> Client:
        client = _Metastore(TBinaryProtocol(self._transport), self._again, self._locks_only)
        if self._ugi:
            client.set_ugi(*self._ugi)
        return client


class _Socket(TSocket):  # type: ignore[misc] # Thrift has no types
    """Closed after so many seconds, or when whoever waits gives up."""

    def __init__(self, host: str, port: int, silence_s: float) -> None:
        super().__init__(host, port)
        self._silence_s = silence_s
        self._stop: Callable[[], None] | None = None

    def open(self) -> None:
        self.setTimeout(self._silence_s * 1000)
        super().open()
        self.setTimeout(None)
        self._stop = closing_if_silent(self.handle.fileno(), self._silence_s)

    def close(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        super().close()


class _Metastore(Client):  # type: ignore[misc] # Thrift has no types
    """Asks for a swap where a table is committed to, and leaves no lock behind when a connection ends."""

    def __init__(
        self, protocol: TBinaryProtocol, again: Callable[[], _Connection], locks_only: threading.Event
    ) -> None:
        super().__init__(protocol)
        self._again = again
        self._locks_only = locks_only

    def get_table(self, dbname: str, tbl_name: str) -> HiveTable:
        """By the call that Hive 4.0.1 took away and pyiceberg knows only, or by the one that it left."""
        try:
            return super().get_table(dbname, tbl_name)
        except TApplicationException as error:
            if error.type != TApplicationException.UNKNOWN_METHOD:
                raise
        return self.get_table_req(GetTableRequest(dbName=dbname, tblName=tbl_name)).table

    def alter_table_with_environment_context(
        self, dbname: str, tbl_name: str, new_tbl: HiveTable, environment_context: EnvironmentContext
    ) -> None:
        before = new_tbl.parameters.get("previous_metadata_location")
        is_commit = (new_tbl.dbName, new_tbl.tableName) == (dbname, tbl_name)  # not another name for it
        if before and is_commit and not self._locks_only.is_set():
            environment_context.properties.update(
                expected_parameter_key="metadata_location", expected_parameter_value=before
            )
        try:
            super().alter_table_with_environment_context(dbname, tbl_name, new_tbl, environment_context)
        except MetaException as error:
            said = str(error.message).lower()
            if all(word in said for word in _CANNOT_COMPARE):
                self._locks_only.set()
                raise CommitFailedException(
                    "the metastore's database can't compare, from now on it has its lock only"
                ) from None
            if _MODIFIED in said:
                raise CommitFailedException(f"{dbname}.{tbl_name} was committed to meanwhile") from None
            raise

    def unlock(self, rqst: UnlockRequest) -> None:
        """Whether the commit took place is said already, or has to be looked up: nothing here changes that."""
        with suppress(NoSuchLockException, TTransportException):
            try:
                super().unlock(rqst)
            except TTransportException:
                connection = self._again()
                try:
                    Client.unlock(connection.__enter__(), rqst)
                finally:
                    connection.socket.close()
