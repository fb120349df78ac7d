"""Clauses of ``penstock.spi.wal``, all at once: random lives of a log, held against a model of what it must hold."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from anyio.lowlevel import checkpoint

from penstock.errors import (
    ClosedError,
    FencedError,
    FullError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
)
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend, WalEntry, WalStatistics
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises
from penstock_conformance._figures import Figures
from penstock_conformance._leaks import errors_come_out, looks_leave_nothing
from penstock_conformance._pace import Pace
from penstock_conformance._wal_steps import append_all, check_same, make_bodies, read, recovered, room_of

KIND = "wal"

_LIVES = 5
_STEPS = 13
_PIECE = bytes(2**20)
_LARGEST_MAX = 130 * 2**20
#: Beyond what 16 bits count, in bursts beyond every likely bound of a group or a page.
_MANY = 66_000
_MANY_AT_ONCE = (9000, 5000, 1, 20_000)
#: Where a file of a log may have a header, or its first entries.
_PLACES = (0, 4096, 8192)
#: A log that writes as many has small groups: tens of thousands of entries would take it too long over a network.
_GROUPS_MAX = 200


class _Model:
    """What one log must hold, and what it told; ``opened`` for each life."""

    def __init__(self, env: Env, rng: random.Random) -> None:
        self._env = env
        self._random = rng
        #: All that was ever appended, with its positions, acknowledged at the latest when its life had ended.
        self._history: list[tuple[int, int, bytes]] = []
        self._trimmed = 0
        self._life = 0
        self._identity: str | None = None

    def opened(self, wal: Any) -> None:
        """A new life begins."""
        self._wal = wal
        self._thread = threading.get_ident()
        self._from_other_threads = 0
        self._life += 1
        self._figures = Figures(WalStatistics)
        self._pending: list[WalAppend] = []
        self._answers: list[tuple[int, Exception | None]] = []
        self._asked: list[int] = []
        self._size = min(100_000, room_of(wal, 400_000) // 4, wal.capabilities.entry_bytes_max)

    async def recover(self) -> None:
        """What it recovers are the newest entries, as they were appended, and all above the trim point."""
        entries = await recovered(self._wal)
        self._check_entries(entries, f"life {self._life} recovers")
        self._found = [(entry, bytes(entry.data)) for entry in entries]

    def _check_entries(self, entries: Sequence[WalEntry], what: str) -> None:
        kept = sum(end > self._trimmed for _, end, _ in self._history)
        assert len(entries) >= kept, f"{what} {len(entries)} entries, and {kept} are above the trim point"
        wanted = self._history[len(self._history) - len(entries) :]
        check_same([bytes(entry.data) for entry in entries], [body for *_, body in wanted], what)
        places = [(entry.position, entry.next_position) for entry in entries]
        assert places == [(at, end) for at, end, _ in wanted], f"{what} other positions than append told"

    async def step(self) -> None:
        """Do something, and look what came of it."""
        steps = (self.burst, self.burst, self.settle, self.turn, self.trim, self.look)
        await self._random.choice(steps)()
        self._check_figures()

    async def burst(self) -> None:
        """Append some at once, whose completion is told in all the ways there are."""
        for _ in range(self._random.choice((1, 2, 3, 20, 120))):
            await self._append_or_trim(self._body())

    async def _append_or_trim(self, body: bytes) -> None:
        try:
            self._append(body)
        except FullError:
            await self.settle()
            self._trimmed = self._history[-1][1]
            await self._wal.trim(self._trimmed)
            self._append(body)

    async def one_of_each(self) -> None:
        """What every history has: a trim, entries of what the log itself has written, a read from outside."""
        for _ in range(3):
            await self._append_or_trim(self._body())
        await self.settle()
        self._check_figures()
        self._trimmed = self._history[-1][0]
        await self._wal.trim(self._trimmed)
        self._check_figures()
        files = sorted(path for path in self._env.store_dir.rglob("*") if path.is_file())
        for path, place in product(files[:3], _PLACES):
            await self._append_or_trim(self._of_the_medium(path, place, 300) or b"\r\n")
        await self.settle()
        if self._env.can_read_outside():
            self._check_entries(await self._env.read_outside(), "a read from outside tells")

    def _body(self) -> bytes:
        """Bytes of all kinds, with what might be taken for an end, a beginning, or for what is there already."""
        size = self._random.choice((1, 7, 40, 300, 4096, self._random.randrange(1, self._size)))
        kind = self._random.randrange(9)
        if kind < 3:
            return bytes((kind == 2,)) * size if kind else b"\xff" * size
        if kind == 3 and self._history:
            return self._random.choice(self._history[-5:])[2]
        if kind == 4:
            files = sorted(path for path in self._env.store_dir.rglob("*") if path.is_file())
            path = self._random.choice(files) if files else self._env.store_dir
            return self._of_the_medium(path, self._random.choice(_PLACES), size) or b"\r\n"
        if kind == 5:
            return b"x" + bytes(size - 1)
        return self._random.randbytes(size)

    def _of_the_medium(self, path: Path, place: int, size: int) -> bytes:
        """What the log itself has written, if it is found: an entry may hold anything."""
        with suppress(OSError), path.open("rb") as file:
            file.seek(place)
            return file.read(size)
        return b""

    def _append(self, body: bytes) -> None:
        buffer = bytearray(body)
        middle = self._random.randrange(len(body) + 1)
        data: list[Buffer] = [memoryview(buffer)[:middle], body[middle:]]
        given = list(data)
        append: WalAppend = self._wal.append(data)
        assert data == given, "append changed the list that it was given"
        self._history.append((append.position, append.next_position, body))
        self._pending.append(append)
        way = self._random.randrange(3)
        if way:
            self._asked.append(append.position)
            if way == 1:
                append.set_callback(self._told_to(buffer))
            else:
                append.set_run_callback(self._told_run)

    def _told_to(self, buffer: bytearray) -> Callable[[WalAppend], None]:
        def told(append: WalAppend) -> None:
            self._from_other_threads += threading.get_ident() != self._thread
            self._answers.append((append.position, append.error))
            buffer[:] = bytes(len(buffer))  # it is the caller's again

        return told

    def _told_run(self, appends: Sequence[WalAppend], error: Exception | None) -> None:
        for append in appends:
            append.done = True  # nobody sets it of a run; the model itself looks at it
            self._answers.append((append.position, error))

    async def settle(self) -> None:
        """Wait until all is durable."""
        while not all(append.done for append in self._pending):
            waits = [one for one in self._pending if one.run_callback is None and not one.done]
            await (waits[-1].wait_durable() if waits else checkpoint())
        self._answered()

    def _answered(self) -> None:
        self._pending.clear()
        assert [position for position, _ in self._answers] == self._asked, (
            "callbacks were called in another order, or not each of them once"
        )
        assert not self._from_other_threads, "callbacks were called from another thread"
        wrong = [error for _, error in self._answers if error is not None]
        assert not wrong, f"an append failed and nobody disturbed it: {wrong[0]!r}"
        self._answers.clear()
        self._asked.clear()

    async def turn(self) -> None:
        """Let the log work for a moment."""
        for _ in range(self._random.randrange(4)):
            await checkpoint()

    async def trim(self) -> None:
        """Up to somewhere among the newest entries, inside of one, or below what is trimmed."""
        if self._history:
            at, end, _ = self._random.choice(self._history[-150:])
            done = self._pending[0].position if self._pending else end
            target = self._random.choice((at, end, at + 1, self._trimmed // 2, 0))
            if target <= done:
                self._trimmed = max(self._trimmed, target)
                await self._wal.trim(target)

    async def look(self) -> None:
        """From outside: nothing is acknowledged that isn't there, and the identity stays."""
        if self._wal.capabilities.identity:
            identity = await self._env.identify()
            assert self._identity in (None, identity), f"the identity changed: {self._identity} {identity}"
            self._identity = identity
        if self._env.can_read_outside() and not self._pending and self._random.random() < 0.2:
            self._check_entries(await self._env.read_outside(), "a read from outside tells")

    def _check_figures(self) -> None:
        told = self._figures.look(self._wal.statistics())
        pending = [append for append in self._pending if not append.done]
        assert told.pending_entries == len(pending), f"{len(pending)} pend, told are {told.pending_entries}"
        assert (told.pending_bytes > 0) == bool(pending), f"{len(pending)} pend of {told.pending_bytes} bytes"
        if pending:
            assert told.confirmed_position <= pending[0].position, "an entry that pends is told as durable"
        if any(end > self._trimmed for _, end, _ in self._history):
            assert told.used_bytes > 0, "entries that aren't trimmed take no room"

    async def close(self) -> None:
        """The last looks before the log is left, with something pending."""
        await self.settle()
        if self._life == 1:
            await self.one_of_each()
        await self.look()
        changed = [number for number, (entry, body) in enumerate(self._found) if entry.data != body]
        assert not changed, f"{len(changed)} recovered entries changed while they were looked at"
        self._figures.end()
        await self.burst()

    def left(self) -> None:
        """The log is closed: what pended is durable."""
        assert all(append.done for append in self._pending), "an append wasn't answered when the log was left"
        self._answered()


