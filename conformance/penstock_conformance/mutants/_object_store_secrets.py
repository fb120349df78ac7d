"""Object stores that tell a secret setting; each is a plugin of its own, as others have no secrets."""

from __future__ import annotations

__all__ = ()

from pathlib import Path

from pydantic import Field

from penstock.errors import NotFoundError, UnavailableError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.kinds import REGISTER
from penstock.spi.object_store import ObjectInfo, ObjectStoreSpec, ObjectStoreStatistics
from penstock.spi.plugin import Buffer
from penstock_conformance.mutants._mutant import SUMMARY, mutant
from penstock_conformance.reference._object_store import STORE_CAPABILITIES, DirectoryStore
from penstock_conformance.reference._plugin import closing

KIND = "object_store"

_TOLD = "errors_tell_nothing_of_what_is_in_objects"


class _Secrets(Settings):
    """Who it is."""

    password: str = Field(
        default="correct horse battery staple",
        description="what is told to nobody",
        json_schema_extra={"secret": True},
    )


class _Store(DirectoryStore):
    def __init__(self, directory: Path, password: str) -> None:
        super().__init__(directory)
        self._password = password


class _TellsItInItsLocation(_Store):
    @property
    def location(self) -> str:
        return f"user:{self._password}@{super().location}"


class _TellsItWhereNothingIs(_Store):
    async def head(self, key: str) -> ObjectInfo:
        try:
            return await super().head(key)
        except NotFoundError as error:
            raise NotFoundError(f"{error} password={self._password}") from None


class _TellsItInAnOutage(_Store):
    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        try:
            return await super().get(key, start, end)
        except UnavailableError as error:
            raise UnavailableError(f"{error} password={self._password}") from None


class _CountsWithIt(_Store):
    def statistics(self) -> ObjectStoreStatistics:
        self._counts.last_error = self._counts.last_error and f"as {self._password}"
        return super().statistics()


def _registered(defect: str, made: type[_Store], caught_by: str = _TOLD, level: int = 1) -> None:
    name, hook = f"mutant_{defect}", REGISTER + KIND
    mutant(KIND, defect, caught_by, level=level, plugin=name)(made)

    @hookimpl(specname=hook)
    def register() -> ObjectStoreSpec[_Secrets]:
        return ObjectStoreSpec(
            name=name,
            summary=SUMMARY,
            settings=_Secrets,
            capabilities=STORE_CAPABILITIES,
            open=closing(lambda settings, services: made(services.data_dir / "objects", settings.password)),
        )

    globals()[f"{hook}_{defect}"] = register


_registered("tells_its_password_in_its_location", _TellsItInItsLocation)
_registered("tells_its_password_where_nothing_is", _TellsItWhereNothingIs)
_registered("tells_its_password_in_an_outage", _TellsItInAnOutage, "outage_is_not_emptiness", 4)
_registered("tells_its_password_in_statistics", _CountsWithIt, "outage_is_not_emptiness", 4)
