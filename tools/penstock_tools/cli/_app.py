"""The root command: global options, and subcommands that are found by file name and imported on use."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

import penstock

if TYPE_CHECKING:
    from penstock.config import Config
    from penstock.plugins import PluginRegistry

#: Each public module in here is a command.
_FOLDER = Path(__file__).parent

#: The options that every command which reads the configuration takes, at the root and after its own name.
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="TOML file with the configuration.", show_default=False
    ),
]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set one configuration key; may be repeated."),
]
PluginsDirOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--plugins-dir", metavar="DIR", help="Load all plugins in a directory; may be repeated."),
]
PluginOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", "-p", metavar="MODULE", help="Load a plugin by name or module; may be repeated."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the options say about configuration and plugins."""

    config_path: Path | None = None
    sets: tuple[str, ...] = ()
    plugins_dirs: tuple[Path, ...] = ()
    modules: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        context: typer.Context,
        config: Path | None = None,
        sets: Sequence[str] | None = None,
        plugins_dirs: Sequence[Path] | None = None,
        modules: Sequence[str] | None = None,
    ) -> Setup:
        """The options of a subcommand on top of those given to ``penstock`` itself."""
        root = context.find_root().obj
        base = root if isinstance(root, Setup) else cls()
        return cls(
            config_path=config or base.config_path,
            sets=(*base.sets, *(sets or ())),
            plugins_dirs=(*base.plugins_dirs, *(plugins_dirs or ())),
            modules=(*base.modules, *(modules or ())),
        )

    def load_config(self, overrides: dict[str, Any] | None = None) -> Config:
        """The configuration; variables that nobody reads are told on stderr. Raises ConfigError."""
        from penstock.config import load_config, unknown_variables

        for sentence in unknown_variables(os.environ):
            sys.stderr.write(f"penstock: warning: {sentence}\n")
        return load_config(self.config_path, env=os.environ, sets=self.sets, overrides=overrides)

    def registry(self) -> PluginRegistry:
        """The plugins. Raises PluginError."""
        from penstock.plugins import PluginRegistry

        return PluginRegistry(env=os.environ, plugins_dirs=self.plugins_dirs, modules=self.modules)


class _Commands(TyperGroup):
    """One subcommand per public module of ``penstock_tools.cli``."""

    _only_names = False

    def list_commands(self, ctx: Any) -> list[str]:
        modules = pkgutil.iter_modules([str(_FOLDER)])
        return sorted(module.name.replace("_", "-") for module in modules if not module.name.startswith("_"))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        if self._only_names:
            return TyperCommand(name=cmd_name, help=_first_line(cmd_name))
        module = importlib.import_module(f"penstock_tools.cli.{cmd_name.replace('-', '_')}")
        command = get_command(module.app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._only_names = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._only_names = False

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = dict.fromkeys(self.list_commands(ctx))  # type: ignore[assignment] # names to suggest from
        return super().resolve_command(ctx, args)


def _first_line(name: str) -> str:
    """The first line of a command's module docstring, without importing the module."""
    path = _FOLDER / f"{name.replace('-', '_')}.py"
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


app = typer.Typer(
    name="penstock",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from penstock.wire.native_code import status

        typer.echo(f"penstock {penstock.__version__}\nrecords are checked in {status()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """A Kafka-compatible streaming broker that keeps its data in object storage."""
    context.obj = Setup(
        config_path=config,
        sets=tuple(sets or ()),
        plugins_dirs=tuple(plugins_dir or ()),
        modules=tuple(plugin or ()),
    )


def run(arguments: Sequence[str]) -> int:
    """Parse and run; usage errors are reported here, Penstock's own errors are raised."""
    try:
        code = get_command(app)(list(arguments), prog_name="penstock", standalone_mode=False)
    except SystemExit as end:  # completion, and what a closed pipe ends
        code = end.code
    except _UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # that one has shown the help
            sys.stderr.write(f"penstock: {_usage_sentence(error)}\n")
        return 2
    return code if isinstance(code, int) else 0 if code is None else 1


#: Typer exports its subclass only.
_UsageError: Any = typer.BadParameter.__base__


def _usage_sentence(error: Any) -> str:
    """What is wrong with the command line, in one sentence that ends in where to look."""
    context = error.ctx
    see = f", see {context.command_path} --help" if context is not None else ""
    if (option := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        from penstock.config import nearest

        # The dashes that all have in common make no two options alike.
        names = {name.lstrip("-"): name for name in error.possibilities or ()}
        near = nearest(option.lstrip("-"), names, cutoff=0.7)
        advice = f", the nearest is {names[near]}" if near else ""
        return f"there is no such option{advice}{see}: option={option}"
    text = " ".join(error.format_message().split()).rstrip(".")
    if command := re.fullmatch(r"No such command '(.*?)'(?:\. Did you mean '([^']*)'.*)?", text):
        advice = f", the nearest is {command[2]}" if command[2] else ""
        return f"there is no such command{advice}{see}: command={command[1]}"
    if file := re.fullmatch(r".*unexpected extra argument.* \(.*?(\S+\.toml).*\)", text):
        return f"a configuration file is named with -c{see}: file={file[1]}"
    # "Invalid value for '--count' / '-c': Input should be ..." and the like
    text = re.sub(r": (\w)", lambda found: f", {found[1].lower()}", text)
    return f"{text[0].lower()}{text[1:]}{see}"
