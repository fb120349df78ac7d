"""Local files and directories that hold data: nobody but their owner may read them, whatever the umask says."""

from __future__ import annotations

__all__ = ("without_umask",)

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock_conformance._clause import not_applicable
from penstock_conformance._env import Env

#: Rights of the group and of others, to read or write what is there, and to get to what is in a directory.
_WAYS = (
    ("the group", stat.S_IRGRP | stat.S_IWGRP, stat.S_IXGRP),
    ("others", stat.S_IROTH | stat.S_IWOTH, stat.S_IXOTH),
)


@contextmanager
def without_umask(env: Env) -> Iterator[Callable[[], None]]:
    """Have the process take no rights from what is made; what is called inside holds what was made below the clause's
    directory against ``Services.access``: it is the owner's alone.

    What is in a directory that others can't get into is hidden from them.
    """
    others = set(env.data_dir.iterdir())

    def check() -> None:
        made = [path for path in env.data_dir.iterdir() if path not in others and not _is_ours(path)]
        if not made:
            not_applicable("nothing is made in files below the directory")
        for who, rights, enters in _WAYS:
            for path in _reached(made, enters):
                mode = stat.S_IMODE(path.lstat().st_mode)
                assert not mode & rights, (
                    f"{who} may read or write what is at {path.relative_to(env.data_dir)}: mode={mode:04o}"
                )

    umask = os.umask(0)
    try:
        yield check
    finally:
        os.umask(umask)


def _is_ours(path: Path) -> bool:
    return path.name.startswith("conformance-")


def _reached(paths: Iterable[Path], enters: int) -> Iterator[Path]:
    for path in paths:
        if not path.is_symlink():
            yield path
            if path.is_dir() and path.stat().st_mode & enters:
                yield from _reached(path.iterdir(), enters)
