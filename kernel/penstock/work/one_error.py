"""The one error behind a group: task groups wrap what ends them, and callers want to know what it was."""

from __future__ import annotations

__all__ = ("one_error",)

from collections.abc import Iterator
from contextlib import contextmanager

from penstock.errors import ClosedError, PenstockError


@contextmanager
def one_error() -> Iterator[None]:
    """Task groups wrap errors in groups; a group that is about one thing is raised as that one error."""
    leaf: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if len(leaves) > 1 and not all(isinstance(one, PenstockError) for one in leaves):
            raise
        # that something was closed is what follows from the error, not the error
        leaf = next((one for one in leaves if not isinstance(one, ClosedError)), leaves[0])
        del leaves
    if leaf is not None:
        try:
            raise leaf from leaf.__cause__  # out here, or the group would be its context, which has it
        finally:
            del leaf


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
