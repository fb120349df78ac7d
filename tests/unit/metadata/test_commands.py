"""The commands of the metadata log, as a table: each is known by its tag for ever."""

from __future__ import annotations

import msgspec
import pytest

from penstock.metadata import command as command_module
from penstock.metadata import commands as commands_module
from penstock.metadata.command import Command
from penstock.metadata.commands import COMMANDS, decode_entry, encode_entry, new_entry

#: Every tag that was ever given, with the fields that its command had first, in order. Lines are added; a tag that
#: goes from the code goes into RETIRED_TAGS and stays here. A field that comes later has a default.
GIVEN = {
    "format": "cluster_id",
    "node": "node_id incarnation wal place lost_wal lost_wals unnamed",
    "wal+": "node_id node_epoch wal location",
    "wal-": "node_id node_epoch",
    "topic+": "name topic_id partition_count configs internal",
    "partitions+": "topic_id partition_count",
    "topic-": "topic_id",
    "configs": "topic_id configs",
    "open": "node_id node_epoch stream_ids",
    "trim": "node_id node_epoch starts",
    "prepare": "node_id node_epoch count deadline_ms",
    "commit": "node_id node_epoch objects",
    "abandon": "object_ids",
    "forget": "object_ids",
    "skip": "next_object_id count",
    "pids": "node_id node_epoch count",
}


def test_a_tag_is_one_commands_for_ever() -> None:
    """Also of one that is gone: somebody's log may have it."""
    assert set(COMMANDS) | command_module.RETIRED_TAGS == set(GIVEN), "a new tag gets its line in GIVEN"
    assert not set(COMMANDS) & command_module.RETIRED_TAGS
    tags = [found.__struct_config__.tag for found in COMMANDS.values()]
    assert len(set(tags)) == len(tags) == len(set(COMMANDS.values()))


@pytest.mark.parametrize("tag", sorted(COMMANDS))
def test_fields_of_a_command_stay_and_later_ones_have_defaults(tag: str) -> None:
    given = GIVEN[tag].split()
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
