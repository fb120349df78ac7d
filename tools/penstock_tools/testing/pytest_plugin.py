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
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from penstock.broker import SyncBroker

_STORAGES = ("memory", "directory")
_SCOPES = ("function", "class", "module", "package", "session")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini options."""
    parser.addini("penstock_broker_scope", "scope of the fixture penstock_broker", default="function")
    parser.addini("penstock_broker_storage", "memory or directory", default="memory")
    parser.addini(
        "penstock_broker_set", "section.key=value lines for the broker", type="linelist", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a wrong ini value before anything is collected: one sentence, exit code 2."""
    for name, choices in (("penstock_broker_scope", _SCOPES), ("penstock_broker_storage", _STORAGES)):
        value = config.getini(name)
        if value not in choices:
            _refuse(f"{name} is one of {', '.join(choices)}: value={value!r}")


def _refuse(sentence: str) -> NoReturn:
    pytest.exit(f"penstock: {sentence}", returncode=2)


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    return config.getini("penstock_broker_scope")


@pytest.fixture(scope=_scope)
def penstock_broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SyncBroker]:
    """A Kafka broker in this process, on a free port; see ``bootstrap_servers``."""
    from penstock.broker import SyncBroker
    from penstock.config import load_config
    from penstock.errors import ConfigError, PluginError

    data_dir = tmp_path_factory.mktemp("penstock")
    sets = [
        f"broker.data_dir={data_dir}",
        "listener.bind=127.0.0.1:0",
        "wal.capacity=64MiB",
    ]
    if request.config.getini("penstock_broker_storage") == "memory":
        sets.append(f"object_store.url=memory://{data_dir.name}-{id(request)}")
    with ExitStack() as stack:
        try:
            config = load_config(sets=[*sets, *request.config.getini("penstock_broker_set")])
            broker = stack.enter_context(SyncBroker(config))
        except (ConfigError, PluginError) as error:
            _refuse(f"penstock_broker_set: {error}")
        yield broker
