"""Configuration: layers, origins, refusals in one sentence, explanation, template."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from penstock.config import (
    DEFAULT_PLUGINS,
    SECTIONS,
    Config,
    Origin,
    explain,
    init_template,
    key_rows,
    known_keys,
    load_config,
    reference_markdown,
    split_address,
    validate,
)
from penstock.config._clouds import CLOUDS
from penstock.config._toml import parse_toml
from penstock.errors import ConfigError
from penstock.spi import Duration, PluginTable, Settings, Size

REPOSITORY = Path(__file__).parents[2]


class OptionsSettings(Settings):
    """A plugin's settings, as a stranger would write them."""

    url: str = Field(default="file://objects", description="Where.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments.")
    access_token: str | None = Field(default=None, description="Secret.")
    hidden: str = Field(default="x", description="Marked.", json_schema_extra={"secret": True})
    capacity: Size = Field(default=2**20, ge=4096, description="How much.")
    linger: Duration = Field(default=250, description="How long.")
    retries: int | None = Field(default=None, description="How often.")
    patience: Duration | None = Field(default=None, description="How long at most.")
    ratio: float = Field(default=0.5, description="How many.")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.linger == 7 and self.hidden != "x":
            raise ValueError("linger=7ms needs hidden=x")
        return self


class RequiredSettings(Settings):
    """Settings that have to be given."""

    bucket: str = Field(description="Where.")


class Models:
    """Stands for the plugin registry: every plugin has the same settings."""

    def settings_model(self, kind: str, name: str) -> type[Settings]:
        return OptionsSettings

    def validate_plugin_settings(self, config: Config, kind: str) -> Settings:
        raw = {key: value for key, value in config.plugin_settings(kind).items() if key != "limit"}
        return validate(OptionsSettings, raw, kind, config.origins)

    def validate_nested_settings(
        self, config: Config, kind: str, table: PluginTable, path: tuple[str, ...]
    ) -> Mapping[tuple[str, ...], tuple[str, Settings]]:
        raise AssertionError("these settings have no tables of other plugins")


