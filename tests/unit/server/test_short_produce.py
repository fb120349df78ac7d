"""The short way of a Produce and the long one give the same answers and have the same effects."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from penstock.api.client import NAME_CHARS_MAX
from penstock.errors import FullError
from penstock.server import long_produce, produce_heads, requests
from penstock.server.long_produce import ProduceHeader
from penstock.server.produce_heads import ProduceHeads
from penstock.server.short_produce import ShortProduces
from penstock.wire import ApiKey, encode_request, native_code
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.records import build_batch
from penstock.wire.registry import decode_request, decode_request_header

pytestmark = pytest.mark.anyio


def _load() -> ModuleType:
    path = Path(__file__).parents[3] / "tools/bench/counts.py"
    spec = importlib.util.spec_from_file_location("bench_counts_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_counts_rig"] = module
    spec.loader.exec_module(module)
    return module


counts = _load()


class NoHeads(ProduceHeads):
    """Learns nothing, so that every request goes the long way."""

    __slots__ = ()

    def learn(self, *_: object) -> None:
        """Nothing."""


@dataclass
class Sent:
    """A request: what can differ from the usual one."""

    version: int = 9
    partition: int = 0
    topic: str = counts.TOPIC
    acks: int = -1
    size: int = 300
    producer: tuple[int, int, int] = (-1, -1, -1)
    damage: int = -1
    client_id: str | None = "c"
    batches: int = 1
    codec: int = 0


def frame(sent: Sent, number: int, topic_id: bytes) -> bytes:
    """The bytes of one request."""
    producer_id, epoch, sequence = sent.producer
    batch = build_batch(
        [(None, b"%d" % number + b"x" * sent.size, (), counts.NOW_MS)],
        codec=sent.codec,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )
    if sent.damage >= 0:
        batch[sent.damage % len(batch)] ^= 0x10
    data = [PartitionProduceData(index=sent.partition, records=bytes(batch)) for _ in range(sent.batches)]
    topic = TopicProduceData(name=sent.topic, partition_data=data)
    if sent.version >= 13:
        topic = TopicProduceData(topic_id=topic_id, partition_data=data)
    request = ProduceRequest(acks=sent.acks, timeout_ms=1000, topic_data=[topic])
    return b"".join(encode_request(ApiKey.PRODUCE, sent.version, number, sent.client_id, request))


def some_requests(random: Random) -> list[Sent]:
    """Mostly usual ones of one or two clients, and whatever else comes."""
    version = random.choice([3, 5, 7, 8, 9, 10, 12, 13])
    sequences = {1: 0, 2: 0}
    found = []
    for _ in range(40):
        sent = Sent(version=version, size=random.choice([0, 1, 20, 60, 100, 300, 5000, 17_000, 32_690]))
        match random.randrange(14):
            case 0:
                sent.damage = random.randrange(400)
            case 1:
                sent.partition = random.choice([1, -1, 7])
            case 2:
                sent.acks = random.choice([1, 2, -1])
            case 3:
                sent.topic = "nothing"
            case 4:
                sent.version = random.choice([5, 9, 12])
            case 5:
                sent.client_id = random.choice([None, "", "another", "ü" * 90])
            case 6:
                sent.codec = random.choice([1, 2, 3])
            case 7 | 8 | 9:
                producer_id = random.choice([1, 2])
                sequence = sequences[producer_id] + random.choice([0, 0, 0, 0, 1, -1])
                sent.producer = (producer_id, 0, max(sequence, 0))
                if sequence == sequences[producer_id]:
                    sequences[producer_id] += 1
            case 10:
                sent.batches = 2
            case _:
                pass
        found.append(sent)
    return found


def exchange(made: Any, data: bytes, random: Random) -> None:
    """``Rig.exchange``, but as a socket gives it: what is there, as far as there is room for it."""
    while data:
        buffer = made.connection.get_buffer(-1)
        size = min(len(buffer), len(data), random.randrange(1, 60_000))
        buffer[:size], data = data[:size], data[size:]
        made.connection.buffer_updated(size)
    made.exchange(b"")


async def outcome(requests: list[Sent], seed: int, *, short: bool) -> tuple[bytes, bytes, int, int]:
    """All answers, what a consumer reads then, requests counted, and how many went the short way."""
    random = Random(seed)
    async with counts.rig() as made:
        if not short:
            made.server.core.produce_heads = NoHeads()
        topic = made.server.core.api.logs.topics()[counts.TOPIC]
        topic_id = topic.id
        went = 0
        real = ShortProduces.take

        def counting(*args: Any) -> bool:
            nonlocal went
            went += (gone := real(*args))
            return gone

        setattr(ShortProduces, "take", counting)  # noqa: B010 - mypy has it as a function
        try:
            data, answers = b"", b""
            for number, sent in enumerate(requests):
                data += frame(sent, number, topic_id)
                if random.random() < 0.5 or len(data) > 20_000:
                    exchange(made, data, random)
                    answers += made.answers()
                    data = b""
            exchange(made, data, random)
            answers += made.answers()
            made.exchange(counts.fetch_frame(0))
            answers = answers.replace(topic_id, b"T" * 16)  # a topic's id is drawn
            return answers, made.answers(), made.server.core.requests_by_api[0], went
        finally:
            setattr(ShortProduces, "take", real)  # noqa: B010


@pytest.mark.parametrize("seed", range(12))
async def test_both_ways_give_the_same_answers_and_the_same_log(seed: int) -> None:
    """Memory of its own, which a large frame has, goes to the log by both, or back."""
    requests = some_requests(Random(seed))
    answers, log, handled, went = await outcome(requests, seed, short=True)
    long_answers, long_log, long_handled, long_went = await outcome(requests, seed, short=False)
    assert answers == long_answers
    assert log == long_log
    assert handled == long_handled == len(requests)
    assert long_went == 0
    assert went > 0 or requests[0].version < 5


@pytest.mark.parametrize("version", [8, 9, 12])
async def test_records_of_a_few_bytes_go_the_short_way_whatever_their_length_takes(version: int) -> None:
    requests = [Sent(version=version, size=size) for size in (1, *range(40, 70), 300)]
    answers, log, _, went = await outcome(requests, 1, short=True)
    assert went == len(requests) - 1, "the first one is learned from"
    long_answers, long_log, _, _ = await outcome(requests, 1, short=False)
    assert (answers, log) == (long_answers, long_log)


@pytest.mark.skipif(native_code.walk is None, reason="without native code threads look into large batches")
@pytest.mark.parametrize("version", [8, 9, 12])
async def test_a_large_frame_goes_the_short_way_and_its_memory_with_it(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(version)
    async with counts.rig() as made:
        partition = made.server.core.api.logs.partition(counts.TOPIC, 0)
        allocator, granted = made.server.core.allocator, []
        allocate = allocator.allocate_nowait

        def allocate_nowait(*args: Any) -> Any:
            granted.append(allocate(*args))
            return granted[-1]

        monkeypatch.setattr(allocator, "allocate_nowait", allocate_nowait)
        made.exchange(frame(Sent(version=version), 0, b""))  # the head is learned
        monkeypatch.delattr(long_produce, "start")
        made.connection.channel.incoming.credit = 2**24  # it has sent what it announced: memory in one piece
        granted.clear()
        for number, size in enumerate((40_000, 1_000_000), 1):
            exchange(made, frame(Sent(version=version, size=size), number, b""), random)
            assert partition.high_watermark == number + 1
            made.answers()
            exchange(made, frame(Sent(version=version, size=size, damage=300), number, b""), random)
            assert made.answers()
        assert partition.high_watermark == 3
        assert [bool(len(one.view)) for one in granted] == [True, False] * 2, (
            "of damaged ones it is given back"
        )


def test_a_head_that_is_known_is_not_learned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = ProduceHeads()
    view = memoryview(bytearray(frame(Sent(), 1, b"")[4:]))
    header = decode_request_header(view)
    request: Any = decode_request(ApiKey.PRODUCE, 9, view, header.body_pos, lenient=True)
    heads.learn(view, header.client_id, 9, request)
    assert len(heads) == 1
    monkeypatch.delattr(produce_heads, "encode_request")
    heads.learn(view, header.client_id, 9, request)


async def test_where_there_is_no_room_nothing_has_changed() -> None:
    async with counts.rig() as made:
        for number in range(2):
            made.exchange(frame(Sent(), number, b""))
        partition = made.server.core.api.logs.partition(counts.TOPIC, 0)
        before = partition.high_watermark

        def full(*_: object, **__: object) -> None:
            raise FullError("no room")

        partition.append = full
        view = memoryview(bytearray(frame(Sent(), 2, b"")))[4:]
        handled = made.server.core.requests_by_api[0]
        channel = made.connection.channel
        short = ShortProduces(channel)
        short.now_ms = counts.NOW_MS
        assert not short.take(view, ApiKey.PRODUCE, 9, 2)
        assert not channel.pipeline.slots
        assert channel.pipeline.bytes == short.taken == 0
        assert made.server.core.requests_by_api[0] == handled
        del partition.append
        assert short.take(view, ApiKey.PRODUCE, 9, 2)
        made.wal.complete()
        assert partition.high_watermark == before + 1


def received(made: Any, *requests: bytes) -> None:
    """The connection has received ``requests`` in one go."""
    data = b"".join(requests)
    made.connection.get_buffer(-1)[: len(data)] = data
    made.connection.buffer_updated(len(data))


async def test_the_answer_of_an_only_request_leaves_with_its_sync_and_those_of_several_together() -> None:
    """Nothing can leave with the former, so it doesn't wait for the loop's next turn."""
    async with counts.rig() as made:
        usual = [frame(Sent(), number, b"") for number in range(4)]
        made.exchange(usual[0])  # the head is learned
        made.answers()
        pipeline = made.connection.channel.pipeline
        received(made, usual[1])
        assert not made.wire.sent
        made.wal.complete()
        assert len(made.wire.sent) == 1
        assert not pipeline.slots
        assert not pipeline.bytes
        made.answers()
        received(made, *usual[2:])
        made.wal.complete()
        assert not made.wire.sent
        made.server.core.flush_dirty()
        assert len(made.wire.sent) == 1


async def test_the_answer_of_an_only_request_of_the_long_way_leaves_with_its_sync_too() -> None:
    async with counts.rig() as made:
        made.server.core.produce_heads = NoHeads()
        received(made, frame(Sent(), 0, b""))
        assert not made.wire.sent
        made.wal.complete()
        assert len(made.wire.sent) == 1
        assert not made.connection.channel.pipeline.slots


async def test_an_answer_that_is_there_at_once_leaves_from_the_read_that_asked_for_it_also_if_more_came() -> (
    None
):
    """In the loop's next turn it would leave behind what others have the loop do, and on nobody's account."""
    async with counts.rig() as made:
        made.exchange(frame(Sent(), 0, b""))
        made.answers()
        received(made, counts.fetch_frame(0))
        assert len(made.answers()) > 100
        assert not made.connection.channel.pipeline.slots
        half = counts.fetch_frame(0)[:50]
        received(made, counts.fetch_frame(0) + half)
        alone = made.answers()
        assert len(alone) > 100
        received(made, counts.fetch_frame(0)[50:] + counts.fetch_frame(0) * 2)
        assert made.answers() == alone * 3
        made.server.core.flush_dirty()
        assert not made.answers()


async def test_a_large_answer_leaves_when_what_came_with_its_request_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Produces that were read in the same turn of the loop share a group, and large answers leave beside it."""
    monkeypatch.setattr(requests, "_AT_ONCE_BYTES_MAX", 100)
    async with counts.rig() as made:
        made.exchange(frame(Sent(), 0, b""))
        made.answers()
        received(made, counts.fetch_frame(0))
        assert not made.wire.sent
        made.server.core.flush_dirty()
        assert len(made.answers()) > 100


