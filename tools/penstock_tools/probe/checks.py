"""The questions that a probe asks a store, each answered by findings."""

from __future__ import annotations

__all__ = ("Bench", "Question", "measure", "questions")

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, cast

import anyio
import anyio.lowlevel

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
)
from penstock.spi.object_store import AppendableStore, ObjectStore
from penstock.units import format_size
from penstock_tools.probe.races import Race, Writer, race
from penstock_tools.probe.report import Finding, Latency, latency_of
from penstock_tools.probe.worker import Command, Outcome, body_of

_SMALL_BYTES: Final = 1024
_MIDDLE_BYTES: Final = 64 * 1024
#: Above what libraries and servers treat as small: a store was right below 1 MiB and wrong above.
_LARGE_BYTES: Final = 8 * 2**20
#: One race of large bodies for so many of small ones.
_LARGE_EVERY: Final = 20
_PAGE_KEYS: Final = 1000
#: More than a page, in listings and in deletions.
_MANY_KEYS: Final = 1100
_IN_FLIGHT: Final = 16
_READERS_ROUNDS: Final = 20
#: No key is a folder of another: stores on files have no such keys, and Penstock none either.
_ORDER_NAMES: Final = (
    "A",
    "a b",
    "a!z",
    "a-b",
    "a.b",
    "a/-",
    "a/b",
    "a/c/d",
    "a/c-",
    "a0",
    "aa",
    "b/1",
    "b/2",
    "~",
)
#: Puts that are broken off, each a step of the event loop later, and their size.
_BROKEN_PUTS: Final = 40
_BROKEN_BYTES: Final = 700_000
_BROKEN_WAIT_S: Final = 0.02
#: A server that answers nobody while a writer stalls: the stall ends then.
_STALL_S_MAX: Final = 10
#: Bytes and samples of the latencies.
_MEASURED: Final = ((4096, 50), (2**20, 20), (_LARGE_BYTES, 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the questions are asked with. All keys are below ``prefix``."""

    store: ObjectStore
    writers: Sequence[Writer]
    prefix: str
    rounds: int


Question: TypeAlias = Callable[[Bench], Awaitable[list[Finding]]]


def questions() -> dict[str, Question]:
    """Every question, with what it is about."""
    return {
        "conditional creation": partial(
            _ask_about_condition,
            name="put-if-absent",
            capability="put_if_absent",
            action="create",
            try_in_turn=_create_twice,
            not_offered="the store let a second creation win, or has no such request",
        ),
        "compare-and-swap": partial(
            _ask_about_condition,
            name="compare-and-swap",
            capability="compare_and_swap",
            action="swap",
            try_in_turn=_swap_stale,
            not_offered="the store let a stale swap win, or has no such request; nothing needs it",
        ),
        "appends": partial(
            _ask_about_condition,
            name="append",
            capability="append",
            action="append",
            try_in_turn=_append_elsewhere,
            not_offered="not by this plugin; nothing needs it",
        ),
        "puts that break off": _ask_about_broken_puts,
        "uploads in parts": _ask_about_uploads,
        "reads of other processes": _ask_about_reads,
        "ranges": _ask_about_ranges,
        "order of listings": _ask_about_order,
        "many keys": _ask_about_many_keys,
    }


def _kept_unless(fault: str, name: str, detail: str = "", capability: str = "") -> Finding:
    if fault:
        return Finding(name=name, verdict="broken", detail=fault, capability=capability)
    return Finding(name=name, verdict="kept", detail=detail, capability=capability)


# -- conditional writes ----------------------------------------------------------------------------------------


async def _ask_about_condition(
    bench: Bench,
    *,
    name: str,
    capability: str,
    action: str,
    try_in_turn: Callable[[Bench], Awaitable[str]],
    not_offered: str,
) -> list[Finding]:
    """By one writer, then by several; ``try_in_turn`` returns what went wrong."""
    if not getattr(bench.store.capabilities, capability):
        return [Finding(name=name, verdict="not offered", detail=not_offered, capability=capability)]
    return [
        _kept_unless(await try_in_turn(bench), f"{name}, in turn", capability=capability),
        *await _races(bench, name, capability, action),
    ]


async def _create_twice(bench: Bench) -> str:
    key = f"{bench.prefix}twice"
    await bench.store.put_if_absent(key, [b"first"])
    try:
        await bench.store.put_if_absent(key, [b"second"])
    except AlreadyExistsError:
        return "" if bytes(await bench.store.get(key)) == b"first" else "the refused body was stored"
    return "the second creation won"


async def _swap_stale(bench: Bench) -> str:
    key = f"{bench.prefix}swapped"
    stale = await bench.store.put(key, [b"first"])
    await bench.store.compare_and_swap(key, [b"second"], stale)
    for missing, where in (
        (key, "a token that is no longer the object's won"),
        (f"{key}-not", "an absent object"),
    ):
        try:
            await bench.store.compare_and_swap(missing, [b"third"], stale)
        except ConflictError:
            continue
        return where if missing == key else f"{where} was swapped"
    return ""


async def _append_elsewhere(bench: Bench) -> str:
    store = cast("AppendableStore", bench.store)
    key = f"{bench.prefix}grown"
    for offset, body in enumerate((b"a", b"b")):
        await store.append(key, [body], offset)
    for elsewhere in (0, 1, 3):
        try:
            await store.append(key, [b"c"], elsewhere)
        except ConflictError:
            continue
        return f"an append at {elsewhere} won where the object ends at 2"
    return "" if bytes(await store.get(key)) == b"ab" else "what is stored isn't what was appended"


async def _races(bench: Bench, name: str, capability: str, action: str) -> list[Finding]:
    """Races of three kinds, and the one between a stalled and a quick writer, which chance has no part in."""
    large = max(1, bench.rounds // _LARGE_EVERY)
    kinds = (
        ("at once", _SMALL_BYTES, bench.rounds, False),
        ("last bytes at once", _MIDDLE_BYTES, bench.rounds, True),
        ("last bytes at once", _LARGE_BYTES, large, True),
    )
    findings = []
    for how, size, rounds, hold in kinds:
        faults: list[str] = []
        failures: list[str] = []
        held = 0
        for number in range(rounds):
            key = f"{bench.prefix}races/{action}/{size}/{number:06d}"
            run, fault = await _run_race(bench, action, key, size, hold=hold)
            held += run.all_held
            failures += run.failures
            if fault:
                faults.append(fault)
        detail = f"{len(bench.writers)} writers, {_in_rounds(rounds)}, one winner each"
        if failures:
            detail += f"; {len(failures)} outcomes unknown, the last: {failures[-1]}"
        if hold and held < rounds:
            detail += f"; {_in_rounds(rounds - held)} began together only"
        fault = f"{len(faults)} of {rounds} rounds went wrong, the first: {faults[0]}" if faults else ""
        findings.append(_kept_unless(fault, f"{name}, {how}, {format_size(size)}", detail, capability))
    for size in (_MIDDLE_BYTES, _LARGE_BYTES):
        findings.append(await _ask_slow_writer(bench, name, capability, action, size))
    return findings


def _in_rounds(count: int) -> str:
    return f"{count} round{'' if count == 1 else 's'}"


async def _token(bench: Bench, action: str, key: str) -> str:
    return await bench.store.put(key, [b"before the race"]) if action == "swap" else ""


def _commands(count: int, action: str, key: str, size: int, token: str, *, hold: bool) -> list[Command]:
    assert action in ("create", "swap", "append")
    return [
        Command(
            action=cast("Any", action),
            key=key,
            label=f"{key} by {number}",
            size=size,
            token=token,
            hold=hold,
        )
        for number in range(count)
    ]


async def _run_race(bench: Bench, action: str, key: str, size: int, *, hold: bool) -> tuple[Race, str]:
    token = await _token(bench, action, key)
    commands = _commands(len(bench.writers), action, key, size, token, hold=hold)
    run = await race(bench.writers, commands)
    return run, await _fault_of(bench, run, commands)


async def _fault_of(bench: Bench, run: Race, commands: Sequence[Command]) -> str:
    """What is wrong with the outcome; a writer that failed may have won or lost."""
    if len(run.winners) > 1:
        return f"{len(run.winners)} writers won"
    if not run.winners and not run.failures:
        return "nobody won"
    possible = run.winners or [
        number for number, outcome in enumerate(run.outcomes) if outcome.result == "failed"
    ]
    try:
        stored = bytes(await bench.store.get(commands[0].key))
    except NotFoundError:
        return "the winner's object isn't there" if run.winners else ""
    bodies = [body_of(commands[number].label, commands[number].size) for number in possible]
    if stored in bodies or (not run.winners and stored == b"before the race"):
        return ""
    return "what is stored isn't what the winner wrote"


async def _ask_slow_writer(bench: Bench, name: str, capability: str, action: str, size: int) -> Finding:
    """One stalls on its last byte, the other puts meanwhile: the first must lose."""
    name = f"{name}, slow writer, {format_size(size)}"
    key = f"{bench.prefix}slow/{action}/{size}"
    slow, quick = bench.writers[:2]
    token = await _token(bench, action, key)
    commands = _commands(2, action, key, size, token, hold=False)
    (held,) = _commands(1, action, key, size, token, hold=True)
    if not await slow.begin(held):
        await slow.finish()
        return Finding(
            name=name,
            verdict="not tested",
            detail="requests to this store can't be held",
            capability=capability,
        )
    outcomes: list[Outcome] = []

    async def run_quick() -> None:
        await quick.begin(commands[1])
        outcomes.append(await quick.finish())
        waiting.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(_STALL_S_MAX) as waiting:
            tasks.start_soon(run_quick)
            await anyio.sleep_forever()
        blocked = not outcomes
        slow_outcome = await slow.finish()
    run = Race(outcomes=[slow_outcome, *outcomes], all_held=False)
    fault = await _fault_of(bench, run, commands)
    if not fault and run.winners == [0] and not blocked:
        fault = "the writer that came later to its last byte overwrote one that had won"
    detail = "a stalled writer blocks the others" if blocked else "a stalled writer loses to a quick one"
    return _kept_unless(fault, name, detail, capability)


# -- whole objects ---------------------------------------------------------------------------------------------


async def _ask_about_uploads(bench: Bench) -> list[Finding]:
    name = "upload in parts"
    if not bench.store.capabilities.multipart:
        return [
            Finding(name=name, verdict="not offered", detail="not by this plugin", capability="multipart")
        ]
    return [_kept_unless(await _upload(bench), name, "invisible until it is complete", "multipart")]


async def _upload(bench: Bench) -> str:
    store, key = bench.store, f"{bench.prefix}uploads/whole"
    parts = [body_of(f"{key} {number}", 5 * 2**20) for number in range(3)]
    upload = await store.create_multipart(key)
    try:
        for part in parts:
            await upload.write_part([part])
        if [info.key async for info in store.list(key)]:
            return "an upload is listed before it is complete"
        await upload.complete()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await upload.abort()
        raise
    if bytes(await store.get(key)) != b"".join(parts):
        return "what is read isn't what was uploaded"
    dropped = f"{bench.prefix}uploads/dropped"
    upload = await store.create_multipart(dropped)
    await upload.write_part([b"part"])
    await upload.abort()
    return "an upload that was given up is listed" if await _keys(store.list(dropped)) else ""


async def _ask_about_broken_puts(bench: Bench) -> list[Finding]:
    """A writer that goes away in the middle of a put leaves the whole object, or none: some keep what came of it."""
    whole = 0
    for number in range(_BROKEN_PUTS):
        key = f"{bench.prefix}broken/{number}"
        data = body_of(key, _BROKEN_BYTES)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.store.put, key, [data])
            for _ in range(number):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await anyio.sleep(_BROKEN_WAIT_S)  # what the store makes of it comes after the writer is gone
        try:
            found = len(await bench.store.get(key))
        except NotFoundError:
            continue
        if found != len(data):
            fault = f"{found} of {len(data)} bytes were kept as the object"
            return [_kept_unless(fault, "put that breaks off", capability="put_if_absent")]
        whole += 1
    return [_kept_unless("", "put that breaks off", f"{_BROKEN_PUTS} puts, {whole} of them whole")]


async def _ask_about_reads(bench: Bench) -> list[Finding]:
    """What one process writes or deletes is so for every other at once."""
    unread = undeleted = unlisted = 0
    for number in range(_READERS_ROUNDS):
        key = f"{bench.prefix}reads/{number % 3}"  # also over what was there
        data = body_of(f"{key} {number}", _SMALL_BYTES)
        await bench.store.put(key, [data])
        seen = await race(bench.writers, [Command(action="read", key=key)] * len(bench.writers))
        digest = hashlib.sha256(data).hexdigest()
        unread += any(outcome.detail != digest for outcome in seen.outcomes)
        unlisted += await _keys(bench.store.list(key)) != [key]
        await bench.store.delete([key])
        seen = await race(bench.writers, [Command(action="read", key=key)] * len(bench.writers))
        undeleted += any(outcome.result != "missing" for outcome in seen.outcomes)
        unlisted += await _keys(bench.store.list(key)) != []
    rounds = f"{_READERS_ROUNDS} rounds"
    return [
        _kept_unless(f"{unread} of {rounds} read something else" * bool(unread), "read after write", rounds),
        _kept_unless(
            f"{undeleted} of {rounds} found it still" * bool(undeleted), "read after delete", rounds
        ),
        _kept_unless(
            f"{unlisted} listings of {rounds} were late" * bool(unlisted), "list after write", rounds
        ),
    ]


async def _ask_about_ranges(bench: Bench) -> list[Finding]:
    store, key = bench.store, f"{bench.prefix}ranges"
    data = body_of(key, _MIDDLE_BYTES)
    await store.put(key, [data])
    size = len(data)
    for start, end in ((0, 1), (5, 500), (size - 7, None), (size - 7, size + 99), (size, None), (3, 3)):
        if bytes(await store.get(key, start, end)) != data[start:end]:
            return [_kept_unless(f"[{start}, {end}) of {size} bytes came wrong", "read of ranges")]
    try:
        await store.get(key, size + 1)
    except InvalidRequestError:
        return [_kept_unless("", "read of ranges")]
    return [_kept_unless("a range that begins past the end was answered", "read of ranges")]


# -- listings --------------------------------------------------------------------------------------------------


async def _keys(items: AsyncIterator[object]) -> list[str]:
    return [getattr(info, "key", "") async for info in items]


async def _ask_about_order(bench: Bench) -> list[Finding]:
    question, capability = "list in order", "ordered_listing"
    if not bench.store.capabilities.ordered_listing:
        return [
            Finding(
                name=question, verdict="not offered", detail="it lists in any order", capability=capability
            )
        ]
    prefix = f"{bench.prefix}order/"
    expected = [f"{prefix}{name}" for name in sorted(_ORDER_NAMES)]
    for key in reversed(expected):
        await bench.store.put(key, [b"x"])
    fault = _listing_fault(await _keys(bench.store.list(prefix)), expected)
    for name in ("a-b", "a/", "a/c", "a5"):
        after = f"{prefix}{name}"
        found = await _keys(bench.store.list(prefix, after))
        fault = fault or _listing_fault(found, [key for key in expected if key > after])
    return [_kept_unless(fault, question, capability=capability)]


def _listing_fault(found: Sequence[str], expected: Sequence[str]) -> str:
    if found == expected:
        return ""
    if sorted(found) == expected:
        first = next(number for number, key in enumerate(found) if key != expected[number])
        return f"{found[first].rpartition('order/')[2]!r} comes too early: not in the order of bytes"
    return f"{len(found)} keys instead of {len(expected)}"


async def _ask_about_many_keys(bench: Bench) -> list[Finding]:
    """More than a page, of listings and of deletions."""
    store, prefix = bench.store, f"{bench.prefix}many/"
    expected = [f"{prefix}{number:06d}" for number in range(_MANY_KEYS)]
    await _put_all(store, expected)
    ordered = store.capabilities.ordered_listing
    found = await _keys(store.list(prefix))
    fault = _listing_fault(found if ordered else sorted(found), expected)
    for after in (0, _PAGE_KEYS - 1, _MANY_KEYS - 2) if ordered else ():
        rest = await _keys(store.list(prefix, expected[after]))
        fault = fault or _listing_fault(rest, expected[after + 1 :])
    await store.delete(expected)
    left = len(await _keys(store.list(prefix)))
    return [
        _kept_unless(fault, f"list of more than {_PAGE_KEYS} keys", f"{_MANY_KEYS} keys"),
        _kept_unless(f"{left} of {_MANY_KEYS} keys are still there" * bool(left), "delete many keys"),
    ]


async def _put_all(store: ObjectStore, keys: Iterable[str]) -> None:
    pending = iter(list(keys))
    failure: list[PenstockError] = []

    async def put_some() -> None:
        for key in pending:
            if failure:
                return
            try:
                await store.put(key, [b"x"])
            except PenstockError as error:
                failure.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(_IN_FLIGHT):
            tasks.start_soon(put_some)
    if failure:
        raise failure[0]


# -- latencies -------------------------------------------------------------------------------------------------


async def measure(bench: Bench) -> list[Latency]:
    """How long puts, gets and listings take, one after the other, with nothing beside them."""
    store = bench.store
    latencies = []
    for size, samples in _MEASURED:
        keys = [f"{bench.prefix}latency/{size}/{number:03d}" for number in range(samples)]
        data = body_of(bench.prefix, size)
        puts = [await _time(store.put(key, [data])) for key in keys]
        gets = [await _time(store.get(key, 0, size)) for key in keys]
        latencies += [latency_of("put", size, puts), latency_of("get", size, gets)]
    lists = [await _time(_keys(store.list(f"{bench.prefix}latency/"))) for _ in range(_MEASURED[0][1])]
    return [*latencies, latency_of("list", 0, lists)]


async def _time(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began
