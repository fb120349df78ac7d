"""A real Apache Kafka for tests: fetched once by Maven, one node (KRaft), ended in every case."""

from __future__ import annotations

__all__ = ("KAFKA_VERSION", "ApacheKafka", "kafka_jars")

import base64
import subprocess
import threading
from pathlib import Path
from typing import Final

from tests.fetched import java, maven_jars
from tests.integration.conftest import free_port
from tests.patience import HANG_S

#: What Penstock is compared with. Its Java tools come with it.
KAFKA_VERSION: Final = "4.2.1"
_LOG4J_VERSION: Final = (
    "2.25.4"  # Kafka's own choice; without a binding it says nothing, not even that it is ready
)

_LOGGING: Final = """<Configuration status="WARN"><Appenders><Console name="out" target="SYSTEM_OUT">
<PatternLayout pattern="[%d] %p %m (%c)%n"/></Console></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="out"/></Root>
<Logger name="kafka.server.KafkaRaftServer" level="INFO"/></Loggers></Configuration>
"""

#: On a busy machine a broker is late with its heartbeats: fenced by its controller, it would begin new leader epochs.
_SETTINGS: Final = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=600000
"""


def kafka_jars() -> list[Path]:
    """Kafka's jars; skips the test with the reason where they can't be had."""
    java()
    return maven_jars(
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
        f"org.apache.logging.log4j:log4j-slf4j-impl:{_LOG4J_VERSION}",
    )


class ApacheKafka:
    """One broker that is its own controller, in ``folder``. ``with`` starts it, and stops it whatever happens."""

    node_id = 1

    def __init__(self, folder: Path, jars: list[Path]) -> None:
        self.port = free_port()
        self.output = ""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log4j2.xml").write_text(_LOGGING)
        self._jars = jars
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self, main: str, *arguments: str, heap: str = "256m") -> list[str]:
        """The command line for one of Kafka's Java programs."""
        logging = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}"
        path = ":".join(map(str, self._jars))
        return [*java(), f"-Xmx{heap}", logging, "-cp", path, main, *arguments]

    def __enter__(self) -> ApacheKafka:
        settings = self._folder / "server.properties"
        data = self._folder / "data"
        settings.write_text(_SETTINGS.format(port=self.port, controller=free_port(), data=data))
        cluster_id = base64.urlsafe_b64encode(b"penstock-testing").decode().rstrip("=")
        storage = self.command("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(settings))
        done = subprocess.run(storage, capture_output=True, text=True, timeout=HANG_S)
        assert done.returncode == 0, done.stdout + done.stderr
        ready = threading.Event()
        process = self._process = subprocess.Popen(
            self.command("kafka.Kafka", str(settings), heap="512m"),
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # an interrupt is for us, and we stop it
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self.output += line
                if "Kafka Server started" in line:
                    ready.set()
            ready.set()

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        try:
            assert ready.wait(HANG_S), f"Apache Kafka is not ready in {HANG_S} s:\n{self.output}"
            assert process.poll() is None, f"Apache Kafka ended at once:\n{self.output}"
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    def _stop(self) -> None:
        process = self._process
        assert process is not None
        assert self._reader is not None
        try:
            process.terminate()
            process.wait(HANG_S)
        except BaseException:  # noqa: BLE001 - too slow, or we are interrupted again
            process.kill()
            process.wait(HANG_S)
        self._reader.join(HANG_S)
        if process.stdout is not None:
            process.stdout.close()
