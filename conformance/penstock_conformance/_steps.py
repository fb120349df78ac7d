"""What was done before something broke, so that a random history can be read from the verdict."""

from __future__ import annotations

__all__ = ("Steps",)

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from penstock_conformance._clause import NotApplicable, Undecided

#: As many fit into a verdict; the seed repeats all of them.
_SHOWN = 8


class Steps:
    """The last steps of a history."""

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=_SHOWN)

    def note(self, step: str) -> None:
        """Something is about to be done."""
        self._last.append(step)

    def last(self) -> str:
        """What was begun last; empty if nothing was."""
        return self._last[-1] if self._last else ""

    @contextmanager
    def told(self) -> Iterator[None]:
        """A clause that breaks inside says what was done before."""
        try:
            yield
        except (NotApplicable, Undecided):
            raise
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{what} (after: {'; '.join(self._last)})") from error
