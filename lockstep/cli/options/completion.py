"""Completions that a shell offers: models, and the folders of runs. Must stay quick, and must never fail."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # as below: the processes of a run import this module, and never complete anything
    from click.shell_completion import CompletionItem

#: The type of a function that click calls for completions.
Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]

#: The folder in which `train` makes those of its runs, and the file that each of them has.
RUNS, JOB = Path("runs"), "job.toml"

#: The models that are part of Lockstep.
MODELS = ("linear", "mlp", "lenet", "cnn", "dense", "conv")

#: The files of `lockstep export` that a command was given, by the folders into which they are unpacked.
GIVEN: dict[str, str] = {}


class RunPath(click.Path):
    """The folder of a run, of which a shell offers those below `runs`, newest first; or a file of `lockstep export`.

    The command gets the folder into which such a file is unpacked, unless it asks for a folder alone.
    """

    def __init__(self, *, is_folder: bool = False) -> None:
        super().__init__(path_type=Path)
        self.is_folder = is_folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the folder of a run, whose file is unpacked now."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        return path if self.is_folder else unpacked(path)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Return the runs that begin like that, or else let the shell look for folders."""
        return items(runs_like(incomplete)) or items([incomplete], kind="dir")


def unpacked(path: Path) -> Path:
    """Return the folder of a run, whether it is given or in a file of `lockstep export`.

    Raises BadParameter if such a file is not there: a folder may begin to exist while its page is shown, a file was
    sent, or is another one.
    """
    if not path.is_file():
        if path.suffix == ".zip" and not path.exists():
            raise click.BadParameter(f"there is no file {str(path)!r}: expected one of `lockstep export`")
        return path
    # Imported here, since a completion, and the processes of a run, need none of it.
    from lockstep.runs.shared_run import opened_run

    folder = opened_run(path)
    if folder != path:
        GIVEN[str(folder)] = str(path)
    return folder


def run_or_address(text: str) -> str:
    """Return what names runs: a folder of one or of many, an address, or the folder of the run in a file.

    Raises BadParameter as `unpacked`.
    """
    path, folder = Path(text), unpacked(Path(text))
    return text if folder == path else str(folder)


def as_given(text: str) -> str:
    """Return a text for a person, with the names of files that were given in place of the folders with their runs.

    A file below such a folder keeps its path: it can be read there alone.
    """
    for folder, file in GIVEN.items():
        text = file.join(re.split(f"{re.escape(folder)}(?!/)", text))
    return text


def runs_like(incomplete: str, runs: Path = RUNS) -> list[str]:
    """Return the paths of the runs in a folder that begin like `incomplete`, newest first."""
    try:
        folders = [folder for folder in runs.iterdir() if (folder / JOB).is_file()]
    except OSError:
        return []
    return [str(folder) for folder in sorted(folders, reverse=True) if str(folder).startswith(incomplete)]


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return the models that are part of Lockstep, and let the shell look for the file of another one."""
    # The path comes first: bash forgets what came before it.
    return items([incomplete], kind="file") + items(name for name in MODELS if name.startswith(incomplete))


def complete_names(names: Sequence[str]) -> Complete | None:
    """Return what offers these names, and the file of a function if none fits; None if there are no names."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        return items(name for name in names if name.startswith(incomplete)) or items([incomplete], kind="file")

    return complete if names else None


def complete_settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Return the values of a job whose names begin like that."""
    from lockstep.runs.job_file import fields

    return items(f"{name}=" for name in fields() if name.startswith(incomplete))


def complete_list(names: Iterable[str], incomplete: str) -> "list[CompletionItem]":
    """Return what may come next in a list of names with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return items(f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in given)


def items(values: Iterable[str], kind: str = "plain") -> "list[CompletionItem]":
    """Return texts to offer, or with `dir` and `file` the beginning of a path that the shell completes itself."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(value, type=kind) for value in values]
