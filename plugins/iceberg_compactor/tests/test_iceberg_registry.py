"""Tables of Avro records, with a schema registry that the operator allows, and of what Debezium writes."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fastavro
import pytest
from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._configs import fault_of
from penstock_iceberg_compactor.decode import Outage, SchemaRegistry
from penstock_iceberg_compactor.decode.waits import Call
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records
from tests.patience import HANG_S
from tests.schema_registry import SchemaRegistryServer

from penstock.errors import ConfigError, NotFoundError, UnavailableError

pytestmark = pytest.mark.anyio

_ROW = {
    "type": "record",
    "name": "Value",
    "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": ["null", "string"]}],
}
_ENVELOPE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", _ROW]},
        {"name": "after", "type": ["null", "Value"]},
        {"name": "op", "type": "string"},
    ],
}


@pytest.fixture
def registry() -> Iterator[SchemaRegistryServer]:
    with SchemaRegistryServer() as server:
        yield server


def avro(number: int, schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(schema))), value)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()


async def put(compactor: IcebergCompactor, items: list[bytes | None], start: int, **configs: str) -> None:
    async with compactor.open_table(topic(**configs), 1) as table:
        await table.write(lake_records(items, start=start))
        await table.commit({0: start + len(items)})


def rows_of(compactor: IcebergCompactor) -> list[tuple[Any, ...]]:
    found = load(compactor).scan(selected_fields=("id", "name")).to_arrow().to_pylist()
    return sorted((row["id"], row["name"]) for row in found)


async def test_avro_records_are_rows_and_wait_while_the_registry_is_away(
    tmp_path: Path, registry: SchemaRegistryServer
) -> None:
    registry.add(1, _ROW)
    configs = {"value_format": "avro", "schema_registry_url": registry.url + "/"}
    with_user = registry.url.replace("://", "://reader:hidden@")
    async with opened(tmp_path, registries=[with_user]) as compactor:
        await put(compactor, [avro(1, _ROW, {"id": 1, "name": "a"})], 0, **configs)
        assert registry.authorizations == {"Basic cmVhZGVyOmhpZGRlbg=="}
        registry.answers["/schemas/ids/2"] = 503, {}
        with pytest.raises(UnavailableError, match="the schema registry refuses") as caught:
            await put(compactor, [avro(2, _ROW, {"id": 2, "name": None})], 1, **configs)
        assert "hidden" not in str(caught.value)
        assert rows_of(compactor) == [(1, "a")]
        registry.add(2, _ROW)
        await put(compactor, [avro(2, _ROW, {"id": 2, "name": None})], 1, **configs)
        assert rows_of(compactor) == [(1, "a"), (2, None)]


async def test_a_topic_cant_have_the_broker_ask_a_host_that_its_operator_doesnt_allow(
    tmp_path: Path, registry: SchemaRegistryServer
) -> None:
    registry.add(1, _ROW)
    async with opened(tmp_path, registries=["http://127.0.0.1:1"]) as compactor:
        with pytest.raises(
            ConfigError, match=r"may not ask this schema registry, add it to lake_compactor\."
        ):
            await put(compactor, [b""], 0, value_format="avro", schema_registry_url=registry.url)
    assert registry.asked == []
    fault = fault_of({"value.format": "avro", "schema.registry.url": "https://me:hidden@host"})
    assert fault.startswith("penstock.lake.schema.registry.url can't have a user in it")
    assert "hidden" not in fault


async def test_changes_that_debezium_writes_as_avro_make_the_table_that_they_were_made_to(
    tmp_path: Path, registry: SchemaRegistryServer
) -> None:
    registry.add(7, _ENVELOPE)

    def change(operation: str, before: Any, after: Any) -> bytes:
        return avro(7, _ENVELOPE, {"op": operation, "before": before, "after": after})

    one, other, new = {"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 1, "name": "c"}
    configs = {
        "value_format": "avro",
        "schema_registry_url": registry.url,
        "mode": "cdc",
        "envelope": "debezium",
        "key_columns": "id",
    }
    async with opened(tmp_path, registries=[registry.url]) as compactor:
        await put(compactor, [change("r", None, one), change("c", None, other)], 0, **configs)
        assert rows_of(compactor) == [(1, "a"), (2, "b")]
        await put(compactor, [change("u", one, new), change("d", other, None), None], 2, **configs)
        assert rows_of(compactor) == [(1, "c")]
        await put(compactor, [change("c", None, other), change("d", new, None)], 5, **configs)
        assert rows_of(compactor) == [(2, "b")]


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n"]
)
def test_a_registry_that_dribbles_holds_a_thread_for_so_long_and_isnt_asked_again_at_once(
    begin: bytes,
) -> None:
    """Each byte comes in time, headers or a gigabyte of body, so no limit of a single read ends the wait."""
    asked = 0
    ended = threading.Event()

    def dribble(server: socket.socket) -> None:
        nonlocal asked
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                asked += 1
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(begin)
                    while not ended.wait(0.02):
                        connection.sendall(b" \r\n" if begin.endswith(b"\r\n\r\n") else b"a: b\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=dribble, args=(server,))
        thread.start()
        outage = Outage(pause_s=HANG_S)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        try:
            for _ in range(3):  # each table that is opened has a client of its own
                client = SchemaRegistry(url, deadline_s=0.2, attempts=1, outage=outage)
                with pytest.raises(UnavailableError, match="the schema registry can't be reached"):
                    client.schema(1)
                client.close()
            assert asked == 1
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(HANG_S)


def test_of_those_who_ask_a_registry_that_was_silent_one_waits_and_the_others_are_told() -> None:
    """Each who waits has one of the few threads of all tables."""
    outage = Outage(pause_s=0)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        unreachable = partial(pytest.raises, UnavailableError, match="the schema registry can't be reached")
        first, second = (
            SchemaRegistry(url, deadline_s=after, attempts=1, outage=outage) for after in (0.05, HANG_S)
        )
        with unreachable():
            first.schema(1)
        server.accept()[0].close()
        waiting = threads.submit(second.schema, 1)
        connection, _ = server.accept()
        with unreachable():
            first.schema(2)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{"schema":"null"}')
            assert waiting.result(HANG_S).text == "null"
        for client in (first, second):
            client.close()


def test_a_registry_that_answers_nonsense_for_one_schema_is_asked_for_others(
    registry: SchemaRegistryServer,
) -> None:
    """Whoever writes an id into a record stops no other topic."""
    registry.answers["/schemas/ids/7"] = (200, {"schema": 7})
    registry.answers["/schemas/ids/8"] = (200, {"schema": '"long"'})
    client = SchemaRegistry(registry.url)
    with pytest.raises(UnavailableError, match="answer is no schema"):
        client.schema(7)
    assert client.schema(8).text == '"long"'
    client.close()


def test_a_schema_that_is_too_large_fails_the_records_that_name_it(registry: SchemaRegistryServer) -> None:
    """It is as large each time, so the table would wait for it for ever."""
    registry.answers["/schemas/ids/7"] = (200, {"schema": "x" * 2**22})
    client = SchemaRegistry(registry.url)
    with pytest.raises(NotFoundError, match=r"larger than is read: .* path=/schemas/ids/7 bytes_max=4194304"):
        client.schema(7)
    client.close()


def test_who_gives_up_on_a_registry_says_nothing_of_it_to_others() -> None:
    """A stop, or a table that goes: the registry may answer the next one at once."""
    outage, call = Outage(pause_s=HANG_S), Call()

    def ask(client: SchemaRegistry) -> None:
        call.begin()
        client.schema(1)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        client = SchemaRegistry(
            f"http://127.0.0.1:{server.getsockname()[1]}", deadline_s=HANG_S, attempts=1, outage=outage
        )
        asking = threads.submit(ask, client)
        with server.accept()[0]:
            call.end()
            with pytest.raises(UnavailableError):
                asking.result(HANG_S)
        with outage.asking(), outage.asking():
            pass
        client.close()


def test_an_answer_that_is_no_schema_ends_an_outage_too(registry: SchemaRegistryServer) -> None:
    """Until a schema was found, only one would be asked for at a time, and others told of an outage that is over."""
    outage = Outage(pause_s=0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = SchemaRegistry(
            f"http://127.0.0.1:{server.getsockname()[1]}", deadline_s=0.05, attempts=1, outage=outage
        )
        with pytest.raises(UnavailableError, match="the schema registry can't be reached"):
            silent.schema(1)
    client = SchemaRegistry(registry.url, outage=outage)
    with pytest.raises(NotFoundError):
        client.schema(7)
    with outage.asking(), outage.asking():
        pass
    for each in (silent, client):
        each.close()
