"""``penstock config``."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from penstock_object_store_fsspec._s3 import S3Backend
from penstock_wal_block import Settings as BlockSettings

from penstock.broker import Broker
from penstock.config import load_config
from penstock.config._check import redact
from penstock.errors import CapabilityError
from penstock_tools.cli import main


def test_check_of_the_defaults_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check"]) == 0
    out = capsys.readouterr().out
    assert "configuration is valid: defaults, environment and command line" in out
    assert "wal wal_block" in out


def test_check_tells_programs_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["config", "check", "--connect", "--json", "--set", f"broker.data_dir={tmp_path}"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["plugins"]["wal"]) == (None, "wal_block")
    assert "answers, put-if-absent: yes" in told["object_stores"]["object store"]


def test_check_refuses_a_wrong_key_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("[broker]\nnode = 1\n")
    assert main(["config", "check", "-c", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"penstock: {path}:2: broker.node is no configuration key, the nearest key is broker.node_id: value=1\n"
    )


def test_check_looks_into_plugins_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--set", "object_store.ulr=memory://"]) == 2
    assert (
        "object_store.ulr is no configuration key, the nearest key is object_store.url"
        in capsys.readouterr().err
    )
    assert main(["config", "check", "--set", "wal.plugin=wal_blok"]) == 2
    assert (
        "penstock: --set wal.plugin: wal.plugin: no plugin of this kind has this name, the nearest is wal_block: "
        in capsys.readouterr().err
    )


def test_options_work_before_and_after_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("[broker]\nnode_id = 7\n")
    for arguments in (
        ["-c", str(path), "--set", "topics.partitions=3", "config", "explain", "--json", "broker.node_id"],
        ["config", "explain", "-c", str(path), "--json", "broker.node_id"],
    ):
        assert main(arguments) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["key"], row["value"], row["origin"]) == ("broker.node_id", "7", f"{path}:2")


def test_variable_of_the_environment_acts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENSTOCK__MEMORY__LIMIT", "1GiB")
    assert main(["config", "explain", "memory.limit"]) == 0
    assert capsys.readouterr().out.startswith(
        "memory.limit = 1GiB  (PENSTOCK__MEMORY__LIMIT)\n    Resident memory"
    )


def test_explain_without_a_key_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain"]) == 0
    out = capsys.readouterr().out
    assert "listener.bind = 127.0.0.1:9092  (default)" in out
    assert "object_store.url = " in out
    assert "allocator.limit = 352MiB  (memory.limit - memory.reserve)" in out


def test_explain_of_an_unknown_key_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "listener.bindd"]) == 2
    assert capsys.readouterr().err == (
        "penstock: there is no such configuration key, the nearest is listener.bind: key=listener.bindd\n"
    )


def test_explain_masks_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    sets = (
        "object_store.url=s3://bucket",
        "object_store.options.key=AKIA",
        "object_store.options.secret=hunter2",
        "object_store.options.endpoint_url=http://me:hunter2@127.0.0.1:9",
        "object_store.options.client_kwargs.region_name=eu-central-1",
    )
    assert main(["config", "explain", "object_store.options", *(f"--set={one}" for one in sets)]) == 0
    out = capsys.readouterr().out
    assert "object_store.options.key = ***  (--set object_store.options.key)" in out
    assert "object_store.options.endpoint_url = http://***@127.0.0.1:9  (" in out
    assert "object_store.options.client_kwargs.region_name = eu-central-1  (" in out
    assert "hunter2" not in out
    assert "AKIA" not in out


def test_explain_names_each_place_that_a_table_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text('[object_store]\nurl = "s3://bucket"\noptions = { anon = true }\n')
    arguments = ["config", "explain", "-c", str(path), "object_store.options", "--json"]
    assert main([*arguments, "--set", "object_store.options.use_ssl=false"]) == 0
    rows = {row["key"]: row["origin"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {
        "object_store.options.anon": f"{path}:3",
        "object_store.options.use_ssl": "--set object_store.options.use_ssl",
    }


def test_explain_says_default_of_what_a_section_in_the_file_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(
        'wal = { capacity = "8MiB" }\n[listener]\nbind = "127.0.0.1:0"\n[object_store]\nurl = "file://objects"\n[memory]\n'
    )
    assert main(["config", "explain", "-c", str(path), "--json"]) == 0
    origins = {row["key"]: row["origin"] for row in json.loads(capsys.readouterr().out)}
    told = {key: origin for key, origin in origins.items() if str(path) in origin}
    assert told == {
        "wal.capacity": f"{path}:1",
        "listener.bind": f"{path}:3",
        "object_store.url": f"{path}:5",
    }
    assert origins["object_store.plugin"] == origins["object_store.retry_budget_ms"] == "default"
    assert origins["listener.idle_timeout"] == origins["memory.limit"] == origins["wal.path"] == "default"


@pytest.mark.parametrize("key", ["foo.bar", "foo"])
def test_a_section_that_is_none_is_told_with_the_sections_that_there_are(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(f"{key} = 1\n")
    assert main(["config", "check", "-c", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"penstock: {path}:1: {key} is no configuration key, ")
    assert "broker, groups, lake, lake_compactor, listener, log_cache, logging, memory" in error
    assert "broker.node_id" not in error


def test_check_says_what_a_start_would_of_the_log_file_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (tmp_path / "missing" / "x.log", tmp_path):
        assert main(["config", "check", "--set", f"logging.file={file}"]) == 2
        assert capsys.readouterr().err.startswith(
            "penstock: --set logging.file: logging.file can't be opened, make its directory"
        )
    assert main(["config", "check", "--set", f"logging.file={tmp_path / 'x.log'}"]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["partition_key", "keys_max", "key_delimiter", "author"])
def test_a_name_that_only_contains_a_secret_word_is_not_masked(name: str) -> None:
    assert redact((name,), "shown") == "shown"


@pytest.mark.parametrize(
    "name",
    [
        *("key", "secret", "aws_secret_access_key", "token", "password", "account_key", "SSECustomerKey"),
        *("adls.account-key", "adls.connection-string", "header.X-Api-Key", "header.Authorization"),
    ],
)
def test_a_secret_is_masked(name: str) -> None:
    assert redact((name,), "hidden") == "***"


def test_secrets_within_urls_are_masked() -> None:
    url = "postgresql://me:hidden@db/x?sslmode=require&password=hidden&application_name=y"
    assert redact(("uri",), url) == "postgresql://***@db/x?sslmode=require&password=***&application_name=y"
    assert redact(("url",), "https://a/b?sv=1&sig=hidden#c") == "https://a/b?sv=1&sig=***#c"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("PENSTOCK_LISTENER_BIND", "the nearest is PENSTOCK__LISTENER__BIND"),
        ("penstock_trace_hook", "the nearest is PENSTOCK_TRACE_HOOKS"),
        ("PENSTOCK_COLOUR", "keys are written PENSTOCK__SECTION__KEY"),
    ],
)
def test_a_variable_that_nobody_reads_is_told(
    name: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PENSTOCK_TRACE_HOOKS", "0")
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().err == (
        f"penstock: warning: {name} is set, but no variable of that name is read, {told}\n"
    )


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["url=s3:/bucket"], "object_store.url is wrong, it has no protocol, "),
        (["url=s4://bucket"], "object_store.url is wrong, it is not understood, "),
        (["url=file://"], "object_store.url is wrong, it names no directory, "),
        (["options.x=1"], "object_store.options is wrong, a file:// url takes no options: "),
        (
            ["url=s3://b", "options.endpoint_ulr=http://x"],
            "endpoint_ulr is no option of S3FileSystem, the nearest is endpoint_url: ",
        ),
        (
            ["url=s3://b", "options.client_kwargs.regionname=x"],
            "regionname is no option of client_kwargs, the nearest is region_name: ",
        ),
        (["url=s3://b", "options.config_kwargs.retrys=1"], "the nearest is retries: "),
        (["url=s3://b", "options.endpoint_url=minio:9000"], "endpoint_url must be an http or https URL"),
        (["url=s3://b", "options.client_kwargs.verify=/no/ca.pem"], "verify names no file that is there"),
        (["url=s3://b", "options.key=a"], "key and secret go together"),
        (["url=s3://b", "options.asynchronous=true"], "asynchronous is decided by the plugin"),
    ],
)
def test_check_finds_a_wrong_store_before_anything_connects(
    sets: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", *(f"--set=object_store.{one}" for one in sets)]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("penstock: --set object_store.")
    assert len(err.splitlines()) == 1


def test_init_writes_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "penstock.toml"
    assert main(["config", "init", "--cloud", "local", "-o", str(path)]) == 0
    assert load_config(path).tree == load_config().tree
    assert "# url = " in path.read_text()
    assert main(["config", "check", "-c", str(path)]) == 0
    capsys.readouterr()


def test_init_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init"]) == 0
    assert "\n[listener]\n" in capsys.readouterr().out


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("mine")
    assert main(["config", "init", "-o", str(path)]) == 2
    assert "file is there already" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_init_for_another_cloud_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init", "--cloud", "moon"]) == 2
    assert (
        "those there are: local, aws, aws-express, minio, r2, gcp, azure, alibaba: cloud='moon'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("cloud", "url"),
    [
        ("aws", "s3://your-bucket/penstock"),
        ("aws-express", "s3://your-bucket/penstock"),
        ("minio", "s3://penstock/broker"),
        ("r2", "s3://your-bucket/penstock"),
        ("gcp", "gs://your-bucket/penstock"),
        ("azure", "az://your-container/penstock"),
        ("alibaba", "s3://your-bucket/penstock"),
    ],
)
def test_init_for_a_cloud_names_its_store_and_no_secret(
    cloud: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    assert main(["config", "init", "--cloud", cloud, "-o", str(path)]) == 0
    config = load_config(path)
    assert config.plugin_name("wal") == ("wal_s3express_replicated" if cloud == "aws-express" else "wal_s3")
    settings = config.plugin_settings("object_store")
    assert settings["url"] == url
    assert not {"key", "secret", "token", "account_key"} & settings["options"].keys()
    assert path.read_text().count("\nurl = ") + path.read_text().count("\n# url = ") == 1
    if url.startswith("s3"):
        capsys.readouterr()
        if "your-" in url:
            line = path.read_text().splitlines().index(f'url = "{url}"') + 1
            assert main(["config", "check", "-c", str(path)]) == 2
            assert capsys.readouterr().err == (
                f"penstock: {path}:{line}: object_store.url is still the template's, put your own there: "
                f"value={url!r}\n"
            )
            path.write_text(path.read_text().replace("your-", "my-"))
        assert main(["config", "check", "-c", str(path)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("cloud", ["gcp", "azure", "alibaba"])
def test_init_for_a_cloud_with_regional_disks_has_a_wal_on_one_as_comments_that_are_valid(
    cloud: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    assert main(["config", "init", "--cloud", cloud, "-o", str(path)]) == 0
    text = path.read_text()
    text = text.replace('\nplugin = "wal_s3"\n', '\nplugin = "wal_block"\n', 1)
    for line in ("shared = true", 'capacity = "16GiB"', 'reservations = "auto"'):
        assert f"\n# {line}\n" in text
        text = text.replace(f"\n# {line}\n", f"\n{line}\n", 1)
    path.write_text(text)
    settings = BlockSettings.model_validate(load_config(path).plugin_settings("wal"))
    assert (settings.shared, settings.reservations) == (True, "auto")
    capsys.readouterr()


def test_init_for_a_zonal_bucket_has_the_log_there_and_on_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the keys of the plugin that it chooses."""
    path = tmp_path / "penstock.toml"
    assert main(["config", "init", "--cloud", "aws-express", "-o", str(path)]) == 0
    assert '\n# drop_after = "5s"\n' in path.read_text()
    assert main(["config", "explain", "wal", "-c", str(path)]) == 0
    told = capsys.readouterr().out
    assert "wal.replicas[0].object_store.url = s3://your-bucket--euc1-az1--x-s3/penstock" in told
    assert "wal.replicas[0].object_store.options.client_kwargs.region_name = eu-central-1" in told
    assert "wal.replicas[1].path = wal/replica-{node}.wal" in told
    assert "wal.replicas[1].capacity = 256MiB  (default)" in told
    path.write_text(path.read_text().replace("//your-bucket/", "//my-bucket/"))
    assert main(["config", "check", "-c", str(path)]) == 2
    assert "wal.replicas[0].object_store.url is still the template's" in capsys.readouterr().err