async def test_random_lives_agree_with_a_model(env: Env) -> None:
    """Recovered are all entries above the trim point, as they were appended, whatever was done in between."""
    models = [(env, _Model(env, env.random_of(1)))]
    async with env.open(epoch=1) as wal:
        location = wal.location
    other = env.elsewhere()
    async with other.open(epoch=1) as wal:
        if wal.location != location:
            models.append((other, _Model(other, env.random_of(2))))
    pace = Pace(env.target.deadline_s / 8, _LIVES * _STEPS * len(models))
    for life in range(_LIVES):
        if life > 1 and pace.is_over:
            break
        async with AsyncExitStack() as stack:
            for place, model in models:
                model.opened(await stack.enter_async_context(place.open(epoch=life + 2)))
            for _, model in models:
                await model.recover()
            for _ in range(_STEPS * len(models)):
                await env.random.choice(models)[1].step()
                pace.step()
            for _, model in models:
                await model.close()
        for _, model in models:
            model.left()


async def test_tens_of_thousands_of_entries_come_back(env: Env) -> None:
    """All acknowledged entries since the trim point: of tens of thousands, by thousands at once."""
    kept: list[bytes] = []
    bursts = _MANY_AT_ONCE * (_MANY // sum(_MANY_AT_ONCE) + 1)
    pace = Pace(env.target.deadline_s / 16, len(bursts))
    async with env.open(epoch=1) as wal:
        await recovered(wal)

        def has_had_enough() -> bool:
            return wal.statistics().written_groups > _GROUPS_MAX and pace.is_over

        count = 0
        appends: list[WalAppend] = []
        for burst in bursts:
            if has_had_enough():
                break
            del appends[:-1]
            for count in range(count + 1, count + 1 + burst):  # noqa: B020 - goes on where it was
                body = b"%d" % count
                try:
                    append = wal.append([body])
                except FullError:
                    if has_had_enough():
                        break
                    await appends[-1].wait_durable()
                    await wal.trim(appends[-1].next_position)
                    append = wal.append([body])
                    kept = []
                kept.append(body)
                appends.append(append)
            await appends[-1].wait_durable()
            pace.step()
            assert all(append.done for append in appends), "an append completed before an earlier one"
        for earlier, later in pairwise(appends):
            assert earlier.next_position <= later.position, "two entries overlap, or positions don't grow"
    found = await read(env, 2)
    check_same(found[-len(kept) :], kept, f"of {count} entries")


async def test_largest_entry_is_taken_and_comes_back(env: Env) -> None:
    """InvalidRequestError when the entry is larger than ``entry_bytes_max``, and only then."""
    async with env.open(epoch=1) as wal:
        largest = wal.capabilities.entry_bytes_max
        if largest > _LARGEST_MAX:
            not_applicable(f"the largest entry takes long to write, set one of at most {_LARGEST_MAX} bytes")
        await recovered(wal)
        tail = make_bodies(1)[0]
        pieces: list[Buffer] = [_PIECE] * ((largest - len(tail)) // len(_PIECE))
        pieces.append(bytes(largest - len(tail) - len(pieces) * len(_PIECE)))
        try:
            append = wal.append([*pieces, tail])
            await append.wait_durable()
        except (InvalidRequestError, FullError) as error:
            raise AssertionError(f"an entry of entry_bytes_max isn't taken: {error}") from error
    async with env.open(epoch=2) as wal:
        (entry,) = await recovered(wal)
        assert len(entry.data) == largest, f"{len(entry.data)} of {largest} bytes came back"
        assert bytes(entry.data[-len(tail) :]) == tail, "the end of the largest entry is another one"
        place, told = (entry.position, entry.next_position), (append.position, append.next_position)
        assert place == told, f"the largest entry is in {place}, and append told {told}"


@clause(claims="fencing")
async def test_epoch_has_one_owner(env: Env) -> None:
    """FencedError if this epoch was used before: while its owner is at it, and when he has closed the log."""
    async with env.open(epoch=3) as wal:
        await recovered(wal)
        await append_all(wal, make_bodies(3))
        with raises(PenstockError):  # a lock of this host may be met before the fence
            async with env.open(epoch=3) as again:
                await recovered(again)
        await append_all(wal, make_bodies(2, owner=1))
    with raises(FencedError):
        async with env.open(epoch=3):
            pass
    check_same(await read(env, 4), [*make_bodies(3), *make_bodies(2, owner=1)], "after an epoch came twice")


@clause(claims="fencing")
async def test_fence_is_told_to_callbacks(env: Env) -> None:
    """A failure is told to each callback once, in position order; from then on ``append`` raises FencedError."""
    told: list[tuple[int, Exception | None]] = []
    async with env.open(epoch=1) as old:
        await recovered(old)
        async with env.open(epoch=2) as new:
            await recovered(new)
            appends: list[WalAppend] = []
            with suppress(FencedError):
                for body in make_bodies(12):
                    appends.append(old.append([body]))
                    if len(appends) % 3 == 1:
                        appends[-1].set_callback(lambda append: told.append((append.position, append.error)))
                    elif len(appends) % 3 == 2:
                        appends[-1].set_run_callback(
                            lambda run, error: told.extend((append.position, error) for append in run)
                        )
            for append in appends[2::3]:
                with raises(FencedError, ClosedError):
                    await append.wait_durable()
            if appends:
                # from the call, or from the append: who asks the medium first can't know earlier
                with raises(FencedError):
                    await old.append([b"late"]).wait_durable()
    wanted = [append.position for number, append in enumerate(appends) if number % 3 != 2]
    assert [position for position, _ in told] == wanted, f"{len(told)} of {len(wanted)} callbacks were told"
    assert all(isinstance(error, FencedError | ClosedError) for _, error in told), (
        "fenced, and told otherwise"
    )


@clause(claims="seal")
async def test_sealed_log_stays_sealed(env: Env) -> None:
    """From the return of ``seal`` on, no append of *any* owner is acknowledged: not of the next ones, either. Each of
    them may seal it again. So it is where nothing was appended, by who seals it or anybody."""
    for number, (bodies, others) in enumerate(((make_bodies(4), []), ([], []), ([], make_bodies(4)))):
        place = env.elsewhere(f"sealed-{number}")
        if others:  # then who seals it has appended nothing
            async with place.open(epoch=1) as wal:
                await recovered(wal)
                await append_all(wal, others)
        async with place.open(epoch=2) as wal:
            await recovered(wal)
            end = wal.statistics().end_position
            for append in await append_all(wal, bodies):
                end = append.next_position
            bodies = bodies or others
            identity = await place.identify() if wal.capabilities.identity else None
            for _ in range(2):
                await wal.seal()
            assert wal.statistics().end_position >= end, "a log that is sealed forgot where it ends"
            if env.can_read_outside():
                outside = [bytes(entry.data) for entry in await place.read_outside()]
                check_same(outside, bodies, "a sealed log, read from outside")
        for epoch in range(3, 7):
            async with place.open(epoch=epoch) as wal:
                check_same([bytes(e.data) for e in await recovered(wal)], bodies, "a sealed log")
                with raises(FencedError):
                    await wal.append([b"late"]).wait_durable()
                await wal.seal()
                now = await place.identify() if wal.capabilities.identity else None
                assert now == identity, f"a sealed log is another one: identity={now} before={identity}"


async def test_looking_and_being_refused_leaves_nothing(env: Env) -> None:
    """Who looks from outside, at all or a part, or finds nothing, or is fenced as he opens, leaves no descriptor,
    task or thread behind."""
    nothing = env.elsewhere("nothing")
    async with env.open(epoch=9) as wal:
        await recovered(wal)
        await append_all(wal, make_bodies(3))

        async def look() -> None:
            if wal.capabilities.identity:
                await env.identify()
            if env.can_read_outside():
                await env.read_outside()
                await env.read_outside(entries_max=1)
                with suppress(NotFoundError):
                    await nothing.read_outside()
            if env.can_describe_outside():
                await env.describe_outside()
                with suppress(NotFoundError):
                    await nothing.describe_outside()
            if wal.capabilities.fencing:
                with suppress(FencedError):
                    async with env.open(epoch=5):
                        pass

        await looks_leave_nothing(look)


async def test_error_of_its_owner_comes_out(env: Env) -> None:
    """Leaving the context closes the log, and hides nothing: an error inside comes out, as it is."""

    async def use(wal: Any, number: int) -> None:
        await recovered(wal)
        wal.append([b"%d" % number])

    await errors_come_out(env, use)
    check_same(await read(env, 20), [b"0", b"1", b"2"], "appended by owners that ended with an error")
