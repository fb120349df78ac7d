"""The ``penstock`` command.

Each public module of this package is one subcommand of its name: it has a Typer named ``app``, and the first
line of its docstring is what ``penstock --help`` shows. A module is imported when its command runs, so it
imports what is heavy inside its functions.
"""

from __future__ import annotations

__all__ = ("main",)

import os
import sys
from collections.abc import Iterator, Sequence

from penstock.errors import ClosedError, InvariantError, PenstockError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done; 1 failed while running, the same may succeed the next time; 2 somebody has to change something first; 130
    interrupted.

    An error that Penstock raises on purpose is one sentence on stderr; a bug keeps its traceback.
    """
    try:
        from penstock_tools.cli._app import run  # takes a while on a cold cache, and Ctrl-C may come in it

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`penstock consume | head`): nothing is wrong, and nobody listens.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (PenstockError, BaseExceptionGroup) as error:
        return _report(error)


def _report(error: PenstockError | BaseExceptionGroup[BaseException]) -> int:
    leaves = list(_leaves(error))
    if all(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return 130
    ours = [
        leaf for leaf in leaves if isinstance(leaf, PenstockError) and not isinstance(leaf, InvariantError)
    ]
    if len(ours) < len(leaves):
        raise error
    sys.stderr.write(f"penstock: {ours[0]}\n")
    return exit_code_of(ours[0])


def exit_code_of(error: PenstockError) -> int:
    """1 if the same may succeed the next time, as after a restart; 2 if not."""
    return 1 if error.retryable or isinstance(error, ClosedError) else 2


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group that task groups made."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
