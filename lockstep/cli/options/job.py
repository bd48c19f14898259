"""The job of a command: a file, flags for the values that most people set, and `--set` for any other."""

import functools
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from lockstep.cli.options.completion import complete_models, complete_names, complete_settings
from lockstep.common.errors import JobError, UsageError
from lockstep.common.job.job import SCHEDULES, Job
from lockstep.common.job.losses import LOSSES
from lockstep.common.optim.rules import RULES
from lockstep.common.protocol.run_options import OF_A_SERVER, RunOptions
from lockstep.packing.cache import is_to_be_packed
from lockstep.packing.files import table_files
from lockstep.packing.options import DIRECT
from lockstep.ps.records.run_folder import JOB
from lockstep.runs.job_data import draft_of, values_of_data, with_data_values
from lockstep.runs.job_file import GROUPS, Field, check_key, fields, read_values, resolve, shipped_values, typed
from lockstep.runs.removed import removed_option
from lockstep.runs.run_dir import has_begun, job_of_file, trust

F = TypeVar("F", bound=Callable[..., Any])

#: The values of a job that have a flag, in the order of the help. All others are set by `--set`.
JOB_FLAGS = (
    *("model", "data", "initial", "seed", "epochs", "steps", "global_batch", "micro_batches"),
    *("optimizer", "lr", "momentum", "weight_decay", "schedule", "loss"),
)

#: The flags of packing that the help of a command that trains has.
USUAL_DIRECT = ("target", "drop", "missing", "size")

#: The names that a value may have, besides that of a user's function.
NAMED: Mapping[str, tuple[str, ...]] = {
    "loss": tuple(LOSSES),
    "optimizer": tuple(RULES),
    "schedule": SCHEDULES,
}

#: The name of a value in the help, if that is not its kind.
METAVARS = {"model": "MODEL", "data": "DATA", "initial": "FILE", "lease_timeout": "SECONDS"}
#: The shipped jobs whose values the help shows next to those of other models.
SHOWN_JOBS = ("lenet", "dense")
#: Flags that only other commands of ours give.
HIDDEN = ("pause",)
KINDS = {str: "NAME", int: "INT", float: "NUMBER"}


class JobCommand(click.Command):
    """A command whose help shows the flags of a job, the usual ones of tables, and the others, in sections."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of flags: click's own place for this."""
        sections: dict[str, list[tuple[str, str]]] = {"Job": [], "Tables and pictures": [], "Options": []}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None and not (parameter.name in DIRECT and parameter.name not in USUAL_DIRECT):
                sections[_section_of(parameter)].append(record)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
                    if heading == "Tables and pictures":
                        formatter.write_text("The other options of `lockstep pack` are taken too.")


class JobOption(click.Option):
    """A flag that says something of the job."""


def _section_of(parameter: click.Parameter) -> str:
    if isinstance(parameter, JobOption):
        return "Job"
    return "Tables and pictures" if parameter.name in DIRECT else "Options"


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


def takes_job(*options: str) -> Callable[[F], F]:
    """Add a job file, and flags of its values and of these options of its run, to a command.

    They arrive as `job`, a `JobRequest`.
    """
    names = (*JOB_FLAGS, *options)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_job(
            *arguments: Any, job: Path | None, job_flag: Path | None, settings: Sequence[tuple[str, Any]], **values: Any
        ) -> Any:
            if job is not None and (meant := flag_of(job)):
                raise UsageError(f"{str(job)!r} is not a job file: expected a .toml, or {meant}")
            if job is not None and job_flag is not None:
                raise UsageError(f"{str(job)!r} and --job {str(job_flag)!r} are two job files: remove one")
            given = {name: value for name in names if (value := values.pop(name)) is not None}
            if twice := next((name for name, _ in settings if name in given), ""):
                raise UsageError(f"{flag_name(twice)} and --set {twice}=... are given: remove one")
            return command(*arguments, job=JobRequest(job or job_flag, {**given, **dict(settings)}), **values)

        path = click.Path(path_type=Path)
        parameters = [
            click.argument("job", metavar="[JOB]", required=False, type=path),
            *(_option(fields()[name]) for name in names),
            click.option(
                "--set",
                "settings",
                multiple=True,
                type=setting,
                metavar="NAME=VALUE",
                cls=JobOption,
                shell_complete=complete_settings,
                help="set any value that a job file may have, as keep_best=true; may be repeated; `lockstep train "
                "--help-job` lists them",
            ),
            click.option("--job", "job_flag", type=path, metavar="FILE", cls=JobOption, help="job file (TOML), as JOB"),
        ]
        # The same function, with more parameters.
        return functools.reduce(lambda made, add: add(made), reversed(parameters), with_job)  # type: ignore[return-value]

    return decorate


