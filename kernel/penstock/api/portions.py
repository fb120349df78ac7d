"""Handlers that compute for as long as they are asked for much: generators that let go of the loop now and then.

Such a handler is written once, ``def x(request, context)``, with a ``yield`` for each element that it deals with,
and returns the response. What is short is answered at once, without a task; what is long goes on in portions,
between which others get their turn. What the handler looks at may have changed after each ``yield``.
"""

from __future__ import annotations

__all__ = ("Steps", "at_once", "by_portions", "first_portion", "other_portions")

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar, cast

import anyio.lowlevel

from penstock.api.context import RequestContext
from penstock.wire.registry import Message
from penstock.work.pieces import PORTION

Q = TypeVar("Q")
R = TypeVar("R")
#: Work in steps, of which some hundreds may be done in one go, and its result.
Steps: TypeAlias = Generator[None, None, R]


def at_once(steps: Steps[R]) -> R:
    """All of it."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result


def first_portion(
    handler: Callable[[Q, RequestContext], Steps[R]],
) -> Callable[[Q, RequestContext], R]:
    """``handler`` as an API's ``nowait``: the response if it is one portion, else None: ``other_portions`` go on."""

    def nowait(request: Q, context: RequestContext) -> R:
        steps = handler(request, context)
        try:
            for _ in range(PORTION):
                next(steps)
        except StopIteration as end:
            return cast(R, end.value)
        context.state = steps
        return cast(R, None)

    return nowait


async def other_portions(_request: Message, context: RequestContext) -> Message:
    """The ``handler`` of an API with ``first_portion``."""
    steps = cast(Steps[Message], context.state)
    context.state, context.is_long = None, True
    await anyio.lowlevel.checkpoint()
    return await by_portions(steps)


async def by_portions(steps: Steps[R], size: int = PORTION) -> R:
    """All of it; after each ``size`` steps others get their turn."""
    while True:
        try:
            for _ in range(size):
                next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        await anyio.lowlevel.checkpoint()
