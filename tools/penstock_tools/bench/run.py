"""One workload, from new topics to the result: processes are hired, loaded, asked each period, and dismissed."""

from __future__ import annotations

__all__ = ("REACH_S", "Run", "create_topics", "processes_max")

import logging
import os
import random
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from penstock.errors import ConfigError, UnavailableError
from penstock_tools.bench.results import Sample, account, result_of
from penstock_tools.bench.server import BrokerProcess, Usage
from penstock_tools.bench.workers import Counters, Crew
from penstock_tools.bench.workload import Driver, Workload

#: How long to look for a broker.
REACH_S = 20.0
_ASSIGNED_S = 60.0
_DRAIN_STALLED_S = 30.0
#: The buffer is that of Java's producer: a producer that sends as fast as it can fills it, and waits for it.
_PRODUCER_DEFAULTS = {"acks": "all", "linger.ms": "1", "queue.buffering.max.kbytes": "32768"}
_CONSUMER_DEFAULTS = {"auto.offset.reset": "earliest"}
_PERIODS_MAX = 1000
#: What librdkafka says of itself belongs to nobody's terminal; errors come as exceptions.
_QUIET = logging.getLogger("penstock_tools.bench.librdkafka")
_QUIET.addHandler(logging.NullHandler())


def processes_max() -> int:
    """How many processes the clients of one role share at most."""
    return max(2, os.cpu_count() or 1)