def setting(text: str) -> tuple[str, Any]:
    """Return the name and the value that `--set` gives. Raises `JobError` as a job file with them, and BadParameter."""
    name, is_given, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not is_given:
        raise click.BadParameter(f"{text!r}: expected NAME=VALUE, as lr=0.1")
    if name in DIRECT or (name in OF_A_SERVER and name not in HIDDEN):
        of = "`lockstep server`" if name in OF_A_SERVER else "`lockstep pack` and `lockstep train`"
        raise click.BadParameter(f"{name!r} is not a value of a job: expected {flag_name(name)}, an option of {of}")
    if gone := removed_option(flag_name(name)):
        raise click.BadParameter(gone)
    check_key(name)
    return name, typed(fields()[name], value.strip())


def flag_of(path: Path) -> str:
    """Return the flag with which something else than a job file is given; empty if it may be one."""
    if has_begun(path):
        return f"--resume {path} to continue that run, or {path / JOB}"
    if path.suffix == ".zip" and path.is_file():
        return "the job.toml of the run in it, which `unzip` extracts"
    is_data = is_to_be_packed(str(path)) or bool(table_files(path)) or path.suffix == ".npz" or path.is_dir()
    return f"--data {shlex.quote(str(path))} to train on it" if is_data else ""


def flag_name(name: str) -> str:
    """Return the flag of a value."""
    return f"--{name.replace('_', '-')}"


def set_instead(flag: str) -> str:
    """Return what a value of a job without a flag is given with, empty if the flag is of nothing that a job has."""
    name = flag.removeprefix("--").replace("-", "_")
    is_no = name not in fields() and name.startswith("no_")
    field = fields().get(name.removeprefix("no_") if is_no else name)
    if field is None or field.name in OF_A_SERVER:
        return ""
    return f"--set {field.name}={str(not is_no).lower() if field.kind is bool else 'VALUE'}"


def _option(field: Field) -> Callable[[F], F]:
    def convert(text: str) -> Any:
        return typed(field, text)

    convert.__name__ = "text" if field.kind is str else field.kind.__name__
    is_flag = field.kind is bool
    complete = complete_models if field.name == "model" else complete_names(NAMED.get(field.name, field.choices))
    return click.option(
        flag_name(field.name),
        field.name,
        type=bool if is_flag else convert,
        is_flag=is_flag,
        default=None,
        metavar=METAVARS.get(field.name, KINDS.get(field.kind)),
        help=_help(field),
        shell_complete=complete,
        hidden=field.name in HIDDEN,
        cls=click.Option if field.name in RunOptions.__struct_fields__ else JobOption,
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
        return "" if field.name in OF_A_SERVER else str(value).lower()
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def job_lines() -> Iterator[str]:
    """Yield a line for each value of a job: its name, kind, default and description."""
    for group, names in GROUPS.items():
        yield f"{group}:"
        for name in names:
            field = fields()[name]
            description, _, without = field.description.partition("  [")
            default = re.split("[;,] ", without.rstrip("]"))[0] or _shown(field, field.default) or "none"
            choices = f" ({', '.join(field.choices)})" if field.choices else ""
            yield f"  {name:<24}  {field.kind_name():<13}  {default:<12}  {description}{choices}"
        yield ""


def _show_job(context: click.Context, option: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        # A line that does not fit is cut in a terminal: the reference has all of it.
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in job_lines():
            click.echo(line if width is None or len(line) <= width else f"{line[: width - 1]}…")
        context.exit()


HELP_JOB_OPTION = click.option(
    "--help-job",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_job,
    cls=JobOption,
    help="list all values of a job, one per line, and exit",
)


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
