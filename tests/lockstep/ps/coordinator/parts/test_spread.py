"""The weights are divided among all servers that are there: always, or if steps wait for the server, and only then."""

import pytest

from lockstep.common.errors import FailureKind
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Eviction
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.parts.spread import FIRST_STEPS, MEASURED_STEPS, SETTLE_S, saved_s
from lockstep.ps.run.progress import StepTime
from tests.lockstep.ps.runs import Drive, facts_of, kinds, messages, with_options

#: Of sixteen steps an epoch, so that all measured steps are before its end.
JOB = Job(model="linear", epochs=40, global_batch=3, micro_batches=3)

#: Seconds that the slower of two workers computes in most steps.
COMPUTE_S = 0.5


def steps(round_s: float, slowest_s: float, others: int = MEASURED_STEPS) -> list[StepTime]:
    """Return steps, one of which takes as long as a machine sleeps."""
    usual = StepTime(round_s=round_s, mean_s=slowest_s, slowest_s=slowest_s)
    return [StepTime(round_s=9.0, mean_s=slowest_s, slowest_s=slowest_s), *[usual] * others]


@pytest.mark.parametrize(
    ("round_s", "slowest_s", "servers", "available", "saved"),
    [
        # Sixteen hosts, 33 ms of a step of 63 ms are not computing: with a server each, all but one sixteenth is saved.
        pytest.param(0.063, 0.030, 1, 16, 0.032 * 15 / 16, id="bound by the server"),
        pytest.param(0.063, 0.030, 4, 16, 0.032 * 3 / 4, id="more servers than now"),
        pytest.param(0.063, 0.030, 16, 16, 0.0, id="as many as now"),
        pytest.param(0.063, 0.030, 3, 2, 0.0, id="fewer than now"),
        pytest.param(0.063, 0.060, 1, 16, 0.0, id="bound by computing"),
        pytest.param(0.0015, 0.0005, 1, 16, 0.0, id="bound by latency"),
        pytest.param(0.010, 0.012, 1, 2, 0.0, id="hidden behind computing"),
    ],
)
def test_what_more_servers_save_is_their_share_of_the_exchange(
    round_s: float, slowest_s: float, servers: int, available: int, saved: float
) -> None:
    assert saved_s(steps(round_s, slowest_s), servers, available) == pytest.approx(saved)


def begun(spread: str) -> Drive:
    drive = Drive(with_options(facts_of(JOB), spread=spread))
    drive.enter(1, 2)
    return drive


def train(drive: Drive, count: int, step_s: float) -> list[Finish]:
    """Make steps that take so long, until the run ends here; return its end."""
    for _ in range(count):
        if drive.coordinator.is_over():
            break
        drive.now += step_s
        drive.finish_round()
    return [effect for effect in drive.effects if isinstance(effect, Finish)]


def test_always_is_after_the_first_step_once_no_more_servers_come() -> None:
    drive = begun("always")
    drive.happen(events.ServersAvailable(servers=2))
    drive.now += SETTLE_S / 2
    drive.happen(events.ServersAvailable(servers=3))
    assert train(drive, 1, SETTLE_S / 2) == []
    (end,) = train(drive, 1, SETTLE_S / 2)
    assert end == Finish(
        failure="3 hosts hold a slice of the weights each, as --spread always asks", kind=FailureKind.SPREAD, servers=3
    )
    # No step is lost, and workers ask for their places in the next part at once.
    assert drive.coordinator.progress.steps == 2
    assert [type(message) for message in messages(drive.effects)][-2:] == [Eviction, Eviction]


def test_never_and_without_other_servers_nothing_changes() -> None:
    for spread, servers in (("never", 3), ("always", 1)):
        drive = begun(spread)
        drive.happen(events.ServersAvailable(servers=servers))
        assert train(drive, 15, 3 * COMPUTE_S) == []


def test_servers_that_leave_before_the_division_do_not_count() -> None:
    drive = begun("always")
    drive.happen(events.ServersAvailable(servers=3))
    drive.happen(events.ServersAvailable(servers=1))
    assert train(drive, 3, SETTLE_S) == []


@pytest.mark.parametrize("step_s", [COMPUTE_S, 4 * COMPUTE_S])
def test_auto_is_by_the_steps_that_were_measured(step_s: float) -> None:
    drive = begun("auto")
    drive.happen(events.ServersAvailable(servers=4))
    assert train(drive, FIRST_STEPS + MEASURED_STEPS - 1, step_s) == []
    found = train(drive, 1, step_s)
    reason = "4 hosts hold a slice of the weights each, so that a step of 2000 ms takes about 1124 ms less"
    is_slow = step_s > COMPUTE_S
    assert found == [Finish(failure=reason, kind=FailureKind.SPREAD, servers=4)] * is_slow


def test_auto_does_not_change_a_run_that_is_nearly_over() -> None:
    drive = Drive(with_options(facts_of(Job(model="linear", steps=13, global_batch=3, micro_batches=3)), spread="auto"))
    drive.enter(1, 2)
    drive.happen(events.ServersAvailable(servers=2))
    # A step could take 0.75 s less, and one step is left.
    assert [effect.kind for effect in train(drive, 20, COMPUTE_S + 1.5)] == [None]


def test_a_run_that_is_handed_over_is_not_divided_here() -> None:
    drive = begun("always")
    drive.happen(events.DrainRequested(reason="it goes on elsewhere", kind=FailureKind.HANDED_OVER))
    drive.happen(events.ServersAvailable(servers=3))
    (end,) = train(drive, 3, SETTLE_S)
    assert end == Finish(failure="it goes on elsewhere", kind=FailureKind.HANDED_OVER)
    assert Eviction not in kinds(drive.effects)
