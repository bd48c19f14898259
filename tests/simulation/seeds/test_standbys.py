"""Runs with standbys in virtual time: servers are lost, cut off and come back; planted bugs are found."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from lockstep.common.errors import FailureKind
from lockstep.common.protocol.messages import NO_TERM, StandbyAddress, Term, Welcome
from lockstep.common.protocol.shard_messages import ShardWelcome
from lockstep.common.protocol.standby_messages import LeaderNotice, RunFiles
from lockstep.common.statemachine.client import Client, ClientEffect
from lockstep.common.statemachine.machine import Received
from lockstep.ps.checkpoint.resuming import Resumption, coordinator_of
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.run.info import RunInfo
from lockstep.ps.server.server import Server
from lockstep.ps.server.succession import ABSENT_S, Rivals
from lockstep.ps.standby.mirror import Mirror
from lockstep.ps.standby.state import StandbyEffect, StandbyState
from lockstep.worker.shell import WorkerShell
from tests.simulation.seeds.planted import Planted
from tests.simulation.simulator.oracle import simulate
from tests.simulation.simulator.processes import Parts
from tests.simulation.simulator.scenario import FaultKind, Scenario, ScheduledFault, scenario_of

#: Seeds that are tried, and how many of them in one test.
SEEDS, EACH = 4, 2

#: Seeds within which a planted bug is found.
SEARCHED = 150


class Boastful(Mirror):
    """Counts what is offered as what is here."""

    def begin(self, offer: RunFiles) -> None:
        super().begin(offer)
        self.give_up()
        self.held = offer


class BoastfulStandby(StandbyState):
    """Has such a mirror."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mirror.__class__ = Boastful


class ForgetfulClient(Client):
    """Forgets the terms that it has seen when it is welcome."""

    def _on_welcome(self, welcome: Welcome | ShardWelcome, now: float) -> list[ClientEffect]:
        self.search.term = NO_TERM
        return super()._on_welcome(welcome, now)


class Heedless(Coordinator):
    """Lets workers in that have seen a higher term."""

    def join(self, event: Received, now: float) -> list[Effect]:
        return super().join(replace(event, message=replace(event.message, term=NO_TERM)), now)


class Incurious(Rivals):
    """Neither asks other servers which one leads the run, nor tells them its term."""

    def deadline(self) -> float | None:
        return None

    def on_time(self, now: float, notice: LeaderNotice) -> Term | None:
        return None

    def holds(self, now: float, absent_s: float, standbys: Sequence[StandbyAddress]) -> bool:
        return False


def incurious(server: Server) -> Server:
    server.succession.rivals.__class__ = Incurious
    return server


def forgetful(worker: WorkerShell) -> WorkerShell:
    worker.state.client.__class__ = ForgetfulClient
    return worker


def heedless(info: RunInfo, start: Resumption) -> Coordinator:
    coordinator = coordinator_of(info, start)
    coordinator.__class__ = Heedless
    return coordinator


class Rash(StandbyState):
    """Leads the run as soon as anybody misses the server."""

    def _decision(self, now: float) -> str:
        return "somebody misses the server" if self.mirror.held is not None else ""


def nameless(info: RunInfo, start: Resumption) -> Coordinator:
    """Return a coordinator whose server has drawn no name for its term."""
    return coordinator_of(replace(info, term=replace(info.term, server="")), start)


PLANTED = {
    "a mirror is ahead of its digest": Planted(Parts(standby=BoastfulStandby), "the mirror counts "),
    "two servers take over at once": Planted(
        Parts(standby=Rash, coordinator=nameless), " lead the run in term ", first=7
    ),
}


def cut_off_in_turn(seed: int) -> Scenario:
    """Return a run whose server is cut off, and its successor too, so that workers come back to the first."""
    fault = ScheduledFault(kind=FaultKind.CUT_OFF_IN_TURN, event=800, target=4, seconds=3.0, kill_after=1, ways="both")
    return replace(scenario_of(seed, standbys=1, servers=1, steps=60), faults=(fault,), takeover_s=0.5)


#: Seeds of runs in which a server is back after its term: one that was stopped, and one that was cut off.
BACK, IN_TURN = 1, 2


def test_a_worker_that_comes_back_to_an_old_server_counts_for_nothing_there() -> None:
    assert simulate(cut_off_in_turn(IN_TURN)).violations == ()


#: Without curiosity: otherwise a server that was cut off learns the higher term before a worker comes back to it.
NOBODY_CHECKS = Parts(worker=forgetful, coordinator=heedless, server=incurious)


def test_a_term_that_nobody_checks_is_found() -> None:
    (violation,) = simulate(cut_off_in_turn(IN_TURN), NOBODY_CHECKS).violations
    assert " went back from term 2 to 1" in violation


@pytest.mark.parametrize("seconds", [0.5, 2.0, 60.0])
def test_a_server_that_was_stopped_counts_for_nothing_when_it_comes_back(seconds: float) -> None:
    opened: list[Server] = []
    made: list[int] = []

    class Noting(StandbyState):
        """Notes how far the server is that it succeeds."""

        def _take_over(self, reason: str) -> list[StandbyEffect]:
            made.append(opened[0].coordinator.progress.steps)
            return super()._take_over(reason)

    def noted(server: Server) -> Server:
        opened.append(server)
        return server

    stop = ScheduledFault(kind=FaultKind.STOP_SERVER, event=800, target=0, seconds=seconds, kill_after=1, ways="both")
    # Workers that take long enough for the run to go on when it is back.
    # Nobody else stands still: a standby that does takes over late, after steps that its server rightly made.
    quiet = replace(scenario_of(BACK, standbys=1, servers=1, steps=30), pauses=0.0)
    scenario = replace(quiet, faults=(stop,), slowness=(1.0 + 2.0 * seconds,))
    assert simulate(replace(scenario, takeover_s=0.4), Parts(server=noted, standby=Noting)).violations == ()
    ended = opened[0].ended
    assert ended is not None
    assert ended.kind is FailureKind.SUPERSEDED
    # Half a second is too short to be noticed at once. By then all results may have come that the step at hand needs.
    more = opened[0].coordinator.progress.steps - made[0]
    assert more in ((0, 1) if seconds < ABSENT_S else (0,))


