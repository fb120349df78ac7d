"""The surroundings of one clause: a data directory, services, the plugin under test, and child processes."""

from __future__ import annotations

__all__ = ("Child", "Env", "call", "killed", "raises", "together")

import json
import multiprocessing
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from penstock.spi.allocator import Allocator
from penstock.spi.kinds import ALLOCATOR, KINDS, OBJECT_STORE, Kind
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock.spi.wal import WalSpec
from penstock_conformance._clause import not_applicable
from penstock_conformance._scoped_store import ScopedStore
from penstock_conformance._target import Target
from penstock_conformance.reference._allocator import PlainAllocator
from penstock_conformance.reference._object_store import DirectoryStore

T = TypeVar("T")


class Env:
    """The environment of one clause: the plugin under test, and a data directory that is empty at the start."""

    def __init__(self, target: Target, data_dir: Path, name: str = "") -> None:
        self.target = target
        self.data_dir = data_dir
        self.name = name
        self.random = random.Random(f"{target.seed}/{target.kind}/{name}")
        self.rounds = target.rounds
        #: Prefix of the clause's keys; child processes have the same.
        self.scope = f"penstock-conformance/{data_dir.name}/"
        #: The suite's own allocator, once something was opened with it.
        self.plain_allocator: PlainAllocator | None = None
        self._registry = target.registry()

    @asynccontextmanager
    async def open(
        self,
        *,
        node_id: int = 1,
        epoch: int = 1,
        settings: Mapping[str, str] | None = None,
        allocator: Allocator | None = None,
    ) -> AsyncIterator[Any]:
        """Open the plugin under test on this data directory, as the owner ``node_id`` of ``epoch``."""
        spec = self._registry.select(self.target.kind, self.target.plugin)
        checked = self.target.checked_settings(spec, self.data_dir, settings)
        async with AsyncExitStack() as stack:
            store: ObjectStore | None = None
            needs = KINDS[spec.kind].needs
            if ALLOCATOR in needs and allocator is None:
                allocator = await self._allocator(stack)
            if OBJECT_STORE in needs:
                store = await self._object_store(stack)
            services = self._services(node_id, epoch, allocator, store)
            opened = await stack.enter_async_context(spec.open(checked, services))
            yield ScopedStore(opened, self.scope) if spec.kind == OBJECT_STORE.name else opened

    async def identify(self, *, epoch: int = 0) -> str | None:
        """The identity of the WAL in this data directory. Breaks the clause if its plugin tells none."""
        spec = self._registry.select(self.target.kind, self.target.plugin)
        assert isinstance(spec, WalSpec)
        assert spec.identify is not None, "the plugin has no identify"
        async with AsyncExitStack() as stack:
            services = self._services(1, epoch, await self._allocator(stack), await self._object_store(stack))
            return await spec.identify(self.target.checked_settings(spec, self.data_dir), services)

    def elsewhere(self) -> Env:
        """An environment with the same plugin and another data directory."""
        data_dir = self.data_dir / "elsewhere"
        data_dir.mkdir()
        return Env(self.target, data_dir, self.name)

    @property
    def account(self) -> PlainAllocator:
        """The account of what was opened last; only the suite's own allocator is exact to the byte."""
        if self.plain_allocator is None:
            not_applicable("the account of an allocator that is a plugin isn't exact to the byte")
        return self.plain_allocator

    async def clean(self) -> None:
        """Remove what the clause left in a place outside its data directory."""
        if self.target.kind == OBJECT_STORE.name:
            async with self.open() as store:
                await store.clean()

    def _services(
        self, node_id: int, epoch: int, allocator: Allocator | None, store: ObjectStore | None
    ) -> Services:
        return Services(
            node_id=node_id,
            epoch=epoch,
            cluster_id="conformance",
            data_dir=self.data_dir,
            allocator=allocator,
            object_store=store,
            clock=time.monotonic,
        )

    async def _allocator(self, stack: AsyncExitStack) -> Allocator:
        if self.target.allocator:
            return await self._service(stack, ALLOCATOR, self.target.allocator)
        self.plain_allocator = PlainAllocator(512 * 2**20)
        stack.callback(self.plain_allocator.close)
        return self.plain_allocator

    async def _object_store(self, stack: AsyncExitStack) -> ObjectStore:
        if self.target.object_store:
            return await self._service(stack, OBJECT_STORE, self.target.object_store)
        return DirectoryStore(self.data_dir / "conformance-objects")

    async def _service(self, stack: AsyncExitStack, kind: Kind[T], name: str) -> T:
        spec = self._registry.select(kind.name, name)
        services = self._services(1, 1, None, None)
        opened: T = await stack.enter_async_context(spec.open(spec.settings(), services))
        return opened

    def child(self, job: str, **arguments: Any) -> Child:
        """A child process that does ``job`` (see ``penstock_conformance._child``) on this data directory."""
        return Child(self, job, arguments)


