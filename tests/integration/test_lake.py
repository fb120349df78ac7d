"""A topic that is also a table: with a real broker, a real client and the tutorial's compactor of JSON lines."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from tests.depth import how_many
from tests.integration.conftest import ServeFactory, ServeProcess, penstock
from tests.patience import HANG_S

WITH_TABLES = ("lake_compactor.plugin=reference", "lake.retry_min=50ms", "lake.retry_max=500ms")
REFERENCE = ("-p", "penstock_conformance.reference")
#: 100 by hand.
KILLS = how_many("lake_kills")
TABLE = {"penstock.lake.enable": "true", "penstock.lake.commit.interval.ms": "200"}


def admin(broker: ServeProcess) -> AdminClient:
    return AdminClient({"bootstrap.servers": broker.bootstrap_servers})


def create(broker: ServeProcess, topic: str, partitions: int = 1, configs: dict[str, str] = TABLE) -> None:
    client = admin(broker)  # held until the answer is here
    client.create_topics([NewTopic(topic, partitions, 1, config=configs)])[topic].result(HANG_S)


def alter(broker: ServeProcess, topic: str, **configs: str) -> None:
    """Set topic configs, written with underscores and without ``penstock.lake.``."""
    entries = [
        ConfigEntry(
            "penstock.lake." + name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET
        )
        for name, value in configs.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    client = admin(broker)
    client.incremental_alter_configs([resource])[resource].result(HANG_S)


def produce(broker: ServeProcess, topic: str, values: list[bytes]) -> None:
    told: list[object] = []
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap_servers, "enable.idempotence": True, "linger.ms": 5}
    )
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: told.append(error))
        producer.poll(0)
    assert producer.flush(HANG_S) == 0
    assert [error for error in told if error is not None] == []


def rows_of(broker: ServeProcess, table: str) -> list[dict[str, object]]:
    """What the table has committed."""
    folder = broker.data_dir / "lake" / table
    manifest = folder / "manifest.json"
    while manifest.exists():
        try:
            return [
                json.loads(line)
                for file in json.loads(manifest.read_text())["files"]
                for line in (folder / file["name"]).read_text().splitlines()
            ]
        except FileNotFoundError:
            continue  # maintained meanwhile
    return []


def wait_for_rows(broker: ServeProcess, table: str, count: int) -> list[dict[str, object]]:
    until = time.monotonic() + HANG_S
    while time.monotonic() < until:
        rows = rows_of(broker, table)
        if len(rows) >= count:
            return rows
        time.sleep(0.05)
    raise AssertionError(
        f"the table has {len(rows_of(broker, table))} of {count} rows:\n{broker.output_so_far[-3000:]}"
    )


def values_of(rows: list[dict[str, object]]) -> Counter[bytes]:
    return Counter(base64.b64decode(str(row["value"])) for row in rows)


def test_records_are_in_the_table_once_over_kills_and_a_clean_stop(serve: ServeFactory) -> None:
    """kill -9 at random moments while a client produces: no row is missing, none is there twice."""
    broker = serve(*WITH_TABLES, "stream.upload_interval=1h", arguments=REFERENCE)
    create(broker, "orders", 3)
    sent = produced_over_kills(broker, "orders")
    assert values_of(wait_for_rows(broker, "orders", len(sent))) == Counter(sent)
    produce(broker, "orders", [b"the last"])
    assert broker.terminate() == 0
    assert values_of(rows_of(broker, "orders")) == Counter([*sent, b"the last"])


def test_records_are_in_an_iceberg_table_once_over_kills(serve: ServeFactory) -> None:
    """The same with the compactor that people use, whose commits are a catalog's."""
    catalogs = pytest.importorskip("pyiceberg.catalog")
    broker = serve("lake_compactor.plugin=iceberg_compactor", *WITH_TABLES[1:], "stream.upload_interval=1h")
    create(broker, "orders", 3, TABLE | {"penstock.lake.commit.interval.ms": "300"})
    sent = produced_over_kills(broker, "orders")
    lake = broker.data_dir / "lake"
    found: Counter[bytes] = Counter()
    until = time.monotonic() + HANG_S
    with closing(
        catalogs.load_catalog("penstock", type="sql", uri=f"sqlite:///{lake}/catalog.db")
    ) as catalog:
        while found.total() < len(sent) and time.monotonic() < until:
            time.sleep(0.3)  # a look reads the whole table
            if catalog.table_exists("kafka.orders"):
                rows = catalog.load_table("kafka.orders").scan(selected_fields=("value",)).to_arrow()
                found = Counter(rows["value"].to_pylist())
    assert found == Counter(sent)


