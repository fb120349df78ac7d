"""``penstock object-store probe``: what a store keeps is said, and what it only claims is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.depth import FULL
from tests.patience import HANG_S
from tests.s3_server import S3Server, serving_s3
from tests.store_proxy import proxied

from penstock_tools.cli import main

PLUGINS = Path(__file__).parent / "_plugins"
FEW = ("--writers", "2", "--rounds", "2")


def probe(
    capsys: pytest.CaptureFixture[str], *arguments: str, plugins: bool = False
) -> tuple[int, dict[str, Any], dict[str, dict[str, str]]]:
    """Exit code, report, and findings by name."""
    where = ["--plugins-dir", str(PLUGINS)] if plugins else []
    code = main(["object-store", "probe", *arguments, *FEW, *where, "--json"])
    report = json.loads(capsys.readouterr().out)
    return code, report, {finding["name"]: finding for finding in report["findings"]}


def broken(findings: dict[str, dict[str, str]]) -> list[str]:
    return [name for name, finding in findings.items() if finding["verdict"] == "broken"]


@pytest.fixture(autouse=True)
def few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a page of a listing has are asked for in the plugin's own tests, of each cloud; what is measured most
    is looked at by nobody here."""
    if not FULL:
        monkeypatch.setattr("penstock_tools.probe.checks._MANY_KEYS", 20)
        monkeypatch.setattr("penstock_tools.probe.checks._PAGE_KEYS", 10)
        monkeypatch.setattr("penstock_tools.probe.checks._MEASURED", ((4096, 5), (2**20, 2), (2**23, 1)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the usual chain, which the writers have, too."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3Server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3Server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", S3Server.region)


def test_a_store_on_files_carries_a_broker_and_is_left_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report, findings = probe(capsys, f"file://{tmp_path}/objects")
    assert code == 0
    assert broken(findings) == []
    assert report["carries_a_broker"]
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


def test_what_it_prints_begins_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["object-store", "probe", "memory://probe", *FEW]) == 0
    printed = capsys.readouterr().out
    assert "QUESTION" in printed
    path = tmp_path / "penstock.toml"
    path.write_text(printed.partition("start with this configuration:\n\n")[2])
    assert main(["config", "check", "-c", str(path)]) == 0


@pytest.mark.full  # the plugin's own tests have each question asked of each cloud
def test_s3_is_raced_with_a_writer_that_stalls_on_its_last_byte(
    server: S3Server, credentials: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = server.make_bucket()
    endpoint = f"object_store.options.endpoint_url={server.endpoint_url}"
    code, report, findings = probe(capsys, f"s3://{bucket}/some", "--set", endpoint)
    assert code == 0, report
    assert broken(findings) == []
    for size in ("64KiB", "8MiB"):
        assert findings[f"put-if-absent, slow writer, {size}"]["verdict"] == "kept"
    assert "began together only" not in findings["put-if-absent, last bytes at once, 64KiB"]["detail"]
    assert server.endpoint_url in report["config"]
    assert S3Server.secret_key not in json.dumps(report)
    assert objects_in(server, bucket) == []


def test_a_store_that_checks_the_condition_at_the_start_of_a_put_is_found(
    server: S3Server, credentials: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """In turn, nothing is wrong with it; so a start of a broker takes it for a good one."""
    bucket = server.make_bucket()
    with proxied(server) as proxy:
        proxy.decide = lambda request: "unconditional" if request.conditional else ""
        endpoint = f"object_store.options.endpoint_url={proxy.endpoint_url}"
        code, report, findings = probe(capsys, f"s3://{bucket}", "--set", endpoint)
    assert code == 1
    assert findings["put-if-absent, in turn"]["verdict"] == "kept"
    assert {"put-if-absent, slow writer, 64KiB", "put-if-absent, slow writer, 8MiB"} <= set(broken(findings))
    assert [each["lacks"] for each in report["plugins"] if each["name"] == "metadata_object"] == [
        ["put_if_absent"]
    ]
    assert objects_in(server, bucket) == []


def test_a_plugin_whose_creations_only_seem_exclusive_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report, findings = probe(
        capsys,
        f"file://{tmp_path}/objects",
        *("--set", "object_store.plugin=lying", "--set", "object_store.lie=create"),
        plugins=True,
    )
    assert code == 1
    assert "put-if-absent, at once, 1KiB" in broken(findings)
    assert not report["carries_a_broker"]
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


def test_a_bucket_that_is_not_there_is_one_sentence(
    server: S3Server, credentials: None, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = f"object_store.options.endpoint_url={server.endpoint_url}"
    assert main(["object-store", "probe", "s3://no-such-bucket", *FEW, "--set", endpoint]) == 2
    error = capsys.readouterr().err
    assert error.startswith("penstock: the bucket doesn't exist")
    assert error.count("\n") == 1


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_probe_removes_what_it_wrote(
    server: S3Server, credentials: None, number: signal.Signals
) -> None:
    bucket = server.make_bucket()
    with proxied(server) as proxy:
        begun = threading.Event()

        def decide(request: Any) -> str:
            if "/reads/" in request.path:  # in the middle, after races and uploads
                begun.set()
            return ""

        proxy.decide = decide
        command = [sys.executable, "-m", "penstock", "object-store", "probe", f"s3://{bucket}/some", *FEW]
        process = subprocess.Popen(
            [*command, "--set", f"object_store.options.endpoint_url={proxy.endpoint_url}"],
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert begun.wait(HANG_S)
            process.send_signal(number)
            _, printed = process.communicate(timeout=HANG_S)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 128 + number
    assert "Traceback" not in printed
    assert objects_in(server, bucket) == []


def objects_in(server: S3Server, bucket: str) -> list[str]:
    import botocore.config
    import botocore.session

    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )
    try:
        return [found["Key"] for found in client.list_objects_v2(Bucket=bucket).get("Contents", ())]
    finally:
        client.close()
