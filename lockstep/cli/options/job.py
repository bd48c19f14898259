"""One command-line flag for each value of a job and each option of a run, made from their fields, shown in groups."""

import functools
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from lockstep.cli.options.completion import complete_models, complete_names
from lockstep.cli.options.types import list_of, share
from lockstep.common.errors import JobError, UsageError
from lockstep.common.job.job import SCHEDULES, Job
from lockstep.common.job.losses import LOSSES
from lockstep.common.optim.rules import RULES
from lockstep.common.protocol.run_options import KEPT_OPTIONS, OF_A_SERVER, RunOptions
from lockstep.packing.cache import is_to_be_packed
from lockstep.packing.files import table_files
from lockstep.packing.options import DIRECT
from lockstep.runs.job_data import draft_of, values_of_data, with_data_values
from lockstep.runs.job_file import GROUPS, Field, fields, read_values, resolve, shipped_values
from lockstep.runs.run_dir import JOB, has_begun, job_of_file, trust

F = TypeVar("F", bound=Callable[..., Any])

#: Flags of `train` that are not values of a job: how a table, or a folder of pictures, becomes its data.
PACKING_GROUP = {"Tables and folders of pictures": DIRECT}

#: The names that a value may have, besides that of a user's function.
NAMED: Mapping[str, tuple[str, ...]] = {
    "loss": tuple(LOSSES),
    "optimizer": tuple(RULES),
    "schedule": SCHEDULES,
}

#: The name of a value in the help, if that is not its kind.
METAVARS = {
    "model": "MODEL",
    "data": "DATA",
    "initial": "FILE",
    "checkpoint_every_seconds": "SECONDS",
    "takeover_seconds": "SECONDS",
    "lease_timeout": "SECONDS",
}
#: The shipped jobs whose values the help shows next to those of other models.
SHOWN_JOBS = ("lenet", "dense")
#: Flags that only other commands of ours give.
HIDDEN = ("pause",)
KINDS = {str: "NAME", int: "INT", float: "NUMBER"}

JOB_FIELDS = Job.__struct_fields__
OPTION_FIELDS = KEPT_OPTIONS


class GroupedCommand(click.Command):
    """A command whose help shows the flags of a job in groups."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of flags: click's own place for this."""
        records = {
            parameter.name: record
            for parameter in self.get_params(context)
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None
        }
        groups = {**PACKING_GROUP, **GROUPS}
        grouped = {name for names in groups.values() for name in names}
        sections = {"Options": tuple(name for name in records if name not in grouped), **groups}
        for heading, names in sections.items():
            rows = [records[name] for name in names if name in records]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class JobRequest(msgspec.Struct, frozen=True):
    """The job file that a command was given, if any, and the flags that override it, by their field's name."""

    file: Path | None
    given: Mapping[str, Any]

    def in_file(self) -> dict[str, Any]:
        """Return the values of the job file; `JobError` if it has options of packing, which are not a part of a job."""
        values = {} if self.file is None else read_values(self.file)
        if packing := [name for name in values if name in DIRECT]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in packing)
            raise JobError(
                f"{self.file}: {packing[0]!r} is not a value of a job, but says how data is packed: remove "
                f"{', '.join(packing)}, and give {flags} to `lockstep pack DATA FOLDER`, whose FOLDER is the job's "
                "data, or to `lockstep train`"
            )
        return values

    def data(self) -> str:
        """Return the job's data; raises as `resolve` for values that are wrong whatever the data is."""
        job, _ = resolve(draft_of(self.in_file(), self.values()), draft_of(self.given, self.values()))
        return job.data

    def values(self) -> dict[str, Any]:
        """Return the values that the job file and the flags give."""
        return {**self.in_file(), **self.given}

    def resolve(self) -> tuple[Job, RunOptions]:
        """Return the job, with what follows from its data, and how it is carried out.

        `ModelError` if its file is of a run's folder, and names code that is not trusted here.
        """
        given = {**self.given, **values_of_data(self.data(), self.values())}
        job, options = resolve(self.in_file(), given)
        job = job if self.file is None else job_of_file(self.file, job, given)
        return with_data_values(job, self.values()), options


