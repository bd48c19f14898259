"""The table of the coordinator is complete, and is obeyed."""

from itertools import product
from typing import get_args

import pytest

from lockstep.common.errors import ProtocolError
from lockstep.common.protocol.messages import WorkerMessage
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.transitions import MESSAGES, TRANSITIONS, RunPhase
from tests.lockstep.common.statemachine.laws import reachable
from tests.lockstep.ps.runs import Drive, facts_of


def test_every_phase_has_an_entry_for_every_event() -> None:
    kinds = set(get_args(events.Event)) - {events.Received} | MESSAGES
    assert set(get_args(WorkerMessage)) >= MESSAGES
    assert set(TRANSITIONS) == set(product(RunPhase, kinds))


def test_every_phase_can_be_reached() -> None:
    assert reachable(TRANSITIONS, RunPhase.AWAITING_SERVERS) == set(RunPhase)


@pytest.mark.parametrize("phase", [RunPhase.FINISHED, RunPhase.FAILED])
def test_nothing_leads_away_from_the_end(phase: RunPhase) -> None:
    assert all((targets or frozenset()) <= {phase} for (at, _), targets in TRANSITIONS.items() if at is phase)


def test_a_move_that_the_table_does_not_know_is_our_own_fault() -> None:
    class Sleepwalker(Coordinator):
        def is_over(self) -> bool:
            self.phase = RunPhase.EVALUATING
            return False

    with pytest.raises(ProtocolError, match="TimePassed led to evaluating"):
        Sleepwalker(facts_of()).handle(events.TimePassed(), 0.0)


def test_a_run_goes_through_the_phases() -> None:
    drive = Drive()
    phases = [drive.coordinator.phase]
    drive.enter(1)
    while not drive.coordinator.is_over():
        phases.append(drive.coordinator.phase)
        drive.finish_round()
    phases.append(drive.coordinator.phase)
    epoch = [RunPhase.TRAINING] * 3 + [RunPhase.EVALUATING]
    assert phases == [RunPhase.AWAITING_WORKERS, *epoch, *epoch, RunPhase.FINISHED]
