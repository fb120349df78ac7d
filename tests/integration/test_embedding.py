"""A broker inside somebody's program: ``Broker``, ``SyncBroker`` and the pytest fixture."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, Producer
from penstock_object_store_fsspec._store import FsspecObjectStore
from tests.depth import in_full, pairs
from tests.patience import HANG_S

from penstock import Broker, SyncBroker
from penstock.errors import ConfigError, FencedError, InvariantError
from penstock.plugins import PluginRegistry

RECORDS = 200


def overrides(data_dir: Path, **more: Any) -> dict[str, Any]:
    return {
        "broker.data_dir": str(data_dir),
        "listener.bind": "127.0.0.1:0",
        "wal.capacity": "64MiB",
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def on_asyncio(main: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        with anyio.fail_after(HANG_S):
            return await main()

    return anyio.run(bounded, backend="asyncio")


async def produce(broker: Broker, values: list[bytes], topic: str = "topic") -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all") as producer:
        acks = [await producer.send(topic, value) for value in values]
        for ack in acks:
            await ack


async def consume(broker: Broker, count: int, topic: str = "topic") -> list[bytes]:
    values: list[bytes] = []
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest"
    ) as consumer:
        while len(values) < count:
            values.append((await consumer.getone()).value)
    return values


def numbered(count: int = RECORDS, prefix: str = "record") -> list[bytes]:
    return [f"{prefix} {number}".encode() for number in range(count)]


def writer_threads() -> list[str]:
    """Threads that a broker owns."""
    return [thread.name for thread in threading.enumerate() if "wal" in thread.name]


def refuses(address: str) -> bool:
    """Nobody listens at ``address``."""
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) != 0


# --- Broker


def test_client_and_broker_share_an_event_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with Broker(overrides=overrides(tmp_path)) as broker:
            await produce(broker, numbered())
            assert await consume(broker, RECORDS) == numbered()
            assert broker.plugins["wal"] == "wal_block"
            assert broker.durability_domain == "host"
            assert broker.places["wal"].startswith(str(tmp_path))

    on_asyncio(main)


def test_statistics_say_what_memory_is_used_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with Broker(overrides=overrides(tmp_path)) as broker:
            await produce(broker, [b"x" * 10_000] * 50)
            statistics = broker.statistics()
            assert sum(statistics.memory.values()) == statistics.memory_used_bytes >= 500_000
            assert statistics.memory_used_bytes <= statistics.memory_limit_bytes
            assert statistics.as_dict()["wal"]["appended_payload_bytes"] >= 500_000

    on_asyncio(main)


def test_two_brokers_in_one_process_keep_apart(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            Broker(overrides=overrides(tmp_path / "one")) as one,
            Broker(overrides=overrides(tmp_path / "two")) as two,
        ):
            assert one.bootstrap_servers != two.bootstrap_servers
            assert one.cluster_id != two.cluster_id
            await produce(one, numbered(50, "one"))
            await produce(two, numbered(70, "two"))
            assert await consume(one, 50) == numbered(50, "one")
            assert await consume(two, 70) == numbered(70, "two")

    on_asyncio(main)


@contextmanager
def recoveries(folder: Path) -> Iterator[tuple[PluginRegistry, list[int]]]:
    """Plugins with an observer, and how many entries each start recovered; known at the end."""
    told = folder / "told"
    plugins = folder / "observers"
    plugins.mkdir()
    (plugins / f"observer_{folder.name.replace('-', '_')}.py").write_text(
        textwrap.dedent(
            f"""
            from penstock.hookspecs import hookimpl

            @hookimpl
            def penstock_on_recovery_finished(event):
                with open({str(told)!r}, "a") as file:
                    file.write(f"{{event.entries}}\\n")
            """
        )
    )
    entries: list[int] = []
    yield PluginRegistry(plugins_dirs=(plugins,)), entries
    entries += map(int, told.read_text().split())


@pytest.mark.parametrize(
    ("left_by", "storage"), pairs(["return", "scope", "asyncio"], ["directory", "memory"])
)
def test_data_is_there_after_a_restart_and_nothing_needs_recovery(
    tmp_path: Path, left_by: str, storage: str
) -> None:
    """Leaving uploads what only the WAL holds, also when the body was cancelled.

    Objects in memory live as long as the process.
    """
    more = {"object_store__url": f"memory://{tmp_path.name}"} if storage == "memory" else {}
    seen: list[str] = []

    async def run(work: Callable[[Broker], Awaitable[None]], registry: PluginRegistry) -> None:
        with anyio.CancelScope() as scope, suppress(asyncio.CancelledError):
            async with Broker(overrides=overrides(tmp_path / "data", **more), registry=registry) as broker:
                await work(broker)
                seen.append(broker.cluster_id)
                if left_by == "scope":
                    scope.cancel()
                elif left_by == "asyncio":
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                await anyio.lowlevel.checkpoint()

    async def write(broker: Broker) -> None:
        await produce(broker, numbered())

    async def read(broker: Broker) -> None:
        assert await consume(broker, RECORDS) == numbered()
        await produce(broker, [b"more"])
        assert await consume(broker, RECORDS + 1) == [*numbered(), b"more"]

    with recoveries(tmp_path) as (registry, entries):
        on_asyncio(lambda: run(write, registry))
        on_asyncio(lambda: run(read, registry))
    assert seen[0] == seen[1]
    assert entries == [0, 0]


def test_a_broker_is_entered_in_one_task_and_left_in_another(tmp_path: Path) -> None:
    """As fixtures and notebooks do."""

    async def main() -> None:
        broker = Broker(overrides=overrides(tmp_path))
        await asyncio.create_task(broker.__aenter__())
        await produce(broker, numbered())
        assert await consume(broker, RECORDS) == numbered()
        address = broker.bootstrap_servers
        await asyncio.create_task(broker.__aexit__(None, None, None))
        assert refuses(address)

    on_asyncio(main)


def test_flush_returns_when_the_object_store_has_everything(tmp_path: Path) -> None:
    async def main() -> None:
        async with Broker(overrides=overrides(tmp_path)) as broker:
            await produce(broker, [b"x" * 100_000] * 5)
            await broker.flush()
            assert broker.statistics().as_dict()["object_store"]["bytes_written"] > 500_000
            files = await anyio.to_thread.run_sync(lambda: list((tmp_path / "objects").rglob("*")))
            stored = sum(path.stat().st_size for path in files)
            assert stored > 500_000

    on_asyncio(main)


def test_a_broker_is_used_while_it_runs_and_started_once(tmp_path: Path) -> None:
    async def main() -> None:
        broker = Broker(overrides=overrides(tmp_path))
        with pytest.raises(InvariantError, match="isn't running"):
            _ = broker.bootstrap_servers
        async with broker:
            with pytest.raises(InvariantError, match="started once"):
                await broker.__aenter__()
        with pytest.raises(InvariantError, match="isn't running"):
            broker.statistics()
        with pytest.raises(InvariantError, match="started once"):
            await broker.__aenter__()

    on_asyncio(main)


class _BodyError(Exception):
    pass


def test_an_error_of_the_body_closes_the_broker_and_comes_out_alone(tmp_path: Path) -> None:
    addresses = []

    async def main() -> None:
        async with Broker(overrides=overrides(tmp_path)) as broker:
            addresses.append(broker.bootstrap_servers)
            await produce(broker, numbered())
            raise _BodyError

    before = writer_threads()
    with pytest.raises(_BodyError):
        on_asyncio(main)
    assert refuses(addresses[0])
    assert writer_threads() == before


def test_cancelling_the_body_closes_everything_and_loses_nothing(tmp_path: Path) -> None:
    before = writer_threads()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with Broker(overrides=overrides(tmp_path)) as broker:
                address = broker.bootstrap_servers
                await produce(broker, numbered())
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert refuses(address)
        assert writer_threads() == before
        async with Broker(overrides=overrides(tmp_path)) as broker:
            assert await consume(broker, RECORDS) == numbered()

    on_asyncio(main)


def test_a_second_broker_on_a_data_directory_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with Broker(overrides=overrides(tmp_path)) as broker:
            with pytest.raises(ConfigError, match="another broker runs on this data directory"):
                async with Broker(overrides=overrides(tmp_path)):
                    pytest.fail("two brokers run on one data directory")
            await produce(broker, numbered())
            assert await consume(broker, RECORDS) == numbered()

    on_asyncio(main)


def test_a_newer_owner_of_the_log_ends_the_older_broker(tmp_path: Path) -> None:
    """The older one is fenced: its body is cancelled, and the error says so. What it acknowledged is kept."""
    shared = {"wal__path": str(tmp_path / "wal"), "object_store__url": f"file://{tmp_path}/objects"}
    started = anyio.Event()

    async def older() -> None:
        with pytest.raises(FencedError):  # noqa: PT012 - the body is what is ended
            async with Broker(overrides=overrides(tmp_path / "one", **shared)) as broker:
                await produce(broker, numbered(10))
                started.set()
                producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
                while True:
                    producer.produce("late", b"is it still mine?")
                    producer.poll(0)
                    await anyio.sleep(0.01)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(older)
            await started.wait()
            async with Broker(overrides=overrides(tmp_path / "two", **shared)) as newer:
                assert await consume(newer, 10) == numbered(10)
                await produce(newer, [b"mine"], "other")
                assert await consume(newer, 1, "other") == [b"mine"]

    on_asyncio(main)


# --- SyncBroker


def test_sync_broker_serves_blocking_clients(tmp_path: Path) -> None:
    with SyncBroker(overrides=overrides(tmp_path)) as broker:
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
        for value in numbered():
            producer.produce("topic", value)
        assert producer.flush(HANG_S) == 0
        consumer = Consumer(
            {
                "bootstrap.servers": broker.bootstrap_servers,
                "group.id": "group",
                "auto.offset.reset": "earliest",
            }
        )
        consumer.subscribe(["topic"])
        values: list[bytes] = []
        while len(values) < RECORDS:
            messages = consumer.consume(RECORDS, 30)
            assert messages, f"no more after {len(values)} records"
            values += [message.value() for message in messages]
        consumer.close()
        assert values == numbered()
        address = broker.bootstrap_servers
    assert refuses(address)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_sync_broker_is_closed_when_its_body_is_interrupted(
    tmp_path: Path, interrupt: type[BaseException]
) -> None:
    """Its loop, in another thread, must not end of that before the broker does."""
    broker = SyncBroker(overrides=overrides(tmp_path))
    with pytest.raises(interrupt), broker:  # noqa: PT012 - the body is what is ended
        address = broker.bootstrap_servers
        raise interrupt
    assert refuses(address)


def test_sync_broker_cleans_up_when_its_start_fails(tmp_path: Path) -> None:
    before = threading.active_count()
    with SyncBroker(overrides=overrides(tmp_path / "one")) as broker:
        taken = broker.bootstrap_servers
        with (
            pytest.raises(Exception, match=taken.rpartition(":")[2]),
            SyncBroker(overrides={**overrides(tmp_path / "two"), "listener.bind": taken}),
        ):
            pytest.fail("started on a port that is taken")
    assert threading.active_count() <= before + 1  # a thread pool may keep an idle worker


# --- the pytest fixture


def run_pytest(folder: Path, configuration: str, tests: str, code: int = 0) -> str:
    """Somebody else's test run, in a process of its own."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n" + textwrap.dedent(configuration))
    (folder / "test_somebody.py").write_text(textwrap.dedent(tests))
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PENSTOCK_"))
    }
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "temp")],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


