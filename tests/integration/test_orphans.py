"""What dead processes leave in the store goes: late objects with a sweep, temporary files at the next start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from tests.integration.conftest import ServeFactory, ServeProcess, penstock
from tests.integration.ledger import SILENT, create_topic
from tests.integration.test_faults import eventually
from tests.patience import HANG_S

from penstock.stream.object_format import object_key


def produce(broker: ServeProcess, topic: str) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "logger": SILENT})
    for i in range(10):
        producer.produce(topic, b"%d" % i)
    assert producer.flush(HANG_S) == 0


def test_orphans_are_swept_and_nothing_else_is(serve: ServeFactory) -> None:
    broker = serve(
        "stream.delete_delay=0s",
        "stream.orphan_sweep_interval=1s",
        "stream.orphan_grace=10m",
        "stream.upload_interval=100ms",
    )
    directory = broker.data_dir / "objects" / "objects"

    def objects() -> set[str]:
        return {path.name for path in directory.iterdir()} if directory.is_dir() else set()

    def planted(name: str, age_s: float = 3600) -> Path:
        path = directory / name
        path.write_bytes(b"landed late")
        os.utime(path, (time.time() - age_s, time.time() - age_s))
        return path

    create_topic(broker.bootstrap_servers, "gone")
    produce(broker, "gone")
    eventually(lambda: bool(objects()), "an upload")
    forgotten = min(objects())
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "logger": SILENT})
    admin.delete_topics(["gone"])["gone"].result(HANG_S)
    eventually(lambda: forgotten not in objects(), "the deletion of the topic's object")
    create_topic(broker.bootstrap_servers, "kept")
    before = objects()
    produce(broker, "kept")
    eventually(lambda: bool(objects() - before), "an upload")
    broker.kill()
    kept = objects()
    assert kept
    orphan = planted(forgotten)
    others = [planted("README"), planted(f"{forgotten}.bak")]
    temporary = broker.data_dir / "objects" / ".penstock-tmp"
    left = [temporary / "0123456789abcdef.lock", temporary / "0123456789abcdef.1"]
    for path in left:
        path.write_bytes(b"of a process that was killed")
    broker.start()
    others.append(planted(object_key(10**6).removeprefix("objects/")))  # a start would refuse it
    broker.wait_for_output("deleted 1 that metadata doesn't know")
    broker.wait_for_output("ids that metadata never gave out")
    assert not orphan.exists()
    assert not any(path.exists() for path in left)
    assert kept <= objects()
    assert all(path.exists() for path in others)
    young = planted(forgotten, age_s=0)
    printed = len(broker.output_so_far)
    produce(broker, "kept")
    assert broker.terminate() == 0
    assert young.exists()
    assert "never gave out" not in broker.output[printed:], "said once"
    done = penstock("verify", "--set", f"broker.data_dir={broker.data_dir}")
    problems = [line for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    assert len(problems) == 4
    assert all(line.startswith("BROKEN I6") for line in problems)
    assert sum("a running broker deletes it" in line for line in problems) == 1
