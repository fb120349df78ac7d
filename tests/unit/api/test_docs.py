"""docs/kafka-compatibility.md names what the code has."""

from __future__ import annotations

from pathlib import Path

from penstock.api.dispatch import apis
from penstock.log.topic_config import TOPIC_CONFIGS
from penstock.wire.api_keys import ApiKey

_TEXT = (Path(__file__).parents[3] / "docs" / "kafka-compatibility.md").read_text()


def test_every_topic_config_is_documented() -> None:
    assert [name for name in TOPIC_CONFIGS if f"`{name}`" not in _TEXT] == []


def test_every_api_is_documented() -> None:
    names = {"".join(part.capitalize() for part in ApiKey(key).name.split("_")) for key in apis()}
    assert [name for name in sorted(names) if name not in _TEXT] == []
