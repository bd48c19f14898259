"""One command-line flag for each value of a job and of its launch, made from their fields and shown in groups."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from common.job.job import Job
from lockstep.cli.options.types import share
from lockstep.runs.job_file import Field, fields, shipped_values
from lockstep.runs.launch_config import Launch

F = TypeVar("F", bound=Callable[..., Any])

#: When checkpoints are written, and how many are kept.
CHECKPOINT_FIELDS = ("checkpoint_keep", "checkpoint_every_steps", "checkpoint_every_seconds")

#: How the flags stand together in the help; flags in no group come first.
GROUPS: dict[str, tuple[str, ...]] = {
    "Model and data": ("model", "data", "initial", "normalize", "max_shift", "seed", "numerics"),
    "Length and micro-batches": ("epochs", "steps", "global_batch", "micro_batches"),
    "Fewer bytes": ("wire", "wire_weights"),
    "Optimizer": (
        *("optimizer", "lr", "momentum", "nesterov", "weight_decay", "beta1", "beta2", "alpha", "eps"),
        *("clip_norm", "loss", "label_smoothing"),
    ),
    "Learning rate schedule": ("schedule", "warmup_steps", "decay_every", "decay_factor"),
    "Early stopping and the best epoch": ("validation_split", "monitor", "patience", "min_delta", "keep_best"),
    "Processes": ("workers", "min_workers", "servers", "transport", "max_restarts", "audit", "ship_data"),
    "Checkpoints": CHECKPOINT_FIELDS,
}

#: Flags of `train` that are not values of a job: how a table, or a folder of pictures, becomes its data.
PACKING_GROUP = {
    "Data that is packed on the way": (
        *("target", "columns", "task", "missing", "standardize", "size", "grayscale", "test_split"),
    )
}

#: Values that may be given in per cent.
SHARES = ("audit",)

JOB_FIELDS = Job.__struct_fields__
LAUNCH_FIELDS = Launch.__struct_fields__


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


def job_options(names: Iterable[str]) -> Callable[[F], F]:
    """Add the flags of these values of `Job` and `Launch`; those that are given arrive by their field's name."""

    def decorate(command: F) -> F:
        for name in reversed(tuple(names)):
            command = _option(fields()[name])(command)
        return command

    return decorate


def _option(field: Field) -> Callable[[F], F]:
    flag = "--" + field.name.replace("_", "-")
    if field.kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    kind = click.Choice(field.choices) if field.choices else share if field.name in SHARES else field.kind
    # A choice stands in the text: in the column of flags it would push all texts to a line of their own.
    metavar = field.kind.__name__.upper() if field.kind is not bool else None
    return click.option(flag, field.name, type=kind, default=None, metavar=metavar, help=_help(field))


def _help(field: Field) -> str:
    choices = f" ({', '.join(field.choices)})" if field.choices else ""
    default = shipped_values("lenet").get(field.name, field.default)
    if isinstance(default, bool):
        default = "yes" if default else "no"
    shown = f"  [{default}]" if default is not None and field.name != "workers" else ""
    return f"{field.description}{choices}{shown}"