async def test_an_answer_that_can_not_be_written_ends_its_connection_and_nothing_else() -> None:
    async with counts.rig() as made:
        made.exchange(frame(Sent(), 0, b""))
        ended: list[str] = []

        def broken(data: object) -> None:
            raise RuntimeError("a bug of the transport")

        made.wire.write = broken
        made.wire.abort = lambda: ended.append("aborted")
        received(made, frame(Sent(), 1, b""))
        made.wal.complete()
        assert ended == ["aborted"]
        assert made.server.core.handler_errors == 1


async def test_an_answer_that_breaks_off_the_read_it_leaves_from_is_the_last_and_holds_nothing() -> None:
    async with counts.rig() as made:
        made.exchange(frame(Sent(), 0, b""))
        made.answers()
        writes: list[int] = []
        core, channel = made.server.core, made.connection.channel

        def broken(data: object) -> None:
            writes.append(len(data))  # type: ignore[arg-type]
            raise RuntimeError("a bug of the transport")

        made.wire.write = broken
        made.wire.abort = lambda: None
        received(made, counts.fetch_frame(0) * 3, frame(Sent(), 1, b""))
        core.flush_dirty()
        assert len(writes) == 1
        assert not channel.pipeline.slots
        assert core.outgoing.used > 0, "on account until the transport is gone"
    assert (core.outgoing.used, core.incoming.used) == (0, 0)


