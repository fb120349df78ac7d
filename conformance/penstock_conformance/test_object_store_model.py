"""Clauses of ``penstock.spi.object_store``, all at once: random operations, held against a model of what is there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from penstock.spi.object_store import ObjectStoreStatistics
from penstock.spi.plugin import Buffer
from penstock_conformance._env import Env, raises
from penstock_conformance._faults import error_of
from penstock_conformance._figures import Figures
from penstock_conformance._jobs import WRITES, write
from penstock_conformance._leaks import errors_come_out, leaves_nothing
from penstock_conformance._listings import keys_listed
from penstock_conformance._pace import Pace

KIND = "object_store"

_STEPS: Final = 200
#: Beyond what a pool of buffers may have, before what was returned is looked at once more.
_MORE_READS: Final = 150
_MIB: Final = 2**20
#: Sizes at which something begins, or ends: pages, and buffers of readers and writers.
_SIZES: Final = (0, 1, 2, 511, 4095, 4096, 4097, 65_536, 131_072)
#: Beyond the sizes at which libraries change their way of writing: 8, 16 and 32 MiB.
_LARGE: Final = 33 * _MIB + 4096


class _Model:
    """What is there, by all that was told; ``stores`` are openers of one place, or a single one."""

    def __init__(self, env: Env, stores: Sequence[Any]) -> None:
        self._random = env.random
        self._stores = stores
        self._objects: dict[str, bytes] = {}
        self._tokens: dict[str, str] = {}
        #: Tokens that once were, by key.
        self._stale: list[tuple[str, str, bytes]] = []
        #: Every result, with what it was: it stays valid as long as it is referenced.
        self._got: list[tuple[str, Buffer, bytes]] = []
        self._figures = [Figures(ObjectStoreStatistics) for _ in stores]
        self._ways = [way for way in WRITES if way == "put" or getattr(stores[0].capabilities, way)]
        # a key may be the beginning of another one, but not its folder: file trees can't have that
        self._keys = [
            f"m/{folder}{name}" for folder in ("", "a/", "a/b/", "ab/") for name in ("k", "k0", "kk", "-k")
        ]
        self._keys += ["m/" + "deep/" * 12 + "k", "m/" + "long" * 45]

    async def begin(self) -> None:
        """An object of each size, and its second half; what is listed of them from outside of what begins so."""
        self._store = self._random.choice(self._stores)
        for size, key in zip(_SIZES, self._keys, strict=False):
            await self.write(key, size)
            await self._check_range(key, size // 2, size)
        for start_after in ("l", "n"):
            await self._check_list("m", start_after)

    async def step(self) -> None:
        """Do something with one of the openers, and look what came of it."""
        self._store = self._random.choice(self._stores)
        steps: Sequence[Callable[[], Awaitable[None]]] = (
            *(self.write,) * 4,
            *(self.read,) * 4,
            *(self.list, self.delete, self.swap_in_vain, self.create_in_vain),
        )
        await self._random.choice(steps)()
        for store, figures in zip(self._stores, self._figures, strict=True):
            figures.look(store.statistics())

    async def write(self, key: str = "", size: int | None = None) -> None:
        """In any way, from buffers that are the caller's again at once."""
        key, way = key or self._random.choice(self._keys), self._random.choice(self._ways)
        if (way == "put_if_absent" and key in self._objects) or (
            way == "compare_and_swap" and key not in self._objects
        ):
            way = "put"
        if size is None:
            size = self._random.choice((*_SIZES, self._random.randrange(20_000)))
        raw = self._random.randbytes(size)
        cuts = sorted(self._random.randrange(len(raw) + 1) for _ in range(self._random.randrange(4)))
        cuts += cuts[-1:]  # an empty buffer among the others
        buffers = [bytearray(raw[at:end]) for at, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        body: list[Buffer] = list(buffers)
        token = await write(self._store, way, key, body)
        assert len(body) == len(buffers), f"{way} changed the list that it was given"
        for buffer in buffers:
            _give_back(buffer, way)
        if key in self._tokens:
            self._stale.append((key, self._tokens[key], self._objects[key]))
        self._objects[key] = raw
        info = await self._random.choice(self._stores).head(key)
        assert (info.key, info.size) == (key, len(raw)), f"another head after {way}: {info}"
        assert token in (None, info.token), f"head and {way} disagree about the token: {token} {info}"
        self._tokens[key] = info.token

    async def read(self) -> None:
        """A range, or all, of something that is there or isn't."""
        key = self._random.choice(self._keys)
        if key not in self._objects:
            with raises(NotFoundError):
                await self._random.choice((self._store.get, self._store.head))(key)
            return
        wanted = self._objects[key]
        places = sorted(
            self._random.choice((0, 1, 4096, len(wanted), self._anywhere(wanted))) for _ in range(2)
        )
        start, end = places[0], self._random.choice((places[1], None, places[1] + 2**33))
        if start > len(wanted):
            with raises(InvalidRequestError):
                await self._store.get(key, start, end)
            return
        await self._check_range(key, start, end)

    async def _check_range(self, key: str, start: int, end: int | None) -> None:
        wanted = self._objects[key]
        found = await self._store.get(key, start, end)
        self._got.append((f"[{start}, {end}) of {key}, {len(wanted)} bytes", found, wanted[start:end]))
        assert found == wanted[start:end], f"other bytes or another object: {self._got[-1][0]}"

    def _anywhere(self, wanted: bytes) -> int:
        return self._random.randrange(len(wanted) + 1)

    async def list(self) -> None:
        """By any beginning of a key, from any place, there or not, also outside of what begins so."""
        key, other = self._random.choice(self._keys), self._random.choice(self._keys)
        prefix = key[: self._random.randrange(len(key) + 1)]
        await self._check_list(prefix, self._random.choice(("", other, other[:-1], other + "!", "l", "n")))

    async def _check_list(self, prefix: str, start_after: str) -> None:
        ordered = self._store.capabilities.ordered_listing
        start_after = start_after if ordered else ""
        listed = [info async for info in self._store.list(prefix, start_after)]
        if not ordered:
            listed.sort(key=attrgetter("key"))
        wanted = sorted(key for key in self._objects if key.startswith(prefix) and key > start_after)
        what = f"prefix={prefix!r} start_after={start_after!r}"
        assert [info.key for info in listed] == wanted, (
            f"{len(listed)} keys, not the {len(wanted)} there: {what}"
        )
        for info in listed:
            assert info.size == len(self._objects[info.key]), f"a wrong size is listed: {info}"
            assert info.token in ("", self._tokens[info.key]), (
                f"a token that isn't the newest is listed: {info}"
            )

    async def delete(self) -> None:
        """Some that are there, some that aren't, one of them twice, none at all."""
        keys = self._random.sample(self._keys, self._random.randrange(4))
        named = [*keys, *keys[:1]]
        given = list(named)
        await self._store.delete(given)
        assert given == named, "delete changed the list that it was given"
        for key in keys:
            if (body := self._objects.pop(key, None)) is not None:
                self._stale.append((key, self._tokens.pop(key), body))

    async def swap_in_vain(self) -> None:
        """With a token that once was, whatever became of the object."""
        if self._stale and "compare_and_swap" in self._ways:
            key, token, body = self._random.choice(self._stale)
            if self._objects.get(key) == body:
                return  # the same bytes again may have the same token
            with raises(ConflictError):
                await self._store.compare_and_swap(key, [b"in vain"], token)

    async def create_in_vain(self) -> None:
        """Where something is, however small."""
        if self._objects and "put_if_absent" in self._ways:
            with raises(AlreadyExistsError):
                await self._store.put_if_absent(self._random.choice(sorted(self._objects)), [b"in vain"])

    async def end(self) -> None:
        """All is as it must be, and so is all that was ever returned."""
        for store in self._stores:
            for _ in range(_MORE_READS if self._objects else 0):
                await store.get(min(self._objects), 0, 1)
            assert await keys_listed(store, "m/") == sorted(self._objects), "other keys at the end"
            for key, body in self._objects.items():
                assert await store.get(key) == body, f"other bytes at the end: key={key}"
        for what, found, wanted in self._got:
            assert found == wanted, f"what get returned has changed since: {what}"
        for figures in self._figures:
            figures.end()


def _give_back(buffer: bytearray, way: str) -> None:
    """Overwrite it, and let it go."""
    buffer[:] = b"\xaa" * len(buffer)
    try:
        buffer.clear()
    except BufferError:
        raise AssertionError(f"{way} returned, and the store still holds the caller's buffer") from None


async def test_random_operations_agree_with_a_model(env: Env) -> None:
    """Whatever was written, replaced, swapped and deleted, by whichever opener: each reader sees what is there."""
    async with env.open() as first, env.open() as second:
        is_shared = first.location == second.location and first.capabilities.durable
        model = _Model(env, [first, second] if is_shared else [first])
        pace = Pace(env.target.deadline_s / 4, _STEPS)
        await model.begin()
        for _ in range(_STEPS):
            await model.step()
            pace.step()
            if pace.is_over:
                break
        await model.end()


async def test_counters_begin_with_the_opener(env: Env) -> None:
    """Counters since the store was opened: another opener's are its own, and so are those of the one before."""
    async with env.open() as first:
        for number in range(5):
            await first.put(f"key/{number}", [b"x" * 100])
        await first.get("key/0", 10, 20)
        counters = first.statistics()
        assert counters.bytes_written >= 500, f"500 bytes were written, told are {counters.bytes_written}"
        async with env.open() as second:
            told = second.statistics()
            assert (told.puts, told.gets, told.bytes_written) == (0, 0, 0), (
                f"the work of another opener: {told}"
            )
            assert (told.errors, told.consecutive_failures, told.last_error) == (0, 0, ""), (
                f"nothing has failed: {told}"
            )
            await second.put("key/9", [b"y"])
            assert first.statistics().puts == counters.puts, "another opener's put is counted"


async def test_largest_common_sizes_come_back(env: Env) -> None:
    """Write the object as the concatenation of ``body``, beyond 32 MiB too; ranges of whole MiB are whole."""
    piece = env.random.randbytes(_MIB)
    whole, rest = divmod(_LARGE, _MIB)
    async with env.open() as store:
        await store.put(
            "large", [*(number.to_bytes(4, "big") + piece[4:] for number in range(whole)), piece[:rest]]
        )
        info = await store.head("large")
        assert info.size == _LARGE, f"{info.size} of {_LARGE} bytes are there"
        for start, end in ((31 * _MIB, 33 * _MIB), (16 * _MIB - 1, 17 * _MIB + 9)):
            found = bytes(await store.get("large", start, end))
            first, last = start // _MIB, (end - 1) // _MIB
            wanted = b"".join(number.to_bytes(4, "big") + piece[4:] for number in range(first, last + 1))
            assert found == wanted[start - first * _MIB :][: end - start], f"other bytes in [{start}, {end})"
        assert bytes(await store.get("large", 33 * _MIB, None)) == piece[:rest], "another end"


async def test_cancelled_deletion_harms_no_others(env: Env) -> None:
    """A cancelled call may or may not have taken effect; what is still there is whole, and the store goes on."""
    async with env.open() as store:
        keys = [f"cancelled/{number}" for number in range(4)]
        for turns in range(8):
            for key in keys:
                await store.put(key, [key.encode()])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.delete, keys[:3])
                for _ in range(turns):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            left = await keys_listed(store, "cancelled/")
            assert keys[3] in left, "a cancelled deletion took what it wasn't told"
            for key in left:
                try:
                    found = bytes(await store.get(key))
                except NotFoundError:
                    continue  # a request that is on its way may still take effect
                assert found == key.encode(), f"half an object is left by a cancelled deletion: key={key}"
            await store.delete(keys[:3])
            assert await keys_listed(store, "cancelled/") == keys[3:], "a deletion has no effect"


