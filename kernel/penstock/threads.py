"""Blocking work in threads, with errors that leave nothing behind.

``anyio.to_thread`` gives an error back through a future, and the frame that awaits the future is then among the
frames of the error: a reference cycle. With it live the variables of the work that failed, such as the megabytes
that a batch inflated to, until the garbage collector comes.
"""

from __future__ import annotations

__all__ = ("run_in_thread",)

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, create_task_group, sleep_forever, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from penstock.errors import clear_frames

_R = TypeVar("_R")
_Arguments = TypeVarTuple("_Arguments")


class _Raised:
    """An error of the work, on its way to the caller as a value."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error


async def run_in_thread(
    work: Callable[[*_Arguments], _R],
    *arguments: *_Arguments,
    limiter: CapacityLimiter | None = None,
    give_up: Callable[[], None] | None = None,
) -> _R:
    """``work(*arguments)`` in a thread; at most as many at a time as ``limiter`` allows (default: 40).

    Raises what it raises, without the variables of its frames. A caller that is cancelled waits for its end first;
    ``give_up`` is called then, so that it comes soon (and may be called afterwards).
    """
    outcome: _R | _Raised
    if give_up is None:
        outcome = await to_thread.run_sync(_run, work, arguments, limiter=limiter)
    else:
        async with create_task_group() as tasks:
            tasks.start_soon(_call_if_cancelled, give_up)
            outcome = await to_thread.run_sync(_run, work, arguments, limiter=limiter)
            tasks.cancel_scope.cancel()
        if isinstance(outcome, _Raised):  # a caller that is cancelled hears no error that giving up made
            await checkpoint_if_cancelled()
    if not isinstance(outcome, _Raised):
        return outcome
    error, outcome.error = outcome.error, None  # whoever still has the future that gave it has no error
    assert error is not None
    try:
        raise error
    finally:
        del error, outcome


async def _call_if_cancelled(give_up: Callable[[], None]) -> None:
    try:
        await sleep_forever()
    finally:
        give_up()


def _run(work: Callable[[*_Arguments], _R], arguments: tuple[*_Arguments]) -> _R | _Raised:
    try:
        return work(*arguments)
    except Exception as error:  # noqa: BLE001 - raised again in the caller
        clear_frames(error)
        # without this frame, which has the arguments
        return _Raised(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
