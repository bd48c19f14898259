"""What `lockstep status` prints of a run."""

from lockstep.cli.machines.status import status_lines
from tests.lockstep.statuses import status, worker


def test_workers_and_teams_are_counted() -> None:
    lines = status_lines(status(workers=[worker(0, processes=4), worker(1, processes=2)]))
    assert lines[-1] == "6 workers in 2 teams"
    assert not [line for line in status_lines(status(workers=[])) if "team" in line]
