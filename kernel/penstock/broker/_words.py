"""Fenced words: what plugins keep in metadata, under the epoch of the node that they work for."""

from __future__ import annotations

__all__ = ("NodeWords",)

import anyio.lowlevel

from penstock.metadata.commands.nodes import SetWord
from penstock.metadata.service import MetadataService
from penstock.spi.plugin import Services


class NodeWords:
    """The words of one plugin; see ``penstock.spi.plugin.FencedWords``."""

    def __init__(self, metadata: MetadataService, owner: str, services: Services) -> None:
        """``owner`` is the key of the plugin's table, and its name."""
        self._metadata = metadata
        self._owner = owner
        self._node_id = services.node_id
        self._epoch = services.epoch

    async def read(self, name: str) -> str:
        """See ``FencedWords.read``."""
        await anyio.lowlevel.checkpoint()
        node = self._metadata.image.nodes.get(self._node_id)
        return "" if node is None else node.words.get(f"{self._owner}/{name}", "")

    async def write(self, name: str, value: str, expected: str) -> int:
        """See ``FencedWords.write``."""
        command = SetWord(self._node_id, self._epoch, f"{self._owner}/{name}", value, expected)
        epoch = await self._metadata.submit(command)
        assert isinstance(epoch, int)
        return epoch
