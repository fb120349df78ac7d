"""Answers of DescribeConfigs, encoded resource by resource: of thousands of topics they are a hundred megabytes.

Most topics say the same of most of their configs. What they have in common is described and encoded once, and the
answer has those bytes in many places.
"""

from __future__ import annotations

__all__ = ("ConfigsAnswer", "SharedEntries")

from collections.abc import Callable
from itertools import groupby
from typing import Final

from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.describe_configs import (
    DescribeConfigsResourceResult,
    DescribeConfigsResponse,
    DescribeConfigsResult,
)
from penstock.wire.registry import encode_body, is_flexible
from penstock.wire.splice import ArraySplice, EncodedBody

#: What is shorter is copied: a buffer of its own takes as much.
_COPIED_BYTES_MAX: Final = 512
#: Encoded runs of configs that are kept, all of which a request may choose.
_RUNS_MAX: Final = 1_000


class SharedEntries:
    """What one request is told of the configs that a topic doesn't set, by name: one object for all topics."""

    def __init__(self, describe: Callable[[str], DescribeConfigsResourceResult]) -> None:
        self._describe = describe
        self._entries: dict[str, DescribeConfigsResourceResult] = {}

    def __getitem__(self, name: str) -> DescribeConfigsResourceResult:
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = self._describe(name)
        return entry

    def __contains__(self, entry: DescribeConfigsResourceResult) -> bool:
        return self._entries.get(entry.name) is entry


class ConfigsAnswer:
    """One answer in one version: a body whose results are added one by one, of which none is kept."""

    def __init__(self, version: int, shared: SharedEntries) -> None:
        self._version = version
        self._shared = shared
        self._count = 0
        self._buffers: list[bytes | bytearray] = []
        #: The end of the answer so far, until something long follows.
        self._last = bytearray()
        #: By the names of the configs in them.
        self._runs: dict[tuple[str, ...], bytes] = {}
        flexible = is_flexible(ApiKey.DESCRIBE_CONFIGS, version)
        none = DescribeConfigsResult(configs=[])
        one = DescribeConfigsResult(configs=[DescribeConfigsResourceResult(synonyms=[])])
        self._results = ArraySplice(self._body(), self._body(none), flexible=flexible)
        self._configs = ArraySplice(self._result(none), self._result(one), flexible=flexible)

    def add(self, result: DescribeConfigsResult) -> None:
        """Append a result."""
        self._count += 1
        configs, result.configs = result.configs, []
        head, tail = self._configs.around(self._result(result), len(configs))
        self._last += head
        for is_shared, run in groupby(configs, self._shared.__contains__):
            entries = list(run)
            encoded = self._shared_run(entries) if is_shared else self._entries(entries)
            if len(encoded) <= _COPIED_BYTES_MAX:
                self._last += encoded
            else:
                self._buffers += (self._last, encoded)
                self._last = bytearray()
        self._last += tail

    def body(self) -> EncodedBody:
        """The answer; nothing is added any more."""
        head, tail = self._results.around(self._body(), self._count)
        return EncodedBody([head, *self._buffers, self._last, tail], starts_with_throttle=True)

    def _shared_run(self, entries: list[DescribeConfigsResourceResult]) -> bytes:
        names = tuple(entry.name for entry in entries)
        encoded = self._runs.get(names)
        if encoded is None:
            encoded = self._entries(entries)
            if len(self._runs) < _RUNS_MAX:
                self._runs[names] = encoded
        return encoded

    def _entries(self, entries: list[DescribeConfigsResourceResult]) -> bytes:
        encoded = self._result(DescribeConfigsResult(configs=entries))
        return self._configs.elements(encoded, len(entries))

    def _result(self, result: DescribeConfigsResult) -> bytes:
        return self._results.elements(self._body(result), 1)

    def _body(self, *results: DescribeConfigsResult) -> bytes:
        message = DescribeConfigsResponse(results=list(results))
        return encode_body(ApiKey.DESCRIBE_CONFIGS, self._version, message)
