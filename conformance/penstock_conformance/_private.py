"""Local files and directories that hold data: who may read them, whatever the umask says."""

from __future__ import annotations

__all__ = ("each_access", "without_umask")

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.files import ACCESSES, Access
from penstock_conformance._clause import not_applicable
from penstock_conformance._env import Env

#: Rights of the group and of others, to read or write what is there, and to get to what is in a directory.
_WAYS = (
    ("the group", stat.S_IRGRP | stat.S_IWGRP, stat.S_IXGRP),
    ("others", stat.S_IROTH | stat.S_IWOTH, stat.S_IXOTH),
)


def each_access(env: Env) -> Iterator[tuple[Env, Access]]:
    """Places, each for files of another access: of the owner alone, and of a group that may read them."""
    for name in ("owner",) if env.target.object_store else ("owner", "group"):  # a store has files of its own
        yield env.elsewhere(name), ACCESSES[name]


@contextmanager
def without_umask(env: Env, access: Access) -> Iterator[Callable[[], None]]:
    """Have the process take no rights from what is made; what is called inside holds what was made below the clause's
    directory against ``Services.access``.

    What is in a directory that others can't get into is hidden from them.
    """
    others = set(env.data_dir.iterdir())

    def check() -> None:
        made = [path for path in env.data_dir.iterdir() if path not in others and not _is_ours(path)]
        if not made:
            not_applicable("nothing is made in files below the directory")
        for who, rights, enters in _WAYS:
            readable = 0
            for path, mode in _reached(made, enters):
                wanted = access.directory_mode if stat.S_ISDIR(mode) else access.file_mode
                assert not mode & rights & ~wanted, (
                    f"{who} may read or write what is at {path.relative_to(env.data_dir)}: "
                    f"mode={stat.S_IMODE(mode):04o} wanted={wanted:04o}"
                )
                readable += stat.S_ISREG(mode) and bool(mode & rights)
            assert readable or not access.file_mode & rights, (
                f"{who} may read the files, and can read none: wanted={access.file_mode:04o}"
            )

    umask = os.umask(0)
    try:
        yield check
    finally:
        os.umask(umask)


def _is_ours(path: Path) -> bool:
    return path.name.startswith("conformance-")


def _reached(paths: Iterable[Path], enters: int) -> Iterator[tuple[Path, int]]:
    """Directories, and files that hold something; a plugin may be about to remove some."""
    for path in paths:
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                yield path, status.st_mode
                if status.st_mode & enters:
                    yield from _reached(path.iterdir(), enters)
            elif stat.S_ISREG(status.st_mode) and status.st_size:
                yield path, status.st_mode
