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

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from hive_metastore.ThriftHiveMetastore import Client
from hive_metastore.ttypes import (
    CheckLockRequest,
    Database,
    EnvironmentContext,
    GetTableRequest,
    GetTablesRequest,
    LockRequest,
    LockResponse,
    LockState,
    MetaException,
    NoSuchLockException,
    ShowLocksRequest,
    UnlockRequest,
)
from hive_metastore.ttypes import Table as HiveTable
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.hive import HIVE_KERBEROS_AUTH, HIVE_KERBEROS_SERVICE_NAME, HiveCatalog, _HiveClient
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.utils.properties import property_as_bool
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TProtocol import TProtocolException
from thrift.Thrift import TApplicationException, TException
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import (
    TBufferedTransport,
    TSaslClientTransport,
    TTransportBase,
    TTransportException,
)

from penstock_iceberg_compactor._errors import NotSentError
from penstock_iceberg_compactor._silence import closing_if_silent
from penstock_iceberg_compactor.decode.waits import check_wanted, ended_with_call

logger = logging.getLogger("penstock.lake.iceberg")

_PORT = 9083
#: Seconds for each step of letting go of a lock where its connection is gone: the end of a commit that was given up.
_LET_GO_S = 1.0
#: How a metastore begins to say that it found another value than the expected one.
_MODIFIED = "the table has been modified"
#: What one on Derby says, its database for trials, which compares no long texts; nothing was changed then.
_CANNOT_COMPARE = ("param_value", "clob", "not supported")


def hive_catalog(name: str, properties: Mapping[str, str], first_s: float, silence_s: float) -> Catalog:
    """The catalog of these properties of pyiceberg, once its metastore answers within ``first_s`` seconds.

    Of several addresses in ``uri``, with commas between, a connection takes the first that accepts it; it lasts for
    ``silence_s`` seconds at most. Raises Thrift's TTransportException if none answers, ValueError for what isn't one.
    """
    uris = [uri for uri in map(str.strip, properties["uri"].split(",")) if uri]
    for uri in uris:
        _place_of(uri)
    catalog = _Catalog(name, **{**properties, "uri": ",".join(uris)})
    with _Connections(catalog.properties, first_s) as metastore:
        metastore.get_all_databases()
    catalog._client = cast(_HiveClient, _Connections(catalog.properties, silence_s))
    return catalog


def _place_of(uri: str) -> tuple[str, int]:
    where = urlsplit(uri)
    if not where.hostname:
        raise ValueError(f"the uri of a metastore is thrift://host:port: uri={uri}")
    return where.hostname, where.port or _PORT


class _Catalog(HiveCatalog):
    """pyiceberg's, whose wait for a lock ends with whoever waits, and says what it was that it waited for."""

    def _wait_for_lock(
        self, database_name: str, table_name: str, lockid: int, open_client: Client
    ) -> LockResponse:
        given_up = threading.Event()
        tries = max(1, int(self._lock_check_retries or 1))
        least_s, most_s = self._lock_check_min_wait_time or 0.0, self._lock_check_max_wait_time or 0.0
        with ended_with_call(given_up.set):
            for number in range(tries):
                response: LockResponse = open_client.check_lock(CheckLockRequest(lockid=lockid))
                if response.state == LockState.ACQUIRED:
                    return response
                if response.state != LockState.WAITING:
                    break
                wait_s = max(least_s, min(2.0 ** (number + 1), most_s))
                if number < tries - 1 and given_up.wait(wait_s):
                    check_wanted()
        raise NotSentError(
            "somebody else has the metastore's lock on the table, which ends after minutes if that was killed: "
            f"table={database_name}.{table_name}"
        )


class _Connections:
    """Stands for the catalog's one client: each thread that enters it has a connection of its own."""

    def __init__(self, properties: Mapping[str, str], silence_s: float) -> None:
        self._uris = properties["uri"].split(",")
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
        self,
        uri: str,
        properties: Mapping[str, str],
        silence_s: float,
        locks_only: threading.Event,
        *,
        lets_go: bool = False,
    ) -> None:
        """With ``lets_go`` it lasts on when whoever waits gives up."""
        self.socket = _Socket(*_place_of(uri), silence_s, lets_go=lets_go)
        self._again = partial(
            _Connection, uri, properties, min(silence_s, _LET_GO_S), locks_only, lets_go=True
        )
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
        client = _Metastore(_Protocol(self._transport), self._again, self._locks_only)
        if self._ugi:
            client.set_ugi(*self._ugi)
        return client


