"""Flags: one for every value of a job, in a group of the help, arriving as what was typed."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from lockstep.cli.options.job import JOB_FIELDS, OPTION_FIELDS, GroupedCommand, JobRequest, takes_job
from lockstep.cli.training.train import train
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import KEPT_OPTIONS
from lockstep.runs.job_file import GROUPS

#: Flags that the issue fixes by name.
FIXED = (
    *("--model", "--data", "--workers", "--servers", "--global-batch", "--micro-batches", "--epochs", "--steps"),
    *("--optimizer", "--lr", "--momentum", "--weight-decay", "--schedule", "--seed", "--transport", "--run-dir"),
    "--job",
)


def test_the_groups_hold_every_value_once() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted((*Job.__struct_fields__, *KEPT_OPTIONS))


@pytest.mark.parametrize("flag", FIXED)
def test_train_has_the_flag(flag: str) -> None:
    assert flag in {option for parameter in train.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ([], {}),
        (["--lr", "0.5", "--epochs", "3"], {"lr": 0.5, "epochs": 3}),
        (["--nesterov", "--no-normalize"], {"nesterov": True, "normalize": False}),
        (["--schedule", "one-cycle"], {"schedule": "one-cycle"}),
    ],
)
def test_what_is_given_arrives_by_the_fields_name(arguments: list[str], values: dict[str, Any]) -> None:
    arrived: list[JobRequest] = []

    @click.command(cls=GroupedCommand)
    @takes_job(*JOB_FIELDS, *OPTION_FIELDS)
    def command(job: JobRequest) -> None:
        arrived.append(job)

    assert CliRunner().invoke(command, arguments).exit_code == 0
    assert arrived == [JobRequest(None, values)]
    assert {*JOB_FIELDS, *OPTION_FIELDS} < {parameter.name for parameter in command.params}