async def test_a_closed_gate_leaves_every_request_to_the_long_way() -> None:
    async with counts.rig() as made:
        for number in range(2):
            made.exchange(frame(Sent(), number, b""))
        view = memoryview(bytearray(frame(Sent(), 2, b"")))[4:]
        channel = made.connection.channel
        assert ShortProduces(channel).take(view, ApiKey.PRODUCE, 9, 2)
        made.server.core.gate = type("Closed", (), {"is_open": False})()
        assert not ShortProduces(channel).take(view, ApiKey.PRODUCE, 9, 3)


def test_a_head_is_learned_only_from_what_the_codec_would_write() -> None:
    heads = ProduceHeads()
    plain = frame(Sent(), 1, b"")[4:]
    for data in (plain[:-1] + b"\1\0\0", plain + b"\0"):
        view = memoryview(bytearray(data))
        header = decode_request_header(view)
        request: Any = decode_request(ApiKey.PRODUCE, 9, view, header.body_pos, lenient=True)
        heads.learn(view, header.client_id, 9, request)
    assert not len(heads)


def test_long_heads_are_not_kept() -> None:
    """Of 4,096 client ids of 32 KiB the heads were 250 MiB that no account knew."""
    heads = ProduceHeads()
    for size in (32_000, produce_heads.HEAD_BYTES_MAX):
        view = memoryview(bytearray(frame(Sent(client_id="c" * size), 1, b"")[4:]))
        header = decode_request_header(view)
        request: Any = decode_request(ApiKey.PRODUCE, 9, view, header.body_pos, lenient=True)
        heads.learn(view, header.client_id, 9, request)
    assert not len(heads)


