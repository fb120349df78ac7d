"""Answers without what the API of their store has in each: it is told what and whose, and nothing is asked again."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from penstock_object_store_fsspec import Settings
from penstock_object_store_fsspec._azure import AzureBackend
from penstock_object_store_fsspec._gcs import GcsBackend
from penstock_object_store_fsspec._remote import RemoteBackend
from penstock_object_store_fsspec._s3 import S3Backend
from penstock_object_store_fsspec._store import FsspecObjectStore

from penstock.errors import InvalidRequestError, UnavailableError

pytestmark = pytest.mark.anyio

_MODIFIED = datetime(2026, 1, 2, tzinfo=UTC)
_LISTED_S3 = {"Key": "in/k", "Size": 1, "LastModified": _MODIFIED, "ETag": "e"}
_GCS = {"name": "in/k", "size": "1", "updated": _MODIFIED.isoformat(), "generation": "7"}
_AZURE = {"name": "in/k", "size": 1, "last_modified": _MODIFIED, "etag": "e"}


class Answers:
    """A file system for each backend, whose requests are all answered with ``fields``, and counted."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self.asked = 0
        self.service_client = self
        self._location = "https://store.example"
        self.continuation_token = None

    def _answer(self) -> Mapping[str, Any]:
        self.asked += 1
        if "raised" in self.fields:
            raise self.fields["raised"]
        return self.fields

    async def _call_s3(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        return self._answer()

    async def _request(self, *names: Any, **parameters: Any) -> tuple[None, Any, None, bytes]:
        return None, self.fields, None, json.dumps(self._answer()).encode()

    def get_blob_client(self, *names: str) -> Answers:
        return self

    def get_container_client(self, name: str) -> Answers:
        return self

    async def get_blob_properties(self, **parameters: Any) -> Any:
        return SimpleNamespace(**self._answer())

    async def upload_blob(self, data: bytes, **parameters: Any) -> Mapping[str, Any]:
        return self._answer()

    async def delete_blob(self, **parameters: Any) -> None:
        self._answer()

    def list_blobs(self, **parameters: Any) -> Answers:
        return self

    def by_page(self, token: str | None) -> Answers:
        return self

    async def __aiter__(self) -> Any:
        yield self._page()

    async def _page(self) -> Any:
        yield SimpleNamespace(**self._answer())


async def _head(backend: RemoteBackend) -> None:
    await backend.head("k")


async def _put(backend: RemoteBackend) -> None:
    await backend.put("k", [b"x"])


async def _list(backend: RemoteBackend) -> None:
    async for _ in backend.list("", ""):
        pass


async def _delete(backend: RemoteBackend) -> None:
    await backend.delete(["k"])


async def _append(backend: RemoteBackend) -> None:
    await backend.append("k", [b"x"], 0)


async def _mark(backend: RemoteBackend) -> None:
    await backend.attempt("head", "k", lambda: backend.request_mark("k"))


async def _begin_parts(backend: RemoteBackend) -> None:
    await backend.create_multipart("k")


_HEAD_S3 = {"ContentLength": 1, "LastModified": _MODIFIED, "ETag": "e"}
#: A backend, what is asked of it, and the whole answer, of whose innermost mapping the fields are left out in turn.
_CASES: list[tuple[type[RemoteBackend], Callable[[Any], Awaitable[None]], dict[str, Any]]] = [
    (S3Backend, _head, _HEAD_S3),
    (S3Backend, _put, {"ETag": "e"}),
    (S3Backend, _list, {"Contents": [_LISTED_S3]}),
    (S3Backend, _begin_parts, {"UploadId": "u"}),
    (GcsBackend, _head, {field: _GCS[field] for field in ("size", "updated", "generation")}),
    (GcsBackend, _put, {"generation": "7"}),
    (GcsBackend, _list, {"items": [_GCS]}),
    (AzureBackend, _head, {field: _AZURE[field] for field in ("size", "last_modified", "etag")}),
    (AzureBackend, _put, {"etag": "e"}),
    (AzureBackend, _list, _AZURE),
]


def _without(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in answer.items():
        if isinstance(value, list):
            yield from ({name: [inner]} for inner in _without(value[0]))
        else:
            rest = {other: kept for other, kept in answer.items() if other != name}
            yield rest | ({name: None} if "etag" in answer else {})  # as Azure's library has it


def _backend(kind: type[RemoteBackend], answers: Answers, retry_budget_ms: int = 60_000) -> RemoteBackend:
    settings = Settings(url="memory://", retry_budget_ms=retry_budget_ms)
    return kind(answers, "store://bucket/in/", "bucket", "in/", settings, time.monotonic)


class Sessions(Answers):
    """A file system that connects."""

    async def set_session(self) -> None:
        return None


@pytest.mark.parametrize(
    ("bucket", "ordered"),
    [("b", True), ("logs--euc1-az1--x-s3", False), ("point--euc1-az1--xa-s3", False), ("a--x-s3-b", True)],
)
async def test_a_directory_bucket_lists_in_any_order_and_is_in_one_zone(bucket: str, ordered: bool) -> None:
    """Whoever needs an order is refused by the capability, and a listing from the middle is."""
    settings = Settings(url=f"s3://{bucket}", retry_budget_ms=0)
    backend = S3Backend(Sessions({}), f"s3://{bucket}/", bucket, "", settings, time.monotonic)
    await backend.start_session()
    assert backend.capabilities.ordered_listing is ordered
    assert backend.capabilities.durability_domain == ("region" if ordered else "zone")
    store = FsspecObjectStore(backend)
    assert [info async for info in store.list("")] == []
    if not ordered:
        with pytest.raises(InvalidRequestError, match="no ordered_listing: location=s3://"):
            await anext(aiter(store.list("", "k")))


@pytest.mark.parametrize(("kind", "ask", "whole"), _CASES)
async def test_what_an_answer_lacks_is_told_and_not_asked_for_again(
    kind: type[RemoteBackend], ask: Callable[[Any], Awaitable[None]], whole: dict[str, Any]
) -> None:
    await ask(_backend(kind, Answers(whole)))
    for fields in _without(whole):
        answers = Answers(fields)
        with pytest.raises(
            UnavailableError, match=r"lacks a field.*location=store://bucket/in/ action=.* field="
        ):
            await ask(_backend(kind, answers))
        assert answers.asked == 1, fields


async def test_a_listing_that_says_it_goes_on_but_not_where_is_told() -> None:
    answers = Answers({"IsTruncated": True})
    with pytest.raises(UnavailableError, match=r"lacks a field.* field=NextContinuationToken"):
        await _list(_backend(S3Backend, answers))
    assert answers.asked == 1


async def test_a_part_without_its_tag_is_told() -> None:
    upload = await _backend(S3Backend, answers := Answers({"UploadId": "u"})).create_multipart("k")
    await upload.write_part([b"x"])
    with pytest.raises(UnavailableError, match=r"lacks a field.* field=ETag"):
        await upload.complete()
    assert answers.asked == 2


async def test_a_page_that_is_none_of_gcs_is_asked_for_again() -> None:
    class Page(Answers):
        async def _request(self, *names: Any, **parameters: Any) -> tuple[None, Any, None, bytes]:
            if self.asked:
                return await super()._request()
            self._answer()
            return None, None, None, b"<html>be right back</html>"

    await _list(_backend(GcsBackend, answers := Page({"items": [_GCS]})))
    assert answers.asked == 2


@pytest.mark.parametrize(("kind", "whole"), [(S3Backend, _HEAD_S3), (AzureBackend, _AZURE)])
async def test_a_tag_that_is_called_weak_or_has_no_quotes_is_the_token_all_the_same(
    kind: type[RemoteBackend], whole: dict[str, Any]
) -> None:
    """No condition holds for a weak one, so that each swap would be a conflict."""
    field = "ETag" if kind is S3Backend else "etag"
    tags = [await _backend(kind, Answers({**whole, field: tag})).head("k") for tag in ('W/"e"', '"e"', "e")]
    assert tags == [tags[0]] * 3


async def test_an_object_of_gcs_whose_metadata_are_null_has_no_mark() -> None:
    backend = _backend(GcsBackend, Answers({**_GCS, "metadata": None}))
    assert await backend.request_mark("k") == ("", "7")


class RefusedError(Exception):
    """What client libraries raise, as Azure's has it."""

    def __init__(self, status: int, code: str = "") -> None:
        super().__init__()
        self.status_code, self.error_code = status, code


@pytest.mark.parametrize("kind", [S3Backend, GcsBackend, AzureBackend])
async def test_a_refusal_that_is_no_answer_to_a_request_is_a_failure(kind: type[RemoteBackend]) -> None:
    """As any other answer that makes no sense: callers expect what the contract of each method says."""
    refusals = [
        RefusedError(412),
        RefusedError(416),
        RefusedError(400, "InvalidWriteOffset"),
        RefusedError(400, "TooManyParts"),
    ]
    requests = [_head, _put, _list, _delete]
    asked = [(ask, error) for ask in requests for error in refusals]
    asked += [(ask, RefusedError(404)) for ask in (_put, _list)]
    if kind is S3Backend:
        asked += [(_append, RefusedError(412)), (_append, RefusedError(416)), (_delete, RefusedError(404))]
        asked += [(_begin_parts, error) for error in (*refusals, RefusedError(404))]
    for ask, error in asked:
        backend = _backend(kind, Answers({"raised": error}), retry_budget_ms=0)
        with pytest.raises(UnavailableError):
            await ask(backend)


@pytest.mark.parametrize(
    ("kind", "ask", "fields"),
    [
        (GcsBackend, _head, {**_GCS, "size": []}),
        (GcsBackend, _head, {**_GCS, "updated": 5}),
        (GcsBackend, _list, {"items": None}),
        (GcsBackend, _list, {"items": [5]}),
        (GcsBackend, _mark, {**_GCS, "metadata": 5}),
        (S3Backend, _list, {"Contents": [{**_LISTED_S3, "Key": ["in/k", "in/l"]}]}),
        (AzureBackend, _list, {**_AZURE, "name": 5}),
    ],
)  # fmt: skip
async def test_an_answer_that_cant_be_read_is_told_with_what_should_answer(
    kind: type[RemoteBackend], ask: Callable[[Any], Awaitable[None]], fields: dict[str, Any]
) -> None:
    with pytest.raises(
        UnavailableError, match="answer can't be read, its endpoint must be that of the store's API"
    ):
        await ask(_backend(kind, Answers(fields), retry_budget_ms=0))


@pytest.mark.parametrize("code", ["Evil\nlevel=error", "\x1b[31m", "x" * 65, "a secret"])
async def test_what_a_server_sends_as_a_code_is_shown_only_if_it_is_one(code: str) -> None:
    for told in (code, "SlowDown"):
        backend = _backend(AzureBackend, Answers({"raised": RefusedError(503, told)}), retry_budget_ms=0)
        with pytest.raises(UnavailableError) as caught:
            await backend.head("k")
        assert (told in str(caught.value)) is (told == "SlowDown")
    backend = _backend(S3Backend, Answers({"Errors": [{"Key": "k", "Code": code}]}), retry_budget_ms=0)
    with pytest.raises(UnavailableError) as caught:
        await backend.delete(["k"])
    assert code not in str(caught.value)


class Body:
    """What comes of an answer of S3."""

    async def __aenter__(self) -> Body:
        return self

    async def __aexit__(self, *reason: object) -> None:
        return None

    async def read(self) -> bytes:
        return b"[]"


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("bytes 1-2/9", ""),
        (None, "another range"),
        ("bytes 0-1/9", "another range"),
        ("bytes 1-5/9", "failed"),
    ],
)
async def test_another_range_than_was_asked_for_is_no_data(told: str | None, error: str) -> None:
    """All of a short object, say, where whatever answers knows no ranges."""
    s3 = _backend(S3Backend, Answers({"Body": Body(), "ContentRange": told}), retry_budget_ms=0)
    gcs = _backend(GcsBackend, Answers({} if told is None else {"Content-Range": told}), retry_budget_ms=0)
    gcs.filesystem._answer = list
    for backend in (s3, gcs):
        if error:
            with pytest.raises(UnavailableError, match=error):
                await backend.get("k", 1, 9)
        else:
            assert await backend.get("k", 1, 9) == b"[]"


async def test_the_mark_of_a_swap_is_found_whatever_the_case_of_its_header() -> None:
    """The library for Azure keeps it as a proxy sends it."""
    backend = _backend(AzureBackend, Answers({**_AZURE, "metadata": {"Penstockswap": "m"}}))
    assert await backend.request_mark("k") == ("m", "e")
