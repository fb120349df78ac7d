"""A broker that ends says why, in one error."""

from __future__ import annotations

import pytest

from penstock.errors import ClosedError, FencedError
from penstock.work.one_error import one_error


def test_the_cause_is_raised_and_not_what_followed_from_it() -> None:
    fenced = FencedError("fenced")
    inner = ExceptionGroup("inner", [ClosedError("the engine is closed")])
    with pytest.raises(FencedError) as caught, one_error():
        raise ExceptionGroup("outer", [inner, ExceptionGroup("another", [fenced])])
    assert caught.value is fenced


def test_if_all_are_consequences_the_first_is_raised() -> None:
    with pytest.raises(ClosedError, match="first"), one_error():
        raise ExceptionGroup("outer", [ClosedError("first"), ClosedError("second")])


def test_a_bug_is_not_hidden_behind_an_operating_error() -> None:
    with pytest.raises(ExceptionGroup), one_error():
        raise ExceptionGroup("outer", [FencedError("fenced"), ZeroDivisionError()])