def refused(
    text: str | None = None,
    *,
    tmp_path: Path | None = None,
    env: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """The one sentence that a wrong configuration is refused with."""
    path = None
    if text is not None:
        assert tmp_path is not None
        path = tmp_path / "penstock.toml"
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, env=env, sets=sets, overrides=overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence.replace(str(tmp_path) + "/", "")


# Layers


def test_the_first_rebalance_of_a_group_waits_only_when_asked_to() -> None:
    """Kafka's own default is 3 s; the configuration that it ships says 0."""
    assert load_config().tree.groups.initial_rebalance_delay == 0


def test_defaults_need_nothing() -> None:
    config = load_config()
    assert config.tree.listener.bind == "127.0.0.1:9092"
    assert config.tree.topics.retention == 7 * 24 * 3600 * 1000
    assert config.tree.memory.limit == 512 * 2**20
    assert config.plugin_name("wal") == "wal_block"
    assert config.origin("listener.bind") == Origin("default", "default")


def test_later_layer_wins(tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(
        '[broker]\nnode_id = 1\n\n[topics]\npartitions = 2\n[listener]\nbind = "a:1"\n[groups]\nmembers_max=5\n'
    )
    config = load_config(
        path,
        env={
            "PENSTOCK__TOPICS__PARTITIONS": "3",
            "PENSTOCK__LISTENER__BIND": "b:2",
            "PENSTOCK__GROUPS__MEMBERS_MAX": "6",
        },
        sets=["listener.bind=c:3", "groups.members_max=7"],
        overrides={"groups.members_max": 8},
    )
    tree = config.tree
    assert (tree.broker.node_id, tree.topics.partitions, tree.listener.bind, tree.groups.members_max) == (
        1,
        3,
        "c:3",
        8,
    )
    assert config.origin("broker.node_id").place == f"{path}:2"
    assert config.origin("topics.partitions").place == "PENSTOCK__TOPICS__PARTITIONS"
    assert config.origin("listener.bind").place == "--set listener.bind"
    assert config.origin("groups.members_max").place == "the program"


@pytest.mark.parametrize("key", ["broker.data_dir", "broker"])
def test_a_program_may_give_paths_as_paths(key: str, tmp_path: Path) -> None:
    value: object = tmp_path if "." in key else {"data_dir": tmp_path}
    assert load_config(overrides={key: value}).tree.broker.data_dir == str(tmp_path)


@pytest.mark.parametrize("overrides", [["listener.bind"], {1: 2}])
def test_a_program_whose_overrides_are_no_mapping_of_keys_is_told(overrides: Any) -> None:
    with pytest.raises(ConfigError, match=r"^the program: overrides must be a mapping from keys like"):
        load_config(overrides=overrides)


def test_text_of_the_environment_takes_the_type_of_its_key() -> None:
    config = load_config(
        env={
            "PENSTOCK__TOPICS__AUTO_CREATE": "false",
            "PENSTOCK__BROKER__RACK": "42",
            "PENSTOCK__MEMORY__LIMIT": "1GiB",
            "PENSTOCK__TOPICS__RETENTION": "-1",
            "PENSTOCK__TOPICS__RETENTION_BYTES": "-1",
            "PENSTOCK__PLUGINS__LOAD": "one, two",
            "PENSTOCK_LOAD_PLUGINS": "not a key",
            "HOME": "/root",
        }
    )
    tree = config.tree
    assert tree.topics.auto_create is False
    assert tree.broker.rack == "42"
    assert tree.memory.limit == 2**30
    assert (tree.topics.retention, tree.topics.retention_bytes) == (-1, -1)
    assert tree.plugins.load == ("one", "two")


def test_overrides_take_sections_and_dotted_keys() -> None:
    config = load_config(
        overrides={"listener": {"bind": "127.0.0.1:0"}, "topics.retention": 1000, "wal.plugin": "other"}
    )
    assert (config.tree.listener.bind, config.tree.topics.retention) == ("127.0.0.1:0", 1000)
    assert config.plugin_name("wal") == "other"


def test_plugin_settings_are_kept_as_written_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(
        '[object_store]\nplugin = "mine"\nurl = "s3://b"\n[object_store.options]\nregion = "eu"\n'
    )
    config = load_config(path, env={"PENSTOCK__OBJECT_STORE__OPTIONS__ENDPOINT_URL": "http://x"})
    assert config.plugin_name("object_store") == "mine"
    assert config.plugin_settings("object_store") == {
        "url": "s3://b",
        "options": {"region": "eu", "endpoint_url": "http://x"},
    }
    assert config.origin("object_store.options.region").place == f"{path}:5"
    assert (
        config.origin("object_store.options").place
        == f"PENSTOCK__OBJECT_STORE__OPTIONS__ENDPOINT_URL, {path}:5"
    )


def test_text_below_a_plugin_key_is_read_as_toml() -> None:
    sets = [
        "wal.options.anon=true",
        "wal.options.retries=3",
        "wal.options.region=eu-1",
        'wal.options.account="12"',
    ]
    config = load_config(sets=sets)
    expected: dict[str, Any] = {"anon": True, "retries": 3, "region": "eu-1", "account": "12"}
    assert config.plugin_settings("wal") == {"options": expected}
    config = load_config(env={"PENSTOCK__WAL__OPTIONS": '{ anon = true, endpoint = "http://x" }'})
    settings = Models().validate_plugin_settings(config, "wal")
    assert settings.model_dump()["options"] == {"anon": True, "endpoint": "http://x"}
    with pytest.raises(ConfigError, match=r"^--set wal.options: wal.options must be a table: value='x'"):
        Models().validate_plugin_settings(load_config(sets=["wal.options=x"]), "wal")


def test_a_text_of_the_wrong_form_is_told_the_form_and_an_example() -> None:
    class Patterned(Settings):
        prefix: str = Field(default="wal/", pattern=r"^[!-~]+/$")

    with pytest.raises(
        ConfigError, match=r"must be a string, of the form \[!-~\]\+/, like wal/: value='wal'"
    ):
        validate(Patterned, {"prefix": "wal"}, "wal", {})


def test_allocator_gets_what_the_reserve_leaves() -> None:
    config = load_config(sets=["memory.limit=512MiB", "memory.reserve=112MiB"])
    assert config.plugin_settings("allocator") == {"limit": 400 * 2**20}
    assert config.origin("allocator.limit").layer == "derived"
    assert load_config(sets=["allocator.limit=64MiB"]).plugin_settings("allocator") == {"limit": "64MiB"}


def test_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().tree.broker.node_id = 2


# Refusals: one sentence with origin, key, expectation, value, nearest key


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '[listener]\n# where\nbindd = "x"\n',
            "penstock.toml:3: listener.bindd is no configuration key, the nearest key is listener.bind: value='x'",
        ),
        (
            "[topic]\nretention = 1\n",
            "penstock.toml:2: topic.retention is no configuration key, the nearest key is topics.retention: value=1",
        ),
        (
            "[topics]\npartitions = true\n",
            "penstock.toml:2: topics.partitions must be an integer, at least 1: value=True",
        ),
        (
            '[topics]\npartitions = "3"\n',
            "penstock.toml:2: topics.partitions must be an integer, at least 1: value='3'",
        ),
        (
            "[topics]\npartitions = 0\n",
            "penstock.toml:2: topics.partitions must be an integer, at least 1: value=0",
        ),
        ("[topics]\nauto_create = 1\n", "penstock.toml:2: topics.auto_create must be true or false: value=1"),
        ("[listener]\n\nbind = 9092\n", "penstock.toml:3: listener.bind must be a string: value=9092"),
        (
            "[topics]\nretention = 60\n",
            "penstock.toml:2: topics.retention must be a duration like 250ms, 30s or 7d, at least -1: value=60",
        ),
        (
            '[memory]\nlimit = "lots"\n',
            "penstock.toml:2: memory.limit must be a size like 512MiB, at least 64MiB: value='lots'",
        ),
        (
            '[topics]\ntimestamp_type = "Created"\n',
            "penstock.toml:2: topics.timestamp_type must be one of CreateTime, LogAppendTime: value='Created'",
        ),
        ("[plugins]\nload = [1]\n", "penstock.toml:2: plugins.load must be a list of strings: value=1"),
        ("[wal]\nplugin = 3\n", "penstock.toml:2: wal.plugin must be the name of a plugin: value=3"),
        ("memory = 5\n", "penstock.toml:1: memory is a section, give it keys: value=5"),
        ("[[wal]]\n", "penstock.toml:1: wal is a section, give it keys: value=[{}]"),
    ],
)
def test_wrong_file_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert refused(text, tmp_path=tmp_path) == sentence


