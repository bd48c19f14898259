"""A process of a team that is not its leader: which sessions it takes part in, when it ends, and when it only waits."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from lockstep.common.data.dataset import TrainTest
from lockstep.common.protocol.messages import Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.runtime.numerics import kept_numerics, own_numerics
from lockstep.common.statemachine.client import Exit
from lockstep.ps.server.shared_memory import share
from lockstep.ps.setup import open_run
from lockstep.worker.setup import Loader, gather
from lockstep.worker.team.helper import INTERRUPTED, SLEEP_S, UNFIT, TeamProcess
from lockstep.worker.team.leader import LISTEN_S, Leader
from lockstep.worker.team.meeting import Session, announce
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.progress import ComputeNode, Order, OrderOutcome
from lockstep.worker.team.session import LeaderSetup, lead
from tests.lockstep.worker.team.crew import TICK_S, whole
from tests.lockstep.worker.team.noticeboard import BoardMeeting, Noticeboard, Recorder, context, welcome_to
from tests.simulation.small import digits, job_of, load_digits

TAKES_PART = "process 1 of the team takes part"


class Clumsy(TeamMember):
    """A process that cannot compute."""

    def _compute(self, order: Order, part: ComputeNode) -> None:
        raise RuntimeError("two\nlines")


@dataclass
class Pair:
    """The leader of a team of two, and the other process."""

    memory: Path
    welcome: Welcome = field(default_factory=welcome_to)
    #: Where the server's memory is, None if it is not shared.
    root: Path | None = None
    kind: type[TeamMember] = TeamMember
    board: Noticeboard = field(default_factory=Noticeboard)
    clock: ManualClock = field(default_factory=ManualClock)
    recorder: Recorder = field(default_factory=Recorder)
    meeting: BoardMeeting = field(init=False)
    process: TeamProcess = field(init=False)
    setups: list[LeaderSetup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meeting = BoardMeeting(self.board, 1)
        self.process = self._process(self.recorder.load)

    def _process(self, load: Loader) -> TeamProcess:
        here = context(self.meeting, [], self.recorder, root=self.root, kind=self.kind, clock=self.clock)
        return TeamProcess(here, self.meeting, load)

    def loads(self, load: Callable[[str], TrainTest]) -> None:
        """Let the other process load data in this way."""
        self.process = self._process(load)

    @property
    def leading(self) -> BoardMeeting:
        return BoardMeeting(self.board, 0)

    def lead(self) -> Leader:
        """Let the leader begin with the run, in new memory."""
        here = context(self.leading, [self.memory], Recorder(), root=self.root, clock=self.clock)
        self.setups.append(lead(self.welcome, gather(self.welcome, load_digits), here))
        member = self.setups[-1].member
        assert member is not None
        return Leader(member, None)

    def close(self) -> None:
        self.process.close()
        for setup in self.setups:
            setup.close()

    def steps(self, count: int = 20) -> None:
        """Let the other process do so many things, or wait."""
        for _ in range(count):
            self.process.step()
            self.clock.advance(TICK_S)


@pytest.fixture
def pair(memory: Path) -> Pair:
    return Pair(memory)


def test_before_the_first_session_it_waits(pair: Pair) -> None:
    assert not pair.process.step()
    assert pair.meeting.waited == [SLEEP_S]
    assert pair.process.deadline() is None
    assert (pair.recorder.said, pair.process.ended) == ([], None)


def test_it_takes_part_in_a_session_once(pair: Pair) -> None:
    leader = pair.lead()
    assert pair.process.step()
    assert pair.recorder.said == [TAKES_PART]
    assert leader.member.pace.present(None) == [0, 1]
    pair.steps()
    assert pair.recorder.said == [TAKES_PART]
    pair.close()


def test_what_is_foretold_is_ready_when_the_memory_is_there(pair: Pair) -> None:
    announce(pair.leading, Session(welcome=pair.welcome))
    assert pair.process.step()
    assert (pair.recorder.loaded, pair.recorder.said) == (["digits"], [])
    pair.lead()
    assert pair.process.step()
    assert (pair.recorder.loaded, pair.recorder.said) == (["digits"], [TAKES_PART])
    pair.close()


def test_another_run_than_was_foretold_is_built_anew(pair: Pair) -> None:
    announce(pair.leading, Session(welcome=welcome_to("another")))
    assert pair.process.step()
    pair.lead()
    assert pair.process.step()
    assert pair.recorder.loaded == ["digits", "digits"]
    pair.close()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_one_that_is_dismissed_ends_as_the_leader_did_and_lets_go(pair: Pair, code: int) -> None:
    pair.lead()
    assert pair.process.step()
    announce(pair.leading, Session(code=code))
    assert pair.process.run() == Exit(code=code, reason="")
    assert pair.meeting.is_closed
    pair.close()


def test_it_waits_for_a_session_as_long_as_there_is_none(pair: Pair) -> None:
    def dismissed() -> None:
        if len(pair.meeting.waited) == 3:
            announce(pair.leading, Session(code=3))

    pair.meeting.meanwhile = dismissed
    assert pair.process.run() == Exit(code=3, reason="")


def test_a_lease_is_divided_if_there_is_something_to_divide_and_somebody_to_help(pair: Pair) -> None:
    leader, lease = pair.lead(), whole(pair.welcome.job)
    assert leader.computed() == 0
    assert not leader.can_divide(lease)
    assert pair.process.step()
    assert leader.can_divide(lease)
    assert leader.can_divide(msgspec.structs.replace(lease, lo=0, hi=2))
    assert not leader.can_divide(msgspec.structs.replace(lease, lo=0, hi=1))
    pair.close()


def test_the_leader_waits_for_nobody_while_it_has_something_to_do(pair: Pair) -> None:
    meeting, member = pair.leading, pair.lead().member
    leader = Leader(member, meeting)
    leader.begin_lease(whole(pair.welcome.job))
    assert leader.advance(pair.clock.now()) is OrderOutcome.DONE
    assert meeting.waited == []
    assert leader.order is not None
    found = leader.found(leader.order, None)
    assert (found.tally.count, found.losses, found.compute_s) == (pair.welcome.job.global_batch, [], 0.0)
    leader.begin_lease(msgspec.structs.replace(whole(pair.welcome.job), memory=3))
    assert leader.order.memory == 3
    assert member.last is not None
    for due_s in (1.0, LISTEN_S / 2):
        member.last.progress.due = pair.clock.now() + due_s
        assert leader.advance(pair.clock.now()) is None
    # The server may send something meanwhile.
    assert meeting.waited == [LISTEN_S, LISTEN_S / 2]
    pair.close()


@pytest.mark.parametrize(("code", "waits"), [(0, False), (1, True), (UNFIT, False), (INTERRUPTED, True)])
def test_one_that_is_started_again_waits_for_a_leader_that_is_too(pair: Pair, code: int, waits: bool) -> None:
    pair.lead()
    announce(pair.leading, Session(code=code))
    pair.loads(pair.recorder.load)
    pair.steps()
    assert pair.process.ended == (None if waits else Exit(code=code, reason=""))
    if waits:
        pair.lead()
        pair.steps()
        assert pair.recorder.said == [TAKES_PART]
    pair.close()


def test_it_takes_the_numerics_of_the_run(pair: Pair) -> None:
    job = msgspec.structs.replace(pair.welcome.job, numerics="native")
    with kept_numerics():
        announce(pair.leading, Session(welcome=msgspec.structs.replace(pair.welcome, job=job)))
        pair.loads(pair.recorder.load)
        pair.steps()
        assert own_numerics() == "native"
    pair.close()


def test_if_the_memory_is_gone_it_says_so_and_takes_part_in_the_next_session(pair: Pair) -> None:
    pair.lead()
    pair.setups.pop().close()
    assert pair.process.step()
    (said,) = pair.recorder.said
    assert said.startswith(f"process 1 of the team does not take part: {pair.memory}/lockstep-")
    assert said.endswith(f"cannot be opened here: {os.strerror(errno.ENOENT)}")
    assert not pair.process.step()
    leader = pair.lead()
    assert pair.process.step()
    assert pair.recorder.said[1:] == [TAKES_PART]
    assert leader.member.pace.present(None) == [0, 1]
    pair.close()


def test_a_model_that_cannot_be_built_is_reported_and_ends_nothing(pair: Pair) -> None:
    def fail(name: str) -> TrainTest:
        raise RuntimeError(f"no {name} today")

    pair.loads(fail)
    pair.lead()
    assert pair.process.step()
    (said,) = pair.recorder.said
    assert said.startswith("process 1 of the team: Traceback ")
    assert "RuntimeError: no digits today" in said
    assert pair.process.ended is None
    pair.close()


def test_it_computes_its_part_of_an_order_and_waits_for_the_next(pair: Pair) -> None:
    leader = pair.lead()
    assert pair.process.step()
    leader.begin_lease(whole(pair.welcome.job))
    order = leader.order
    assert order is not None
    pair.steps()
    mine = [part.node for part in order.plan.parts if part.process == 1]
    assert mine
    covered = leader.member.memory.covered(order.number, order.node)
    assert all(covered[index] for node in mine for index in range(node.lo, node.hi))
    pair.close()


def test_what_the_leader_is_late_with_is_computed_by_the_other_although_nobody_rings(pair: Pair) -> None:
    leader = pair.lead()
    assert pair.process.step()
    leader.begin_lease(whole(pair.welcome.job))
    pair.steps()
    assert pair.meeting.waited
    pair.clock.advance(10.0)
    pair.steps()
    assert leader.computed() == len(whole(pair.welcome.job).node())
    pair.close()


def test_one_that_cannot_compute_says_so_in_a_line_and_shows_the_leader(memory: Path) -> None:
    pair = Pair(memory, kind=Clumsy)
    leader = pair.lead()
    assert pair.process.step()
    leader.begin_lease(whole(pair.welcome.job))
    pair.steps()
    assert pair.recorder.said == [TAKES_PART, "process 1 of the team: RuntimeError: two\\nlines"]
    assert leader.order is not None
    assert int(leader.member.memory.marks.processes["failed"][1]) == leader.order.number
    pair.close()


def test_in_the_middle_of_an_order_it_leaves_for_a_new_session_that_nobody_rang_for(pair: Pair) -> None:
    """As if the leader was killed, and the one that took its place has not reached our bell."""
    leader = pair.lead()
    assert pair.process.step()
    leader.begin_lease(whole(pair.welcome.job))

    def begin_again() -> None:
        if len(pair.setups) == 1:
            pair.lead()
            pair.board.rung.clear()

    pair.meeting.meanwhile = begin_again
    pair.steps(40)
    assert pair.recorder.said == [TAKES_PART, TAKES_PART]
    pair.close()


def test_if_the_servers_memory_is_gone_at_an_order_it_leaves_and_waits_for_another_session(memory: Path) -> None:
    opening, sharing = share(open_run("run", job_of(), digits(), RunOptions()), memory)
    pair = Pair(memory, welcome=opening.info.welcome(0), root=memory)
    leader = pair.lead()
    assert pair.process.step()
    sharing.close()
    order = Order(
        number=1,
        work="train",
        step=0,
        node=whole(pair.welcome.job).node(),
        plan=leader.member.pace.plan(whole(pair.welcome.job).node(), None),
        memory=1,
        steps=None,
    )
    leader.member.memory.give(order)
    assert pair.process.step()
    assert pair.process.deadline() is None
    pair.meeting.waited.clear()
    assert not pair.process.step()
    assert pair.meeting.waited == [SLEEP_S]
    assert pair.recorder.said == [TAKES_PART]
    pair.close()


def test_it_ends_well_once_all_is_over_while_it_waits(pair: Pair) -> None:
    asked = []

    def is_over() -> bool:
        asked.append(len(pair.meeting.waited))
        return len(asked) == 3

    assert pair.process.run(is_over) == Exit(code=0, reason="")
    # Only after it has waited, so that what there is to do is done first.
    assert asked == [1, 2, 3]
    assert pair.meeting.is_closed


def test_what_there_is_to_do_comes_before_the_end(pair: Pair) -> None:
    leader = pair.lead()
    assert pair.process.step()
    leader.begin_lease(whole(pair.welcome.job))
    order = leader.order
    assert order is not None
    assert leader.computed() == 0
    assert pair.process.run(lambda: True) == Exit(code=0, reason="")
    assert pair.recorder.said == [TAKES_PART]
    # It takes over the part that the leader has not begun.
    assert leader.computed() == len(order.node)
    pair.close()


def test_an_interrupt_while_it_waits_ends_it_and_lets_go(pair: Pair) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pair.lead()
    pair.meeting.meanwhile = interrupt
    assert pair.process.run() == Exit(code=INTERRUPTED, reason="interrupted")
    assert pair.meeting.is_closed
    pair.close()


def test_what_is_announced_twice_is_begun_once(pair: Pair) -> None:
    announce(pair.leading, Session(welcome=pair.welcome))
    assert pair.process.step()
    session = pair.board.session
    assert session == Session(number=1, welcome=pair.welcome)
    pair.board.session = Session(number=1, welcome=pair.welcome)
    assert not pair.process.step()
    assert pair.recorder.loaded == ["digits"]


def test_one_that_has_shown_that_it_sleeps_looks_once_more_before_it_does(pair: Pair) -> None:
    """Somebody may have made the last that was missing just before, and not have seen that it sleeps."""
    leader = pair.lead()
    member = leader.member
    leader.begin_lease(whole(pair.welcome.job))
    assert member.last is not None
    member.last.progress.due = pair.clock.now() + 1.0
    assert not member.falls_asleep()
    assert (member.memory.sleepers(), member.due()) == ([0], pair.clock.now())
    assert member.falls_asleep()
    member.wake_up()
    assert member.memory.sleepers() == []
    assert not member.falls_asleep()
    pair.close()