USING_THE_FIXTURE = """
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient

    seen = []

    def use(broker):
        client = {"bootstrap.servers": broker.bootstrap_servers}
        topics = set(AdminClient(client).list_topics(timeout=300).topics) - {"__consumer_offsets"}
        producer = Producer(client)
        producer.produce(f"topic-{len(seen)}", b"value")
        assert producer.flush(300) == 0
        seen.append(broker)
        return topics

    def test_one(penstock_broker):
        assert use(penstock_broker) == set()

    def test_two(penstock_broker):
        assert use(penstock_broker) == SECOND
        assert (seen[0] is seen[1]) == SHARED
"""


@pytest.mark.parametrize("storage", ["memory", *in_full("directory")])
def test_fixture_gives_each_test_a_broker(tmp_path: Path, storage: str) -> None:
    tests = USING_THE_FIXTURE.replace("SECOND", "set()").replace("SHARED", "False")
    assert "2 passed" in run_pytest(tmp_path, f"penstock_broker_storage = {storage}", tests)


def test_fixture_can_be_shared_and_configured(tmp_path: Path) -> None:
    tests = USING_THE_FIXTURE.replace("SECOND", "{'topic-0'}").replace("SHARED", "True")
    tests += """
    def test_configured(penstock_broker):
        metadata = AdminClient({"bootstrap.servers": penstock_broker.bootstrap_servers}).list_topics(timeout=300)
        assert len(metadata.topics["topic-0"].partitions) == 3
    """
    configuration = """
        penstock_broker_scope = session
        penstock_broker_set =
            topics.partitions=3
    """
    assert "3 passed" in run_pytest(tmp_path, configuration, tests)


