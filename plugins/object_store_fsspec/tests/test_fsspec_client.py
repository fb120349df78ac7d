"""Which client makes the frequent requests to S3: obstore where it can, and only if it isn't told otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from penstock_object_store_fsspec import Settings
from penstock_object_store_fsspec._connect import _choose_client
from penstock_object_store_fsspec._remote import DeniedError
from penstock_object_store_fsspec._s3 import S3Backend

from penstock.errors import ConfigError

pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
pytest.importorskip("obstore", reason="needs pip install 'penstock[obstore]'")

from penstock_object_store_fsspec._obstore import ObstoreBackend, _response_of


def chosen(client: str, bucket: str = "bucket", **options: Any) -> object:
    settings = Settings.model_validate({"url": f"s3://{bucket}", "client": client, "options": options})
    return _choose_client(S3Backend, bucket, settings)


def test_obstore_is_taken_where_it_is_installed_and_understands_the_options() -> None:
    assert chosen("auto") is ObstoreBackend
    assert chosen("auto", key="a", secret="b", endpoint_url="http://127.0.0.1:1") is ObstoreBackend
    assert chosen("auto", client_kwargs={"region_name": "auto"}) is ObstoreBackend
    assert chosen("auto", config_kwargs={"max_pool_connections": 5}) is ObstoreBackend
    assert chosen("fsspec") is S3Backend


@pytest.mark.parametrize(
    ("named", "bucket", "options"),
    [
        ("options.anon", "bucket", {"anon": True}),
        ("options.client_kwargs.verify", "bucket", {"client_kwargs": {"verify": False}}),
        ("options.config_kwargs.proxies", "bucket", {"config_kwargs": {"proxies": {}}}),
        ("a directory bucket", "bucket--euc1-az1--x-s3", {}),
    ],
)
def test_what_only_s3fs_understands_is_left_to_it_or_refused_by_name(
    named: str, bucket: str, options: dict[str, Any]
) -> None:
    assert chosen("auto", bucket, **options) is S3Backend
    with pytest.raises(ConfigError, match=f"leave it to auto or fsspec: needs_fsspec={named}"):
        chosen("obstore", bucket, **options)


@pytest.mark.parametrize(
    ("text", "status", "code", "name"),
    [
        (
            "Object at location k: Server returned non-2xx status code: 412: <Code>PreconditionFailed</Code>",
            412,
            "PreconditionFailed",
            "ResponseError",
        ),
        (
            "Generic S3 error: ... HTTP error: error sending request ... kind: Connect,",
            0,
            "",
            "ConnectionFailedError",
        ),
        ("Generic S3 error: ... HTTP error: error decoding response body", 0, "", "ResponseError"),
    ],
)
def test_what_obstore_says_in_words_is_status_and_code_and_nothing_of_the_request(
    text: str, status: int, code: str, name: str
) -> None:
    found = _response_of(Exception(text))
    assert (found.status_code, found.error_code, type(found).__name__) == (status, code, name)
    assert "location" not in str(found)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("Generic S3 error: Content-Length Header missing from response", "Content-Length"),
        ("Generic S3 error: Content-Range header not present in partial response", "Content-Range"),
        (
            "Generic S3 error: Unable to extract metadata from headers: ETag Header missing from response",
            "ETag",
        ),
    ],
)
def test_what_obstore_misses_in_an_answer_is_told_and_not_asked_for_again(text: str, field: str) -> None:
    settings = Settings.model_validate({"url": "s3://bucket", "client": "obstore"})
    backend = ObstoreBackend(None, "s3://bucket/", "bucket", "", settings, lambda: 0)
    found = backend._failure("put", "k", Exception(text))
    assert isinstance(found, DeniedError)
    assert "lacks a field" in str(found)
    assert str(found).endswith(f"key='k' location=s3://bucket/ action=put field={field}")


def test_a_range_that_the_store_ignores_is_told_as_with_s3fs_and_not_asked_for_again() -> None:
    settings = Settings.model_validate({"url": "s3://bucket", "client": "obstore"})
    backend = ObstoreBackend(None, "s3://bucket/", "bucket", "", settings, lambda: 0)
    text = "Generic S3 error: Received non-partial response when range requested"
    found = backend._failure("get", "k", Exception(text))
    assert isinstance(found, DeniedError)
    assert "another range than it was asked for" in str(found)