def test_connect_tells_that_the_store_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = tmp_path / "data"
    assert main(["config", "check", "--connect", "--set", f"broker.data_dir={data_dir}"]) == 0
    assert "/data/objects answers, put-if-absent: yes; it is empty" in capsys.readouterr().out
    assert not data_dir.exists()


def test_connect_tries_the_stores_that_plugins_open_for_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*store: str) -> int:
        sets = (
            f"broker.data_dir={tmp_path / 'data'}",
            "wal.plugin=wal_s3express_replicated",
            "wal.replicas.0.plugin=wal_s3",
            "wal.replicas.1.plugin=wal_block",
            *(f"wal.replicas.0.object_store.{one}" for one in store),
        )
        return main(["config", "check", "--connect", *(f"--set={one}" for one in sets)])

    assert check(f"url=file://{tmp_path}/zone") == 0
    told = capsys.readouterr().out
    assert (
        f"object store of wal.replicas[0]: file://{tmp_path}/zone answers, put-if-absent: yes; it is empty"
        in told
    )
    assert not (tmp_path / "zone").exists()

    endpoint = ("options.endpoint_url=http://127.0.0.1:1", "options.anon=true", "retry_budget_ms=1ms")
    assert check("url=s3://bucket", *endpoint) == 2
    err = capsys.readouterr().err
    assert "wal.replicas[0].object_store: " in err
    assert len(err.splitlines()) == 1


