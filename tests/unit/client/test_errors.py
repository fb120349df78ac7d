"""Error codes of a broker as errors that say whether to try again."""

from __future__ import annotations

import pytest

from penstock.errors import (
    AlreadyExistsError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.wire import ErrorCode
from penstock_tools.client.errors import check, error_of, is_retriable


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, NotFoundError),
        (ErrorCode.TOPIC_ALREADY_EXISTS, AlreadyExistsError),
        (ErrorCode.NOT_CONTROLLER, UnavailableError),
        (ErrorCode.INVALID_CONFIG, InvalidRequestError),
        (ErrorCode.ILLEGAL_GENERATION, FencedError),
        (ErrorCode.UNKNOWN_SERVER_ERROR, UnavailableError),
        (12_345, UnavailableError),
    ],
)
def test_the_class_says_what_to_do(code: int, kind: type[PenstockError]) -> None:
    assert type(error_of(code, "what")) is kind


def test_the_text_has_what_failed_the_brokers_words_and_the_code() -> None:
    error = error_of(ErrorCode.INVALID_CONFIG, "configs can't be changed topic=t", "no such config. ")
    assert str(error) == "configs can't be changed, no such config: topic=t error=INVALID_CONFIG"
    assert str(error_of(12_345, "w")).endswith("error=UNKNOWN_12345")


def test_the_text_is_one_sentence_that_names_nothing_twice() -> None:
    error = error_of(
        ErrorCode.TOPIC_ALREADY_EXISTS,
        "topic can't be created topic=t",
        "topic exists: name='t' partitions=3",
    )
    assert str(error) == (
        "topic can't be created, topic exists: topic=t partitions=3 error=TOPIC_ALREADY_EXISTS"
    )


@pytest.mark.parametrize(("name", "told"), [("t", "t"), ("my topic", "'my topic'"), ("", "''")])
def test_what_isnt_there_is_told_alike_whatever_was_to_be_done_and_names_end_where_they_end(
    name: str, told: str
) -> None:
    for what in ("topic can't be deleted", "partitions can't be added"):
        error = error_of(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"{what} topic={name}", "not here")
        assert str(error) == f"there is no such topic: topic={told}"
    error = error_of(
        ErrorCode.INVALID_TOPIC_EXCEPTION, f"topic can't be created topic={name}", "it has a space"
    )
    assert str(error) == (
        f"topic can't be created, it has a space: topic={told} error=INVALID_TOPIC_EXCEPTION"
    )


def test_success_raises_nothing() -> None:
    check(ErrorCode.NONE, "what")
    with pytest.raises(UnavailableError):
        check(ErrorCode.REQUEST_TIMED_OUT, "what")


def test_an_unknown_code_is_not_retried() -> None:
    assert not is_retriable(12_345)
    assert is_retriable(ErrorCode.NOT_LEADER_OR_FOLLOWER)
