"""How a command takes a job: usual values by flags, any by `--set`, and a listing of them all."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from lockstep.cli.options.job import JobCommand, JobRequest, job_lines, takes_job
from lockstep.cli.training.train import train
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import KEPT_OPTIONS
from lockstep.runs.job_file import GROUPS, fields, resolve

#: Flags that the issue fixes by name.
FIXED = (
    *("--model", "--data", "--workers", "--servers", "--global-batch", "--micro-batches", "--epochs", "--steps"),
    *("--optimizer", "--lr", "--momentum", "--weight-decay", "--schedule", "--seed", "--transport", "--run-dir"),
    "--job",
)


def test_the_groups_hold_every_value_once() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted((*Job.__struct_fields__, *KEPT_OPTIONS))


def test_train_has_the_flags() -> None:
    assert set(FIXED) <= {option for parameter in train.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ("", {}),
        ("--lr 0.5 --epochs 3 --schedule one-cycle", {"lr": 0.5, "epochs": 3, "schedule": "one-cycle"}),
        ("--set nesterov=true --set normalize=no", {"nesterov": True, "normalize": False}),
        ("--set hidden=64,32 --set metrics=f1", {"hidden": [64, 32], "metrics": ["f1"]}),
        ("--set hidden=[64,32] --set class_weights=1,2.5", {"hidden": [64, 32], "class_weights": [1.0, 2.5]}),
        ("--set audit=1% --set label-smoothing=0.1", {"audit": 0.01, "label_smoothing": 0.1}),
        ("--set lr=1 --set lr=2e-3", {"lr": 2e-3}),
        ("--set metrics=f1,own.py:a=b", {"metrics": ["f1", "own.py:a=b"]}),
    ],
)
def test_what_is_given_arrives_by_the_fields_name(arguments: str, values: dict[str, Any]) -> None:
    arrived: list[JobRequest] = []

    @click.command(cls=JobCommand)
    @takes_job("workers")
    def command(job: JobRequest) -> None:
        arrived.append(job)

    assert CliRunner().invoke(command, arguments).exit_code == 0
    assert arrived == [JobRequest(None, values)]
    resolve({}, values | ({"model": "dense"} if "hidden" in values else {}))


def test_the_listing_has_each_value_of_a_job_on_a_line() -> None:
    lines = {words[0]: words for line in job_lines() if line.startswith("  ") and (words := line.split())}
    assert sorted(lines) == sorted((*Job.__struct_fields__, *KEPT_OPTIONS))
    assert " ".join(lines["lr"]) == "lr number 0.05 learning rate; with a schedule, its peak"
    assert lines["keep_best"][1:5] == ["true", "or", "false", "false"]
    assert CliRunner().invoke(train, ["--help-job"]).output.splitlines() == list(job_lines())
    assert all(field.kind_name() for field in fields().values())