class _Socket(TSocket):  # type: ignore[misc] # Thrift has no types
    """Closed after so many seconds, or when whoever waits gives up; with ``lets_go`` after as many only."""

    def __init__(self, host: str, port: int, silence_s: float, *, lets_go: bool) -> None:
        super().__init__(host, port)
        self._silence_s = silence_s
        self._lets_go = lets_go
        self._stop: Callable[[], None] | None = None

    def open(self) -> None:
        self.setTimeout(self._silence_s * 1000)
        super().open()
        self.setTimeout(None)
        watch = partial(closing_if_silent, self.handle.fileno(), self._silence_s)
        self._stop = Context().run(watch) if self._lets_go else watch()

    def close(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        super().close()


class _Protocol(TBinaryProtocol):  # type: ignore[misc] # Thrift has no types
    """Whatever can't be read is an error of Thrift's."""

    def readString(self) -> str:  # noqa: N802 - Thrift's name
        try:
            return str(super().readString())
        except UnicodeDecodeError as error:
            raise TProtocolException(TProtocolException.INVALID_DATA, str(error)) from error


class _Metastore(Client):  # type: ignore[misc] # Thrift has no types
    """Asks for a swap where a table is committed to, and leaves no lock behind when a connection ends."""

    def __init__(
        self, protocol: TBinaryProtocol, again: Callable[[], _Connection], locks_only: threading.Event
    ) -> None:
        super().__init__(protocol)
        self._again = again
        self._locks_only = locks_only
        #: What a commit would make of its table, whose answer is missing: it may come about at any time yet.
        self._unanswered: HiveTable | None = None

    def get_database(self, name: str) -> Database:
        """With parameters, which pyiceberg relies on."""
        return _with_parameters(super().get_database(name))

    def get_table(self, dbname: str, tbl_name: str) -> HiveTable:
        """By the call that Hive 4.0.1 took away and pyiceberg knows only, or by the one that it left."""
        try:
            table = super().get_table(dbname, tbl_name)
        except TApplicationException as error:
            if not _is_unknown_call(error):
                raise
            table = self.get_table_req(GetTableRequest(dbName=dbname, tblName=tbl_name)).table
        return _with_parameters(table)

    def get_table_objects_by_name(self, dbname: str, tbl_names: Sequence[str]) -> Sequence[HiveTable]:
        """See ``get_table``."""
        try:
            tables = super().get_table_objects_by_name(dbname, tbl_names)
        except TApplicationException as error:
            if not _is_unknown_call(error):
                raise
            request = GetTablesRequest(dbName=dbname, tblNames=tbl_names)
            tables = self.get_table_objects_by_name_req(request).tables
        return list(map(_with_parameters, tables))

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
        except (TTransportException, TProtocolException, OSError):
            self._unanswered = new_tbl
            raise
        except MetaException as error:
            said = str(error.message).lower()
            if all(word in said for word in _CANNOT_COMPARE):
                if not self._locks_only.is_set():
                    self._locks_only.set()
                    logger.warning(
                        "the metastore's database can't compare, so its lock alone keeps two owners of a table from "
                        "each other, for as long as it lasts; have it in PostgreSQL or MySQL"
                    )
                raise CommitFailedException(
                    "the metastore's database can't compare, from now on it has its lock only"
                ) from None
            if _MODIFIED in said:
                raise CommitFailedException(f"{dbname}.{tbl_name} was committed to meanwhile") from None
            raise

    def lock(self, rqst: LockRequest) -> LockResponse:
        """Take a lock, or a place behind it; of neither is anything left if the reply is lost."""
        rqst.agentInfo = f"penstock-{uuid.uuid4()}"
        try:
            return super().lock(rqst)
        except TException:
            with suppress(TException), self._lasting() as metastore:
                wanted = rqst.component[0]
                found = metastore.show_locks(
                    ShowLocksRequest(dbname=wanted.dbname, tablename=wanted.tablename)
                )
                for one in found.locks or ():
                    if one.agentInfo == rqst.agentInfo:
                        Client.unlock(metastore, UnlockRequest(one.lockid))
            raise

    def unlock(self, rqst: UnlockRequest) -> None:
        """Let go of a lock, once more where that fails.

        Whether the commit took place is said already, or has to be looked up: nothing here changes that. One that may
        still come about keeps its lock until the metastore ends it: not all of them compare before they write.
        """
        with suppress(TException):
            if self._unanswered is not None and not self._has_landed(self._unanswered):
                return
            try:
                super().unlock(rqst)
            except NoSuchLockException:
                pass
            except TException:
                with self._lasting() as metastore:
                    Client.unlock(metastore, rqst)

    def _has_landed(self, wanted: HiveTable) -> bool:
        with self._lasting() as metastore:
            found = metastore.get_table(wanted.dbName, wanted.tableName)
        return bool(found.parameters.get("metadata_location") == wanted.parameters["metadata_location"])

    @contextmanager
    def _lasting(self) -> Iterator[Client]:
        """Another connection, which lasts on when whoever waits gives up."""
        connection = self._again()
        try:
            yield connection.__enter__()
        finally:
            connection.socket.close()


def _is_unknown_call(error: TApplicationException) -> bool:
    return bool(error.type == TApplicationException.UNKNOWN_METHOD)


def _with_parameters(found: Any) -> Any:
    found.parameters = found.parameters or {}
    return found
