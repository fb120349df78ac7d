"""The broker for code without an event loop."""

from __future__ import annotations

__all__ = ("SyncBroker", "uvloop_installed")

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import start_blocking_portal

from penstock.broker._broker import Broker
from penstock.broker._statistics import BrokerStatistics
from penstock.config import Config
from penstock.errors import InvariantError
from penstock.plugins import PluginRegistry


class SyncBroker:
    """A broker with an event loop of its own in a thread: ``with SyncBroker(...) as broker``."""

    def __init__(
        self,
        config: Config | str | os.PathLike[str] | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        registry: PluginRegistry | None = None,
    ) -> None:
        self.broker = Broker(config, overrides=overrides, registry=registry)
        self._stack: ExitStack | None = None
        self._call: Callable[..., Any] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(
                start_blocking_portal("asyncio", {"use_uvloop": uvloop_installed()}, name="penstock")
            )
            stack.enter_context(portal.wrap_async_context_manager(self.broker))
            self._call = portal.call
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._call = None
        # as at any other end: a KeyboardInterrupt would end the other thread's loop, which has to close the broker
        self._stack.__exit__(None, None, None)

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` that clients connect to."""
        return self.broker.bootstrap_servers

    def statistics(self) -> BrokerStatistics:
        """See :meth:`Broker.statistics`."""
        result = self._in_loop(self.broker.statistics)
        assert isinstance(result, BrokerStatistics)
        return result

    def flush(self) -> None:
        """See :meth:`Broker.flush`."""
        self._in_loop(self.broker.flush)

    def _in_loop(self, function: Callable[[], Any]) -> Any:
        if self._call is None:
            raise InvariantError("the broker isn't running: use 'with SyncBroker(...)'")
        return self._call(function)


def uvloop_installed() -> bool:
    """Whether the faster event loop is there; it is a dependency everywhere but on Windows."""
    try:
        import uvloop  # noqa: F401 - whether it imports is the question
    except ImportError:
        return False
    return True
