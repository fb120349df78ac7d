"""The client of clauses about whole brokers, in a process of its own.

A C library that aborts, or hangs, takes a process with it: not the one that has to give a verdict.
"""

from __future__ import annotations

__all__ = ("Client", "answer")

import os
import pickle
import signal
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import anyio
from anyio.to_thread import run_sync
from confluent_kafka import KafkaError, KafkaException

from penstock_conformance._child import Child, Surroundings
from penstock_conformance._clause import Undecided
from penstock_conformance._steps import Steps
from penstock_conformance._strategy_kafka import Records, Writer
from penstock_conformance._strategy_session import Session
from penstock_conformance._target import Target

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", Records, Writer, Session)

_MADE: dict[str, Callable[..., Any]] = {made.__name__: made for made in (Records, Writer, Session)}


class Client(Generic[C]):
    """An object of the class ``made`` in a child process, and what it answers.

    The process lives as long as the ``async with``, and ends by SIGKILL, whatever it does.
    """

    def __init__(self, env: Surroundings, steps: Steps, made: type[C], *arguments: object) -> None:
        self._steps = steps
        self._child = Child(env, answer, made=made.__name__, arguments=arguments)

    async def __aenter__(self) -> Client[C]:
        await self._child.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._child.__aexit__()

    async def ask(self, method: Callable[Concatenate[C, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """What ``method`` of the object returns, in whatever time. One call at a time.

        Breaks the clause as the method does. Raises Undecided if the client itself fails or dies.
        """
        self._steps.note(_sentence(method.__name__, (*arguments, *named.values())))
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, which is seen below
            await self._child.tell([method.__name__, arguments, named])
        told = await self._child.next()
        if told is None:
            raise Undecided(f"the suite's own client died: {await self._child.ending()}")
        outcome, value = told
        if outcome == "failed":
            raise Undecided(f"the suite's own client failed: {value}")
        assert outcome == "done", value
        done: T = pickle.loads(bytes.fromhex(value))  # from our own process
        return done


def _sentence(name: str, arguments: Sequence[object]) -> str:
    """A call, for who reads what was done: lists are long."""
    shown = (f"{len(each)} records" if isinstance(each, list) else str(each) for each in arguments)
    return f"{name.replace('_', ' ')} {', '.join(shown)}".strip()


async def answer(
    _target: Target,
    _data_dir: Path,
    tell: Callable[[object], None],
    hear: Callable[[], Awaitable[Any]],
    *,
    made: str,
    arguments: Sequence[object],
) -> None:
    """The life of a client process: it does as it is told, until its parent is gone."""
    client = _MADE[made](*arguments)
    async with anyio.create_task_group() as tasks:
        while (order := await hear()) is not None:
            tasks.start_soon(_call, client, order, tell)
        os.kill(os.getpid(), signal.SIGKILL)  # calls of the library can't be interrupted


async def _call(client: object, order: Sequence[Any], tell: Callable[[object], None]) -> None:
    name, arguments, named = order
    try:
        value = await run_sync(partial(getattr(client, name), *arguments, **named))
    except AssertionError as error:
        tell(["broken", str(error)])
    except KafkaException as error:
        told = error.args[0]
        answered = told.code() >= 0 or told.fatal() or told.code() == KafkaError._FATAL
        tell(["broken" if answered else "failed", str(told)])
    except Exception:  # noqa: BLE001 # told to the parent
        tell(["failed", traceback.format_exc()[-4000:]])
    else:
        tell(["done", pickle.dumps(value).hex()])
