"""Fenced words: what plugins keep in metadata, under the epoch of the node that they work for."""

from __future__ import annotations

__all__ = ("ImageWords", "NodeWords")

import anyio.lowlevel

from penstock.errors import InvalidRequestError
from penstock.metadata.commands.nodes import SetWord
from penstock.metadata.image import Image
from penstock.metadata.service import MetadataService
from penstock.spi.plugin import Services


class ImageWords:
    """The words of one plugin, for who only looks; see ``penstock.spi.plugin.FencedWords``."""

    def __init__(self, image: Image, owner: str, services: Services) -> None:
        """``owner`` is the key of the plugin's table, and its name."""
        self._image = image
        self._owner = owner
        self._node_id = services.node_id

    async def read(self, name: str) -> str:
        """See ``FencedWords.read``."""
        await anyio.lowlevel.checkpoint()
        node = self._image.nodes.get(self._node_id)
        return "" if node is None else node.words.get(f"{self._owner}/{name}", "")

    async def write(self, name: str, value: str, expected: str) -> int:
        """See ``FencedWords.write``."""
        raise InvalidRequestError(f"who only looks changes no words: name={self._owner}/{name}")


class NodeWords(ImageWords):
    """The words of a plugin whose node writes them, under its epoch."""

    def __init__(self, metadata: MetadataService, owner: str, services: Services) -> None:
        super().__init__(metadata.image, owner, services)
        self._metadata = metadata
        self._epoch = services.epoch

    async def write(self, name: str, value: str, expected: str) -> int:
        """See ``FencedWords.write``."""
        command = SetWord(self._node_id, self._epoch, f"{self._owner}/{name}", value, expected)
        epoch = await self._metadata.submit(command)
        assert isinstance(epoch, int)
        return epoch
