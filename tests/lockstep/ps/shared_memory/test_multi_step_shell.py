"""Multi-step leases in real memory, with workers by hand: what they are sent, what counts, who may write."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol.messages import MultiStepLease, MultiStepResult, MultiStepWithdrawal
from lockstep.common.protocol.shared_files import sums_file, sums_shape
from lockstep.common.protocol.step_board import ENTERED, ENTRIES, MADE, SUMMED, StepBoard
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import LeaseSteps
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.ps.shared_memory.memory import share
from lockstep.ps.shared_memory.multi_step import BETWEEN_S, MOVE_S
from lockstep.ps.shared_memory.multi_step_shell import MultiStepShell, declined
from tests.simulation.small import digits, job_of

#: Twenty steps of two micro-batches each, of which workers are to make these.
JOB = job_of(global_batch=2, micro_batches=2, steps=20, momentum=0.9)
ASKED = LeaseSteps(first=3, last=15, ranks=(0, 1), step_s=0.01, patience_s=0.01)


@dataclass
class Pair:
    """A server that has made three steps, and two workers that share its memory."""

    root: Path
    clock: ManualClock = field(default_factory=ManualClock)
    sent: list[tuple[int, MultiStepLease | MultiStepWithdrawal]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        setup, self.sharing = share(open_run("pair", JOB, digits(), AdmissionPolicy()), self.root)
        self.shard = setup.shard
        self.shard.skip_to(ASKED.first)
        self.boards = []
        for rank in ASKED.ranks:
            segment = self.sharing.folder.make(sums_file(rank), sums_shape(self.shard.weights.size))
            self.sharing.admit(rank, self.sharing.folder.nonce.hex())
            self.boards.append(StepBoard.of(segment.head))
        self.locks = [self.sharing.lock_of(rank) for rank in ASKED.ranks]
        self.shell = MultiStepShell(setup.info, self.shard, self.clock, self._send, self.said.append, self.sharing)

    def _send(self, rank: int, message: MultiStepLease | MultiStepWithdrawal) -> list[events.Event]:
        self.sent.append((rank, message))
        return []

    def make(self, step: int, *ranks: int, is_entered: bool = True) -> None:
        """Let workers show a step; in its entries is what tells the worker and the step."""
        for rank in ranks or ASKED.ranks:
            entry = self.boards[rank].entries[step % ENTRIES]
            entry["loss_sum"], entry["correct"], entry["count"], entry["compute_s"] = step, rank, 1, 0.25
            entry["losses"][0], entry["checksum"], entry["round_s"] = step + rank / 2, 1000 + step, 0.5 + rank
            self.boards[rank].mark(SUMMED, step + 1)
            self.boards[rank].mark(MADE, step + 1)
            if is_entered:
                self.boards[rank].mark(ENTERED, step + 1)

    def wait(self, seconds: float) -> list[events.Event]:
        """Let time pass, waking the shell when it is due."""
        end, happened = self.clock.now() + seconds, list[events.Event]()
        while (due := self.shell.deadline()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.now()))
            happened += self.shell.on_time(self.clock.now())
        self.clock.advance(max(0.0, end - self.clock.now()))
        return happened

    def answer(self, rank: int, steps: int) -> list[events.Event]:
        return self.shell.on_answer(rank, MultiStepResult(number=1, steps=steps))

    def close(self) -> None:
        for lock in self.locks:
            lock.close()
        self.shell.close()
        self.sharing.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def steps_in(happened: list[events.Event]) -> list[int]:
    return [event.step for event in happened if isinstance(event, events.StepMade)]


def completed(happened: list[events.Event]) -> list[events.MultiStepLeaseEnded]:
    return [event for event in happened if isinstance(event, events.MultiStepLeaseEnded)]


def test_each_worker_is_sent_its_half_of_the_micro_batches_and_of_the_values(pair: Pair) -> None:
    assert pair.shell.begin(ASKED) == []
    (rank, first), (other, second) = pair.sent
    assert isinstance(first, MultiStepLease)
    assert isinstance(second, MultiStepLease)
    assert (rank, other, first.ranks, second.ranks) == (0, 1, [0, 1], [0, 1])
    assert (first.first, first.last, first.count, first.lo, first.hi, second.lo, second.hi) == (3, 15, 2, 0, 1, 1, 2)
    assert (first.start, first.stop, second.stop) == (0, second.start, pair.shard.weights.size)


def test_what_workers_show_becomes_steps_that_are_made(pair: Pair) -> None:
    pair.shell.begin(ASKED)
    for step in range(3, 6):
        pair.make(step)
    happened = pair.wait(BETWEEN_S[1])
    assert steps_in(happened) == [3, 4, 5]
    last = happened[-1]
    assert isinstance(last, events.StepMade)
    assert [(half.rank, half.loss_sum, half.correct, half.count) for half in last.halves] == [
        (0, 5, 0, 1),
        (1, 5, 1, 1),
    ]
    assert [half.losses for half in last.halves] == [pack_losses([5.0]), pack_losses([5.5])]
    assert (last.round_s, last.checksum) == (0.5, 1005)
    # They may use these entries again.
    assert pair.sharing.board is not None
    assert pair.sharing.board.count(ENTERED) == 6
    assert pair.shard.updates == ASKED.first


def test_at_the_end_the_server_has_the_weights_and_slots_of_the_last_step(pair: Pair) -> None:
    pair.shell.begin(ASKED)
    pair.shard.slots[1][:] = np.arange(pair.shard.weights.size)
    before = pair.shard.state
    for step in range(3, 15):
        pair.make(step)
    happened = pair.answer(0, 15) + pair.answer(1, 15)
    assert steps_in(happened) == list(range(3, 15))
    assert completed(happened) == [events.MultiStepLeaseEnded(lease=("steps", 0, 1), steps=15, is_cut=False, silent=())]
    assert pair.shard.updates == 15
    assert pair.shard.weights[7] == 7.0
    # An even number of updates: the slots are in the set that they were in.
    assert pair.shard.state is before


def test_the_checksum_of_a_step_that_nobody_has_entered_is_taken_here(pair: Pair) -> None:
    pair.shell.begin(ASKED)
    pair.shard.slots[0][:] = np.linspace(0, 1, pair.shard.weights.size)
    pair.make(3, is_entered=False)
    happened = pair.shell.end()
    (made,) = [event for event in happened if isinstance(event, events.StepMade)]
    assert made.checksum == checksum_after(3, pair.shard.slots[0])
    assert completed(happened) == [
        events.MultiStepLeaseEnded(lease=("steps", 0, 1), steps=4, is_cut=False, silent=(0, 1))
    ]
    assert [message for _, message in pair.sent[2:]] == [MultiStepWithdrawal(number=1)] * 2
    # Nobody writes any more until it has answered.
    assert not pair.locks[0].acquire()
    pair.answer(0, 4)
    assert pair.locks[0].acquire()


def test_what_was_shown_in_an_earlier_multi_step_lease_is_not_made_again(pair: Pair) -> None:
    pair.make(1)
    pair.shell.begin(ASKED)
    assert steps_in(pair.wait(BETWEEN_S[1])) == []
    assert completed(pair.shell.end()) == [
        events.MultiStepLeaseEnded(lease=("steps", 0, 1), steps=3, is_cut=False, silent=(0, 1))
    ]


def test_memory_is_left_to_a_worker_that_has_its_lock_with_the_steps_that_are_made(pair: Pair) -> None:
    pair.shell.begin(ASKED)
    pair.shard.slots[0][:] = 4.0
    pair.make(3)
    assert pair.locks[1].acquire()
    assert completed(pair.shell.end()) == []
    happened = pair.wait(MOVE_S + 0.01)
    assert steps_in(happened) == [3]
    assert [event.silent for event in completed(happened)] == [(0, 1)]
    assert (pair.sharing.generation, pair.shard.updates, pair.shard.weights[0]) == (1, 4, 4.0)


def test_it_says_that_it_waits_for_two_that_stand_still(pair: Pair) -> None:
    pair.shell.begin(ASKED)
    assert [lock.acquire() for lock in pair.locks] == [True, True]
    assert completed(pair.shell.end()) == []
    pair.wait(1.0)
    assert pair.said == [
        "both workers stand still in the middle of an update: the run waits for one to go on, or to end"
    ]
    assert [event.steps for event in completed(pair.shell.end(is_final=True))] == [3]


@pytest.mark.parametrize("why", ["soon", "late", "not finite", "locked"])
def test_steps_are_leased_instead_where_workers_cannot_be_left_alone(pair: Pair, why: str) -> None:
    last, until = None, None
    match why:
        case "soon":
            last = ASKED.first + 3
        case "late":
            until = pair.clock.now()
        case "not finite":
            pair.shard.not_finite = 5
        case "locked":
            pair.shell.begin(ASKED)
            pair.shell.end()
            pair.sent.clear()
    assert pair.shell.begin(ASKED, last, until) == [declined(ASKED)]
    assert pair.sent == []


def test_a_multi_step_lease_ends_when_a_checkpoint_is_due(pair: Pair) -> None:
    pair.shell.begin(ASKED, None, pair.clock.now() + 0.001)
    pair.make(3)
    happened = pair.wait(0.0015)
    assert steps_in(happened) == [3]
    assert [event.steps for event in completed(happened)] == [4]


def test_without_shared_memory_or_room_there_is_none(pair: Pair) -> None:
    pair.shell.sharing = None
    assert pair.shell.begin(ASKED) == [events.MultiStepLeaseRefused()]
    assert not pair.shell.is_any()