def produced_over_kills(broker: ServeProcess, topic: str, kills: int = KILLS) -> list[bytes]:
    """What an idempotent producer produced, all of it acknowledged, while the broker was killed at random moments."""
    rng = random.Random(8)
    sent: list[bytes] = []
    outcomes: list[object] = []
    ended = threading.Event()

    def go_on() -> None:
        producer = Producer(
            {
                "bootstrap.servers": broker.bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": 0,  # never give up: what isn't acknowledged is sent again
                "reconnect.backoff.max.ms": 100,
                "retry.backoff.max.ms": 100,
                "log_level": 0,
            }
        )
        while not ended.wait(0.01):
            while len(producer) < 1000:
                sent.append(b"%d" % len(sent))
                producer.produce(topic, sent[-1], on_delivery=lambda error, _: outcomes.append(error))
            producer.poll(0)
        assert producer.flush(HANG_S) == 0

    with ThreadPoolExecutor(1) as threads:
        producing = threads.submit(go_on)
        try:
            for _ in range(kills):
                before, until = len(outcomes), time.monotonic() + HANG_S
                while len(outcomes) == before and time.monotonic() < until:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.8))
                broker.kill()
                broker.start()
        finally:
            ended.set()
        producing.result()
    assert Counter(outcomes) == {None: len(sent)}
    return sent


def test_configs_of_tables_are_checked_and_refused_without_a_compactor(serve: ServeFactory) -> None:
    """One sentence says what is wrong, and what to do."""
    plain = serve()
    with pytest.raises(KafkaException, match=r"name a plugin in lake_compactor\.plugin"):
        create(plain, "orders")
    broker = serve(*WITH_TABLES, arguments=REFERENCE)
    create(broker, "orders")
    for configs, words in (
        ({"format": "parquet"}, "raw, json"),
        ({"errors": "dead_letter"}, "set format to json"),
        ({"commit_interval_ms": "1"}, "between 100"),
        ({"formt": "raw"}, "did you mean penstock.lake.format"),
    ):
        with pytest.raises(KafkaException, match=words):
            alter(broker, "orders", **configs)
    alter(broker, "orders", format="json", errors="dead_letter")
    resource = ConfigResource(ResourceType.TOPIC, "orders")
    client = admin(broker)
    described = client.describe_configs([resource])[resource].result(HANG_S)
    assert described["penstock.lake.format"].value == "json"
    assert described["penstock.lake.gap"].value == "stop"


def test_a_failing_table_stands_alone_and_goes_on_when_the_cause_is_gone(serve: ServeFactory) -> None:
    """A value that can't be read stops its topic's table, with the reason; others go on, and it does, too."""
    broker = serve(*WITH_TABLES, arguments=REFERENCE)
    create(broker, "bad", configs=TABLE | {"penstock.lake.format": "json"})
    create(broker, "good", configs=TABLE | {"penstock.lake.format": "json"})
    produce(broker, "bad", [b'{"n": 1}', b"no json", b'{"n": 2}'])
    broker.wait_for_output("the table stands, trying again")
    produce(broker, "good", [b'{"n": 1}'])
    assert len(wait_for_rows(broker, "good", 1)) == 1
    assert rows_of(broker, "bad") == []
    alter(broker, "bad", errors="dead_letter")
    rows = wait_for_rows(broker, "bad", 3)
    assert [row["offset"] for row in rows] == [0, 1, 2]
    assert "isn't JSON" in str(rows[1]["reason"])
    shutil.rmtree(broker.data_dir / "lake" / "good")
    assert "somebody dropped the table" in lake(broker, "status", "good").stdout


def test_a_deleted_topic_leaves_its_table_and_one_made_again_does_not_go_on_in_it(
    serve: ServeFactory,
) -> None:
    """Offsets begin anew: the reason says so until the old table is moved away."""
    broker = serve(*WITH_TABLES, arguments=REFERENCE)
    create(broker, "orders")
    produce(broker, "orders", [b"old"] * 3)
    wait_for_rows(broker, "orders", 3)
    client = admin(broker)
    client.delete_topics(["orders"])["orders"].result(HANG_S)
    create(broker, "orders")
    produce(broker, "orders", [b"new"] * 2)
    broker.wait_for_output("the table is of another topic that had this name")
    assert values_of(rows_of(broker, "orders")) == {b"old": 3}
    folder = broker.data_dir / "lake"
    Path(folder, "orders").rename(folder / "orders-before")
    assert values_of(wait_for_rows(broker, "orders", 2)) == {b"new": 2}


