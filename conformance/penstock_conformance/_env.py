"""The surroundings of one clause: a data directory, services, and the plugin under test."""

from __future__ import annotations

__all__ = ("Env", "call", "given_up", "raises", "together")

import dataclasses
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from penstock.config import is_secret
from penstock.errors import ConfigError, FencedError, PenstockError, UnavailableError
from penstock.files import ACCESSES, Access
from penstock.plugins import NestedPlugins, Opened
from penstock.spi.allocator import Allocator
from penstock.spi.kinds import ALLOCATOR, KINDS, OBJECT_STORE, WAL, Kind
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import PluginSpec, Services
from penstock.spi.settings import Settings
from penstock.spi.wal import WalEntry, WalSpec
from penstock_conformance._clause import NotApplicable, not_applicable
from penstock_conformance._memory_store import MemoryStore
from penstock_conformance._scoped_store import ScopedStore
from penstock_conformance._steps import Steps
from penstock_conformance._target import Target
from penstock_conformance._words import FileWords
from penstock_conformance.reference._allocator import PlainAllocator
from penstock_conformance.reference._object_store import DirectoryStore

T = TypeVar("T")

EPOCHS_APART = 1000
#: In the name of an entry of a table that isn't shown; and shorter secrets are part of other words.
_HIDDEN, _SECRET_LENGTH_MIN = "secret", 6
#: A store that fails for once leaves nothing behind; one that always does is told by its clauses.
_CLEANINGS = 5

_ONE_LOG = (
    "every clause begins with a log of its own, and this plugin has one for all: name the log after "
    "services.cluster_id and services.node_id, or put {dir} into the setting that says where it is, as in "
    "--set name={dir}"
)


