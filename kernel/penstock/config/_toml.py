"""The line of each key of a TOML file. ``tomllib`` reads the values."""

from __future__ import annotations

import re
import tomllib

from penstock.errors import ConfigError

_OPENERS = {"[": "]", "{": "}"}
_AT_LINE = re.compile(r"\s*\(at line (\d+), column \d+\)$")
_LIST = re.compile(r"[ \t]*\[")
_AT_END = re.compile(r"\s*\(at end of document\)$")


def parse_toml(text: str, path: str) -> tuple[dict[str, object], dict[tuple[str, ...], int]]:
    """The document in ``text`` and the line (from 1) of each table and key in it.

    Tables in a list are counted: ``("wal", "replicas", "0", "url")``. A key inside an inline table has no line of its
    own: ask for its parent's.
    Raises ConfigError with file and line when the text isn't TOML 1.0.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at_line = _AT_LINE.search(message)
        line = int(at_line[1]) if at_line else text.count("\n", 0, len(text.rstrip())) + 1
        reason = _AT_END.sub(", at the end of the file", _AT_LINE.sub("", message))
        raise ConfigError(f"{path}:{line}: not valid TOML: {reason[0].lower()}{reason[1:]}") from error
    return document, _Locator(text.replace("\r\n", "\n")).locate()


def parse_value(text: str) -> object:
    """``text`` as a TOML value (``true``, ``3``, ``[1, 2]``, ``{ a = 1 }``), or itself if it is none."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if len(document) == 1 else text


class _Locator:
    """One pass over a document that is known to be valid."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[tuple[str, ...], int] = {}
        #: Index of the newest table in each list that is written as ``[[key]]``.
        self._newest: dict[tuple[str, ...], int] = {}

    def locate(self) -> dict[tuple[str, ...], int]:
        table: tuple[str, ...] = ()
        while self._skip_blank():
            start = self._at
            line = self._text.count("\n", 0, start) + 1
            if self._text[start] == "[":
                self._skip_value()
                header = self._text[start : self._at].strip()
                names = _key_path(header.strip("[] \t") + " = 0")
                table = self._table(names, begins=header.startswith("[["))
                self._lines.setdefault(table, line)
                continue
            while self._text[self._at] != "=":
                self._skip_token()
            path = table + _key_path(self._text[start : self._at] + "= 0")
            self._at += 1
            self._skip_value(path)
            for depth in range(len(table) + 1, len(path) + 1):
                self._lines.setdefault(path[:depth], line)
        return self._lines

    def _table(self, names: tuple[str, ...], *, begins: bool) -> tuple[str, ...]:
        """The path of a table's header; ``begins``: it begins a further table of a list."""
        path: tuple[str, ...] = ()
        for depth, name in enumerate(names, 1):
            path = (*path, name)
            if begins and depth == len(names):
                self._newest[path] = self._newest.get(path, -1) + 1
                self._lines.setdefault(path, self._text.count("\n", 0, self._at) + 1)
            if path in self._newest:
                path = (*path, str(self._newest[path]))
        return path

    def _skip_blank(self) -> bool:
        text, size = self._text, len(self._text)
        while self._at < size:
            if text[self._at] == "#":
                self._skip_comment()
            elif text[self._at] in " \t\r\n":
                self._at += 1
            else:
                return True
        return False

    def _skip_comment(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _skip_token(self) -> None:
        """One string, or one character."""
        text = self._text
        quote = text[self._at]
        if quote not in "\"'":
            self._at += 1
            return
        delimiter = quote * 3 if text.startswith(quote * 3, self._at) else quote
        self._at += len(delimiter)
        while not text.startswith(delimiter, self._at):
            self._at += 2 if quote == '"' and text[self._at] == "\\" else 1
        self._at += len(delimiter)
        while len(delimiter) == 3 and text.startswith(quote, self._at):  # """"x""" may end in five quotes
            self._at += 1

    def _skip_value(self, path: tuple[str, ...] = ()) -> None:
        """To the end of the line that the value, with its open brackets, ends on; notes the tables of a list."""
        depth = items = 0
        is_list = _LIST.match(self._text, self._at) is not None
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "\n" and depth == 0:
                return
            if char == "#":
                if depth == 0:
                    return
                self._skip_comment()
                continue
            if is_list and depth == 1:
                items += char == ","
                if char == "{":
                    self._lines[(*path, str(items))] = self._text.count("\n", 0, self._at) + 1
            if char in _OPENERS:
                depth += 1
            elif char in _OPENERS.values():
                depth -= 1
            self._skip_token()


def _key_path(statement: str) -> tuple[str, ...]:
    """The dotted, perhaps quoted, key of ``KEY = 0`` as a path."""
    path = []
    node: object = tomllib.loads(statement)
    while isinstance(node, dict):
        key, node = next(iter(node.items()))
        path.append(key)
    return tuple(path)
