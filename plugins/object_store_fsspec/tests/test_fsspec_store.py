"""The contract on files and on memory; each test runs on both."""

from __future__ import annotations

import os.path
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_object_store_fsspec import Settings, penstock_register_object_store
from penstock_object_store_fsspec._backend import check_key
from penstock_object_store_fsspec._files import FileTree
from tests.depth import examples

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
)
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer, Services

pytestmark = pytest.mark.anyio
Opener = Callable[[str], AbstractAsyncContextManager[ObjectStore]]


@pytest.fixture
def open_url(tmp_path: Path) -> Opener:
    """Opens the store of a URL, with the test's directory as the data directory."""

    @asynccontextmanager
    async def opener(url: str) -> AsyncIterator[ObjectStore]:
        services = Services(node_id=1, epoch=1, cluster_id="test", data_dir=tmp_path, clock=time.monotonic)
        async with penstock_register_object_store().open(Settings(url=url), services) as store:
            yield store

    return opener


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """A fresh place for objects, on each of the backends that need nothing installed."""
    return "file://objects" if request.param == "file" else f"memory://{uuid4().hex}"


@pytest.fixture
async def store(open_url: Opener, url: str) -> AsyncIterator[ObjectStore]:
    async with open_url(url) as opened:
        yield opened


async def test_a_store_that_is_opened_only_to_look_changes_nothing(tmp_path: Path, open_url: Opener) -> None:
    """A dead owner's temporary files stay, and no directory is made: the medium may be a read-only snapshot."""
    services = Services(
        node_id=1, epoch=0, cluster_id="", data_dir=tmp_path, clock=time.monotonic, read_only=True
    )

    async def look(url: str) -> list[str]:
        async with penstock_register_object_store().open(Settings(url=url), services) as store:
            return [bytes(await store.get(key)).decode() for key in await keys(store)]

    def everything() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

    async with open_url("file://objects") as store:
        await store.put("a", [b"one"])
    (temporary,) = (path for path, _ in everything() if path.parent.name == "objects" and path.name != "a")
    (temporary / "0123456789abcdef.1").write_bytes(b"of a dead owner")
    before = everything()
    assert await look("file://objects") == ["one"]
    assert await look("file://elsewhere") == []
    assert everything() == before


async def keys(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix, start_after)]


async def test_put_concatenates_buffers_of_every_kind(store: ObjectStore) -> None:
    wide = memoryview(bytearray(range(8))).cast("I")
    body: list[Buffer] = [b"", b"one", bytearray(b"two"), memoryview(b"__three__")[2:7], b"", wide]
    await store.put("a/b", body)
    assert bytes(await store.get("a/b")) == b"onetwothree" + bytes(range(8))


async def test_a_body_of_more_vectors_than_one_call_takes_is_whole(store: ObjectStore) -> None:
    parts = [bytes([n % 251]) * (n % 7) for n in range(5000)]
    await store.put("k", parts)
    assert bytes(await store.get("k")) == b"".join(parts)


async def test_a_body_larger_than_one_write_is_whole(store: ObjectStore) -> None:
    parts = [bytes(range(256)) * 40_000, b"x" * (20 * 2**20), b"end"]
    await store.put("k", parts)
    data = await store.get("k")
    assert len(data) == sum(map(len, parts))
    assert bytes(data) == b"".join(parts)


async def test_the_body_is_taken_before_put_returns(store: ObjectStore) -> None:
    buffer = bytearray(b"first")
    await store.put("k", [buffer])
    buffer[:] = b"later"
    assert bytes(await store.get("k")) == b"first"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 5, b"34"),
        (8, 99, b"89"),
        (10, None, b""),
        (4, 4, b""),
    ],
)
async def test_get_gives_the_range(store: ObjectStore, start: int, end: int | None, expected: bytes) -> None:
    await store.put("k", [b"0123456789"])
    assert bytes(await store.get("k", start, end)) == expected


