"""The commands of the metadata log, as a table: each is known by its tag for ever."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.metadata.version_table import VERSIONS

from penstock.metadata import command as command_module
from penstock.metadata import commands as commands_module
from penstock.metadata.command import Command
from penstock.metadata.commands import COMMANDS, decode_entry, encode_entry, new_entry


def _given() -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for version in sorted(VERSIONS):
        for name, fields in VERSIONS[version].items():
            if not name[0].isupper():
                given.setdefault(name, [field.partition(":")[0] for field in fields.split("; ")])
    return given


#: Every tag that was ever given, with the names of the fields that its command had first, in order. A tag that goes
#: from the code goes into RETIRED_TAGS. A field that comes later has a default.
GIVEN = _given()


def test_a_tag_is_one_commands_for_ever() -> None:
    """Also of one that is gone: somebody's log may have it."""
    assert set(COMMANDS) | command_module.RETIRED_TAGS == set(GIVEN), (
        "a new tag gets its line in version_table.py"
    )
    assert not set(COMMANDS) & command_module.RETIRED_TAGS
    tags = [found.__struct_config__.tag for found in COMMANDS.values()]
    assert len(set(tags)) == len(tags) == len(set(COMMANDS.values()))


@pytest.mark.parametrize("tag", sorted(COMMANDS))
def test_fields_of_a_command_stay_and_later_ones_have_defaults(tag: str) -> None:
    given = GIVEN[tag]
    fields = msgspec.structs.fields(COMMANDS[tag])
    assert [field.name for field in fields][: len(given)] == given
    for field in fields[len(given) :]:
        assert not field.required, f"{tag}: {field.name}"


@pytest.mark.parametrize("tag", sorted(COMMANDS))
def test_a_command_has_its_own_fold(tag: str) -> None:
    assert COMMANDS[tag].fold is not Command.fold
    assert COMMANDS[tag].__struct_config__.frozen


def test_a_tag_that_was_given_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Again(Command, tag="pids", frozen=True):
        pass

    found = list(COMMANDS.values())
    monkeypatch.setattr(commands_module, "_found", lambda: iter([*found, Again]))
    with pytest.raises(ValueError, match="tag=pids"):
        commands_module._by_tag()
    monkeypatch.setattr(commands_module, "_found", lambda: iter(found))
    monkeypatch.setattr(commands_module, "RETIRED_TAGS", frozenset({"trim"}))
    with pytest.raises(ValueError, match="tag=trim"):
        commands_module._by_tag()


def test_a_command_in_a_module_of_its_own_is_read_and_written() -> None:
    """The registry finds it: nothing else names the classes."""
    command = COMMANDS["forget"](object_ids=[7])
    entry = new_entry([command], "w", 1)
    assert decode_entry(1, encode_entry(entry)).commands == [command]
