"""Habits of the repository that no linter knows."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
#: Lines at most, by style; generated code is as long as the protocol is.
MODULE_LINES_MAX = 800
GENERATED = "kernel/penstock/wire/messages/"
#: Where asyncio itself may be: sockets, signals, wake-ups from writer threads, fsspec's loop, the broker's start.
ASYNCIO_RIM = (
    "conformance/",
    "tools/penstock_tools/bench/attacks.py",  # thousands of hostile connections
    "tools/penstock_tools/bench/attacks_of_crowds.py",
    "tools/penstock_tools/bench/peers.py",
    "tools/penstock_tools/bench/floor.py",  # the bare server that Penstock is measured against
    "tools/penstock_tools/bench/bare_log.py",  # the other one
    "tools/penstock_tools/bench/late_proxy.py",  # a proxy that is as little work as can be
    "kernel/penstock/broker",
    "tools/penstock_tools/cli/",
    "tools/penstock_tools/probe/",  # leads the connections of client libraries through a relay
    "tools/penstock_tools/client/",
    "kernel/penstock/server/",
    "tools/penstock_tools/testing/",
    "kernel/penstock/log/limiter.py",  # a crowd is served in several iterations of the loop
    "kernel/penstock/log/listeners.py",  # a crowd is told in several iterations of the loop
    "kernel/penstock/work/timer.py",  # waits that end by being woken
    "kernel/penstock/wal/group_writer.py",  # writes that outlive the cancellation of their scope
    "kernel/penstock/wal/writer_thread.py",
    "plugins/allocator_sequential/",  # memory is given back from finalizers, on any thread
    "plugins/iceberg_compactor/penstock_iceberg_compactor/_apart.py",  # what a thread reads from another process
    "plugins/iceberg_compactor/penstock_iceberg_compactor/_serving.py",
    "plugins/object_store_fsspec/",
    "plugins/wal_block/",
    "plugins/wal_s3/penstock_wal_s3/_puts.py",  # a put is a task without a group, whose scopes take as long
    "plugins/wal_s3express_replicated/",  # replicas that outlive the cancellation of who opened them
)
#: Packages of pure logic, and the code that drives it, get their clock from outside.
CLOCKLESS = ("spi", "wire", "metadata", "stream", "log", "coordinator", "config")


def repository_files() -> list[str]:
    """What git tracks or would track, still there; everything below when this is no git checkout."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode == 0:
        names = listed.stdout.split("\0")
    else:
        names = [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.rglob("*")]
    return sorted(name for name in names if (REPOSITORY / name).is_file())


FILES = repository_files()
PYTHON = [name for name in FILES if name.endswith(".py") and not name.startswith(GENERATED)]
SHIPPED = [name for name in PYTHON if name.startswith(("kernel/", "conformance/")) or "/penstock_" in name]


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse((REPOSITORY / name).read_text())


@cache
def _nodes(name: str) -> Sequence[ast.AST]:
    """All of a file, which most tests here go through."""
    return tuple(ast.walk(_tree(name)))


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[None]:
    """Millions of nodes, which the garbage collector needn't look at, now or in the tests that come later."""
    gc.disable()
    yield
    gc.enable()
    _nodes.cache_clear()
    _tree.cache_clear()


def _calls(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Call):
            yield node.lineno, _dotted(node.func)


