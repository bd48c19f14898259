"""What `lockstep status` prints of a run."""

import msgspec

from lockstep.cli.machines.status import status_lines
from lockstep.common.protocol.messages import ShardStatus
from tests.lockstep.statuses import EPOCH, status, worker


def test_workers_and_teams_are_counted() -> None:
    lines = status_lines(status(workers=[worker(0, processes=4), worker(1, processes=2)]))
    assert lines[-1] == "6 workers in 2 teams"
    assert not [line for line in status_lines(status(workers=[])) if "team" in line]


def test_of_many_epochs_some_are_shown() -> None:
    history = [msgspec.structs.replace(EPOCH, epoch=epoch) for epoch in range(1, 183)]
    lines = [line for line in status_lines(status(history=history, epochs=300)) if "test" in line]
    assert [line.split()[1] for line in lines] == [f"{epoch}/300" for epoch in (1, *range(10, 181, 10), 182)]


def test_the_host_of_each_slice_is_shown() -> None:
    shards = [ShardStatus(host="b", address="tcp://b:7"), ShardStatus(host="c", address="tcp://c:8")]
    lines = [line for line in status_lines(status(shards=shards)) if "slice" in line]
    assert lines == [
        "slice 2 of 3 of the weights is at tcp://b:7 (host b)",
        "slice 3 of 3 of the weights is at tcp://c:8 (host c)",
    ]