@pytest.mark.parametrize(
    ("ini", "delay_ms"),
    [("", 0), *in_full(("penstock_broker_set = groups.initial_rebalance_delay=1s", 1000))],
    ids=["default", "asked for"],
)
def test_fixture_delays_a_first_rebalance_only_when_asked_to(tmp_path: Path, ini: str, delay_ms: int) -> None:
    tests = f"""
        from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

        def test_delay(penstock_broker):
            admin = AdminClient({{"bootstrap.servers": penstock_broker.bootstrap_servers}})
            (node,) = admin.list_topics(timeout=300).brokers
            (future,) = admin.describe_configs([ConfigResource(ResourceType.BROKER, str(node))]).values()
            assert future.result(300)["group.initial.rebalance.delay.ms"].value == "{delay_ms}"
    """
    assert "1 passed" in run_pytest(tmp_path, ini, tests)


@pytest.mark.parametrize(
    ("ini", "sentence"),
    [
        (
            "penstock_broker_scope = tests",
            "penstock_broker_scope is one of function, class, module, package, session",
        ),
        (
            "penstock_broker_set = topics.partitons=3",
            "penstock_broker_set: --set topics.partitons: topics.partitons is no configuration key, the nearest",
        ),
        *in_full(
            (
                "penstock_broker_storage = disk",
                "penstock_broker_storage is one of memory, directory: value='disk'",
            ),
            (
                "penstock_broker_set = wal.capacity=1KiB",
                "penstock_broker_set: --set wal.capacity: wal.capacity must be",
            ),
            (
                "penstock_broker_set = wal.plugin=wal_blok",
                "penstock_broker_set: --set wal.plugin: wal.plugin: no plugin of this kind has this name",
            ),
        ),
    ],
)
def test_a_wrong_ini_value_is_one_sentence_and_exit_code_2(tmp_path: Path, ini: str, sentence: str) -> None:
    tests = "def test_one(penstock_broker): pass"
    output = run_pytest(tmp_path, ini, tests, code=2)
    assert sentence in output
    assert "Traceback" not in output


