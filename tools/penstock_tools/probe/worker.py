"""One writer of a race: does with its own client what it is told, in a process of its own or in the probe's.

As a program it reads a command per line of JSON from stdin and answers each on stdout; the first opens the store.
The configuration, which may have secrets in it, comes that way, too, and is in no argument and no file.
"""

from __future__ import annotations

__all__ = ("Command", "Outcome", "body_of", "open_store_of", "perform")

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import anyio

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    PenstockError,
    kept,
)
from penstock.spi.object_store import AppendableStore, ObjectStore
from penstock_tools.probe.relay import Relay, RelayedLoop

#: A server that lets nobody else write while one writer stalls: the stall ends then.
_HOLD_S_MAX: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What one writer does. With ``hold`` it stalls on the last byte until it is told to go on."""

    action: Literal["create", "swap", "append", "read"]
    key: str
    label: str = ""
    size: int = 0
    token: str = ""
    hold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it: ``won`` and ``lost`` of writes, ``found`` and ``missing`` of reads, or ``failed``."""

    result: Literal["won", "lost", "found", "missing", "failed"]
    #: Of a read: the SHA-256 of what was found. Of what failed: why.
    detail: str = ""


def body_of(label: str, size: int) -> bytes:
    """Bytes that nobody with another label writes."""
    digest = hashlib.sha256(label.encode()).digest()
    return (digest * (size // len(digest) + 1))[:size]


async def perform(store: ObjectStore, command: Command) -> Outcome:
    """Do what ``command`` says."""
    try:
        if command.action == "read":
            return Outcome(result="found", detail=hashlib.sha256(await store.get(command.key)).hexdigest())
        body = [body_of(command.label, command.size)]
        if command.action == "create":
            await store.put_if_absent(command.key, body)
        elif command.action == "append":
            await cast("AppendableStore", store).append(command.key, body, 0)
        else:
            await store.compare_and_swap(command.key, body, command.token)
        return Outcome(result="won")
    except (AlreadyExistsError, ConflictError):
        return Outcome(result="lost")
    except NotFoundError:
        return Outcome(result="missing")
    except PenstockError as error:
        return Outcome(result="failed", detail=str(error))


@asynccontextmanager
async def open_store_of(setup: dict[str, Any]) -> AsyncGenerator[ObjectStore]:
    """The object store that the options of a command line name; nothing else of the configuration is looked at.

    Raises ConfigError, PluginError, UnavailableError.
    """
    from penstock.config import load_config
    from penstock.plugins import PluginRegistry, Selection
    from penstock.spi.kinds import OBJECT_STORE
    from penstock_tools.inspection.places import open_store

    path = setup["config_path"]
    config = load_config(Path(path) if path else None, env=os.environ, sets=setup["sets"])
    registry = PluginRegistry(
        env=os.environ,
        plugins_dirs=[Path(directory) for directory in setup["plugins_dirs"]],
        modules=setup["modules"],
    )
    registry.load(config.tree.plugins.load)
    kind = OBJECT_STORE.name
    spec = registry.select(kind, config.plugin_name(kind))
    settings = registry.validate_plugin_settings(config, kind)
    if getattr(settings, "client", "") == "auto":
        # a writer is held on its last byte by the event loop, past which obstore sends
        settings = settings.model_copy(update={"client": "fsspec"})
    selection = Selection(specs={kind: spec}, settings={kind: settings})
    async with open_store(config, selection, read_only=False) as store:
        yield store


# -- the program -----------------------------------------------------------------------------------------------


def _tell(**answer: Any) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


async def _work(loop: RelayedLoop) -> None:
    lines = anyio.wrap_file(sys.stdin)
    async with Relay.running(loop) as relay:
        try:
            async with open_store_of(json.loads(await lines.readline())) as store:
                _tell(ready=True)
                while line := await lines.readline():
                    command = Command(**json.loads(line))
                    if command.hold:
                        outcome = await _perform_held(store, command, relay, lines)
                    else:
                        outcome = await perform(store, command)
                    _tell(**dataclasses.asdict(outcome))
        except PenstockError as error:
            _tell(refused=str(kept(error)))


async def _perform_held(store: ObjectStore, command: Command, relay: Relay, lines: Any) -> Outcome:
    """Tell when only the last byte is left to send, and go on after the next line."""
    hold = relay.hold(command.size)
    outcomes: list[Outcome] = []

    async def write() -> None:
        outcomes.append(await perform(store, command))
        waiting.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(_HOLD_S_MAX) as waiting:
            tasks.start_soon(write)
            await hold.held.wait()
        _tell(held=hold.held.is_set() and not outcomes)
        await lines.readline()
        await hold.release()
    return outcomes[0]


async def _main() -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    assert isinstance(loop, RelayedLoop)
    await _work(loop)


if __name__ == "__main__":
    anyio.run(_main, backend_options={"loop_factory": RelayedLoop})