class Hasty(StandbyState):
    """Gives a server of which no worker is known no more time than any other."""

    def _misses_all(self, now: float) -> bool:
        return now >= self.heard + self.takeover_s


@pytest.mark.parametrize(("event", "standby"), [(60, StandbyState), (200, StandbyState), (60, Hasty)])
def test_a_starved_server_that_has_not_made_a_step_keeps_its_run(event: int, standby: type[StandbyState]) -> None:
    """As on an overloaded machine: a standby led the run from step 0, and its server was at step 7."""
    taken = list[int]()

    class Noting(standby):  # type: ignore[misc, valid-type]  # one of the two
        """Notes from which step it leads the run."""

        def _take_over(self, reason: str) -> list[StandbyEffect]:
            taken.append(self.mirror.step)
            effects: list[StandbyEffect] = super()._take_over(reason)
            return effects

    stop = ScheduledFault(kind=FaultKind.STOP_SERVER, event=event, target=0, seconds=1.2, kill_after=1, ways="both")
    quiet = replace(scenario_of(BACK, standbys=1, servers=1, steps=30), pauses=0.0, early_kills=(), slowness=(1.0,))
    scenario = replace(quiet, faults=(stop,), takeover_s=0.5)
    assert simulate(scenario, Parts(standby=Noting)).violations == ()
    assert taken == ([0] if standby is Hasty else [])


#: Runs that have failed once: by what they are about, seed, servers and standbys.
ONCE = {
    "the leader is lost with its disk after its standby has yielded to it": (11510, 2, 1),
    "a shard comes when the run is over, and standbys get the rest of it": (12040, 2, 1),
    "a server that is started again was cut off from its standbys, one of which leads": (20150, 2, 2),
    "a server is lost while it writes a checkpoint": (20256, 2, 2),
    "what is left is resumed just before it is started again anyway": (12862, 2, 1),
    "a standby is killed after its server, of whose new term it has only a part": (17198, 2, 1),
    "work waits for a worker whose results a server cut off does not acknowledge": (12365, 2, 1),
    "a worker that asked twice is ready for its first place": (13207, 2, 1),
    "a worker is ready with memory that the server had before it resumed": (13447, 2, 1),
    "a server dies while it waits for its shards, and the one that leads is unknown to a standby": (50071, 3, 2),
    "a shard brings its weights to the address of a server that has been started again": (60452, 3, 2),
    "a worker is ready for the place that a server of before gave it": (50145, 3, 2),
    "the run ends while a server that has to leave it stands still in the middle of a checkpoint": (74740, 2, 1),
    "a shard dies after the run was handed over": (74810, 2, 1),
    "a shard dies before the run is handed over in vain": (75087, 2, 1),
    "a server is killed when it has kept the result, and its standbys have not": (86709, 2, 1),
    "a shard that has another slice since the run was resumed gets the sums of before": (7339, 3, 2),
    "a server whose folder was deleted does not hear that the run was handed over": (5565, 2, 1),
    "a worker comes from elsewhere before the first server listens": (22194, 3, 2),
    "two standbys take over two runs, one of a server whose folder was deleted": (25527, 3, 2),
    "a server whose folder was deleted begins another run, and has one of two shards": (32678, 3, 2),
    "a server whose folder was deleted begins another run, which a standby of the first mirrors": (20427, 3, 2),
    "a standby that has a part of the second run of a server leads the first": (100896, 3, 2),
    "a server whose folder was deleted begins a run without shards, and a standby takes over the first": (42123, 3, 2),
    "a worker leaves a standby in term 3 for a server that has begun another run in term 1": (781067, 3, 2),
    "a server is killed in the middle of a checkpoint when a standby has ended the run": (2001145, 3, 2),
}


@pytest.mark.parametrize("about", ONCE)
def test_a_run_that_has_failed_once_keeps_the_promise(about: str) -> None:
    seed, servers, standbys = ONCE[about]
    assert simulate(scenario_of(seed, servers=servers, standbys=standbys)).violations == ()


@pytest.mark.parametrize("first", range(0, SEEDS, EACH))
def test_every_seed_keeps_the_promise(first: int) -> None:
    for seed in range(first, first + EACH):
        for standbys in (1, 2):
            found = simulate(scenario_of(seed, standbys=standbys)).violations
            assert found == (), f"replay: scripts/simulate --seeds {seed} --standbys {standbys} --trace"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SEEDS, 5000, 100))
def test_many_more_seeds_keep_the_promise(first: int) -> None:
    for seed in range(first, first + 100):
        found = simulate(scenario_of(seed, standbys=1 + seed % 2)).violations
        assert found == (), f"replay: scripts/simulate --seeds {seed} --standbys {1 + seed % 2} --trace"


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_as_what_it_is_by_the_first_seed_that_is_tried(bug: str) -> None:
    planted = PLANTED[bug]
    assert planted.found_by(range(planted.first, SEARCHED), standbys=2) == planted.first


def test_a_scenario_without_standbys_is_as_it_was() -> None:
    scenario = scenario_of(3, standbys=0)
    assert replace(scenario, standbys=1).job == scenario.job
    assert scenario.standbys == 0