@pytest.mark.parametrize(("start", "end"), [(-1, None), (11, None), (5, 4)])
async def test_get_refuses_bad_ranges(store: ObjectStore, start: int, end: int | None) -> None:
    await store.put("k", [b"0123456789"])
    with pytest.raises(InvalidRequestError):
        await store.get("k", start, end)


async def test_missing_objects_are_not_found(store: ObjectStore) -> None:
    await store.put("there/too", [b""])
    for key in ("gone", "there", "there/too/deeper", "there/other"):
        with pytest.raises(NotFoundError):
            await store.get(key)
        with pytest.raises(NotFoundError):
            await store.head(key)


async def test_put_replaces_and_head_tells_the_size(store: ObjectStore) -> None:
    await store.put("k", [b"long"])
    await store.put("k", [b"x"])
    info = await store.head("k")
    assert (info.key, info.size) == ("k", 1)
    assert info.modified_ms > 1_700_000_000_000


async def test_put_if_absent_lets_the_first_win(store: ObjectStore) -> None:
    await store.put_if_absent("a/k", [b"first"])
    with pytest.raises(AlreadyExistsError, match="a/k"):
        await store.put_if_absent("a/k", [b"second"])
    assert bytes(await store.get("a/k")) == b"first"


async def test_put_if_absent_even_of_the_same_bytes_tells_that_the_object_was_there(
    store: ObjectStore,
) -> None:
    await store.put_if_absent("k", [b"same"])
    with pytest.raises(AlreadyExistsError):
        await store.put_if_absent("k", [b"same"])


async def test_one_of_many_tasks_wins_put_if_absent(store: ObjectStore) -> None:
    winners: list[int] = []

    async def race(number: int) -> None:
        try:
            await store.put_if_absent("k", [b"%d" % number])
        except AlreadyExistsError:
            return
        winners.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(race, number)
    assert [b"%d" % number for number in winners] == [bytes(await store.get("k"))]


async def test_compare_and_swap_is_atomic_or_refused(store: ObjectStore) -> None:
    token = await store.put("k", [b"1"])
    if not store.capabilities.compare_and_swap:
        with pytest.raises(InvalidRequestError, match="compare_and_swap"):
            await store.compare_and_swap("k", [b"2"], token)
        return
    assert token == (await store.head("k")).token
    newer = await store.compare_and_swap("k", [b"2"], token)
    with pytest.raises(ConflictError):
        await store.compare_and_swap("k", [b"3"], token)
    with pytest.raises(ConflictError):
        await store.compare_and_swap("absent", [b"3"], newer)
    assert bytes(await store.get("k")) == b"2"


async def test_an_upload_is_invisible_until_complete_and_replaces(store: ObjectStore) -> None:
    await store.put("k", [b"old"])
    upload = await store.create_multipart("k")
    await upload.write_part([b"one", b"two"])
    await upload.write_part([bytearray(b"three")])
    assert bytes(await store.get("k")) == b"old"
    assert await keys(store) == ["k"]
    await upload.complete()
    assert bytes(await store.get("k")) == b"onetwothree"
    await upload.abort()
    with pytest.raises(InvalidRequestError):
        await upload.write_part([b"late"])
    assert await keys(store) == ["k"]


async def test_an_aborted_upload_leaves_nothing(store: ObjectStore) -> None:
    upload = await store.create_multipart("k")
    await upload.write_part([b"one"])
    await upload.abort()
    await upload.abort()
    assert await keys(store) == []


async def test_delete_takes_several_and_absent_ones(store: ObjectStore) -> None:
    for key in ("a", "b/c", "b/d"):
        await store.put(key, [b""])
    await store.delete(["a", "b/c", "nothing", "no/such/one", "b", "a/x"])
    await store.delete([])
    assert await keys(store) == ["b/d"]