def test_a_store_that_lists_in_any_order_is_refused_by_the_check_and_by_a_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metadata log would take the entry that is listed last for the newest one, and lose the others."""
    monkeypatch.setattr(S3Backend, "connect", S3Backend.start_session)
    url = "s3://logs--euc1-az1--x-s3/penstock"
    assert main(["config", "check", "--connect", f"--set=object_store.url={url}"]) == 2
    assert capsys.readouterr().err == (
        "penstock: the object store answers but can't do what is needed (metadata_log needs ordered_listing), choose "
        f"another: location={url}/\n"
    )
    broker = Broker(overrides={"object_store.url": url, "broker.data_dir": str(tmp_path)})
    with pytest.raises(
        CapabilityError, match="metadata_log plugin needs an object store with ordered_listing"
    ):
        anyio.run(broker.__aenter__)


def test_connect_to_an_unreachable_endpoint_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = (
        "url=s3://bucket",
        "options.endpoint_url=http://127.0.0.1:1",
        "options.anon=true",
        "retry_budget_ms=1ms",
    )
    assert main(["config", "check", "--connect", *(f"--set=object_store.{one}" for one in sets)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("penstock: ")
    assert len(err.splitlines()) == 1


def test_connect_without_credentials_says_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    sets = ("url=s3://bucket", "options.endpoint_url=http://127.0.0.1:1", "retry_budget_ms=1ms")
    assert main(["config", "check", "--connect", *(f"--set=object_store.{one}" for one in sets)]) == 2
    assert "no credentials for the object store were found, set AWS_ACCESS_KEY_ID" in capsys.readouterr().err


def test_reference_is_replaced_between_its_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- reference: begin -->\nstale\n<!-- reference: end -->\nafter\n")
    assert main(["config", "reference", "--update", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `bind` |" in text
    assert "stale" not in text
    path.write_text("no marks")
    assert main(["config", "reference", "--update", str(path)]) == 2
    assert "no reference marks" in capsys.readouterr().err


def test_a_probe_of_a_store_that_cannot_be_reached_says_nothing_of_its_promises(
    capsys: pytest.CaptureFixture[str],
) -> None:
    endpoint = ("options.endpoint_url=http://127.0.0.1:1", "options.anon=true", "retry_budget_ms=1ms")
    sets = [f"--set=object_store.{one}" for one in endpoint]
    assert main(["object-store", "probe", "s3://bucket", *sets]) == 2
    told = capsys.readouterr().err
    assert told.startswith("penstock: the object store can't be reached")
    assert told.count("\n") == 1