def create_topics(
    bootstrap_servers: str, driver: Driver, names: list[str], partitions: int
) -> Callable[[], None]:
    """Create topics and give a function that deletes them.

    Raises UnavailableError without a broker, ConfigError when it refuses them or librdkafka a property.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    try:
        admin = AdminClient({**driver.commonConfig, "bootstrap.servers": bootstrap_servers}, logger=_QUIET)
        admin.list_topics(timeout=REACH_S)
    except KafkaException as error:
        kind = ConfigError if error.args[0].name() == "_INVALID_ARG" else UnavailableError
        raise kind(
            f"can't reach a broker: {error.args[0].str()}, bootstrap_servers={bootstrap_servers}"
        ) from error
    topics = [
        NewTopic(name, partitions, driver.replicationFactor, config=dict(driver.topicConfig))
        for name in names
    ]
    for name, future in admin.create_topics(topics, operation_timeout=30).items():
        try:
            future.result(60)
        except KafkaException as error:
            raise ConfigError(f"the broker refuses a topic: {error.args[0].str()}, topic={name}") from error

    def delete() -> None:
        for future in admin.delete_topics(names, operation_timeout=30).values():
            future.result(60)

    return delete


class Run:
    """One run of ``workload`` against ``bootstrap_servers``; ``broker`` when that is a process of ours.

    ``on_sample`` is told each period as it ends, ``on_phase`` what begins.
    """

    def __init__(
        self,
        workload: Workload,
        bootstrap_servers: str,
        *,
        broker: BrokerProcess | None = None,
        on_sample: Callable[[Sample], None] = lambda _: None,
        on_phase: Callable[[str], None] = lambda _: None,
        seed: int = 0,
    ) -> None:
        self._workload = workload
        self._bootstrap = bootstrap_servers
        self._broker = broker
        self._on_sample = on_sample
        self._on_phase = on_phase
        self._seed = seed
        self._tag = random.SystemRandom().randbytes(4).hex()
        self._topics = [f"bench-{self._tag}-{number:04d}" for number in range(workload.topics)]
        self._before = Counters()
        self._before_at = 0.0
        self._usage: Usage | None = None
        self._failures: set[str] = set()

    def run(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Run to the end and give the result, with ``facts`` in it. Raises ConfigError, UnavailableError."""
        workload = self._workload
        began = datetime.now(UTC)
        self._on_phase("setting up")
        delete = create_topics(self._bootstrap, workload.driver, self._topics, workload.partitionsPerTopic)
        backlog: dict[str, float] = {}
        with Crew() as crew:
            self._hire(crew)
            rate = workload.producerRate / (workload.topics * workload.producersPerTopic)
            self._look(crew, "setting up", time.monotonic())
            crew.order("producer", "start", rate=rate)
            if workload.warmup_s > 0:
                self._on_phase("warming up")
                self._watch(crew, "warming up", workload.warmup_s)
            if workload.backlog_bytes:
                backlog = self._backlog(crew)
            self._on_phase("measuring")
            samples = self._watch(crew, "measuring", workload.test_s)
            self._on_phase("waiting for the rest")
            balance = self._settle(crew)
        usage = self._broker.usage() if self._broker is not None else None
        if self._broker is None:
            delete()
        facts = {
            **facts,
            "beginTime": began.isoformat(timespec="seconds"),
            "account": balance,
            "failures": sorted(self._failures),
            "broker": {
                **facts.get("broker", {}),
                "cpuSeconds": None if usage is None else round(usage.cpu_s, 2),
                "residentMaxMB": None if usage is None else round(usage.resident_bytes_max / 1e6, 1),
            },
        }
        if backlog:
            facts["backlogPhase"] = backlog
        return result_of(workload, samples, facts)

    # -- clients ---------------------------------------------------------------------------------------------

    def _hire(self, crew: Crew) -> None:
        workload = self._workload
        driver = workload.driver
        base = {**driver.commonConfig, "bootstrap.servers": self._bootstrap}
        reading = {**_CONSUMER_DEFAULTS, **base, **driver.consumerConfig}
        groups = [
            (topic, f"sub-{number:03d}-{topic}")
            for topic in self._topics
            for number in range(workload.subscriptionsPerTopic)
        ]
        consumers = [
            {"index": index, "topic": topic, "config": {**reading, "group.id": group}}
            for index, (topic, group) in enumerate(groups * workload.consumerPerSubscription)
        ]
        crew.hire("consumer", consumers, {}, processes_max())
        owners = min(workload.consumerPerSubscription, workload.partitionsPerTopic)
        self._wait_assigned(
            crew, len(groups) * workload.partitionsPerTopic if consumers else 0, len(groups) * owners
        )
        writing = {**_PRODUCER_DEFAULTS, **base, **driver.producerConfig}
        producers = [
            {"index": index, "topic": topic, "config": writing}
            for index, topic in enumerate(self._topics * workload.producersPerTopic)
        ]
        payload = {
            "size": workload.messageSize,
            "file": workload.payloadFile,
            "random_ratio": workload.randomBytesRatio,
            "pool": workload.randomizedPayloadPoolSize,
            "seed": self._seed,
        }
        crew.hire(
            "producer",
            producers,
            {"payload": payload, "keys": workload.keyDistributor.value},
            processes_max(),
        )

    def _wait_assigned(self, crew: Crew, partitions: int, owners: int) -> None:
        """Until the consumers own all partitions, and each has some: before, a backlog would be the groups' fault.

        Whoever joined later would have partitions read again that were not committed, which counts as duplicates.
        """
        self._on_phase("waiting for the consumers")
        deadline = time.monotonic() + _ASSIGNED_S
        while (counters := crew.counters()).assigned < partitions or counters.owners < owners:
            if time.monotonic() > deadline:
                reason = "; ".join(counters.failures) or "no error reported"
                raise UnavailableError(
                    f"consumers didn't get their partitions: {reason}, "
                    f"assigned={counters.assigned} wanted={partitions} "
                    f"consumers={counters.owners} of={owners} waited_s={_ASSIGNED_S:.0f}"
                )
            time.sleep(0.1)

    # -- phases ----------------------------------------------------------------------------------------------

    def _watch(self, crew: Crew, phase: str, seconds: float) -> list[Sample]:
        """Look at it each period for ``seconds``."""
        period = max(1.0 if seconds >= 10 else 0.5, seconds / _PERIODS_MAX)
        periods = max(1, round(seconds / period))
        started = time.monotonic()
        samples = []
        for number in range(1, periods + 1):
            time.sleep(max(0.0, started + seconds * number / periods - time.monotonic()))
            samples.append(self._look(crew, phase, started))
        return samples

    def _look(self, crew: Crew, phase: str, started: float) -> Sample:
        now, before = crew.counters(), self._before
        at = time.monotonic()
        elapsed = max(1e-6, at - self._before_at)
        if self._broker is not None and self._broker.ended:
            raise UnavailableError(f"the broker ended in the middle, it said: {self._broker.last_words!r}")
        self._failures.update(now.failures)
        usage, earlier = (self._broker.usage() if self._broker is not None else None), self._usage
        sample = Sample(
            phase=phase,
            time_s=at - started,
            publish_rate=(now.acked - before.acked) / elapsed,
            publish_bytes_rate=(now.sent_bytes - before.sent_bytes) / elapsed,
            error_rate=(now.errors - before.errors) / elapsed,
            consume_rate=(now.received - before.received) / elapsed,
            consume_bytes_rate=(now.received_bytes - before.received_bytes) / elapsed,
            backlog=self._backlog_messages(now),
            client_cpu=(now.cpu_s - before.cpu_s) / elapsed,
            broker_cpu=(usage.cpu_s - earlier.cpu_s) / elapsed if usage and earlier else None,
            broker_resident_bytes=usage.resident_bytes if usage else None,
            histograms=now.histograms,
        )
        self._before, self._before_at, self._usage = now, at, usage
        self._on_sample(sample)
        return sample

    def _backlog_messages(self, counters: Counters) -> int:
        if not self._workload.consumerPerSubscription:
            return 0
        return max(0, self._workload.subscriptionsPerTopic * counters.acked - counters.received)

    def _backlog(self, crew: Crew) -> dict[str, float]:
        """Hold the consumers until the backlog is there, and let them catch up; how long both took."""
        workload = self._workload
        wanted = workload.backlog_bytes // workload.messageSize
        self._on_phase("building the backlog")
        crew.order("consumer", "pause")
        built = self._watch_until(crew, "building the backlog", lambda sample: sample.backlog >= wanted)
        self._on_phase("draining the backlog")
        crew.order("consumer", "start", rate=0)
        low = max(1000, int(wanted * (1 - workload.backlogDrainRatio)), int(workload.producerRate / 10))
        drained = self._watch_until(crew, "draining the backlog", lambda sample: sample.backlog <= low)
        return {
            "messages": wanted,
            "buildSeconds": round(built[-1].time_s, 2),
            "drainSeconds": round(drained[-1].time_s, 2),
            "drainRate": round(sum(s.consume_rate for s in drained) / len(drained), 1),
            "drainMB": round(sum(s.consume_bytes_rate for s in drained) / len(drained) / 1e6, 3),
            "publishLatency99pctWhileBuilding": _median(s.latency_ms("publish", 0.99) for s in built),
            "publishLatency99pctWhileDraining": _median(s.latency_ms("publish", 0.99) for s in drained),
        }

    def _watch_until(self, crew: Crew, phase: str, done: Callable[[Sample], bool]) -> list[Sample]:
        started = time.monotonic()
        samples: list[Sample] = []
        while not samples or not done(samples[-1]):
            time.sleep(max(0.0, started + len(samples) + 1 - time.monotonic()))
            samples.append(self._look(crew, phase, started))
            if len(samples) > 60 and not any(s.publish_rate or s.consume_rate for s in samples[-60:]):
                raise UnavailableError(f"nothing moved for 60 s while {phase}: backlog={samples[-1].backlog}")
        return samples

    def _settle(self, crew: Crew) -> dict[str, int]:
        """Stop the producers, let the consumers read what is left, and balance what was sent and read."""
        workload = self._workload
        produced = crew.order("producer", "end")
        moved_at, received = time.monotonic(), -1
        while workload.consumerPerSubscription:
            now = crew.counters()
            self._failures.update(now.failures)
            if now.received >= workload.subscriptionsPerTopic * now.acked:
                break
            if now.received > received:
                moved_at, received = time.monotonic(), now.received
            elif time.monotonic() - moved_at > _DRAIN_STALLED_S:
                break
            time.sleep(0.1)
        readers = workload.subscriptionsPerTopic if workload.consumerPerSubscription else 0
        return account(produced, crew.order("consumer", "end"), readers)


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return round(ordered[len(ordered) // 2], 3)
