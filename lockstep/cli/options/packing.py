"""Flags for how a source becomes a dataset, of each command that takes one; a bar while it is read."""

import csv
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lockstep.cli.options.job import JobRequest
from lockstep.cli.options.types import SEED, share_below_one
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.notice import notice
from lockstep.packing.cache import DatasetCache
from lockstep.packing.options import DIRECT, Missing, PackOptions, is_delimiter, known_encoding
from lockstep.ps.records.run_folder import RECEIPT, read_receipt
from lockstep.results.display import print_plainly
from lockstep.runs.run_dir import demand_unused, has_begun, recorded_job, trust_own


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on standard error for as long as the context lasts; yield a function of the share, 0 to 1."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(one_line(what, 60), total=1.0)
        yield lambda share: bar.update(task, completed=share)


F = TypeVar("F", bound=Callable[..., Any])


def size(text: str) -> tuple[int, int]:
    """Return (height, width), given as `32x48` or `32`. Raises BadParameter."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text.strip().lower())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a valid size: expected pixels as HEIGHTxWIDTH, like 32x32")
    return int(found[1]), int(found[2] or found[1])


def missing(text: str) -> Missing:
    """Return what a missing value becomes. Raises BadParameter."""
    if text in ("drop", "mean"):
        return text  # type: ignore[return-value]  # one of the two that were just compared
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise click.BadParameter(f"{text!r} is not a valid rule: expected drop, mean or a number")
    return number


def encoding(text: str) -> str:
    """Return the name of an encoding. Raises BadParameter."""
    try:
        known_encoding(text)
    except LookupError:
        raise click.BadParameter(f"{text!r} is not a known encoding: expected one like cp1252 or utf-16") from None
    return text


def delimiter(text: str) -> str:
    r"""Return what separates values, of one character; a tab may be given as `\t` or `tab`. Raises BadParameter."""
    text = {r"\t": "\t", "tab": "\t"}.get(text, text)
    if not is_delimiter(text):
        raise click.BadParameter(f"{text!r} is not a valid delimiter: expected one character, like ';' or tab")
    return text


def comma_separated(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the values of a flag that may be repeated, with commas between several; one with commas has quotes."""
    rows = csv.reader(texts, skipinitialspace=True)
    return tuple(filter(None, (each.strip() for row in rows for each in row)))


_OPTIONS = (
    click.option(
        "--target", multiple=True, metavar="COLUMN", help="column to predict; may be repeated for a regression"
    ),
    click.option("--columns", multiple=True, metavar="A,B,C", help="columns to learn from  [all others]"),
    click.option("--drop", multiple=True, metavar="A,B,C", help="columns not to learn from"),
    click.option("--task", type=click.Choice(["classes", "numbers"]), help="kind of target  [by its values]"),
    click.option(
        "--categories", multiple=True, metavar="A,B,C", help="columns whose values are names, also if they are digits"
    ),
    click.option(
        "--one-hot",
        multiple=True,
        metavar="A,B,C",
        help="columns of texts that become an input per text, '' for none  [those of 3 to 100 texts]",
    ),
    click.option("--numbers", multiple=True, metavar="A,B,C", help="columns of numbers, also if they are like 007"),
    click.option(
        "--missing",
        type=missing,
        metavar="RULE",
        help="for missing values: drop (the row), mean, or a number to use  [error]",
    ),
    click.option(
        "--na",
        multiple=True,
        metavar="VALUES",
        help="values that stand for a missing one, such as '-,?,-999'; may be repeated  [empty, NA, NaN, null …]",
    ),
    click.option(
        "--standardize/--no-standardize", default=True, help="scale each column to mean 0 and deviation 1  [yes]"
    ),
    click.option(
        "--delimiter",
        type=delimiter,
        metavar="CHAR",
        help="what separates the values of a CSV file  [as its first rows]",
    ),
    click.option("--encoding", type=encoding, metavar="NAME", help="encoding of a CSV file, such as cp1252  [UTF-8]"),
    click.option(
        "--decimal", type=click.Choice([".", ","]), default=".", help="what begins the fraction of a number  [.]"
    ),
    click.option(
        "--size", type=size, metavar="HxW", help="scale pictures to this size  [their size, if all have the same]"
    ),
    click.option("--grayscale", is_flag=True, help="read pictures in shades of grey"),
    click.option(
        "--test-split",
        type=share_below_one,
        metavar="SHARE",
        default="20%",
        help="share of the rows or pictures for the test set, if SOURCE has none  [20%]",
    ),
    click.option(
        "--dtype", type=click.Choice(["uint8", "float32"]), help="type of the stored samples  [by the source]"
    ),
    click.option(
        "--test", type=click.Path(path_type=Path), metavar="SOURCE", help="table or folder of pictures for the test set"
    ),
    click.option(
        "--labels", type=click.Path(path_type=Path), metavar="FILE", help="labels of the samples, if SOURCE is an .npy"
    ),
    click.option(
        "--seed", type=SEED, metavar="INT", default=0, help="seed that decides which samples are for testing  [0]"
    ),
)