def _dotted(node: ast.expr) -> str:
    """A dotted name, many times quicker than by ``ast.unparse``; what isn't one has a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_there_are_files_to_look_at() -> None:
    assert "kernel/penstock/hookspecs.py" in SHIPPED
    assert "tests/unit/test_tidy.py" in PYTHON


def test_nothing_is_left_to_do() -> None:
    left = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
    found = [
        f"{name}:{number}"
        for name in FILES
        if Path(name).suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".sh"}
        for number, line in enumerate((REPOSITORY / name).read_text().splitlines(), 1)
        if left.search(line)
    ]
    assert found == []


def test_modules_are_short_enough_to_read() -> None:
    lines = {name: len((REPOSITORY / name).read_text().splitlines()) for name in SHIPPED}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES_MAX} == {}


def test_no_lock_files_and_no_big_files() -> None:
    assert [name for name in FILES if name.endswith((".lock", "-lock.json"))] == []
    assert [name for name in FILES if (REPOSITORY / name).stat().st_size > 2**20] == []


def test_text_is_clean() -> None:
    for name in FILES:
        if name.endswith((".py", ".md", ".toml", ".yaml")):
            text = (REPOSITORY / name).read_bytes()
            assert b"\r" not in text, name
            assert not text or (text.endswith(b"\n") and not text.endswith(b"\n\n")), name
            assert not re.search(rb"[ \t]\n", text), name


def test_shipped_code_does_not_print() -> None:
    found = [f"{name}:{line}" for name in SHIPPED for line, call in _calls(_nodes(name)) if call == "print"]
    assert found == []


def test_no_orphan_tasks() -> None:
    """A background task lives in the task group of the scope that opened it."""
    banned = ("asyncio.create_task", "asyncio.ensure_future", "loop.create_task", "self._loop.create_task")
    found = [name for name in SHIPPED for _, call in _calls(_nodes(name)) if call in banned]
    # a broker's own task has no group around it, as its user has none; who enters and leaves waits for its end
    assert found == ["kernel/penstock/broker/_own_task.py"]


#: What sleeps beside the mechanisms of ``penstock.work``.
_SLEEPERS = {
    "kernel/penstock/log/reconciler.py": "each topic that failed has pauses of its own; they are those of Backoff",
    "kernel/penstock/metadata/service.py": "an attempt may be found to have landed in between; Backoff's pauses",
    "kernel/penstock/metadata/tailer.py": "waits for news between attempts; Backoff's pauses",
    "kernel/penstock/stream/orphans.py": "between pages of a listing, so that it takes little from others",
}
#: Bytes are cut where they are encoded and read; what is cut with ``pieces`` are items.
_CUTTERS = ("kernel/penstock/work/", "kernel/penstock/wire/", "kernel/penstock/wal/")


def test_waiting_retrying_and_repeating_have_one_home_each() -> None:
    """``penstock.work``: who sleeps in the kernel does it there, or says why not."""
    found = {
        name
        for name in SHIPPED
        if name.startswith("kernel/") and not name.startswith("kernel/penstock/work/")
        for _, call in _calls(_nodes(name))
        if call in ("anyio.sleep", "asyncio.sleep", "time.sleep")
    }
    assert found == set(_SLEEPERS)


def test_items_are_cut_into_pieces_in_one_place() -> None:
    """``penstock.work.pieces``: no loop over ``range(0, len(items), size)`` elsewhere."""
    found = [
        f"{name}:{node.iter.lineno}"
        for name in SHIPPED
        if name.startswith("kernel/") and not name.startswith(_CUTTERS)
        for node in _nodes(name)
        if isinstance(node, ast.For | ast.comprehension)
        and re.match(r"range\(0, len\(.*\), ", ast.unparse(node.iter))
    ]
    assert found == []


def test_transactions_are_refused_in_one_place() -> None:
    """``penstock.log.unsupported`` has the codes; that a permission is missing is said by the same one."""
    told = re.compile(r"ErrorCode\.(TRANSACTIONAL_ID_AUTHORIZATION_FAILED|INVALID_TXN_STATE)")
    found = {
        name
        for name in SHIPPED
        if name.startswith("kernel/")
        for node in _nodes(name)
        if isinstance(node, ast.Attribute) and told.fullmatch(_dotted(node))
    }
    assert found == {"kernel/penstock/api/authorization.py", "kernel/penstock/log/unsupported.py"}


def test_no_function_of_the_kernel_is_for_tests_only() -> None:
    """What a broker doesn't need is with the tools, or with the tests."""
    used: Counter[str] = Counter()
    for name in FILES:
        if (
            name.endswith(".py")
            and name.startswith(("kernel/", "plugins/", "conformance/", "tools/"))
            and "/tests/" not in name
        ):
            used.update(
                re.findall(r"\w+", re.sub(r"__all__ = \([^)]*\)", "", (REPOSITORY / name).read_text()))
            )
    found = [
        f"{name}: {node.name}"
        for name in PYTHON
        if name.startswith("kernel/") and name != "kernel/penstock/hookspecs.py"
        for node in _tree(name).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and used[node.name] == 1
    ]
    assert found == []


def test_asyncio_stays_at_the_rim() -> None:
    found = []
    for name in SHIPPED:
        if name.startswith(ASYNCIO_RIM):
            continue
        for node in _nodes(name):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{name}:{module}" for module in modules if module.partition(".")[0] == "asyncio"]
    assert found == []


def _without_system_clock(tree: ast.Module) -> ast.Module:
    """The one class that is the clock may look at it."""
    body = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name == "SystemClock")]
    return ast.Module(body, tree.type_ignores)


