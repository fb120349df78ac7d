"""Cancel scopes of a client: waits on its behalf end with it."""

from __future__ import annotations

__all__ = ("Scopes",)

from types import TracebackType

import anyio


class Scopes:
    """The cancel scopes that end when the client is gone; one that is entered later ends at once."""

    __slots__ = ("_entered", "_is_over")

    def __init__(self) -> None:
        self._entered: set[anyio.CancelScope] = set()
        self._is_over = False

    def __bool__(self) -> bool:
        return bool(self._entered)

    def entered(self, scope: anyio.CancelScope | None = None) -> _Entered:
        """Within, a wait ends with the client, or by ``scope``, which may have a deadline."""
        return _Entered(self, scope or anyio.CancelScope())

    def add(self, scope: anyio.CancelScope) -> None:
        """Have a scope end with the client."""
        self._entered.add(scope)
        if self._is_over:
            scope.cancel()

    def discard(self, scope: anyio.CancelScope) -> None:
        """Forget one that has been left."""
        self._entered.discard(scope)

    def end(self) -> None:
        """The client is gone."""
        self._is_over = True
        for scope in tuple(self._entered):
            scope.cancel()


class _Entered:
    """A context manager that may swallow a cancellation, and says so by its types."""

    __slots__ = ("_scope", "_scopes")

    def __init__(self, scopes: Scopes, scope: anyio.CancelScope) -> None:
        self._scopes = scopes
        self._scope = scope

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._scopes.add(self._scope)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._scopes.discard(self._scope)
        return bool(self._scope.__exit__(exc_type, exc, traceback))
