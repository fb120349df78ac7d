"""A table of the image: rows by their id, asked by everybody, changed by the fold alone."""

from __future__ import annotations

__all__ = ("RowCut", "Table")

from collections.abc import Callable, KeysView, ValuesView
from copy import copy
from typing import Generic, TypeVar

from penstock.errors import NotFoundError

K = TypeVar("K")
R = TypeVar("R")


class RowCut(Generic[K, R]):
    """The rows of a table as they are at one moment; one that changes before it was taken out is copied first."""

    __slots__ = ("rows",)

    def __init__(self, rows: dict[K, R]) -> None:
        #: Those that nobody took out yet.
        self.rows = dict(rows)

    def before(self, key: K, row: R) -> None:
        """``row`` of the table is about to change."""
        if self.rows.get(key) is row:
            self.rows[key] = copy(row)


class Table(Generic[K, R]):
    """Rows by key, and the queries of all tables. :meth:`put`, :meth:`drop` and :meth:`change` are the fold's.

    Rows change in place: who keeps one sees it as it is now, or as it was when it was dropped.
    """

    #: What a row is called, for errors.
    noun = "row"

    def __init__(self, rows: dict[K, R]) -> None:
        self._rows = rows
        self._cuts: list[RowCut[K, R]] = []
        #: The row with that id, or None.
        self.get: Callable[[K], R | None] = rows.get

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def require(self, key: K) -> R:
        """The row with that id. Raises NotFoundError."""
        row = self._rows.get(key)
        if row is None:
            name = key.hex() if isinstance(key, bytes) else key
            raise NotFoundError(f"there is no such {self.noun}: {self.noun}_id={name}")
        return row

    def ids(self) -> KeysView[K]:
        """All ids, in the order in which their rows came; a live view."""
        return self._rows.keys()

    def all(self) -> ValuesView[R]:
        """All rows, in the same order; a live view."""
        return self._rows.values()

    # -- for the fold ----------------------------------------------------------------------------------------

    @property
    def is_cut(self) -> bool:
        """Whether a snapshot is being taken, so that rows must be kept before they change."""
        return bool(self._cuts)

    def put(self, key: K, row: R) -> None:
        """A row that wasn't there."""
        self._rows[key] = row

    def drop(self, key: K) -> R:
        """Take a row out of the table."""
        return self._rows.pop(key)

    def change(self, key: K) -> R:
        """The row, which is about to change; snapshots that are being taken keep it as it is now."""
        row = self._rows[key]
        for cut in self._cuts:
            cut.before(key, row)
        return row

    def cut(self) -> RowCut[K, R]:
        """Keep the rows as they are now, until :meth:`uncut`."""
        cut = RowCut(self._rows)
        self._cuts.append(cut)
        return cut

    def uncut(self, cut: RowCut[K, R]) -> None:
        """The rows that are left in ``cut`` aren't wanted any more."""
        self._cuts.remove(cut)