def test_pure_packages_have_no_clock_and_no_dice() -> None:
    prefixes = tuple(f"kernel/penstock/{package}/" for package in CLOCKLESS)
    banned = re.compile(r"(time\.(time|time_ns|monotonic|monotonic_ns)|datetime\.now|random\.\w+)")
    found = [
        f"{name}:{line}: {call}"
        for name in SHIPPED
        if name.startswith(prefixes)
        for line, call in _calls(ast.walk(_without_system_clock(_tree(name))))
        if banned.fullmatch(call) and call != "random.Random"
    ]
    assert found == []


def test_no_error_is_swallowed() -> None:
    """``except Exception: pass`` turns a bug into silence."""
    broad = {None, "Exception", "BaseException"}
    found = [
        f"{name}:{node.lineno}"
        for name in SHIPPED
        for node in _nodes(name)
        if isinstance(node, ast.ExceptHandler)
        and (ast.unparse(node.type) if node.type is not None else None) in broad
        and all(isinstance(inner, ast.Pass | ast.Continue) for inner in node.body)
    ]
    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for name in FILES:
        if not name.endswith(".md"):
            continue
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (REPOSITORY / name).read_text()):
            if "://" not in target and not (REPOSITORY / name).parent.joinpath(target).exists():
                broken.append(f"{name}: {target}")
    assert broken == []