async def test_listing_is_in_key_order_whatever_the_directories(store: ObjectStore) -> None:
    names = ["a-b", "a.b", "a/b", "a/c/d", "a0", "a b", "b/0009", "b/0010", "z", "a/-", "a/c-"]
    for name in names:
        await store.put(name, [name.encode()])
    assert await keys(store) == sorted(names)
    assert await keys(store, "a/") == ["a/-", "a/b", "a/c-", "a/c/d"]
    assert await keys(store, "a") == sorted(name for name in names if name.startswith("a"))
    assert await keys(store, "a/c") == ["a/c-", "a/c/d"]
    assert await keys(store, "b/00", "b/0009") == ["b/0010"]
    assert await keys(store, "", "a/c/") == ["a/c/d", "a0", "b/0009", "b/0010", "z"]
    assert await keys(store, "nothing/here") == []
    assert [info.size async for info in store.list("b/")] == [6, 6]


@given(data=st.data())
@settings(max_examples=examples(150), deadline=None)
def test_listing_equals_a_sorted_filter(data: st.DataObject) -> None:
    """Model: the walk over directories gives what sorting all keys gives."""
    part = st.text("ab-.0~ ", min_size=1, max_size=3).filter(lambda text: text not in {".", ".."})
    key = st.lists(part, min_size=1, max_size=3).map("/".join)
    wanted: set[str] = set()
    for name in data.draw(st.lists(key, max_size=12)):
        beside = any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in wanted)
        if not beside:
            wanted.add(name)
    with tempfile.TemporaryDirectory() as root:
        tree = FileTree(root)
        tree.open()
        try:
            for name in wanted:  # not with put, whose syncs would take most of the time
                path = Path(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            prefix = data.draw(
                st.one_of(st.just(""), key, key.map(lambda k: f"{k}/"), key.map(lambda k: k[:-1]))
            )
            after = data.draw(st.one_of(st.just(""), key, key.map(lambda k: f"{k}/")))
            expected = sorted(name for name in wanted if name.startswith(prefix) and name > after)
            assert [info.key for info in tree.list(prefix, after)] == expected
        finally:
            tree.close()


async def test_more_than_one_page_is_listed_whole(open_url: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock_object_store_fsspec._local._LIST_PAGE", 10)
    async with open_url("file://paged") as files:
        for number in range(30):
            await files.put(f"k/{number:06d}", [b""])
        assert await keys(files) == [f"k/{number:06d}" for number in range(30)]


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../../b", "a/./b", "a\nb", "ä", "a\x00", "k" * 901]
)
async def test_keys_that_escape_or_are_no_keys_are_refused(store: ObjectStore, key: str) -> None:
    for call in (store.get(key), store.head(key), store.put(key, [b""]), store.delete([key])):
        with pytest.raises(InvalidRequestError):
            await call
    with pytest.raises(InvalidRequestError):
        await store.put_if_absent(key, [b""])


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20))
def test_an_accepted_key_stays_inside(key: str) -> None:
    try:
        check_key(key)
    except InvalidRequestError:
        return
    assert os.path.normpath(f"/root/{key}") == f"/root/{key}"


async def test_a_reopened_store_finds_its_objects(open_url: Opener, url: str) -> None:
    async with open_url(url) as first:
        await first.put("a/k", [b"kept"])
    async with open_url(url) as second:
        assert bytes(await second.get("a/k")) == b"kept"


async def test_statistics_count_requests_and_bytes(store: ObjectStore) -> None:
    await store.put("k", [b"12", b"345"])
    await store.get("k", 1, 3)
    await keys(store)
    await store.delete(["k", "j"])
    found = store.statistics()
    assert (found.puts, found.bytes_written, found.gets, found.bytes_read) == (1, 5, 1, 2)
    assert (found.lists, found.deletes, found.errors) == (1, 2, 0)


@pytest.mark.parametrize("wrong", ["objects", "file://", "://x"])
def test_a_url_that_means_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        Settings(url=wrong)


async def test_a_long_list_lets_others_have_their_turns(open_url: Opener, url: str) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    listed: list[int] = []
    async with open_url(url) as store, anyio.create_task_group() as tasks:
        for number in range(350):
            await store.put(f"k/{number:03}", [b"x"])
        tasks.start_soon(take_turns)
        async for _ in store.list("k/"):
            listed.append(turns)
        tasks.cancel_scope.cancel()
    assert len(listed) == 350
    assert max(listed.count(turn) for turn in listed) <= 100