async def test_refusals_leave_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened, also by calls that were refused: no descriptor or task stays."""

    async def use(store: Any) -> None:
        able = store.capabilities
        await store.put("key", [b"0123456789"])
        with raises(InvalidRequestError):
            await store.get("key", 20)
        with raises(NotFoundError):
            await store.head("missing")
        if able.put_if_absent:
            with raises(AlreadyExistsError):
                await store.put_if_absent("key", [b"x"])
        if able.compare_and_swap:
            with raises(ConflictError):
                await store.compare_and_swap("key", [b"x"], "nonsense")
        if able.multipart:
            upload = await store.create_multipart("never")
            await upload.write_part([b"x" * 1000])
            await upload.abort()
        await store.get("key", 2, 5)
        await store.delete(["key", "missing"])

    await leaves_nothing(env, use)


async def test_errors_tell_nothing_of_what_is_in_objects(env: Env) -> None:
    """Errors are logged: they name keys, and tell nothing of what is in objects, or was to be, of whichever call, nor
    of secret settings. Nor does the location."""
    body = b"what is told to nobody"
    secrets = env.secrets()
    async with env.open() as store:
        able = store.capabilities
        await store.put("dir/key", [body])
        told: dict[str, object] = {
            "a range past the end": await error_of(store.get("dir/key", 100)),
            "a wrong range": await error_of(store.get("dir/key", 5, 4)),
            "put_if_absent": await error_of(store.put_if_absent("dir/key", [body])),
            "compare_and_swap": await error_of(store.compare_and_swap("dir/key", [body], "nonsense")),
            "compare_and_swap of nothing": await error_of(
                store.compare_and_swap("dir/no", [body], "nonsense")
            ),
        }
        for key in ("dir/ke", "dir/key0", "dir/missing"):
            told[f"get of {key}"] = await error_of(store.get(key))
            told[f"head of {key}"] = await error_of(store.head(key))
        if not able.ordered_listing:
            told["a listing from a key on"] = await error_of(keys_listed(store, "dir/", "dir/a"))
        if store.has_append:
            for offset in (-1, 3, 100):
                told[f"append at {offset}"] = await error_of(store.append("dir/key", [body], offset))
        if able.multipart:
            for first in ("abort", "complete"):
                upload = await store.create_multipart("dir/parts")
                await upload.write_part([body])
                await getattr(upload, first)()
                told[f"a part after {first}"] = await error_of(upload.write_part([body]))
                told[f"complete after {first}"] = await error_of(upload.complete())
        told["statistics"], told["location"] = store.statistics(), store.location
        for what, error in told.items():
            assert not any(secret in f"{error} {error!r}" for secret in secrets), f"{what}: a secret is told"
            assert body.decode() not in f"{error} {error!r}", (
                f"the error of {what} tells what is in an object"
            )


async def test_error_of_its_owner_comes_out(env: Env) -> None:
    """Leaving the context closes the store, and hides nothing: an error inside comes out, as it is."""

    async def use(store: Any, number: int) -> None:
        await store.put(f"key/{number}", [b"x"])

    await errors_come_out(env, use)
