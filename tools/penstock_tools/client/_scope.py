"""Task groups whose body's error comes out as it is, not wrapped in a group of one."""

from __future__ import annotations

__all__ = ("task_group",)

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc


@asynccontextmanager
async def task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group that is cancelled when its body ends; a single error is raised bare."""
    error: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
    if error is not None:
        try:
            raise error from error.__cause__
        finally:
            del error