def test_wrong_variable_is_named() -> None:
    assert refused(env={"PENSTOCK__LISTENER__PORT": "1"}).startswith(
        "PENSTOCK__LISTENER__PORT: listener.port is no configuration key"
    )
    assert refused(env={"PENSTOCK__BROKER__NODE_ID": "one"}) == (
        "PENSTOCK__BROKER__NODE_ID: broker.node_id must be an integer, at least 0 and at most 2147483647: value='one'"
    )
    assert (
        refused(env={"PENSTOCK__BROKER": "x"})
        == "PENSTOCK__BROKER: broker is a section, give it keys: value='x'"
    )
    assert "write it like PENSTOCK__LISTENER__BIND" in refused(env={"PENSTOCK____X": "x"})


def test_wrong_set_is_named() -> None:
    assert refused(sets=["memory.limt=1GiB"]) == (
        "--set memory.limt: memory.limt is no configuration key, the nearest key is memory.limit: value='1GiB'"
    )
    assert "--set takes section.key=value" in refused(sets=["memory.limit"])
    # The section that all its keys share makes none of them the nearest.
    assert refused(sets=["memory.size=1GiB"]).startswith(
        "--set memory.size: memory.size is no configuration key, the keys are memory.limit, memory.reserve: "
    )


def test_first_wrong_key_of_the_file_is_named(tmp_path: Path) -> None:
    text = "[topics]\npartitions_max = 0\nauto_create = 7\n" + "\n" * 9 + "message_bytes_max = 0\n"
    assert refused(text, tmp_path=tmp_path).startswith("penstock.toml:3: topics.auto_create")