def _logger_calls(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements at the top of a module that make a logger."""
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("getLogger"):
            yield node


def test_loggers_have_one_spelling() -> None:
    """``logger = logging.getLogger("penstock.ROOM")``; a plugin's begins with ``penstock.``, too."""
    found = []
    for name in SHIPPED:
        if name.startswith(("kernel/", "plugins/")):
            is_kernel = name.startswith("kernel/")
            room = (
                name.removeprefix("kernel/penstock/").partition("/")[0].removesuffix(".py")
                if is_kernel
                else r"\w+"
            )
            wanted = rf"logger = logging\.getLogger\('penstock\.{room}(\.\w+)*'\)"
            made = [ast.unparse(node) for node in _logger_calls(_tree(name))]
            found += [f"{name}: {line}" for line in made if not re.fullmatch(wanted, line)]
    assert found == []


#: What pytest, or an interpreter with ``-m``, reads: nobody imports from it.
_NOT_IMPORTED = re.compile(r"test_\w+\.py|conftest\.py|pytest_plugin\.py|__main__\.py")


def test_modules_say_first_what_they_offer() -> None:
    """``__all__`` is right after the docstring and ``from __future__``; only underscore modules do without."""
    found = []
    for name in SHIPPED:
        body = [
            node
            for node in _tree(name).body
            if not isinstance(node, ast.Expr)
            and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        ]
        places = [
            place
            for place, node in enumerate(body)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        file = Path(name).name
        may_lack = (
            not body or _NOT_IMPORTED.fullmatch(file) or (file.startswith("_") and file != "__init__.py")
        )
        if places[:1] != [0] and (places or not may_lack):
            found.append(name)
    assert found == []


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Dotted names of what a module imports of ours."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("penstock"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("penstock"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


#: Mutants break the suite's reference implementations from inside.
_BREAKS_IN = ("conformance/penstock_conformance/mutants/",)


def test_underscore_modules_are_imported_by_their_package_and_its_parent_only() -> None:
    found = []
    for name in SHIPPED:
        parts = name.split("/")
        root = next(place for place, part in enumerate(parts) if part.startswith("penstock"))
        package = parts[root:-1]
        for imported in [] if name.startswith(_BREAKS_IN) else _imported(_nodes(name)):
            path = imported.split(".")
            private = next((at for at, part in enumerate(path) if re.match(r"_[a-z]", part)), None)
            owner = path[:private]
            if private is not None and package[: len(owner)] != owner and package != owner[:-1]:
                found.append(f"{name}: {imported}")
    assert found == []


#: A docstring that begins so has its subject in the code, or in the docstring above.
_NO_SUBJECT = re.compile(r"(The same\b|It('s)? |Its |They |Those |See the contract)")


def test_docstrings_begin_with_a_subject() -> None:
    found = []
    for name in SHIPPED:
        if name.startswith("conformance/penstock_conformance/test_"):
            continue  # clauses quote the contract
        for node in _nodes(name):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if _NO_SUBJECT.match(text):
                    found.append(f"{name}: {text.splitlines()[0]}")
    assert found == []


RFCS = [name for name in FILES if re.fullmatch(r"docs/rfcs/\d{4}-.*\.md", name)]


def test_an_rfc_has_the_parts_of_the_template_and_a_row_in_the_index() -> None:
    index = (REPOSITORY / "docs/rfcs/README.md").read_text()
    wanted = ["Motivation", "Alternatives", "Choice", "Impact"]
    for name in RFCS:
        text = (REPOSITORY / name).read_text()
        number = Path(name).name[:4]
        assert re.match(rf"# RFC {number if number != '0000' else 'NNNN'}: [a-z]", text), name
        parts = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert [part for part in parts if part in wanted] == wanted, name
        assert f"]({Path(name).name})" in index, f"add the row of {name}"


def test_numbers_of_rfcs_are_unique() -> None:
    numbers = [Path(name).name[:4] for name in RFCS]
    assert len(set(numbers)) == len(numbers)


#: What happened before is told as it was.
_HISTORY = ("CHANGELOG.md", "docs/rfcs/")


@cache
def _lake_configs() -> frozenset[str]:
    """Topic configs of tables: they look like modules of the room of that name."""
    from penstock_iceberg_compactor import penstock_register_lake_compactor

    from penstock.lake.configs import topic_config_table

    return frozenset(topic_config_table(penstock_register_lake_compactor(), {}, {}).added)


def test_paths_and_modules_that_documents_name_are_there() -> None:
    missing = []
    packages = {
        "penstock": "kernel/penstock",
        "penstock_tools": "tools/penstock_tools",
        "penstock_conformance": "conformance/penstock_conformance",
    }
    for name in FILES:
        if not name.endswith(".md") or name.startswith(_HISTORY):
            continue
        text = (REPOSITORY / name).read_text()
        for path in re.findall(r"`((?:kernel|plugins|conformance|tools|tests|docs)/[\w./-]+)`", text):
            if "NAME" not in path and not (REPOSITORY / path).exists():
                missing.append(f"{name}: {path}")
        for root, rest in re.findall(r"`(penstock(?:_tools|_conformance)?)((?:\.[a-z_]+)+)`", text):
            if f"{root}{rest}" in _lake_configs():
                continue
            place = REPOSITORY / packages[root]
            for part in rest[1:].split("."):
                if not (place / part).is_dir() and not (place / f"{part}.py").is_file():
                    module = place.with_suffix(".py") if not place.is_dir() else place / "__init__.py"
                    if not re.search(rf"\b{part}\b", module.read_text()):
                        missing.append(f"{name}: {root}{rest}")
                    break
                place = place / part
    assert missing == []


def test_test_folders_are_no_packages() -> None:
    """With --import-mode=importlib, and no __init__.py, test files need no unique names."""
    assert [name for name in FILES if re.search(r"(^|/)tests/(.*/)?__init__\.py$", name)] == []


def _names_of_handlers(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[str | None]:
    """What the handlers around ``node`` call their error, up to the function that it is in."""
    while node in parents and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        node = parents[node]
        if isinstance(node, ast.ExceptHandler):
            yield node.name


def _forgets(node: ast.AST, name: str, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether ``node`` is in a ``try: raise error finally: del error``, whose frame doesn't lead to the error."""
    around = parents[node]
    return isinstance(around, ast.Try) and any(
        isinstance(step, ast.Delete) and any(ast.unparse(one) == name for one in step.targets)
        for step in around.finalbody
    )


#: Short-lived processes, and what takes errors over on purpose.
_KEEPS_ERRORS = ("tools/penstock_tools/", "conformance/")


def _stored_errors(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    """Where an error is stored, or a stored one raised, and how it ought to be."""
    deleted = {ast.unparse(one) for node in nodes if isinstance(node, ast.Delete) for one in node.targets}
    parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
    for node in nodes:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name | ast.Attribute | ast.Subscript):
            what = ast.unparse(node.exc)
            is_class = what.rpartition(".")[2].lstrip("_")[:1].isupper()
            if (
                not is_class
                and what not in _names_of_handlers(node, parents)
                and not _forgets(node, what, parents)
            ):
                yield node.lineno, f"raise again({what})"
        elif isinstance(node, ast.ExceptHandler) and node.name:
            for step in ast.walk(node):
                stored: ast.expr | None = None
                if isinstance(step, ast.Assign) and ast.unparse(step.targets[0]) not in deleted:
                    stored = step.value
                elif isinstance(step, ast.Call) and _dotted(step.func).endswith((".append", ".put", ".set")):
                    stored = next(iter(step.args), None)
                if isinstance(stored, ast.Name) and stored.id == node.name:
                    yield stored.lineno, f"kept({node.name})"


def test_errors_that_are_stored_are_kept_and_raised_again() -> None:
    """``penstock.errors.kept`` and ``again``: others make cycles, or hold the payload of the frames they left."""
    found = [
        f"{name}:{line}: {wanted}"
        for name in SHIPPED
        if not name.startswith(_KEEPS_ERRORS)
        for line, wanted in _stored_errors(_nodes(name))
    ]
    assert found == []


def test_work_runs_in_threads_through_the_one_door() -> None:
    """``penstock.threads.run_in_thread``: with anyio's, each error is a reference cycle."""
    allowed = ("kernel/penstock/threads.py", *_KEEPS_ERRORS)
    others = [name for name in SHIPPED if not name.startswith(allowed)]
    assert [name for name in others if "to_thread" in (REPOSITORY / name).read_text()] == []


TESTS = [name for name in PYTHON if re.match(r"tests/|plugins/\w+/tests/", name)]
#: Seconds from which on a wait that is written as a number can only be a deadline, and so somebody's guess.
GUESSED_S = 5
_WAITS = re.compile(
    r"(fail_after|move_on_after|wait|wait_for|wait_for_output|result|flush|poll|communicate|sleep|settimeout|timeout|alarm)"
)
_DEADLINES = re.compile(r"(.*_)?(timeout|deadline|patience)(_s)?", re.IGNORECASE)
_SECONDS = re.compile(r"(.*_)?(timeout|deadline|[A-Z_]+(?<!_PER)_S)", re.IGNORECASE)
#: Where such a number is no deadline of a test's.
_NO_DEADLINES = {
    "tests/patience.py": "the one number",
    "tests/interrupted.py": "how long an interrupted run may take to end",
    "tests/run.py": "how long a process that is left behind may take to go",
    "tests/unit/coordinator/test_records.py": "fields of a record",
    "tests/unit/wire/test_codec.py": "fields of a message",
    "tests/unit/lake/harness.py": "seconds of simulated time",
    "tests/unit/lake/test_lake_maintenance.py": "seconds of simulated time",
    "tests/unit/lake/test_lake_service.py": "seconds of simulated time",
    "tests/unit/test_tidy.py": "from where on a number is one",
}


def _number(node: ast.expr | None) -> float:
    """What it comes to, 0 when it isn't written in numbers alone."""
    if node is None or not all(
        isinstance(one, ast.Constant | ast.BinOp | ast.operator | ast.UnaryOp | ast.unaryop)
        for one in ast.walk(node)
    ):
        return 0
    value = eval(compile(ast.Expression(node), "", "eval"))
    return value if isinstance(value, int | float) else 0


def _deadlines(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Each wait with a number of seconds: arguments of what waits, defaults and constants."""
    for node in nodes:
        found: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.Call):
            found += [(word.arg, word.value) for word in node.keywords if word.arg is not None]
            if _WAITS.fullmatch(_dotted(node.func).rpartition(".")[2]):
                found += [("timeout", argument) for argument in node.args[:1]]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [
                ("timeout", node.value) for target in targets if _SECONDS.fullmatch(ast.unparse(target))
            ]
        elif isinstance(node, ast.arguments):
            with_default = [*node.posonlyargs, *node.args][-len(node.defaults) :] if node.defaults else []
            pairs = [*zip(with_default, node.defaults, strict=True)]
            pairs += [
                (name, value) for name, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value
            ]
            found += [(name.arg, value) for name, value in pairs]
        for name, value in found:
            if _DEADLINES.fullmatch(name) and _number(value) >= GUESSED_S and value is not None:
                yield value.lineno, ast.unparse(value)


def test_deadlines_of_tests_are_the_one_that_only_what_hangs_reaches() -> None:
    """``tests.patience.HANG_S``: any other was measured on somebody's idle machine."""
    found = {name: [f"{line}: {text} s" for line, text in _deadlines(_nodes(name))] for name in TESTS}
    assert {
        name: deadlines for name, deadlines in found.items() if deadlines and name not in _NO_DEADLINES
    } == {}
    assert [name for name in _NO_DEADLINES if not found[name]] == []


def test_a_guessed_deadline_is_found_wherever_it_stands() -> None:
    guesses = """
anyio.fail_after(10)
process.wait(30)
future.result(timeout=2 * 60)
ready.wait_for_output("ready", timeout_s=20.0)
pytest.mark.timeout(600)
READY_S: Final = 60
deadline = 90
def read(timeout_s: float = 7, *, deadline_s=8): ...
"""
    assert [text for _, text in sorted(_deadlines(ast.walk(ast.parse(guesses))))] == [
        "10", "30", "2 * 60", "20.0", "600", "60", "90", "7", "8",
    ]  # fmt: skip
    fine = "anyio.fail_after(HANG_S)\nanyio.move_on_after(0.05)\nPACE_PER_S = 400\nconsumer.poll(1)\n"
    assert list(_deadlines(ast.walk(ast.parse(fine)))) == []
