"""The pytest plugin that ships with Penstock: the fixture ``penstock_broker``.

    def test_roundtrip(penstock_broker):
        producer = Producer({"bootstrap.servers": penstock_broker.bootstrap_servers})

Options, in pytest's own configuration file:

``penstock_broker_scope``
    ``function`` (default: each test has a broker of its own), ``module`` or ``session``.
``penstock_broker_storage``
    ``memory`` (default: objects in memory, the WAL in a temporary directory) or ``directory``.
``penstock_broker_set``
    Lines of ``section.key=value``, as for ``penstock serve --set``.

It is imported by every pytest run in an environment that has Penstock, so it imports nothing but pytest until
the fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from penstock.broker import SyncBroker

_SCOPES = ("function", "class", "module", "package", "session")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini options."""
    parser.addini("penstock_broker_scope", "scope of the fixture penstock_broker", default="function")
    parser.addini("penstock_broker_storage", "memory or directory", default="memory")
    parser.addini(
        "penstock_broker_set", "section.key=value lines for the broker", type="linelist", default=[]
    )


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    scope = config.getini("penstock_broker_scope")
    if scope not in _SCOPES:
        raise pytest.UsageError(f"penstock_broker_scope is one of {', '.join(_SCOPES)}: value={scope}")
    return scope


@pytest.fixture(scope=_scope)
def penstock_broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SyncBroker]:
    """A Kafka broker in this process, on a free port; see ``bootstrap_servers``."""
    from penstock.broker import SyncBroker
    from penstock.config import load_config

    data_dir = tmp_path_factory.mktemp("penstock")
    storage = request.config.getini("penstock_broker_storage")
    if storage not in ("memory", "directory"):
        raise pytest.UsageError(f"penstock_broker_storage is memory or directory: value={storage}")
    overrides: dict[str, Any] = {
        "broker.data_dir": str(data_dir),
        "listener.bind": "127.0.0.1:0",
        "groups.initial_rebalance_delay": "0ms",
        "wal.capacity": "64MiB",
    }
    if storage == "memory":
        overrides["object_store.url"] = f"memory://{data_dir.name}-{id(request)}"
    config = load_config(sets=request.config.getini("penstock_broker_set"), overrides=overrides)
    with SyncBroker(config) as broker:
        yield broker