def test_secret_is_not_shown_in_a_refusal() -> None:
    sentence = refused(sets=["listener.bind_password=hunter2"])
    assert "hunter2" not in sentence
    assert "***" in sentence


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (
            ["memory.limit=100MiB"],
            "--set memory.limit: memory.reserve must leave at least 16MiB of memory.limit",
        ),
        (
            ["groups.session_timeout_min=1h"],
            "--set groups.session_timeout_min: groups.session_timeout_min must be at most",
        ),
        (
            ["topics.partitions=20000"],
            "--set topics.partitions: topics.partitions must be at most topics.partitions_max",
        ),
        (
            ["listener.request_bytes_max=1MB"],
            "--set listener.request_bytes_max: topics.message_bytes_max must be at most",
        ),
        (
            ["stream.upload_bytes=1GiB"],
            "--set stream.upload_bytes: stream.upload_bytes must fit into the allocator",
        ),
        (
            ["allocator.limit=1GiB"],
            "--set allocator.limit: allocator.limit must be at most memory.limit, 512MiB",
        ),
        (["listener.bind=9092"], "--set listener.bind: listener.bind must be host:port"),
        (["listener.advertised=a:99999"], "--set listener.advertised: listener.advertised must be host:port"),
    ],
)
def test_impossible_combination_is_refused(sets: list[str], sentence: str) -> None:
    assert refused(sets=sets).startswith(sentence)


def test_missing_file_and_bad_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="configuration file not found: path=/nowhere"):
        load_config("/nowhere/penstock.toml")
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError, match="isn't UTF-8 text"):
        load_config(path)
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[listener]\nbind == 1\n", "penstock.toml:2: not valid TOML: invalid value"),
        ("[a]\n[a]\n", "penstock.toml:2: not valid TOML: cannot declare ('a',) twice"),
        ("x = 1\n\ny = [1,\n", "penstock.toml:3: not valid TOML: "),
    ],
)
def test_toml_error_has_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    assert refused(text, tmp_path=tmp_path).startswith(sentence)


def test_plugin_key_is_refused_with_the_nearest() -> None:
    config = load_config(sets=["wal.capacty=1GiB"])
    with pytest.raises(
        ConfigError,
        match=r"^--set wal.capacty: wal.capacty is no configuration key, the nearest key is wal.capacity",
    ):
        Models().validate_plugin_settings(config, "wal")


_KEYS = st.sampled_from([*known_keys(), "broker", "wal.options.x", "wal", "a.b.c", "memory.limit.x", ""])
_TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["1", "-1", "true", "512MiB", "9" * 400, "1e400d", "[1]", "{a=1}", "nan", "127.0.0.1:1", "[::1]:2"]
    ),
)


@given(st.lists(st.tuples(_KEYS, _TEXTS), max_size=4), st.lists(st.tuples(_KEYS, _TEXTS), max_size=4))
def test_any_text_is_taken_or_refused_in_one_sentence(
    sets: list[tuple[str, str]], variables: list[tuple[str, str]]
) -> None:
    env = {f"PENSTOCK__{key.upper().replace('.', '__')}": value for key, value in variables}
    refusals: list[ConfigError] = []
    try:
        load_config(sets=[f"{key}={value}" for key, value in sets], env=env)
    except ConfigError as error:
        refusals.append(error)
    assert all(len(str(error).splitlines()) == 1 for error in refusals)


_TOML_VALUES = st.recursive(
    st.sampled_from(["1", "-1", "1.5", "inf", "true", '"x"', '"512MiB"', '"7d"', "1979-05-27", '"""a\n"""']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(inner, max_size=3).map(
            lambda items: "{ " + ", ".join(f"k{index} = {item}" for index, item in enumerate(items)) + " }"
        ),
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(_KEYS.filter(bool), _TOML_VALUES, max_size=4),
    st.sampled_from(["", "[wal]\n", "x", "[[topics]]\n"]),
)
def test_any_document_is_taken_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str], head: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(head + "".join(f"{key} = {value}\n" for key, value in values.items()))
    refusals: list[ConfigError] = []
    try:
        load_config(path)
    except ConfigError as error:
        refusals.append(error)
    assert all(len(str(error).splitlines()) == 1 for error in refusals)


