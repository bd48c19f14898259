"""A run that stops at any step and goes on with other numbers of servers and workers is the run that never stopped."""

from functools import cache
from pathlib import Path

import pytest

from lockstep.common import nn
from lockstep.common.nn.description import describe
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.checkpoint.resuming import coordinator_of
from lockstep.ps.records.recorder import Setting
from lockstep.ps.records.run_folder import RESULT, read_result
from lockstep.ps.server.server import Server
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.launch_config import Launch
from lockstep.runs.session import Destination, open_session
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation
from tests.simulation.small import digits, job_of

#: Six steps, three an epoch, of a vector that can be cut into three slices, with slots of the optimizer and clipping.
STEPS = 6
JOB = job_of(
    model=dict(describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 14), nn.ReLU(), nn.Linear(14, 10)))),
    steps=STEPS,
    global_batch=18,
    micro_batches=3,
    optimizer="adamw",
    lr=0.01,
    clip_norm=0.5,
)

SETTING = Setting(servers=1, transport="memory", started=0.0)


def destination_in(folder: Path, *, is_resumed: bool) -> Destination:
    launch = Launch(checkpoint_keep=2, checkpoint_every_steps=1)
    return Destination(folder=folder, launch=launch, is_resumed=is_resumed)


def part(folder: Path, workers: int, servers: int, *, is_resumed: bool, stop_at: int | None = None) -> None:
    """Carry out a part of a run, up to a number of steps or to its end."""
    admission = AdmissionPolicy(min_workers=workers, servers=servers)
    simulation = Simulation(JOB, seed=servers + 10 * workers, admission=admission)
    opening = open_run("run", JOB, digits(), admission)
    session = open_session(
        opening, SETTING, destination_in(folder, is_resumed=is_resumed), simulation.clock, simulation.said.append
    )
    simulation.server = Server(
        coordinator_of(opening.info, session.start),
        opening,
        session.recorder,
        simulation.server.port,
        simulation.clock,
        simulation.said.append,
        checkpointer=session.checkpointer,
    )
    for _ in range(workers):
        simulation.add_worker()
    simulation.run(until=lambda: stop_at is not None and stop_at in session.checkpointer.folder.steps())
    session.recorder.close()


@cache
def calm(folder: Path) -> str:
    """Return the digest of what one process comes to."""
    opening = open_run("run", JOB, digits(), AdmissionPolicy())
    (folder / "run").mkdir()
    session = open_session(
        opening, SETTING, destination_in(folder / "run", is_resumed=False), ManualClock(), lambda text: None
    )
    run = SerialRun(opening, session.recorder, ManualClock(), lambda status: None, session.start, session.checkpointer)
    return run.train().weights_sha256


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    return calm(tmp_path_factory.mktemp("calm"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.mark.parametrize("stop_at", range(1, STEPS))
@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 1), (1, 2)), ((1, 2), (3, 1)), ((2, 3), (1, 2))],
    ids=lambda who: "{} workers {} servers".format(*who),
)
def test_stopping_at_any_step(
    folder: Path, expected: str, stop_at: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    part(folder, *before, is_resumed=False, stop_at=stop_at)
    assert not (folder / RESULT).exists()
    part(folder, *after, is_resumed=True)
    assert read_result(folder).weights_sha256 == expected


def test_stopping_at_every_step_with_others_each_time(folder: Path, expected: str) -> None:
    for stop_at in range(1, STEPS):
        part(folder, 1 + stop_at % 3, 1 + stop_at % 3, is_resumed=stop_at > 1, stop_at=stop_at)
    part(folder, 2, 1, is_resumed=True)
    assert read_result(folder).weights_sha256 == expected
