"""A Hive metastore for tests: Thrift's server, with tables and locks in memory, and the faults that it is told."""

from __future__ import annotations

__all__ = ("Metastore", "metastore")

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

from hive_metastore import ThriftHiveMetastore
from hive_metastore.ttypes import (
    AlreadyExistsException,
    GetTableResult,
    GetTablesResult,
    LockResponse,
    LockState,
    LockType,
    MetaException,
    NoSuchLockException,
    NoSuchObjectException,
    ShowLocksResponse,
    ShowLocksResponseElement,
)
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport, TTransportException


class Metastore:
    """What a metastore of Hive 4 does for tables of Iceberg; calls that it has no method for end the connection."""

    def __init__(self) -> None:
        self.uri = ""
        #: What it knows, by name; a name that is taken out it doesn't.
        self.calls: dict[str, Any] = {}
        self._databases: dict[str, Any] = {}
        self._tables: dict[tuple[str, str], Any] = {}
        #: The tables of locks, and of those that wait for one, by number, the first ones first.
        self.locks: dict[int, tuple[str, str]] = {}
        self._agents: dict[int, str] = {}
        self._last_lock = 0
        self._mutex = threading.Lock()
        #: Whether its database compares no long texts.
        self.is_on_derby = False
        #: Called once before the next change of a table, and once after it; what it raises ends the connection.
        self.before_alter: Callable[[], None] | None = None
        self.after_alter: Callable[[], None] | None = None

    def end_locks(self) -> None:
        """As a metastore does with those of whom it heard nothing for minutes."""
        self.locks.clear()

    def get_all_databases(self) -> list[str]:
        return list(self._databases)

    def get_database(self, name: str) -> Any:
        if name not in self._databases:
            raise NoSuchObjectException(name)
        return self._databases[name]

    def create_database(self, database: Any) -> None:
        if database.name in self._databases:
            raise AlreadyExistsException(database.name)
        self._databases[database.name] = database

    def get_table(self, dbname: str, tbl_name: str) -> Any:
        if (dbname, tbl_name) not in self._tables:
            raise NoSuchObjectException(tbl_name)
        return deepcopy(self._tables[dbname, tbl_name])

    def get_table_req(self, request: Any) -> GetTableResult:
        return GetTableResult(self.get_table(request.dbName, request.tblName))

    def get_all_tables(self, db_name: str) -> list[str]:
        return [name for database, name in self._tables if database == db_name]

    def get_table_objects_by_name(self, dbname: str, tbl_names: Sequence[str]) -> list[Any]:
        return [self.get_table(dbname, name) for name in tbl_names]

    def get_table_objects_by_name_req(self, request: Any) -> GetTablesResult:
        return GetTablesResult(self.get_table_objects_by_name(request.dbName, request.tblNames))

    def create_table(self, tbl: Any) -> None:
        with self._mutex:
            if (tbl.dbName, tbl.tableName) in self._tables:
                raise AlreadyExistsException(tbl.tableName)
            self._tables[tbl.dbName, tbl.tableName] = tbl

    def lock(self, request: Any) -> LockResponse:
        with self._mutex:
            self._last_lock += 1
            wanted = (request.component[0].dbname, request.component[0].tablename)
            taken = wanted in self.locks.values()
            self.locks[self._last_lock] = wanted
            self._agents[self._last_lock] = request.agentInfo
            return LockResponse(self._last_lock, LockState.WAITING if taken else LockState.ACQUIRED)

    def check_lock(self, request: Any) -> LockResponse:
        with self._mutex:
            wanted = self.locks[request.lockid]
            first = min(number for number, held in self.locks.items() if held == wanted)
            return LockResponse(
                request.lockid, LockState.ACQUIRED if first == request.lockid else LockState.WAITING
            )

    def show_locks(self, request: Any) -> ShowLocksResponse:
        with self._mutex:
            return ShowLocksResponse(
                [
                    ShowLocksResponseElement(
                        number,
                        *held,
                        state=LockState.ACQUIRED,
                        type=LockType.EXCLUSIVE,
                        lastheartbeat=0,
                        user="",
                        hostname="",
                        agentInfo=self._agents[number],
                    )
                    for number, held in self.locks.items()
                    if held == (request.dbname, request.tablename)
                ]
            )

    def unlock(self, request: Any) -> None:
        with self._mutex:
            if self.locks.pop(request.lockid, None) is None:
                raise NoSuchLockException(str(request.lockid))

    def alter_table_with_environment_context(
        self, dbname: str, tbl_name: str, table: Any, context: Any
    ) -> None:
        before, self.before_alter = self.before_alter, None
        if before is not None:
            before()
        with self._mutex:
            key = context.properties.get("expected_parameter_key")
            if key and self.is_on_derby:
                raise MetaException(
                    'JDODataStoreException: Error executing SQL query "update TABLE_PARAMS set PARAM_VALUE=?". '
                    "Comparisons between 'CLOB' and 'CLOB' are not supported."
                )
            found = self._tables[dbname, tbl_name].parameters.get(key)
            if key and found != context.properties["expected_parameter_value"]:
                raise MetaException(
                    f"The table has been modified. The parameter value for key '{key}' is '{found}'. "
                    f"The expected value was '{context.properties['expected_parameter_value']}'"
                )
            self._tables[dbname, tbl_name] = table
        after, self.after_alter = self.after_alter, None
        if after is not None:
            after()


@contextmanager
def metastore() -> Iterator[Metastore]:
    """A metastore on a free port."""
    store = Metastore()
    processor = ThriftHiveMetastore.Processor(store)
    store.calls = processor._processMap

    class Connection(BaseRequestHandler):
        def handle(self) -> None:
            socket = TSocket()
            socket.setHandle(self.request)
            protocol = TBinaryProtocol(TBufferedTransport(socket))
            with suppress(TTransportException):
                while True:
                    processor.process(protocol, protocol)

    with ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        host, port = server.server_address[:2]
        store.uri = f"thrift://{host!s}:{port}"
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield store
        finally:
            server.shutdown()
            serving.join()
