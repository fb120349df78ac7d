"""docs/kafka-compatibility.md names what the code has."""

from __future__ import annotations

from pathlib import Path

from penstock.api.dispatch import apis
from penstock.api.reference import BEGIN, END, apis_markdown
from penstock.log.topic_config import TOPIC_CONFIGS
from penstock.wire.api_keys import ApiKey

_TEXT = (Path(__file__).parents[3] / "docs" / "kafka-compatibility.md").read_text()


def test_every_topic_config_is_documented() -> None:
    assert [name for name in TOPIC_CONFIGS if f"`{name}`" not in _TEXT] == []


def test_the_table_of_apis_is_what_their_declarations_say() -> None:
    reminder = "run python -m penstock.api.reference docs/kafka-compatibility.md"
    assert f"{BEGIN}\n{apis_markdown()}\n{END}" in _TEXT, reminder


def test_every_api_is_documented() -> None:
    names = {"".join(part.capitalize() for part in ApiKey(key).name.split("_")) for key in apis()}
    assert [name for name in sorted(names) if name not in _TEXT] == []