def test_pytest_plugin_costs_other_test_runs_nothing(tmp_path: Path) -> None:
    """It is loaded in each pytest run of the environment, so it imports nothing until the fixture is used."""
    tests = """
        import sys

        def test_nothing_is_imported():
            assert "penstock_tools.testing.pytest_plugin" in sys.modules
            assert not {"penstock.broker", "pydantic", "anyio", "fsspec"} & ({*sys.modules} - before)

        before = {name for name in sys.modules if name.startswith("anyio")}
    """
    assert "1 passed" in run_pytest(tmp_path, "", tests)


def test_everything_in_a_broker_shares_one_client_of_the_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata log, write-ahead log and stream engine: one pool of connections, and one set of counters."""
    made: list[FsspecObjectStore] = []
    make = FsspecObjectStore.__init__

    def count(self: FsspecObjectStore, backend: Any) -> None:
        made.append(self)
        make(self, backend)

    monkeypatch.setattr(FsspecObjectStore, "__init__", count)
    settings = overrides(tmp_path, wal__plugin="wal_s3", object_store__url="memory://one-client")
    del settings["wal.capacity"]  # of wal_block

    async def main() -> None:
        async with Broker(overrides=settings) as broker:
            await produce(broker, [b"value"])
            assert await consume(broker, 1) == [b"value"]

    on_asyncio(main)
    assert len(made) == 1
    assert made[0].statistics().puts > 1