#: How another table is read than that of the training.
_READING = (
    click.option("--delimiter", type=delimiter, metavar="CHAR", help="what separates values  [as in training]"),
    click.option("--encoding", type=encoding, metavar="NAME", help="encoding of CSV files  [as in training]"),
    click.option(
        "--decimal", type=click.Choice([".", ","]), help="what begins the fraction of a number  [as in training]"
    ),
    click.option(
        "--na",
        multiple=True,
        metavar="VALUES",
        callback=lambda context, parameter, texts: comma_separated(texts),
        help="values that stand for a missing one, besides those of the training",
    ),
)


def _adding(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


#: Add the flags of packing to a command, those of them that `train` has, and those of a table to predict or to test.
PACK_OPTIONS, DIRECT_OPTIONS, READING_OPTIONS = _adding(_OPTIONS), _adding(_OPTIONS[: len(DIRECT)]), _adding(_READING)


def direct_options(flags: dict[str, Any]) -> PackOptions:
    """Take what the flags say about packing out of the other flags."""
    return options_of({name: flags.pop(name) for name in DIRECT})


def cache_shown_on(console: Console) -> DatasetCache:
    """Return the cache of datasets, which shows on a console what it packs."""
    return DatasetCache(progress=progress_of, say=lambda text: print_plainly(console, text))


def job_in(folder: Path | None, request: JobRequest, console: Console) -> tuple[Job, RunOptions]:
    """Return the job and the options of a command that begins a run in a folder, or resumes the run that has begun
    there.

    `JobError` if that is a run of another job, `UsageError` if a process writes to it. Raises as `resolve`.
    """
    job, options = request.resolve()
    if folder is None or not has_begun(folder):
        return job, options
    demand_unused(folder)
    trust_own(job)  # the command names its files
    given = {**msgspec.to_builtins(job), **msgspec.to_builtins(options)}
    if job.steps is not None:
        del given["epochs"]  # which the steps replace
    return cache_shown_on(console).resumed(folder, given)


def with_packed_data(job: JobRequest, packing: PackOptions, console: Console) -> JobRequest:
    """Return the job with a dataset made of its data if that is a table or a folder of pictures."""
    data = cache_shown_on(console).packed(job.data(), packing, job.values().get("loss"))
    return msgspec.structs.replace(job, given={**job.given, "data": data})


def training_data_of(run: Path, place: str | None) -> str | None:
    """Return where the training data of a run can be loaded from; show on standard error how it is packed."""
    return cache_shown_on(Console(highlight=False, stderr=True)).training_data(run, place)


def say_if_changed(run: Path, given: str | None) -> None:
    """Print to standard error if the source of a run's training data is not what the run was trained with any more.

    Nothing is printed if other data, or another place of it, is given.
    """
    kept = read_receipt(run).data if given is None and (run / RECEIPT).is_file() else None
    if kept is None or not DatasetCache().has_changed(Path(recorded_job(run).data), kept.origin):
        return
    source = shlex.quote(kept.origin.source)
    text = f"{source} has changed since the run was trained with it: this is about its data as it was then"
    click.echo(
        notice(f"{text}; `lockstep evaluate {shlex.quote(str(run))} --data {source}` takes it as it is"), err=True
    )


def options_of(given: Mapping[str, Any]) -> PackOptions:
    """Return what the flags say; names may be separated by commas, and have quotes around them if they contain one."""
    lists = {name: comma_separated(given[name]) for name in ("columns", "drop", "categories", "numbers", "na")}
    one_hot = comma_separated(given["one_hot"]) if given["one_hot"] else None
    return PackOptions(**{**given, **lists, "one_hot": one_hot, "target": tuple(map(_one_name, given["target"]))})


def _one_name(text: str) -> str:
    """Return the name that a flag takes alone: commas in it need no quotes, and may have some, as in a list."""
    several = comma_separated([text])
    return several[0] if len(several) == 1 else text.strip()
