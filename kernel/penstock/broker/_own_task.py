"""A context in a task of its own: it is entered and left there, whoever uses it, and from whatever task."""

from __future__ import annotations

__all__ = ("OwnTask",)

import asyncio
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from penstock.work.one_error import one_error

T = TypeVar("T")


class OwnTask(Generic[T]):
    """``async with OwnTask(context)`` is ``async with context``, entered and left in a task of its own; once.

    Task groups and shields know the task that they were entered in, and the cancellation of scopes. Users enter a
    context in one task and leave it in another, as fixtures and notebooks do, and cancel with ``Task.cancel``, as
    ``asyncio.timeout`` and Ctrl-C do, which no shield holds off: it would end a wait for a thread, or a close. Here a
    user who is cancelled while he enters or leaves cancels a scope around the whole, and waits for its end; one whose
    body was cancelled leaves as at any other time.

    If the context fails while the body runs, the task that entered it is cancelled, and leaving raises the error.
    """

    def __init__(self, context: AbstractAsyncContextManager[T], *, name: str) -> None:
        self._context = context
        self._name = name
        self._value: list[T] = []
        self._scope = anyio.CancelScope()
        #: Set when the context is entered, or couldn't be.
        self._settled = anyio.Event()
        self._leave = anyio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Who entered, and runs the body.
        self._user: asyncio.Task[object] | None = None
        self._was_told = False

    async def __aenter__(self) -> T:
        self._task = task = asyncio.create_task(self._live(), name=self._name)
        try:
            await self._settled.wait()
        except asyncio.CancelledError:
            self._scope.cancel()
            await self._end(task)
            raise
        if not self._value:
            await self._end(task)
        self._user = asyncio.current_task()
        task.add_done_callback(self._tell_user)
        return self._value.pop()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, user = self._task, self._user
        assert task is not None
        self._task = self._user = None
        self._leave.set()
        if self._was_told and user is asyncio.current_task():
            assert user is not None
            if kind is None or not issubclass(kind, asyncio.CancelledError):
                with suppress(asyncio.CancelledError):  # it may be on its way still
                    await checkpoint()
            user.uncancel()
        # that the body was cancelled is no reason to leave in haste; to be cancelled while leaving is one
        await self._end(task, shield=kind is not None and issubclass(kind, asyncio.CancelledError))

    async def _live(self) -> None:
        try:
            with self._scope, one_error():
                async with self._context as value:
                    self._value.append(value)
                    del value
                    self._settled.set()
                    await self._leave.wait()
        finally:
            self._settled.set()

    def _tell_user(self, task: asyncio.Task[None]) -> None:
        if self._user is not None:
            self._was_told = True
            self._user.cancel()

    async def _end(self, task: asyncio.Task[None], *, shield: bool = False) -> None:
        """Return when the task has ended, and raise its error; who is cancelled meanwhile makes it end sooner."""
        try:
            with anyio.CancelScope(shield=shield):
                await asyncio.wait([task])
        except asyncio.CancelledError:
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                while not task.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                raise
        task.result()
