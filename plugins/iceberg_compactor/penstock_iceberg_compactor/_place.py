"""What all tables of a compactor have in common."""

from __future__ import annotations

__all__ = ("Place",)

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
from pyiceberg.catalog import Catalog

from penstock.spi import Services
from penstock.threads import run_in_thread
from penstock_iceberg_compactor._errors import Secrets, translated
from penstock_iceberg_compactor._settings import Settings

_R = TypeVar("_R")


def _no_step(name: str) -> None:
    pass


@dataclass(eq=False, kw_only=True)
class Place:
    """The catalog, and the means to use it."""

    catalog: Catalog
    namespace: str
    secrets: Secrets
    settings: Settings
    services: Services
    limiter: anyio.CapacityLimiter
    #: Called after each thing that was done on a medium, for checks; what it raises is as if the reply were lost.
    step: Callable[[str], None] = _no_step

    async def run(self, what: str, work: Callable[[], _R], **places: object) -> _R:
        """``work`` in a thread; errors from outside become Penstock's, with ``what`` and ``places``."""

        def translating() -> _R:
            with translated(what, self.secrets, **places):
                return work()

        return await run_in_thread(translating, limiter=self.limiter)