class Env:
    """The environment of one clause: the plugin under test, and a data directory that is empty at the start."""

    def __init__(self, target: Target, data_dir: Path, name: str = "") -> None:
        self.target = target
        self.data_dir = data_dir
        #: Where the object store is, if it is a directory.
        self.store_dir = data_dir
        self.name = name
        #: What a bounded log has room for, once somebody looked; 0 for others.
        self.capacity_bytes = 0
        self.random = random.Random(f"{target.seed}/{target.kind}/{name}")
        self.rounds = target.rounds
        #: Prefix of the clause's keys; child processes have the same.
        self.scope = f"penstock-conformance/{data_dir.name}/"
        #: What was begun, where a clause says so.
        self.steps = Steps()
        #: The suite's own allocator, once something was opened with it.
        self.plain_allocator: PlainAllocator | None = None
        self._registry = target.registry()
        #: How often something was asked of the object stores under test, in this process.
        self.requests = 0

    @asynccontextmanager
    async def open(
        self,
        *,
        node_id: int = 1,
        epoch: int = 1,
        settings: Mapping[str, str] | None = None,
        allocator: Allocator | None = None,
        object_store: ObjectStore | None = None,
        read_only: bool = False,
        access: Access = ACCESSES["owner"],
        later: int = 0,
    ) -> AsyncIterator[Any]:
        """Open the plugin under test on this data directory, as the owner ``node_id`` of ``epoch``.

        ``allocator`` and ``object_store`` take the place of those that serve it otherwise. Epochs are far apart, but
        for those that are only so much ``later``.
        """
        spec = self._registry.select(self.target.kind, self.target.plugin)
        checked = self.target.checked_settings(spec, self.data_dir, settings)
        inside: BaseException | None = None
        async with AsyncExitStack() as stack:
            store = object_store
            needs = KINDS[spec.kind].needs
            if ALLOCATOR in needs and allocator is None:
                allocator = await self._allocator(stack)
            if OBJECT_STORE in needs and store is None:
                store = await self._object_store(stack)
            services = self._services(node_id, epoch, allocator, store)
            services = dataclasses.replace(services, epoch=services.epoch + later)
            services = self._bound(services, spec, checked, registers=True)
            services = dataclasses.replace(services, read_only=read_only, access=access)
            opened = await stack.enter_async_context(spec.open(checked, services))
            try:
                is_store = spec.kind == OBJECT_STORE.name
                yield ScopedStore(opened, self.scope, self._asked) if is_store else opened
            except BaseException as error:
                inside = error
                raise
        if inside is not None:  # a context that swallows it would have swallowed what a clause found, too
            raise AssertionError(
                f"leaving the context of the plugin swallowed an error: {inside}"
            ) from inside

    def random_of(self, who: int) -> random.Random:
        """The randomness of one of several tasks: what a seed gives it doesn't depend on when the others draw."""
        return random.Random(f"{self.target.seed}/{self.target.kind}/{self.name}/{who}")

    async def identify(self, *, epoch: int = 0, object_store: ObjectStore | None = None) -> str | None:
        """The identity of the WAL in this data directory. Breaks the clause if its plugin tells none."""
        spec = self._registry.select(self.target.kind, self.target.plugin)
        assert isinstance(spec, WalSpec)
        assert spec.identify is not None, "the plugin has no identify"
        async with AsyncExitStack() as stack:
            services = await self._outside(stack, object_store, epoch)
            settings = self.target.checked_settings(spec, self.data_dir)
            return await spec.identify(settings, self._bound(services, spec, settings))

    async def read_outside(
        self, object_store: ObjectStore | None = None, *, entries_max: int = sys.maxsize
    ) -> list[WalEntry]:
        """What the WAL's ``read`` tells of the log in this data directory, or its first ``entries_max``."""
        spec = self._registry.select(self.target.kind, self.target.plugin)
        read = getattr(spec, "read", None)
        if read is None:
            not_applicable("the plugin can't read a log from outside")
        async with AsyncExitStack() as stack:
            services = await self._outside(stack, object_store)
            settings = self.target.checked_settings(spec, self.data_dir)
            entries: AsyncIterator[WalEntry] = read(settings, self._bound(services, spec, settings))
            found: list[WalEntry] = []
            try:
                async for entry in entries:
                    found.append(entry)
                    if len(found) == entries_max:
                        break
            finally:
                if (close := getattr(entries, "aclose", None)) is not None:
                    await close()
            return found

    async def _outside(
        self, stack: AsyncExitStack, object_store: ObjectStore | None, epoch: int = 0
    ) -> Services:
        """The services of who looks at a log from outside."""
        store = object_store or await self._object_store(stack)
        return self._services(1, epoch, await self._allocator(stack), store)

    async def format(self, words: str) -> Mapping[str, object]:
        """Make the place of the WAL ready, as somebody who says ``words``."""
        spec = self._registry.select(self.target.kind, self.target.plugin)
        assert isinstance(spec, WalSpec)
        assert spec.format is not None, "the plugin has no format"
        async with AsyncExitStack() as stack:
            services = await self._outside(stack, None)
            settings = self.target.checked_settings(spec, self.data_dir)
            return await spec.format(settings, self._bound(services, spec, settings), words)

    def spec(self) -> PluginSpec[Any, Any]:
        """The registration of the plugin under test."""
        return self._registry.select(self.target.kind, self.target.plugin)

    def secrets(self) -> list[str]:
        """What the settings hold that is to be shown to nobody."""
        spec = self.spec()
        settings = self.target.checked_settings(spec, self.data_dir)
        values = [
            getattr(settings, name) for name, field in type(settings).model_fields.items() if is_secret(field)
        ]
        # a table may hold an endpoint, too, or a region
        leaves = [
            leaf
            for value in values
            for name, leaf in (value.items() if isinstance(value, Mapping) else [(_HIDDEN, value)])
            if _HIDDEN in str(name).lower()
        ]
        return [leaf for leaf in leaves if isinstance(leaf, str) and len(leaf) >= _SECRET_LENGTH_MIN]

    def can_read_outside(self) -> bool:
        """Whether the WAL has a ``read``."""
        return getattr(self._registry.select(self.target.kind, self.target.plugin), "read", None) is not None

    def can_describe_outside(self) -> bool:
        """Whether the WAL has a ``describe``."""
        return (
            getattr(self._registry.select(self.target.kind, self.target.plugin), "describe", None) is not None
        )

    async def describe_outside(self, object_store: ObjectStore | None = None) -> Mapping[str, object]:
        """What the WAL's ``describe`` tells of the log in this data directory."""
        spec = self._registry.select(self.target.kind, self.target.plugin)
        describe = getattr(spec, "describe", None)
        if describe is None:
            not_applicable("the plugin can't describe a log from outside")
        async with AsyncExitStack() as stack:
            services = await self._outside(stack, object_store)
            settings = self.target.checked_settings(spec, self.data_dir)
            facts: Mapping[str, object] = await describe(settings, self._bound(services, spec, settings))
            return facts

    async def store_of(self, stack: AsyncExitStack) -> ObjectStore:
        """The object store that serves the plugin, for a clause that puts something between the two."""
        return await self._object_store(stack)

    async def look(self) -> tuple[Mapping[str, Any], str]:
        """What the opened plugin claims, and where it says that its data are.

        Raises ConfigError if all clauses would have one log.
        """
        # elsewhere: a clause begins where nothing was, and an epoch has one owner
        async with self.elsewhere("capabilities").open() as opened:
            capabilities = opened.capabilities
            location = str(getattr(opened, "location", ""))
            if self.target.kind == WAL.name:
                self.capacity_bytes = opened.statistics().capacity_bytes
        if self.target.kind == WAL.name:
            try:
                async with self.elsewhere("another").open():
                    pass  # a new log takes every epoch
            except FencedError as error:
                raise ConfigError(
                    f"{_ONE_LOG}: plugin={self.target.plugin} location={location} reason={error}"
                ) from error
        names = getattr(capabilities, "__dataclass_fields__", {})
        return {name: getattr(capabilities, name) for name in names}, location

    def elsewhere(self, name: str = "elsewhere") -> Env:
        """An environment with the same plugin and another data directory."""
        data_dir = self.data_dir / name
        data_dir.mkdir()
        return Env(self.target, data_dir, self.name)

    def anew(self, number: int) -> Env:
        """An environment in which the clause is begun again: nothing is there of what it did in this one."""
        return self.elsewhere(f"{self.data_dir.name}-{number}")

    def _asked(self) -> None:
        self.requests += 1

    def on_another_host(self) -> Env:
        """An environment with the same plugin and object store, and another data directory."""
        other = self.elsewhere("another-host")
        other.store_dir = self.store_dir
        return other

    @property
    def cluster_id(self) -> str:
        """The cluster's, of all hosts: no other clause has it, so a log that is named after it is of this one."""
        return f"conformance-{sha256(str(self.store_dir).encode()).hexdigest()[:16]}"

    @property
    def account(self) -> PlainAllocator:
        """The account of what was opened last; only the suite's own allocator is exact to the byte."""
        if self.plain_allocator is None:
            not_applicable("the account of an allocator that is a plugin isn't exact to the byte")
        return self.plain_allocator

    def plain_store(self) -> DirectoryStore:
        """The suite's own object store, on this data directory: not synced, as it has no power cut to survive."""
        return DirectoryStore(self.store_dir / "conformance-objects", synced=False)

    def large_store(self) -> ObjectStore | None:
        """For what is in the object store thousands of times: a store in memory, unless one was chosen."""
        return None if self.target.object_store else MemoryStore()

    async def clean(self) -> None:
        """Remove what the clause left in a place outside its data directory."""
        if self.target.kind == OBJECT_STORE.name:
            for _ in range(_CLEANINGS):
                with suppress(UnavailableError):
                    async with self.open() as store:
                        await store.clean()
                    break
        elif self.target.object_store_settings:
            async with AsyncExitStack() as stack:
                store = await self._object_store(stack)
                if isinstance(store, ScopedStore):
                    await store.clean()

    def _services(
        self, node_id: int, epoch: int, allocator: Allocator | None, store: ObjectStore | None
    ) -> Services:
        return Services(
            node_id=node_id,
            # a plugin that opens others may need epochs between those of two owners
            epoch=epoch * EPOCHS_APART,
            cluster_id=self.cluster_id,
            data_dir=self.data_dir,
            allocator=allocator,
            object_store=store,
            clock=time.monotonic,
        )

    def _bound(
        self, services: Services, spec: PluginSpec[Any, Any], settings: Settings, *, registers: bool = False
    ) -> Services:
        """The services as the plugin under test gets them: it may open other plugins, and a WAL has fenced words."""
        opened = Opened(NestedPlugins(self._registry.select, {}))
        if spec.kind == WAL.name:
            opened.words = partial(FileWords, self.store_dir / "conformance-words", registers)
        return opened.bind(services, (spec.kind,), spec.name, settings)

    async def _allocator(self, stack: AsyncExitStack) -> Allocator:
        if self.target.allocator:
            return await self._service(stack, ALLOCATOR, self.target.allocator)
        self.plain_allocator = PlainAllocator(512 * 2**20)
        stack.callback(self.plain_allocator.close)
        return self.plain_allocator

    async def _object_store(self, stack: AsyncExitStack) -> ObjectStore:
        if not self.target.object_store:
            return self.plain_store()
        store = await self._service(stack, OBJECT_STORE, self.target.object_store)
        if not self.target.object_store_settings:
            return store  # in the data directory
        # one place for all clauses: each has a part of it
        return ScopedStore(store, f"penstock-conformance/{self.store_dir.parent.name}/{self.store_dir.name}/")

    async def _service(self, stack: AsyncExitStack, kind: Kind[T], name: str) -> T:
        spec = self._registry.select(kind.name, name)
        services = dataclasses.replace(self._services(1, 1, None, None), data_dir=self.store_dir)
        is_store = kind is OBJECT_STORE
        settings = self.target.store_settings(spec, self.store_dir) if is_store else spec.settings()
        opened: T = await stack.enter_async_context(spec.open(settings, services))
        return opened


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


async def given_up(turns: int, function: Callable[[], Awaitable[object]]) -> None:
    """Begin ``function``, and cancel it after some turns of the event loop; errors of operation are an answer."""

    async def run() -> None:
        with suppress(PenstockError):
            await function()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(turns):
            await checkpoint()
        tasks.cancel_scope.cancel()


@contextmanager
def raises(*expected: type[Exception]) -> Iterator[None]:
    """The body must raise one of ``expected``; anything else, or nothing, breaks the clause."""
    names = " or ".join(error.__name__ for error in expected)
    try:
        yield
    except expected:
        return
    except NotApplicable:
        raise
    except Exception as error:
        raise AssertionError(f"expected {names}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"expected {names}, and nothing was raised")
