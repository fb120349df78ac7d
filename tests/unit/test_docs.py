"""The documents say what is so: links lead somewhere, commands exist with their options, examples run."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from penstock.config import DEFAULT_PLUGINS, load_config
from penstock.plugins import PluginRegistry

#: What the command line raises for a wrong call; newer versions of typer bring a click of their own.
UsageError: Any = typer.BadParameter.__base__

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("plugins/*/README.md"),
        *REPOSITORY.glob("examples/**/*.md"),
    ]
)
NAMES = [str(path.relative_to(REPOSITORY)) for path in DOCUMENTS]


def blocks(text: str, *languages: str) -> Iterator[tuple[str, str]]:
    """The info string and the content of the fenced blocks in these languages."""
    for info, content in re.findall(r"^ *```(\w[^\n]*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        if info.split()[0] in languages:
            yield info, content


def slugs(text: str) -> set[str]:
    """The anchors of a document's headings, as they are made by the usual renderers."""
    without_code = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", without_code, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", plain)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    path = REPOSITORY / name
    broken = []
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"(?<!!)\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        if not goal.exists() or (anchor and goal.suffix == ".md" and anchor not in slugs(goal.read_text())):
            broken.append(target)
    assert broken == []


def documented_commands(text: str) -> list[str]:
    """Each ``$ ...penstock ...`` line of a console block, without its comment; continued lines are one."""
    found = []
    for _, content in blocks(text, "console", "bash", "sh", "shell"):
        for line in content.replace("\\\n", " ").splitlines():
            if line.lstrip().startswith("$ "):
                found.append(line.lstrip().removeprefix("$ "))
    return found


def penstock_words(line: str) -> Iterator[list[str]]:
    """The arguments of each call of ``penstock`` in a shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set("|&;()<>"):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0].rpartition("/")[2] == "penstock":
                yield words[1:]
            words = []
        else:
            words.append(word)


def check_command(words: list[str]) -> None:
    """Raises UsageError for a command, option or number of arguments that there isn't; runs nothing."""
    from penstock_tools.cli._app import app

    command: Any = get_command(app)
    context = None
    arguments = words
    name = "penstock"
    while True:
        context = _context(command, name, arguments, context)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, arguments = command.resolve_command(context, rest)


def _context(command: Any, name: str, arguments: list[str], parent: Any) -> Any:
    context = command.context_class(command, info_name=name, parent=parent, **command.context_settings)
    with context.scope(cleanup=False):
        command.parse_args(context, list(arguments))
    return context


@pytest.mark.parametrize("name", NAMES)
def test_documented_commands_are_there(name: str) -> None:
    wrong = {}
    for line in documented_commands((REPOSITORY / name).read_text()):
        for words in penstock_words(line):
            try:
                check_command(words)
            except typer.Exit:
                continue  # --help, --version
            except UsageError as error:
                wrong[line] = error.format_message()
    assert wrong == {}


def test_wrong_commands_would_be_found() -> None:
    for line in (
        "penstock nonsense",
        "penstock serve --nonsense",
        "cat x | .venv/bin/penstock plugins nonsense",
        "A=1 penstock plugins info",
    ):
        (words,) = penstock_words(line)
        with pytest.raises(UsageError):
            check_command(words)


