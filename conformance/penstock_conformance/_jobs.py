"""The jobs of child processes, a function each; children and parent exchange JSON lines.

A line is written with one ``os.write``, directly after what it tells of, so a SIGKILL can't take back an answer that
the parent has seen.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import signal
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
from crc32c import crc32c

from penstock.errors import (
    AlreadyExistsError,
    ClosedError,
    ConflictError,
    FencedError,
    FullError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
)
from penstock.spi.metadata_log import MetadataSnapshot
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend
from penstock_conformance._body import check_body, make_body
from penstock_conformance._env import Env
from penstock_conformance._lake import feed_until_killed, made, topic_of
from penstock_conformance._target import Target

#: What a process tells before it stops in the middle of a call.
HALTED = "halted"


class _Link:
    """The way to the parent."""

    connection: Connection
    unread = b""


_link = _Link()


def tell(value: object) -> None:
    """Answer the parent."""
    os.write(_link.connection.fileno(), json.dumps(value).encode() + b"\n")


def ask() -> Any:
    """The parent's next order; None when it is gone. Blocks the process, which does nothing else."""
    while b"\n" not in _link.unread:
        piece = os.read(_link.connection.fileno(), 4096)
        if not piece:
            return None
        _link.unread += piece
    line, _, _link.unread = _link.unread.partition(b"\n")
    return json.loads(line)


async def hear() -> Any:
    """The parent's next order, as :func:`ask`, for a process that does something else meanwhile."""
    while b"\n" not in _link.unread:
        await anyio.wait_readable(_link.connection.fileno())
        piece = os.read(_link.connection.fileno(), 4096)
        if not piece:
            return None
        _link.unread += piece
    line, _, _link.unread = _link.unread.partition(b"\n")
    return json.loads(line)


#: So many calls tell how long one takes.
_TIMED_CALLS = 3