def lake(broker: ServeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return penstock(
        "lake", *arguments, *REFERENCE, "--set", f"broker.data_dir={broker.data_dir}", "--set", WITH_TABLES[0]
    )


def test_the_command_tells_of_tables_and_replays_beside_a_running_broker(serve: ServeFactory) -> None:
    """Status with lag and reason, tables, description, maintenance; without a broker too."""
    broker = serve(*WITH_TABLES, arguments=REFERENCE)
    create(broker, "orders")
    for n in range(3):
        produce(broker, "orders", [b"%d" % n] * 10)
        wait_for_rows(broker, "orders", 10 * (n + 1))
    create(broker, "bad", configs=TABLE | {"penstock.lake.format": "json"})
    produce(broker, "bad", [b"no json"])
    broker.wait_for_output("the table stands, trying again")
    found: dict[str, dict[str, object]] = {}
    until = time.monotonic() + HANG_S
    while time.monotonic() < until and found.get("bad", {}).get("state") != "failed":
        told = lake(broker, "status", "--json")
        found = {one["topic"]: one for one in json.loads(told.stdout)}
    assert told.returncode == 1
    assert found["orders"]["state"] == "running"
    assert found["orders"]["lag_records"] == {"0": 0}
    assert "a value isn't JSON: partition=0 offset=0" in str(found["bad"]["reason"])
    assert "isn't JSON" in lake(broker, "status").stdout
    assert lake(broker, "tables").stdout.split() == ["bad", "orders"]
    assert "rows: 30" in lake(broker, "describe", "orders").stdout
    planned = json.loads(lake(broker, "maintain", "orders", "--dry-run", "--json").stdout)
    assert (planned["dry_run"], planned["figures"]["data files joined"]) == (True, 3)
    at = ("--bootstrap-server", broker.bootstrap_servers)
    maintained = lake(broker, "maintain", "orders", *at)
    assert "data files joined: 3" in maintained.stdout, maintained.stderr
    again = lake(broker, "maintain", "orders", *at)  # a request is answered once, the next one is another
    assert "data files joined: 0" in again.stdout, again.stderr
    (told_of,) = json.loads(lake(broker, "status", "orders", "--json").stdout)
    assert (told_of["state"], told_of["maintained"]["figures"]) == ("running", {"data files joined": 0})
    standing = lake(broker, "maintain", "bad", *at)  # its own records keep it from nothing but themselves
    assert "data files joined: 0" in standing.stdout, standing.stderr
    replayed = lake(broker, "replay", "orders", "--from", "12", "--table", "again")
    assert "18 rows in table again" in replayed.stdout, replayed.stderr
    assert [row["offset"] for row in rows_of(broker, "again")] == list(range(12, 30))
    produce(broker, "orders", [b"3"] * 10)
    wait_for_rows(broker, "orders", 40)
    assert broker.terminate() == 0
    other = lake(broker, "maintain", "orders", "--set", "broker.node_id=7", *at)
    assert "no broker listens there" in other.stderr, "it isn't the owner, and asks"
    assert "data files joined: 2" in lake(broker, "maintain", "orders").stdout
    assert values_of(rows_of(broker, "orders")) == {b"0": 10, b"1": 10, b"2": 10, b"3": 10}


def test_records_deleted_before_they_were_in_the_table_are_a_gap_that_is_told(serve: ServeFactory) -> None:
    """The topic stands and nothing is passed over, until its config says so."""
    broker = serve(*WITH_TABLES, arguments=REFERENCE)
    create(broker, "orders", configs=TABLE | {"penstock.lake.format": "json"})
    produce(broker, "orders", [b"no json", b'{"n": 1}', b'{"n": 2}'])
    broker.wait_for_output("the table stands, trying again")
    client = admin(broker)
    before = TopicPartition("orders", 0, 2)
    client.delete_records([before])[before].result(HANG_S)
    broker.wait_for_output("deleted before they were in the table, set penstock.lake.gap=skip")
    assert rows_of(broker, "orders") == []
    alter(broker, "orders", gap="skip")
    assert [row["offset"] for row in wait_for_rows(broker, "orders", 1)] == [2]
