"""A client process: ``python -m penstock_tools.bench._worker``, driven by JSON lines on stdin, answering on stdout.

The first line says which clients to be; every further line is a command and gets one line as its answer. Each client
is a thread: librdkafka works outside the GIL, and a thread that waits for it holds nothing.

Times are CLOCK_MONOTONIC, which all processes of a host share and nobody sets.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from penstock_tools.bench._fetcher import FetchingClient
from penstock_tools.bench.histogram import Histogram
from penstock_tools.bench.priority import give_way

#: Sent at (ns), producer << 48 | number.
_HEADER = struct.Struct(">QQ")
_NUMBER_BITS = 48
_BURST = 256
_CONSUME_MAX = 2000
_QUIET = logging.getLogger("penstock_tools.bench.librdkafka")


def payloads(spec: dict[str, Any]) -> list[bytes]:
    """What messages hold behind their header: random bytes and zeros, a file, or members of a JSON object."""
    size = spec["size"] - _HEADER.size
    if spec.get("json"):
        dice = random.Random(spec["seed"])
        return [_members(dice, spec["size"]) for _ in range(spec["pool"])]
    if spec["file"] is not None:
        return [Path(spec["file"]).read_bytes()[_HEADER.size :]]
    dice = random.Random(spec["seed"])
    noise = max(0, int(spec["size"] * spec["random_ratio"]) - _HEADER.size)
    return [dice.randbytes(noise) + bytes(size - noise) for _ in range(spec["pool"])]


def _members(dice: random.Random, size: int) -> bytes:
    """The rest of a JSON object behind its first two members, of about ``size`` bytes with them."""
    members = {
        "customer": dice.randbytes(8).hex(),
        "amount": round(dice.uniform(1, 1000), 2),
        "paid": dice.random() < 0.5,
        "items": [{"article": dice.randbytes(6).hex(), "count": dice.randrange(1, 9)} for _ in range(6)],
        "tags": [dice.choice(("new", "gift", "export", "express")) for _ in range(4)],
        "address": {"street": dice.randbytes(10).hex(), "zip": str(dice.randrange(10_000, 99_999))},
    }
    rest = json.dumps(members)[1:-1]
    text = dice.randbytes(size).hex()[: max(0, size - len(rest) - 72)]
    return f'{rest}, "text": "{text}"}}'.encode()


def _json_head(at_ns: int, number: int) -> bytes:
    return b'{"at_ns": %d, "number": %d, ' % (at_ns, number)


def keys(distributor: str) -> Callable[[], bytes | None] | None:
    """Gives the key of each message; None: no message has one."""
    if distributor == "NO_KEY":
        return None
    dice = random.Random(1)
    pool = [dice.randbytes(5).hex()[:7].encode() for _ in range(10_000)]
    if distributor == "KEY_ROUND_ROBIN":
        ring = itertools.cycle(pool)
        return lambda: next(ring)
    return lambda: pool[time.monotonic_ns() % len(pool)]


class ProducingClient(threading.Thread):
    """Sends at a rate, or as fast as librdkafka takes it."""

    def __init__(self, spec: dict[str, Any], load: dict[str, Any]) -> None:
        super().__init__(name=f"producer-{spec['index']}", daemon=True)
        self._topic: str = spec["topic"]
        self._identity: int = spec["index"] << _NUMBER_BITS
        self._bodies: Iterator[bytes] = itertools.cycle(payloads(load["payload"]))
        self._key = keys(load["keys"])
        self._size: int = load["payload"]["size"]
        self._head: Callable[[int, int], bytes] = _json_head if load["payload"].get("json") else _HEADER.pack
        self._producer = Producer({**spec["config"], "on_delivery": self._delivered}, logger=_QUIET)
        self._producer.list_topics(self._topic, timeout=30)
        self.index: int = spec["index"]
        self.rate = 0.0
        self.wanted = threading.Event()
        self.ending = False
        self.failure = ""
        self.sent = self.acked = self.errors = 0
        self.histograms = {"publish": Histogram(), "publishDelay": Histogram()}

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acked += 1
            self.histograms["publish"].record(int(message.latency() * 1e6))
        else:
            self.errors += 1
            self.failure = str(error)

    def run(self) -> None:
        self.wanted.wait()
        try:
            if not self.ending:
                if self.rate > 0:
                    self._paced()
                else:
                    self._unpaced()
            self._producer.flush(60)
        except Exception as error:  # noqa: BLE001 # told to the conductor with the next answer
            self.failure = f"{type(error).__name__}: {error}"

    def _unpaced(self) -> None:
        while not self.ending:
            self._send(_BURST)
            self._producer.poll(0)

    def _paced(self) -> None:
        started = time.monotonic_ns()
        done = 0
        rate_ns = self.rate / 1e9
        delays = self.histograms["publishDelay"]
        while not self.ending:
            if not self.wanted.is_set():
                self._rest()
                started, done, rate_ns = time.monotonic_ns(), 0, self.rate / 1e9
            now = time.monotonic_ns()
            due = int((now - started) * rate_ns) + 1 - done
            if due > 0:
                due = min(due, _BURST)
                # one burst shares the delay of its first message, the longest
                delays.record(int(now - started - done / rate_ns) // 1000, due)
                self._send(due)
                done += due
                self._producer.poll(0)
            else:
                self._producer.poll(0.001)

    def _rest(self) -> None:
        """Send nothing until wanted again."""
        while not (self.wanted.is_set() or self.ending):
            self._producer.poll(0.05)

    def _send(self, count: int) -> None:
        produce, topic, pack, clock = self._producer.produce, self._topic, self._head, time.monotonic_ns
        key = None
        for _ in range(count):
            value = pack(clock(), self._identity | self.sent) + next(self._bodies)
            if self._key is not None:
                key = self._key()
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    self._producer.poll(0.01)
                    if self.ending:
                        return
            self.sent += 1

    def statistics(self) -> dict[str, int]:
        """Counts so far."""
        return {
            "sent": self.sent,
            "acked": self.acked,
            "errors": self.errors,
            "sentBytes": self.acked * self._size,
        }

    def end(self) -> None:
        """Send no more; the thread ends when everything sent is answered."""
        self.ending = True
        self.wanted.set()
        self.join(90)

    def account(self) -> dict[str, Any]:
        """Who sent how many."""
        return {"producer": self.index, "topic": self._topic, "acked": self.acked, "errors": self.errors}


class ConsumingClient(threading.Thread):
    """Reads one topic as a member of a group."""

    def __init__(self, spec: dict[str, Any], load: dict[str, Any]) -> None:
        super().__init__(name=f"consumer-{spec['index']}", daemon=True)
        self._topic: str = spec["topic"]
        self._group: str = spec["config"]["group.id"]
        self._consumer = Consumer(spec["config"], logger=_QUIET)
        self._consumer.subscribe([self._topic])
        self.assigned = 0
        self.wanted = threading.Event()
        self.wanted.set()
        self.ending = False
        self.failure = ""
        self.received = self.bytes = self.duplicates = 0
        self._last: dict[int, int] = {}
        self._unique: dict[int, int] = {}
        self.histograms = {"endToEnd": Histogram()}

    def run(self) -> None:
        try:
            while not self.ending:
                if not self.wanted.is_set():
                    self._rest()
                self._read()
            self._consumer.close()
        except Exception as error:  # noqa: BLE001 # told to the conductor with the next answer
            self.failure = f"{type(error).__name__}: {error}"

    def _rest(self) -> None:
        """Fetch nothing, but stay a member of the group, until wanted again."""
        partitions = self._consumer.assignment()
        self._consumer.pause(partitions)
        while not self.wanted.is_set() and not self.ending:
            self._take([message] if (message := self._consumer.poll(0.05)) is not None else [])
        self._consumer.resume(partitions)

    def _read(self) -> None:
        first = self._consumer.poll(0.1)  # consume() would wait until its list is full
        if first is None:
            self.assigned = len(self._consumer.assignment())
            return
        self._take([first])
        self._take(self._consumer.consume(_CONSUME_MAX, 0))

    def _take(self, messages: list[Message]) -> None:
        now = time.monotonic_ns()
        record = self.histograms["endToEnd"].record
        last, unique, unpack = self._last, self._unique, _HEADER.unpack_from
        for message in messages:
            if (error := message.error()) is not None:
                self._failed(error)
                continue
            value = message.value()
            sent_at, word = unpack(value)
            record((now - sent_at) // 1000)
            self.received += 1
            self.bytes += len(value)
            producer = word >> _NUMBER_BITS
            place = message.partition() << 16 | producer
            if last.get(place, -1) < word:
                last[place] = word
                unique[producer] = unique.get(producer, 0) + 1
            else:
                self.duplicates += 1

    def _failed(self, error: KafkaError) -> None:
        if not error.retriable() and error.fatal():
            raise KafkaException(error)
        self.failure = str(error)

    def statistics(self) -> dict[str, int]:
        """Counts so far; ``owners`` is 1 if it has partitions."""
        return {
            "received": self.received,
            "receivedBytes": self.bytes,
            "assigned": self.assigned,
            "owners": min(self.assigned, 1),
        }

    def end(self) -> None:
        """Leave the group."""
        self.ending = True
        self.wanted.set()
        self.join(60)

    def account(self) -> dict[str, Any]:
        """How many messages of whom were read, each counted once, and how many came again or out of order."""
        unique = {str(producer): count for producer, count in self._unique.items()}
        return {"group": self._group, "topic": self._topic, "unique": unique, "duplicates": self.duplicates}


Client = ProducingClient | ConsumingClient | FetchingClient
_ROLES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Client]] = {
    "producer": ProducingClient,
    "consumer": ConsumingClient,
    "fetcher": FetchingClient,
}


class Worker:
    """The clients of this process and what they had counted when they were last asked."""

    def __init__(self, setup: dict[str, Any]) -> None:
        kind = _ROLES[setup["role"]]
        if setup["load"].get("givesWay"):
            give_way()  # before there are threads, which inherit it
        self.clients: list[Client] = [kind(spec, setup["load"]) for spec in setup["clients"]]
        self._before: dict[tuple[int, str], Histogram] = {}
        for client in self.clients:
            client.start()

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a command says."""
        match command["do"]:
            case "start":
                for client in self.clients:
                    if isinstance(client, ProducingClient):
                        client.rate = command["rate"]
                    client.wanted.set()
            case "pause":
                for client in self.clients:
                    client.wanted.clear()
            case "end":
                for client in self.clients:
                    client.ending = True
                for client in self.clients:
                    client.end()
        return self._report(account=command["do"] in ("end", "account"))

    def _report(self, *, account: bool) -> dict[str, Any]:
        counts: dict[str, int] = {}
        merged: dict[str, Histogram] = {}
        for number, client in enumerate(self.clients):
            for name, value in client.statistics().items():
                counts[name] = counts.get(name, 0) + value
            for name, histogram in client.histograms.items():
                now = histogram.copy()
                before = self._before.get((number, name), Histogram())
                merged.setdefault(name, Histogram()).merge(now.minus(before))
                self._before[number, name] = now
        times = os.times()
        return {
            "counts": counts,
            "histograms": {name: histogram.buckets() for name, histogram in merged.items()},
            "cpu_s": times.user + times.system,
            "failures": sorted({client.failure for client in self.clients if client.failure}),
            "accounts": [client.account() for client in self.clients] if account else [],
        }


def main() -> int:
    """Serve the conductor until stdin ends."""
    logging.basicConfig(level=logging.CRITICAL)
    # clients wake up for each other's messages: a thread that waits 5 ms for the GIL is a latency that isn't there
    sys.setswitchinterval(5e-4)
    lines = iter(sys.stdin.readline, "")
    try:
        worker = Worker(json.loads(next(lines)))
        for line in itertools.chain(['{"do": "statistics"}'], lines):
            sys.stdout.write(json.dumps(worker.answer(json.loads(line))) + "\n")
            sys.stdout.flush()
    except KafkaException as error:
        sys.stdout.write(json.dumps({"error": str(error.args[0])}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads of librdkafka that still wait for a broker don't hold the process