async def test_of_what_a_client_calls_itself_little_is_kept() -> None:
    """A tagged field of a header may be as long as the request, and was kept with the connection."""
    async with counts.rig() as made:
        channel = made.connection.channel
        usual = memoryview(frame(Sent(), 1, b""))[4:]
        at = 10 + len(decode_request_header(usual).client_id or "")
        tagged = bytes(usual[:at]) + b"\1\5\xff\x7f" + bytes(0x3FFF) + bytes(usual[at + 1 :])
        long = memoryview(frame(Sent(client_id="c" * 32_000), 1, b""))[4:]
        header = ProduceHeader()
        for data in (usual, memoryview(tagged), long, usual):
            assert header.body_pos(data, 9, channel) == decode_request_header(data).body_pos
            assert len(header._tail) <= produce_heads.HEAD_BYTES_MAX
        assert header.body_pos(long, 9, channel)
        assert channel.client.client_id == "c" * NAME_CHARS_MAX


async def test_whoever_asks_by_one_connection_in_turn_is_who_asked_last() -> None:
    """What each way of a request remembers of its last one doesn't tell who asked by another way since."""
    sents = (
        Sent(client_id="a"),
        Sent(client_id="b", acks=0),
        Sent(client_id="a"),
        Sent(client_id="b", acks=0),
    )
    async with counts.rig() as made:
        for round_ in range(3):
            for number, sent in enumerate(sents):
                made.exchange(frame(sent, 10 * round_ + number, b""))
                assert made.connection.channel.client.client_id == sent.client_id
            made.exchange(counts.fetch_frame(0))
            assert made.connection.channel.client.client_id not in ("a", "b")


def test_heads_are_bounded() -> None:
    heads = ProduceHeads()
    for number in range(produce_heads._HEADS_MAX + 100):
        view = memoryview(bytearray(frame(Sent(partition=number), 1, b"")[4:]))
        header = decode_request_header(view)
        request: Any = decode_request(ApiKey.PRODUCE, 9, view, header.body_pos, lenient=True)
        heads.learn(view, header.client_id, 9, request)
    assert len(heads) == produce_heads._HEADS_MAX
