"""Finds what a page names and the command line or the packages do not have: quickly, and of blocks that are not run."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator

import click

from lockstep.cli.main import cli
from tests.docs.pages import Block

#: Scripts that pass their arguments to the command of their name.
SCRIPTS = ("scripts/train", "scripts/server", "scripts/worker", "scripts/shard")

_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?[^\n]*\n.*?\n\1(?=\n|$)", re.DOTALL)


def calls(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of `lockstep` in a text of bash, whatever stands before it (`srun`, `ssh`)."""
    text = _HEREDOC.sub("", text).replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        call: list[str] = []
        for token in [*lexer, ";"]:
            if re.fullmatch(r"[();<>|&]+", token):
                yield from _call(call)
                call = []
            else:
                call.append(token)


def _call(tokens: list[str]) -> Iterator[list[str]]:
    for i, token in enumerate(tokens):
        if token in SCRIPTS:
            yield [token.removeprefix("scripts/"), *tokens[i + 1 :]]
            return
        # The package's name may be an argument of another program, as in `pip show lockstep`.
        if token.rpartition("/")[2] == "lockstep" and not any(before.endswith("pip") for before in tokens[:i]):
            yield tokens[i + 1 :]
            return


def check_call(arguments: list[str]) -> None:
    """Raise click's error if the command line would refuse these arguments; files need not exist."""
    command: click.Command = cli
    context = click.Context(command, info_name="lockstep", help_option_names=["-h", "--help"])
    while True:
        given, rest, _ = command.make_parser(context).parse_args(list(arguments))
        if given.get("help") or given.get("version"):
            return
        _check_values(command, context, given)
        if not isinstance(command, click.Group):
            break
        if not rest:
            raise click.UsageError(f"{context.command_path} without a command")
        name, command, arguments = command.resolve_command(context, rest)  # type: ignore[assignment]
        context = click.Context(command, context, name, help_option_names=["-h", "--help"])
    if rest:
        raise click.UsageError(f"unexpected arguments {rest}")


def _check_values(command: click.Command, context: click.Context, given: dict[str, object]) -> None:
    for parameter in command.get_params(context):
        value = given.get(parameter.name or "")
        values = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
        texts = [text for text in values if isinstance(text, str)]
        if parameter.required and not texts and parameter.envvar is None:
            raise click.MissingParameter(ctx=context, param=parameter)
        if not isinstance(parameter.type, (click.Path, click.File)):
            for text in texts:
                parameter.type.convert(text, parameter, context)


def missing_names(block: Block) -> list[str]:
    """Return the names that a block of Python takes from `lockstep` and that it does not have."""
    text = block.text
    if ">>> " in text:
        text = "\n".join(line[4:] for line in text.splitlines() if line.startswith((">>> ", "... ")))
    tree = ast.parse(text, block.place)
    modules: dict[str, object] = {}
    missing = []
    for node in ast.walk(tree):
        # Of the estimators it would take seconds to import scikit-learn.
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "lockstep"
            and node.module != "lockstep.sklearn"
        ):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    missing.append(f"{node.module}.{alias.name}")
                elif alias.name in ("nn", "optim", "F"):
                    modules[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in modules:
                if not hasattr(modules[name], attribute):
                    missing.append(f"{name}.{attribute}")
    return missing
