"""What a run does to itself: what can be asked for, when it is due, and that everybody is let go again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.common.errors import UsageError
from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.launch.chaos import (
    DISTURBANCE_S,
    Chaos,
    ChaosAction,
    PlannedAction,
    check_chaos,
    parse_chaos,
    planned_actions,
)
from lockstep.launch.supervision.channel import ReportReader
from lockstep.launch.supervision.child import Child, ProcessLog
from lockstep.launch.supervision.restarts import Role
from tests.lockstep.launch.processes import Pretended
from tests.lockstep.statuses import status


def test_what_is_asked_for_is_counted() -> None:
    wanted = parse_chaos("kill-worker=5 stop-worker=2, kill-worker=1")
    assert wanted == {ChaosAction.KILL_WORKER: 6, ChaosAction.STOP_WORKER: 2}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "is empty"),
        ("kill-worker", "'kill-worker': expected NAME=COUNT"),
        ("kill-worker=0", "with a count of 1 to 1000"),
        ("kill-worker=1001", "with a count of 1 to 1000"),
        ("kill-wroker=1", "unknown fault 'kill-wroker' (did you mean 'kill-worker'?)"),
    ],
)
def test_what_cannot_be_done_is_named(text: str, where: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_chaos(text)
    assert where in str(error.value)


def test_a_run_without_processes_has_none_to_do_it_to() -> None:
    with pytest.raises(UsageError, match="--workers 0 has none"):
        check_chaos({ChaosAction.STOP_WORKER: 1}, RunOptions(workers=0))


def test_moments_depend_on_the_seed_alone() -> None:
    wanted = {ChaosAction.KILL_WORKER: 5, ChaosAction.SLOW_WORKER: 3}
    made = planned_actions(wanted, 7)
    assert made == planned_actions(wanted, 7) != planned_actions(wanted, 8)
    assert [it.moment for it in made] == sorted(it.moment for it in made)
    assert all(0.05 <= it.moment < 0.9 for it in made)
    assert [it.action for it in made].count(ChaosAction.KILL_WORKER) == 5


#: Processes that do nothing.
Sleepers = dict[Role, list[Child]]


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[Sleepers]:
    children = []
    for name in ("the server", "a worker", "a worker"):
        (stdin, lifeline), (reports, stdout) = os.pipe(), os.pipe()
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=stdin, stdout=stdout)
        os.close(stdin)
        os.close(stdout)
        children.append(Child(name, ProcessLog(tmp_path / "log"), process, ReportReader(reports), lifeline))
    yield {Role.SERVER: children[:1], Role.WORKER: children[1:], Role.SHARD: []}
    for child in children:
        child.process.kill()
        child.end(5.0)


def state_of(child: Child) -> str:
    """Return what the system tells of a process: S or R where it may run, T where it stands still."""
    # The signal is there when it was sent, and the process hears of it a little later.
    number = child.process.pid
    for _ in range(10_000):
        state = Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0]
        if state in "TZ":
            return state
        os.sched_yield()
    return state


def at(step: int) -> Status:
    return status(step=step, steps=100)


def chaos_with(*deeds: ChaosAction, moment: float = 0.1) -> tuple[Chaos, ManualClock, list[str]]:
    clock, said = ManualClock(), list[str]()
    ahead = [PlannedAction(moment=moment, action=action, target=1) for action in deeds]
    return Chaos(ahead, clock, said.append), clock, said


def test_a_worker_is_killed_when_its_moment_has_come(sleepers: Sleepers) -> None:
    chaos, _, said = chaos_with(ChaosAction.KILL_WORKER)
    chaos.on_status(None, sleepers.__getitem__)
    chaos.on_status(at(10), sleepers.__getitem__)
    assert said == []
    chaos.on_status(at(11), sleepers.__getitem__)
    assert said == [f"chaos: killed a worker (pid {sleepers[Role.WORKER][1].process.pid}) at step 11"]
    assert sleepers[Role.WORKER][1].wait(60.0)
    assert not sleepers[Role.WORKER][0].has_ended()


def test_one_that_is_stopped_goes_on_after_some_steps(sleepers: Sleepers) -> None:
    chaos, _, said = chaos_with(ChaosAction.STOP_SERVER)
    chaos.on_status(at(20), sleepers.__getitem__)
    assert said == [f"chaos: stopped the server (pid {sleepers[Role.SERVER][0].process.pid}) at step 20, until step 25"]
    assert state_of(sleepers[Role.SERVER][0]) == "T"
    chaos.on_status(at(24), sleepers.__getitem__)
    assert len(chaos.disturbances) == 1
    chaos.on_status(at(25), sleepers.__getitem__)
    assert not chaos.disturbances


def test_one_that_is_stopped_goes_on_after_some_time_without_steps(sleepers: Sleepers) -> None:
    chaos, clock, _ = chaos_with(ChaosAction.STOP_WORKER)
    chaos.on_status(at(20), sleepers.__getitem__)
    clock.advance(DISTURBANCE_S)
    chaos.on_status(None, sleepers.__getitem__)
    assert not chaos.disturbances


def test_a_slow_one_stands_still_most_of_the_time(sleepers: Sleepers) -> None:
    chaos, _, said = chaos_with(ChaosAction.SLOW_WORKER)
    chaos.on_status(at(20), sleepers.__getitem__)
    assert "slowed down a worker" in said[0]
    states = []
    for _ in range(4):
        chaos.on_status(at(21), sleepers.__getitem__)
        states.append(state_of(sleepers[Role.WORKER][1]))
    assert states == ["T"] * 4


def test_who_still_waits_for_room_is_spared(tmp_path: Path) -> None:
    chaos, _, said = chaos_with(ChaosAction.KILL_WORKER, ChaosAction.KILL_WORKER)
    started, waiting = (Pretended("a worker", ProcessLog(tmp_path / "log"), number=number) for number in (4711, 0))
    for _ in range(3):
        chaos.on_status(at(50), lambda role: [started, waiting])
    assert len(said) == 1
    assert (started.received, waiting.received) == ([signal.SIGKILL], [])


def test_one_thing_is_done_at_a_time_and_to_those_that_can_act(sleepers: Sleepers) -> None:
    chaos, _, said = chaos_with(ChaosAction.STOP_WORKER, ChaosAction.STOP_WORKER, ChaosAction.KILL_WORKER)
    for _ in range(4):
        chaos.on_status(at(50), sleepers.__getitem__)
    assert [text.partition(" (")[0] for text in said] == ["chaos: stopped a worker"] * 2
    assert {disturbance.child.pid for disturbance in chaos.disturbances} == {it.pid for it in sleepers[Role.WORKER]}
    chaos.on_status(at(60), sleepers.__getitem__)
    assert "killed a worker" in said[2]


def test_at_the_end_everybody_is_let_go(sleepers: Sleepers) -> None:
    chaos, _, said = chaos_with(ChaosAction.STOP_WORKER, ChaosAction.KILL_WORKER)
    chaos.on_status(at(50), sleepers.__getitem__)
    chaos.end()
    assert said[-1] == "chaos: injected 1 of 2 faults"
    sleepers[Role.WORKER][1].send(signal.SIGTERM)
    assert sleepers[Role.WORKER][1].wait(60.0)
