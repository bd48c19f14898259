"""The jobs of simulated runs have all that a step depends on, which a team is to get right without the server."""

from collections.abc import Callable
from typing import get_args, get_type_hints

import pytest

from lockstep.common.job.job import SCHEDULES, Job
from lockstep.common.optim.rules import RULES
from tests.simulation.simulator.jobs import TEAM, data, jobs
from tests.simulation.simulator.scenario import scenario_of

#: The jobs of teams that make most steps by themselves.
BY_TEAMS = [job for name, job in jobs().items() if name.startswith(TEAM)]

HAVE: dict[str, Callable[[Job], object]] = {
    "clipping by norm": lambda job: job.clip_norm,
    "clipping by value": lambda job: job.clip_value,
    "class weights": lambda job: job.class_weights,
    "an average of the weights": lambda job: job.ema_decay,
    "local steps": lambda job: job.local_steps > 1,
    "augmentation": lambda job: job.max_shift,
    "a validation set": lambda job: job.validation_split,
    "statistics of BatchNorm": lambda job: "BatchNorm1d" in str(job.model),
    "dropout": lambda job: "Dropout" in str(job.model),
    "several targets": lambda job: data(job.data).train.targets > 1,
    "an epoch that ends with a short step": lambda job: len(data(job.data).train) % job.global_batch,
    "micro-batches that are not a power of two": lambda job: job.micro_batches & (job.micro_batches - 1),
    "plain descent": lambda job: job.optimizer == "sgd" and not job.momentum,
    "Nesterov's momentum": lambda job: job.nesterov,
}


@pytest.mark.parametrize("named", HAVE)
def test_a_team_has_a_job_with_it(named: str) -> None:
    assert any(map(HAVE[named], BY_TEAMS))


def test_teams_have_every_rule_schedule_and_type_in_which_vectors_travel() -> None:
    assert {job.optimizer for job in BY_TEAMS} == set(RULES)
    assert {job.schedule for job in BY_TEAMS} == set(SCHEDULES)
    kinds = get_type_hints(Job)
    assert {job.wire for job in BY_TEAMS} == set(get_args(kinds["wire"]))
    assert {job.wire_weights for job in BY_TEAMS} == set(get_args(kinds["wire_weights"]))


def test_every_job_is_drawn() -> None:
    assert {scenario_of(seed).job for seed in range(500)} == set(jobs())