class Death:
    """SIGKILL for this process at its ``after``-th acknowledgement, directly after telling it; 0 leaves it alive.

    A kill from outside hits what takes longest, mostly a sync; this one what is acknowledged and not yet written.
    With a negative ``after`` it comes after as many, in the middle of a large ``call``, which a kill from outside
    seldom hits on a medium that takes no time.
    """

    def __init__(self, after: int) -> None:
        self._left = abs(after)
        self._in_a_call = after < 0
        self._took_s, self._timed = 1e9, 0

    def told(self) -> None:
        """One more was told."""
        self._left -= 1
        if self._left == 0 and not self._in_a_call:
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def in_next_call(self) -> bool:
        """Whether as much was told as should be, so that this process dies in one of the next calls to die in."""
        return self._in_a_call and self._left <= 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call to die in: each writes as much, so the quickest tells how long one takes."""
        if self.in_next_call and self._timed >= _TIMED_CALLS:
            # nobody handles the signal, so it ends the process as SIGKILL does
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, random.uniform(0.1, 0.9) * self._took_s))
        started = time.perf_counter()
        yield
        if self._in_a_call:
            signal.setitimer(signal.ITIMER_REAL, 0)  # it came too late: the next call is tried
        self._took_s = min(self._took_s, time.perf_counter() - started)
        self._timed += 1


class Halt:
    """Stops this process (SIGSTOP) in the middle of a call, until the parent wakes it: what others do then comes
    between two of its steps, however many processors the machine has, and whatever else they are busy with."""

    def __init__(self) -> None:
        self._took_s: dict[int, float] = {}
        self._has_halted = False
        signal.signal(signal.SIGALRM, self._stop)

    def _stop(self, *_: object) -> None:
        self._has_halted = True
        tell(HALTED)
        os.kill(os.getpid(), signal.SIGSTOP)

    @contextmanager
    def call(self, share: float, size: int = 0) -> Iterator[None]:
        """Around a call: stop when ``share`` of the time has passed that the quickest one took that succeeded, of
        those that write ``size`` bytes, if the first of them has."""
        self._has_halted = False
        took_s = self._took_s.get(size, math.inf)
        if share and took_s < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, share * took_s))
        started = time.perf_counter()
        try:
            yield
            if not self._has_halted:
                self._took_s[size] = min(took_s, time.perf_counter() - started)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # it came too late


def spin_until(moment_s: float) -> None:
    """Return as close to the others as can be."""
    while time.monotonic() < moment_s:
        pass


#: The ways to write an object; each but ``put`` is named like the capability that it needs.
WRITES = ("put", "put_if_absent", "compare_and_swap", "multipart")


async def write(store: Any, way: str, key: str, body: Sequence[Buffer]) -> str | None:
    """Write an object, which must be there to be swapped; returns its token if ``way`` tells one."""
    if way == "multipart":
        upload = await store.create_multipart(key)
        for part in body:
            await upload.write_part((part,))
        await upload.complete()
        return None
    if way == "compare_and_swap":
        token = (await store.head(key)).token
        swapped: str = await store.compare_and_swap(key, body, token)
        return swapped
    written: str = await getattr(store, way)(key, body)
    return written


async def make_log(env: Env) -> None:
    """WAL: open it where none is; tell its identity."""
    async with env.open(epoch=1):
        tell(await env.identify())


async def create_race(env: Env, *, owner: int, size: int = 2000) -> None:
    """Object store: put_if_absent of each key that is asked for, at the given moment; tell who won. The owner that
    the order names puts it instead."""
    halt = Halt()
    async with env.open() as store:
        tell("ready")
        while (order := ask()) is not None:
            body = [make_body(owner, 0, size)]
            spin_until(order["at"])
            try:
                with halt.call(order["halt"]):
                    if order.get("putter") == owner:
                        await store.put(order["key"], body)
                    else:
                        await store.put_if_absent(order["key"], body)
            except AlreadyExistsError:
                tell(False)
            else:
                tell(True)


async def append_in_turn(env: Env, *, key: str, owner: int) -> None:
    """Object store: append as many lines as are asked for to an object that others grow, too, each where it ends; or
    to the next one, if the store takes no more to this one. Tell how many that made."""
    halt, number, objects = Halt(), 0, 1
    async with env.open() as store:
        tell("ready")
        while (order := ask()) is not None:
            share, last = order["halt"], number + order["times"]
            while number < last:
                grown = f"{key}/{objects}"
                try:
                    end = (await store.head(grown)).size
                except NotFoundError:
                    end = 0
                try:
                    with halt.call(share):
                        await store.append(grown, [b"%d %d\n" % (owner, number)], end)
                except ConflictError:
                    share = 0.0
                except InvalidRequestError:
                    if not end:
                        raise
                    objects += 1
                else:
                    number += 1
            tell(objects)


async def count_with_swap(env: Env, *, key: str, beside: str) -> None:
    """Object store: add one to a counter with compare_and_swap as many times as is asked for, and tell the tokens.

    At an order of no time, append a ``+`` to ``beside``, which others put and delete, again and again, until that is
    ``end``.
    """
    halt = Halt()
    async with env.open() as store:
        tell("ready")
        while (order := ask()) is not None and order["times"]:
            share, tokens = order["halt"], list[str]()
            while len(tokens) < order["times"]:
                info = await store.head(key)
                value = int(bytes(await store.get(key)))
                # A swap between head and get changes the value and the token: the swap below then fails.
                try:
                    with halt.call(share):
                        token = await store.compare_and_swap(key, [str(value + 1).encode()], info.token)
                except ConflictError:
                    share = 0.0
                else:
                    tokens.append(token)
            tell(tokens)
        while True:
            try:
                info = await store.head(beside)
                body = bytes(await store.get(beside))
            except NotFoundError:
                await anyio.sleep(0.001)
                continue
            if body.startswith(b"end"):
                return
            with suppress(ConflictError):
                await store.compare_and_swap(beside, [body, b"+"], info.token)


async def overwrite(env: Env, *, key: str, owner: int, sizes: list[int], shares: list[float]) -> None:
    """Object store: replace one object by these sizes after each other, and halt where a share says so; tell what is
    acknowledged."""
    halt = Halt()
    async with env.open() as store:
        tell("ready")
        for sequence, (size, share) in enumerate(zip(sizes, shares, strict=True)):
            body = make_body(owner, sequence, size)
            with halt.call(share, size):
                await store.put(key, [body])
            tell(sequence)


async def put_until_killed(env: Env, *, owner: int, keys: list[str], seed: int, die_after: int) -> None:
    """Object store: writes of all kinds; tell each key and sequence once acknowledged."""
    rng, death = random.Random(seed), Death(die_after)
    async with env.open() as store:
        tell("ready")
        for sequence in range(1, 1_000_000):
            key = rng.choice(keys)
            size = 300_000 if death.in_next_call else rng.choice((100, 5000, 300_000))
            body = make_body(owner, sequence, size)
            parts = (body[:50], body[50:])
            with death.call() if size == 300_000 else nullcontext():
                if store.capabilities.multipart and rng.random() < 0.3:
                    upload = await store.create_multipart(key)
                    for start in range(0, len(body), 64 * 1024):
                        await upload.write_part([body[start : start + 64 * 1024]])
                    await upload.complete()
                else:
                    await store.put(key, parts)
            tell([key, sequence])
            death.told()


async def write_when_told(env: Env, *, size: int) -> None:
    """Object store: write an object in the way that each order names, and tell."""
    halt = Halt()
    async with env.open() as store:
        tell("ready")
        while (order := ask()) is not None:
            body = make_body(1, order["sequence"], size)
            parts = (body[:1000], body[1000:])  # copied before: a large part of the time is else no writing
            with halt.call(order["halt"]):
                await write(store, order["way"], order["key"], parts)
            tell(order["sequence"])


async def write_until_killed(env: Env, *, owner: int, seed: int, die_after: int) -> None:
    """Object store: write objects in all ways, each under a key of its own; tell each once acknowledged.

    Owners take turns in which way of writing they die, if they die in a call: 2 and 3 in the second way, and so on.
    """
    rng, death = random.Random(seed), Death(die_after)
    async with env.open() as store:
        ways = [way for way in WRITES if way == "put" or getattr(store.capabilities, way)]
        deadly = ways[owner // 2 % len(ways)]
        tell("ready")
        for sequence in range(1, 1_000_000):
            key, way = f"made/{owner}-{sequence}", rng.choice(ways)
            size = rng.choice((100, 5000, 2_000_000))
            if death.in_next_call:
                way, size = deadly, 2_000_000
            body = make_body(owner, sequence, size)
            if way == "compare_and_swap":
                await store.put(key, [make_body(owner, sequence, rng.choice((100, len(body))))])
            parts = (body[:50], body[50:])  # copied before: a large part of the time is else no writing
            with death.call() if way == deadly and size == 2_000_000 else nullcontext():
                await write(store, way, key, parts)
            tell([key, way, sequence])
            death.told()


async def append_until_killed(
    env: Env,
    *,
    epoch: int,
    owner: int,
    seed: int,
    trim: bool,
    die_after: int,
    bursts: Sequence[int] = (1, 1, 3, 20),
    sizes: Sequence[int] = (60, 500, 6000),
    die_recovering: int = 0,
) -> None:
    """WAL: recover, tell it, then append bursts; tell each sequence from its completion callback.

    Or die (SIGKILL) as so many entries are recovered.
    """
    rng, death = random.Random(seed), Death(die_after)

    def acked(sequence: int) -> Callable[[WalAppend], None]:
        def callback(append: WalAppend) -> None:
            tell(["ack" if append.error is None else "error", sequence, append.next_position])
            death.told()

        return callback

    async with env.open(epoch=epoch) as wal:
        count = 0
        async for entry in wal.recover():
            check_body(entry.data)
            count += 1
            if count == die_recovering:
                tell(["dying", count])
                os.kill(os.getpid(), signal.SIGKILL)
        tell(["recovered", count])
        sequence = 0
        while True:
            burst: list[WalAppend] = []
            for _ in range(rng.choice(bursts)):
                try:
                    append = wal.append([make_body(owner, sequence, rng.choice(sizes))])
                except FullError:
                    break
                append.set_callback(acked(sequence))
                burst.append(append)
                sequence += 1
            for append in burst:
                await append.wait_durable()
            if burst and trim and rng.random() < 0.1:
                tell(["trim", burst[0].position])
                await wal.trim(burst[0].position)
            elif not burst:
                used = wal.statistics()
                tell(["trim", used.confirmed_position])
                await wal.trim(used.confirmed_position)


async def append_until_fenced(env: Env, *, epoch: int, owner: int, pending: int = 1) -> None:
    """WAL: append, with ``pending`` entries on their way; tell when each was begun and that it was acknowledged.

    Then the end: why it was refused.
    """
    async with env.open(epoch=epoch) as wal:
        async for _ in wal.recover():
            pass
        tell(["ready"])
        flying: deque[tuple[int, float, WalAppend]] = deque()
        for sequence in range(1_000_000):
            try:
                flying.append((sequence, time.monotonic(), wal.append([make_body(owner, sequence, 300)])))
                if len(flying) == pending:
                    done, begun, append = flying.popleft()
                    await append.wait_durable()
                    tell(["ack", done, begun])
            except (FencedError, ClosedError) as error:
                for done, begun, append in flying:
                    with suppress(FencedError, ClosedError):
                        await append.wait_durable()
                        tell(["ack", done, begun])
                tell(["end", type(error).__name__])
                return


async def open_race(env: Env, *, owner: int) -> None:
    """WAL: open it as each epoch that is asked for, at the given moment, and append; tell whether that was taken.

    It stays open until there is another order.
    """
    halt = Halt()
    tell("ready")
    while (order := ask()) is not None:
        spin_until(order["at"])
        taken = False
        with suppress(PenstockError):  # a lock of this host may be met before the fence
            async with AsyncExitStack() as stack:
                with halt.call(order["halt"]):
                    wal = await stack.enter_async_context(env.open(epoch=order["epoch"]))
                async for _ in wal.recover():
                    pass
                await wal.append([make_body(owner, order["epoch"], 100)]).wait_durable()
                taken = True
                tell(True)
                await hear()
        if not taken:
            tell(False)
            await hear()


async def append_kinds_until_killed(
    env: Env, *, epoch: int, owner: int, size: int, seed: int, die_after: int, pause_s: float = 0.0
) -> None:
    """WAL: append small and large entries, with their checksums and without; tell each once it is acknowledged.

    ``pause_s`` passes before each.
    """
    rng, death = random.Random(seed), Death(die_after)
    async with env.open(epoch=epoch) as wal:
        async for _ in wal.recover():
            pass
        tell("ready")
        for sequence in range(1_000_000):
            is_large, is_checked = rng.random() < 0.5, rng.random() < 0.5
            body = make_body(owner, sequence, size if is_large else 300)
            kind = f"{'large' if is_large else 'small'}, its checksum {'' if is_checked else 'un'}known"

            def acked(_: WalAppend, told: tuple[str, int] = (kind, sequence)) -> None:
                tell(told)
                death.told()

            await anyio.sleep(pause_s)
            append = wal.append([body], crc32c(body) if is_checked else None)
            append.set_callback(acked)
            await append.wait_durable()


async def seal_and_wait(env: Env, *, epoch: int) -> None:
    """WAL: append one entry, seal the log, tell, and wait for the end."""
    async with env.open(epoch=epoch) as wal:
        async for _ in wal.recover():
            pass
        await wal.append([b"one"]).wait_durable()
        await wal.seal()
        tell("sealed")
        ask()


async def append_race(env: Env, *, owner: int) -> None:
    """Metadata log: append as many entries as are asked for, at whatever index is next; tell those that were won.

    Who is to halt looks first where the log ends, so that it halts in an append that goes through.
    """
    halt, index, sequence = Halt(), 1, 0

    async with env.open(node_id=owner) as log:

        async def end(index: int) -> int:
            async for entry in log.read(index):
                index = entry.index + 1
            return index

        tell("ready")
        while (order := ask()) is not None:
            share, won = order["halt"], list[tuple[int, int]]()
            if share:
                index = await end(index)
            while len(won) < order["times"]:
                try:
                    with halt.call(share):
                        await log.append(index, make_body(owner, sequence, 200))
                except ConflictError:
                    share = 0.0
                    index = await end(index)
                else:
                    won.append((index, sequence))
                    index += 1
                    sequence += 1
            tell(won)


async def append_metadata_until_killed(env: Env, *, owner: int, seed: int, die_after: int) -> None:
    """Metadata log: catch up, append, sometimes write a snapshot; tell what is acknowledged."""
    rng, death = random.Random(seed), Death(die_after)
    async with env.open(node_id=owner) as log:
        snapshot = await log.read_snapshot()
        index = 1 if snapshot is None else snapshot.index + 1
        async for entry in log.read(index):
            index = entry.index + 1
        tell("ready")
        while True:
            await log.append(index, make_body(owner, index, rng.choice((50, 4000))))
            tell(["entry", index])
            death.told()
            if rng.random() < 0.15:
                await log.write_snapshot(MetadataSnapshot(index, make_body(owner, index, 3000)))
                tell(["snapshot", index])
            index += 1


async def lake_feed(env: Env, *, epoch: int, step: int, commits: int) -> None:
    """Lake compactor: go on with a table, dying at a step; tell the positions of each commit."""
    await feed_until_killed(env, tell, hear, epoch=epoch, step=step, commits=commits)


async def lake_write(env: Env, *, epoch: int, size: int) -> None:
    """Lake compactor: write records of a size, and never commit them."""
    async with env.open() as compactor, compactor.open_table(topic_of(env), epoch) as table:
        for offset in range(14):
            await table.write(made(0, offset, offset + 1, size))
        tell("written")
        await hear()


JOBS: dict[str, Callable[..., Awaitable[None]]] = {
    function.__name__: function
    for function in (
        make_log,
        create_race,
        count_with_swap,
        append_in_turn,
        overwrite,
        put_until_killed,
        write_when_told,
        write_until_killed,
        append_until_killed,
        append_kinds_until_killed,
        open_race,
        seal_and_wait,
        append_until_fenced,
        append_race,
        append_metadata_until_killed,
        lake_feed,
        lake_write,
    )
}


def run_job(order_text: str, connection: Connection) -> None:
    """The whole life of a child process: do the job that ``order_text`` describes."""
    _link.connection = connection
    order = json.loads(order_text)
    target, data_dir = Target.from_json(order["target"]), Path(order["data_dir"])
    if not order["room"]:
        job = partial(JOBS[order["job"]], Env(target, data_dir))
    else:  # a module that isn't imported for the others
        own = getattr(importlib.import_module(order["room"]), order["job"])
        job = partial(own, target, data_dir, tell, hear)

    async def bounded() -> None:
        # Longer than any parent waits: only a child whose parent is gone ends by it.
        with anyio.fail_after(600):
            await job(**order["arguments"])

    try:
        anyio.run(bounded)
    except BrokenPipeError:
        return  # the parent lost interest
    except Exception:  # noqa: BLE001 # told to the parent, whose clause fails by it
        tell({"failed": traceback.format_exc()[-4000:]})