def takes_job(*names: str) -> Callable[[F], F]:
    """Add a job file and flags of these values to a command; they arrive as `job`, a `JobRequest`."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_job(*arguments: Any, job: Path | None, job_flag: Path | None, **values: Any) -> Any:
            if job is not None and (meant := flag_of(job)):
                raise UsageError(f"{str(job)!r} is not a job file: expected a .toml, or {meant}")
            if job is not None and job_flag is not None:
                raise UsageError(f"{str(job)!r} and --job {str(job_flag)!r} are two job files: remove one")
            flags = {name: values.pop(name) for name in names}
            given = {name: value for name, value in flags.items() if value is not None}
            return command(*arguments, job=JobRequest(job or job_flag, given), **values)

        path = click.Path(path_type=Path)
        help_text = "job file (TOML), as JOB  [the shipped job of the model]"
        parameters = [
            click.argument("job", metavar="[JOB]", required=False, type=path),
            click.option("--job", "job_flag", type=path, metavar="FILE", help=help_text),
            *(_option(fields()[name]) for name in names),
        ]
        # The same function, with more parameters.
        return functools.reduce(lambda made, add: add(made), reversed(parameters), with_job)  # type: ignore[return-value]

    return decorate


def flag_of(path: Path) -> str:
    """Return the flag with which something else than a job file is given; empty if it may be one."""
    if has_begun(path):
        return f"--resume {path} to continue that run, or {path / JOB}"
    if path.suffix == ".zip" and path.is_file():
        return "the job.toml of the run in it, which `unzip` extracts"
    is_data = is_to_be_packed(str(path)) or bool(table_files(path)) or path.suffix == ".npz" or path.is_dir()
    return f"--data {shlex.quote(str(path))} to train on it" if is_data else ""


def _option(field: Field) -> Callable[[F], F]:
    flag = "--" + field.name.replace("_", "-")
    if field.kind is bool and field.name not in OF_A_SERVER:  # no file has those, so there is nothing to override
        flag = f"{flag}/--no-{flag[2:]}"
    kind: Any = click.Choice(field.choices) if field.choices else share if field.is_share else field.kind
    if field.is_list:
        kind = list_of(field.kind)
    # A choice is shown in the text: in the column of flags it would push all texts to a line of their own.
    metavar = "SHARE" if field.is_share else METAVARS.get(field.name, KINDS.get(field.kind))
    if field.is_list:
        metavar = f"{metavar},..."
    complete = complete_models if field.name == "model" else complete_names(NAMED.get(field.name, ()))
    return click.option(
        flag,
        field.name,
        type=kind,
        is_flag=field.kind is bool,
        default=None,
        metavar=metavar,
        help=_help(field),
        shell_complete=complete,
        hidden=field.name in HIDDEN,
    )


def _help(field: Field) -> str:
    """Return the description, the choices, and in brackets what holds without the flag, also in shipped jobs."""
    description, _, without = field.description.partition("  [")
    choices = f" ({', '.join(field.choices)})" if field.choices else ""
    default = _shown(field, field.default)
    jobs = ((model, _shown(field, shipped_values(model).get(field.name, field.default))) for model in SHOWN_JOBS)
    shown = without.rstrip("]") or "; ".join(
        filter(None, (default, *(f"{model} {value}" for model, value in jobs if value != default)))
    )
    return f"{description}{choices}" + (f"  [{shown}]" if shown else "")


def _shown(field: Field, value: Any) -> str:
    """Return a default as the help shows it, empty if there is nothing to show."""
    if isinstance(value, bool):
        return "" if field.name in OF_A_SERVER else "yes" if value else "no"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def takes_trust(command: F) -> F:
    """Add `--trust-model` to a command: before it runs, the models of the runs that it is given become trusted."""

    @functools.wraps(command)
    def with_trust(*arguments: Any, trust_model: bool, **values: Any) -> Any:
        for folder in _runs_in(values) if trust_model else ():
            trust(folder)
        return command(*arguments, **values)

    return click.option(
        "--trust-model",
        is_flag=True,
        help="run the code of the run's model from now on, although you have not trained it on this machine",
    )(with_trust)  # type: ignore[return-value]  # the same function, with one more parameter


def _runs_in(values: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folders of runs that a command was given, by whatever parameter."""
    job = values.get("job")
    if isinstance(job, JobRequest) and job.file is not None:
        yield job.file.parent
    yield from values.get("runs", ())
    yield from (values[name] for name in ("run", "resume", "run_dir") if values.get(name) is not None)
    for watched in map(Path, values.get("whats", ())):
        yield from (watched, *(path.parent for path in sorted(watched.glob(f"*/{JOB}"))))
