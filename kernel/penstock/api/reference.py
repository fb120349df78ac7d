"""The table of Kafka APIs for the documents, from their declarations.

``python -m penstock.api.reference docs/kafka-compatibility.md`` writes it there, between two marks.
"""

from __future__ import annotations

__all__ = ("BEGIN", "END", "apis_markdown", "main")

import sys
from pathlib import Path
from typing import Final

from penstock.api.dispatch import apis

BEGIN: Final = "<!-- apis: begin -->\n"
END: Final = "<!-- apis: end -->\n"


def apis_markdown() -> str:
    """One row for each API, by key."""
    lines = ["| key | API | versions | needs | notes |", "|--|--|--|--|--|"]
    for key, api in apis().items():
        needs = ", ".join(map(str, api.needs)) or "nothing"
        lines.append(f"| {key} | {api.name} | {api.versions} | {needs} | {api.note} |")
    return "\n".join(lines) + "\n"


def main(path: str) -> None:
    """Replace the table in the document at ``path``."""
    document = Path(path)
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(before + BEGIN + "\n" + apis_markdown() + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