@pytest.mark.parametrize("name", NAMES)
def test_python_in_documents_is_python(name: str) -> None:
    for info, content in blocks((REPOSITORY / name).read_text(), "python", "py"):
        compile(content, f"{name} ({info})", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("name", NAMES)
def test_toml_in_documents_is_a_configuration(name: str, tmp_path: Path) -> None:
    """Tables of the built-in plugins and the kernel are checked down to their values."""
    for info, content in blocks((REPOSITORY / name).read_text(), "toml"):
        document = tomllib.loads(content)
        if "project" in document or "tool" in document:
            continue
        path = tmp_path / "penstock.toml"
        path.write_text(content)
        config = load_config(path)
        registry = PluginRegistry()
        for kind in document:
            if kind in DEFAULT_PLUGINS and (REPOSITORY / "plugins" / config.plugin_name(kind)).is_dir():
                registry.validate_plugin_settings(config, kind)
        assert document, info


# --- the README


README = (REPOSITORY / "README.md").read_text()


def two_commands() -> list[str]:
    return [line for line in documented_commands(README) if line.startswith("python3 -m venv")]


def test_readme_has_the_two_commands() -> None:
    run, test = two_commands()
    assert run.endswith("&& .venv/bin/penstock serve")
    assert "&& .venv/bin/pytest" in test


def test_ci_ends_with_the_readmes_command() -> None:
    _, test = two_commands()
    script = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    assert script[-1] == f'{test} "$@"', "with --full, if that was said"


def test_readme_lists_every_plugin() -> None:
    listed = set(re.findall(r"\(plugins/(\w+)/README\.md\)", README))
    assert listed == {path.parent.name for path in REPOSITORY.glob("plugins/*/README.md")}


def test_readme_leads_to_every_document() -> None:
    linked = set(re.findall(r"\((docs/[\w-]+\.md)\)", README))
    assert {name for name in NAMES if name.startswith("docs/")} <= linked


def test_readme_example_of_a_client_runs(penstock_broker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The tour, against a broker on a free port."""
    (code,) = [content for _, content in blocks(README, "python") if "producer.flush()" in content]
    code = code.replace("127.0.0.1:9092", penstock_broker.bootstrap_servers)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "b'hello'\n"


def test_readme_example_of_embedding_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import anyio

    monkeypatch.chdir(tmp_path)
    (code,) = [content for _, content in blocks(README, "python") if "SyncBroker" in content]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    anyio.run(names["main"])
    names["script"]()
    assert re.fullmatch(r"(127\.0\.0\.1:\d+\n){2}", capsys.readouterr().out)


def test_readme_example_of_the_fixture_runs(penstock_broker: Any) -> None:
    (code,) = [content for _, content in blocks(README, "python") if "def test_" in content]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    names["test_orders_are_announced"](penstock_broker)


# --- testing with Penstock


GUIDE = (REPOSITORY / "docs" / "testing-with-penstock.md").read_text()


def test_guide_to_testing_shows_a_test_that_passes(penstock_broker: Any) -> None:
    (code,) = [content for _, content in blocks(GUIDE, "python") if "def test_" in content]
    names: dict[str, Any] = {}
    exec(compile(code, "testing-with-penstock.md", "exec"), names)
    names["test_orders_arrive"](penstock_broker)


@pytest.mark.parametrize("which", ["with SyncBroker", "async with Broker"])
def test_guide_to_testing_shows_programs_that_run(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [content for _, content in blocks(GUIDE, "python") if which in content]
    exec(compile(code, "testing-with-penstock.md", "exec"), {})
    assert capsys.readouterr().out.startswith("127.0.0.1:")


def test_losses_of_others_are_held_by_tests_that_are_there() -> None:
    text = (REPOSITORY / "docs/conformance.md").read_text()
    section = text.partition("## Losses that others had\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", section)
    assert len(named) >= 15
    sources = [
        path.read_text() for root in ("tests", "conformance") for path in (REPOSITORY / root).rglob("*.py")
    ]
    missing = [name for name in named if not any(f"{name}(" in source for source in sources)]
    assert missing == []


def test_guide_to_testing_names_every_option_of_the_fixture() -> None:
    source = (REPOSITORY / "tools" / "penstock_tools" / "testing" / "pytest_plugin.py").read_text()
    options = set(re.findall(r'"(penstock_broker_\w+)"', source))
    assert options
    assert set(re.findall(r"^\| `(penstock_broker_\w+)`", GUIDE, re.MULTILINE)) == options


@pytest.mark.parametrize(
    ("head", "container"),
    [
        ("| room | what is in it | may import |", "penstock"),
        ("| room | what is in it |\n", "penstock_tools"),
    ],
)
def test_the_house_has_all_rooms_in_the_order_of_the_import_rules(head: str, container: str) -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text()
    table = text[text.index(head) :].partition("\n\n")[0].splitlines()[2:]
    rooms = [name for row in table for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    rules = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (rule["layers"] for rule in rules if rule.get("containers") == [container])
    height = {name: at for at, layer in enumerate(reversed(layers)) for name in layer.split(" | ")}
    assert sorted(rooms) == sorted(height)
    heights = [height[name] for name in rooms]
    assert heights == sorted(heights)