def test_keys_that_do_not_fit_together_are_refused_without_their_values() -> None:
    config = load_config(sets=["wal.linger=7ms", "wal.hidden=hunter2"])
    with pytest.raises(ConfigError) as caught:
        Models().validate_plugin_settings(config, "wal")
    assert str(caught.value) == (
        "--set wal.hidden, --set wal.linger: the keys of wal don't fit together, linger=7ms needs hidden=x"
    )


def test_value_of_a_key_that_is_marked_secret_is_not_shown() -> None:
    config = load_config(overrides={"wal.hidden": 1234567})
    with pytest.raises(ConfigError, match=r"the program: wal.hidden must be a string: value=\*\*\*$"):
        Models().validate_plugin_settings(config, "wal")


def test_missing_key_is_named_with_the_ways_to_give_it() -> None:
    with pytest.raises(ConfigError, match=r"^wal.bucket is required .*--set.*PENSTOCK__WAL__BUCKET$"):
        validate(RequiredSettings, {}, "wal", {})
    assert key_rows(RequiredSettings) == [("bucket", "a string", "required", "Where.")]


# Lines

DOCUMENT = '''\
top = 1 # comment with [brackets] and "quotes
"quoted.key" = 'x # y'
[a] # [not.a.table]
one = """
two = 2
[b]
"""
three = [ # comment ]
  1, "]", # more
  { x = 2 },
]
four.five = 'it''s'
[a."b c".d]
\tsix = { seven = 7, eight = [8] }
[[list]]
nine = \'\'\'x\'\'\'\'\'
ten = "esc \\" aped"
eleven = 1979-05-27T07:32:00Z
'''.replace("'it''s'", "'its'")


def test_each_key_is_found_on_its_line() -> None:
    _, lines = parse_toml(DOCUMENT, "x.toml")
    assert lines == {
        ("top",): 1,
        ("quoted.key",): 2,
        ("a",): 3,
        ("a", "one"): 4,
        ("a", "three"): 8,
        ("a", "three", "2"): 10,
        ("a", "four"): 12,
        ("a", "four", "five"): 12,
        ("a", "b c", "d"): 13,
        ("a", "b c", "d", "six"): 14,
        ("list",): 15,
        ("list", "0"): 15,
        ("list", "0", "nine"): 16,
        ("list", "0", "ten"): 17,
        ("list", "0", "eleven"): 18,
    }


def test_windows_line_ends_count_as_one() -> None:
    _, lines = parse_toml('[a]\r\nb = """\r\nx"""\r\nc = 1\r\n', "x.toml")
    assert lines[("a", "c")] == 4


_SCALARS = st.one_of(
    st.integers(-5, 5).map(str),
    st.booleans().map(lambda flag: str(flag).lower()),
    st.text(st.sampled_from("ab#[]{}='\" \\"), max_size=6).map(
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ),
    st.text(st.sampled_from('ab#[]{}=" \\\n'), max_size=6).map(lambda text: f"'''{text}'''"),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "# c\n", "\n"]), _SCALARS, st.sampled_from(["", " # [x] = '"])),
        max_size=6,
    )
)
def test_lines_of_any_values_are_found(items: list[tuple[str, str, str]]) -> None:
    text, expected = "", {}
    for index, (before, value, after) in enumerate(items):
        text += before
        expected[(f"k{index}",)] = text.count("\n") + 1
        text += f"k{index} = [{value}]{after}\n"
    _, lines = parse_toml(text, "x.toml")
    assert lines == expected


# Explanation and template


