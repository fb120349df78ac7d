"""What all tables of a compactor have in common."""

from __future__ import annotations

__all__ = ("Place",)

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from pyiceberg.catalog import Catalog

from penstock.spi import Services
from penstock.threads import run_in_thread
from penstock_iceberg_compactor._catalog import OpenCatalog
from penstock_iceberg_compactor._errors import Secrets, translated
from penstock_iceberg_compactor._life import Life
from penstock_iceberg_compactor._settings import Settings
from penstock_iceberg_compactor.decode import Outage, panics_caught
from penstock_iceberg_compactor.decode.waits import Call

_R = TypeVar("_R")


def _no_step(name: str) -> None:
    pass


@dataclass(eq=False, kw_only=True)
class Place:
    """The catalog, and the means to use it."""

    catalogs: OpenCatalog
    namespace: str
    secrets: Secrets
    settings: Settings
    services: Services
    limiter: anyio.CapacityLimiter
    #: Bytes of rows of one table that are kept in memory.
    buffer: int
    #: For maintenance, which can take long: it holds no thread that other tables need.
    maintenance: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    #: Of tables that were left, by name, with nothing on its way any more: the next opening goes on with it, so it
    #: needs no commit of its own.
    lives: dict[str, Life] = field(default_factory=dict)
    #: Of schema registries, by URL.
    outages: dict[str, Outage] = field(default_factory=dict)
    #: Called after each thing that was done on a medium, for checks; what it raises is as if the reply were lost.
    step: Callable[[str], None] = _no_step

    @property
    def catalog(self) -> Catalog:
        """The catalog. Blocking; raises UnavailableError if it doesn't answer."""
        return self.catalogs.get()

    async def run(
        self,
        what: str,
        work: Callable[[], _R],
        limiter: anyio.CapacityLimiter | None = None,
        **places: object,
    ) -> _R:
        """``work`` in a thread; errors from outside become Penstock's, with ``what`` and ``places``.

        Cancelled, it doesn't wait for a catalog or a registry: what was sent may have happened or not.
        """
        call = Call()

        def translating() -> _R:
            call.begin()
            with translated(what, self.secrets, **places), panics_caught():
                return work()

        return await run_in_thread(translating, limiter=limiter or self.limiter, give_up=call.end)
