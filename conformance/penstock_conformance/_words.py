"""Fenced words in files, for plugins that need them outside of a broker."""

from __future__ import annotations

__all__ = ("FileWords",)

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio.lowlevel import checkpoint

from penstock.errors import ConflictError, FencedError, InvalidRequestError
from penstock.spi.plugin import Services


class FileWords:
    """See ``penstock.spi.plugin.FencedWords``; epoch 0 only reads. ``registers``: the epoch is the newest.

    Each change is a numbered file with all there is, created if it isn't there. There is no lock: a process that is
    stopped keeps nobody waiting.
    """

    def __init__(self, path: Path, registers: bool, owner: str, services: Services) -> None:
        self._path = path / str(services.node_id)
        self._owner = owner
        self._epoch = services.epoch
        if registers:
            self._change(lambda state: {**state, "epoch": max(state["epoch"], self._epoch)})

    def _newest(self) -> tuple[int, dict[str, Any]]:
        numbers = [int(path.name) for path in self._path.glob("[0-9]*")] if self._path.is_dir() else []
        if not numbers:
            return 0, {"epoch": 0, "words": {}}
        return max(numbers), json.loads((self._path / str(max(numbers))).read_text())

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
        self._path.mkdir(parents=True, exist_ok=True)
        draft = self._path / f"draft-{uuid.uuid4().hex}"
        try:
            while True:
                number, state = self._newest()
                draft.write_text(json.dumps(change(state)))
                try:
                    os.link(draft, self._path / str(number + 1))
                except FileExistsError:
                    continue  # somebody else was first: decide again
                return number + 1
        finally:
            draft.unlink(missing_ok=True)

    async def read(self, name: str) -> str:
        """See ``FencedWords.read``."""
        await checkpoint()
        word: str = self._newest()[1]["words"].get(f"{self._owner}/{name}", "")
        return word

    async def write(self, name: str, value: str, expected: str) -> int:
        """See ``FencedWords.write``."""
        await checkpoint()
        key = f"{self._owner}/{name}"

        def change(state: dict[str, Any]) -> dict[str, Any]:
            if not self._epoch:
                raise InvalidRequestError(f"who only looks changes no words: name={key}")
            if state["epoch"] > self._epoch:
                raise FencedError(f"a newer owner registered: epoch={self._epoch} newest={state['epoch']}")
            if state["words"].get(key, "") != expected:
                raise ConflictError(f"another word is there: name={key}")
            index = max(state.get("index", 0), self._epoch) + 1
            return {**state, "words": {**state["words"], key: value}, "index": index}

        self._change(change)
        index: int = self._newest()[1]["index"]
        return index