def test_explain_shows_value_origin_and_meaning() -> None:
    config = load_config(sets=["topics.retention=12h"], env={"PENSTOCK__LISTENER__ADVERTISED": "h:1"})
    rows = {row.key: row for row in explain(config, Models())}
    assert set(rows) >= set(known_keys())
    assert (rows["topics.retention"].value, rows["topics.retention"].origin) == (
        "12h",
        "--set topics.retention",
    )
    assert rows["listener.advertised"].origin == "PENSTOCK__LISTENER__ADVERTISED"
    assert rows["memory.limit"].value == "512MiB"
    assert rows["broker.rack"].value == "unset"
    assert all(row.description for row in rows.values())


def test_explain_of_a_key_or_a_section() -> None:
    config = load_config()
    assert [row.key for row in explain(config, Models(), "memory.limit")] == ["memory.limit"]
    assert [row.key for row in explain(config, Models(), "memory")] == ["memory.limit", "memory.reserve"]
    with pytest.raises(ConfigError, match=r"nearest is memory.limit: key=memory.limitt"):
        explain(config, Models(), "memory.limitt")


def test_explain_masks_secrets() -> None:
    config = load_config(
        overrides={
            "object_store": {
                "url": "s3://user:pass@bucket/x",
                "options": {"secret": "s1", "nested": {"api_key": "s2"}, "region": "eu"},
                "access_token": "s3",
                "hidden": "s4",
            }
        }
    )
    text = str(explain(config, Models(), "object_store"))
    assert not re.search(r"s1|s2|'s3'|s4|pass|user", text)
    assert "eu" in text
    assert "s3://***@bucket/x" in text


def test_template_loads_as_it_is_and_says_nothing_new(tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(init_template("local", Models()))
    assert load_config(path).tree == load_config().tree


def test_template_has_every_key_at_its_default(tmp_path: Path) -> None:
    template = init_template("local", Models())
    active = re.sub(r"^# (\w+ = )", r"\1", template, flags=re.MULTILINE)
    document = tomllib.loads(active)
    for section, model in SECTIONS.items():
        assert list(document[section]) == list(model.model_fields)
    for kind, name in DEFAULT_PLUGINS.items():
        assert document[kind]["plugin"] == name
        keys = OptionsSettings.model_fields if name else ()
        assert list(document[kind]) == ["plugin", *keys]
    path = tmp_path / "penstock.toml"
    path.write_text(active)
    config, defaults = load_config(path), load_config()
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            if not field.examples:
                value = getattr(getattr(config.tree, section), name)
                assert value == getattr(getattr(defaults.tree, section), name), name
    settings = Models().validate_plugin_settings(config, "wal")
    assert settings.model_dump(
        exclude={"access_token", "retries", "patience"}
    ) == OptionsSettings().model_dump(exclude={"access_token", "retries", "patience"})


def test_templates_for_buckets_name_the_log_that_needs_no_disk() -> None:
    for cloud in CLOUDS:
        assert ('plugin = "wal_s3"' in init_template(cloud)) == (cloud != "local")


def test_template_of_another_cloud_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"those there are: local, aws, .*: cloud='moon'"):
        init_template("moon")


def test_key_rows_name_type_default_and_help() -> None:
    assert key_rows(OptionsSettings)[4:7] == [
        ("capacity", "a size like 512MiB, at least 4KiB", "1MiB", "How much."),
        ("linger", "a duration like 250ms, 30s or 7d", "250ms", "How long."),
        ("retries", "an integer", "unset", "How often."),
    ]


def test_every_key_has_a_description() -> None:
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            assert (field.description or "").endswith("."), f"{section}.{name}"
        assert (model.__doc__ or "").endswith("."), section


def test_reference_in_the_docs_is_up_to_date() -> None:
    text = (REPOSITORY / "docs" / "configuration.md").read_text()
    reminder = "run: penstock config reference --update docs/configuration.md"
    assert f"<!-- reference: begin -->\n\n{reference_markdown()}\n<!-- reference: end -->" in text, reminder


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9092", ("127.0.0.1", 9092)),
        ("[::1]:0", ("::1", 0)),
        ("kafka.example:65535", ("kafka.example", 65535)),
    ],
)
def test_address_is_split(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "::1:9", "[::1]", "[x]:1", "h:65536", "h:-1", "h:1.5"]
)
def test_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        split_address(text)