class Child:
    """A child process; parent and child tell each other JSON values, one a line.

    It is forked from a server that has imported everything already, so that starting one costs little. An
    ``async with`` that is left kills what still runs.
    """

    def __init__(self, env: Env, job: str, arguments: Mapping[str, Any]) -> None:
        self._order = json.dumps(
            {
                "target": env.target.to_json(),
                "data_dir": str(env.data_dir),
                "job": job,
                "arguments": dict(arguments),
            }
        )
        self._unread = b""

    async def __aenter__(self) -> Child:
        # Imported here: the module of the jobs imports this one.
        from penstock_conformance._child import run_job

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", run_job.__module__])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_job, args=(self._order, theirs), daemon=True)
        await anyio.to_thread.run_sync(self._process.start)
        theirs.close()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            self.kill()
            await anyio.to_thread.run_sync(self._process.join)
            self._process.close()
            self._connection.close()

    async def tell(self, value: object) -> None:
        """Send a line."""
        await checkpoint()
        os.write(self._connection.fileno(), json.dumps(value).encode() + b"\n")

    async def next(self) -> Any:
        """The next line, or None at the end of the child's output. A line that a SIGKILL cut off is dropped.

        Raises AssertionError with the child's traceback when its job failed.
        """
        while b"\n" not in self._unread:
            await anyio.wait_readable(self._connection.fileno())
            try:
                piece = os.read(self._connection.fileno(), 2**16)
            except ConnectionResetError:
                piece = b""  # killed with an order of ours unread
            if not piece:
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        value = json.loads(line)
        if isinstance(value, dict) and "failed" in value:
            raise AssertionError(f"the child process failed: {value['failed']}")
        return value

    async def rest(self) -> list[Any]:
        """All lines to the end of the output."""
        lines = []
        while (line := await self.next()) is not None:
            lines.append(line)
        return lines

    def kill(self) -> None:
        """SIGKILL: nothing of the child runs any more when its output ends."""
        self._process.kill()

    async def finish(self) -> list[Any]:
        """Wait for the regular end; the lines that came."""
        lines = await self.rest()
        await anyio.to_thread.run_sync(self._process.join)
        assert self._process.exitcode == 0, f"the child process died: exit={self._process.exitcode}"
        return lines


async def killed(env: Env, job: str, at_an_ack: bool, acks_max: int, **arguments: Any) -> list[Any]:
    """Run ``job`` in a child process that ends by SIGKILL at a random point; what it told before.

    The kill comes directly after one of its first ``acks_max`` acknowledgements, or from outside a moment later.
    """
    acks = env.random.randrange(1, acks_max)
    pause_s = env.random.random() * 0.005
    async with env.child(job, die_after=acks if at_an_ack else 0, **arguments) as child:
        first = await child.next()
        assert first is not None, "the child process died before its first word"
        lines = []
        if not at_an_ack:
            for _ in range(acks):
                lines.append(await child.next())
            await anyio.sleep(pause_s)
            child.kill()
        lines += await child.rest()
        assert None not in lines, "the child process died too early"
        return lines


def call(function: Callable[[int], Awaitable[None]], argument: int) -> Callable[[], Awaitable[None]]:
    """``function`` with its argument, for :func:`together`."""
    return lambda: function(argument)


async def together(functions: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run all in tasks of their own, to the end."""

    async def run(function: Callable[[], Awaitable[None]]) -> None:
        await function()

    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(run, function)


@contextmanager
def raises(*expected: type[Exception]) -> Iterator[None]:
    """The body must raise one of ``expected``; anything else, or nothing, breaks the clause."""
    names = " or ".join(error.__name__ for error in expected)
    try:
        yield
    except expected:
        return
    except Exception as error:
        raise AssertionError(f"expected {names}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"expected {names}, and nothing was raised")
