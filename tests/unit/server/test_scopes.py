"""Waits on behalf of a client end with it."""

from __future__ import annotations

import anyio
import pytest

from penstock.server.scopes import Scopes

pytestmark = pytest.mark.anyio


async def test_what_waits_ends_with_the_client_and_what_would_wait_then_does_at_once() -> None:
    scopes = Scopes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_wait, scopes)
        await anyio.wait_all_tasks_blocked()
        assert scopes
        scopes.end()
    await _wait(scopes)
    assert not scopes


async def test_a_scope_is_left_whatever_is_raised_within() -> None:
    scopes = Scopes()
    with pytest.raises(ValueError, match="a bug"), scopes.entered():
        raise ValueError("a bug")
    assert not scopes


async def test_a_scope_with_a_deadline_says_that_it_is_over() -> None:
    scopes = Scopes()
    scope = anyio.move_on_after(0)
    with scopes.entered(scope):
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not scopes


async def _wait(scopes: Scopes) -> None:
    with scopes.entered():
        await anyio.sleep_forever()
