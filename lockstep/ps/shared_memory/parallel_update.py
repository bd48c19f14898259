"""Who updates which slice of the weights, when a slice is made again by whom, and when an update is complete. Pure.

No socket, clock or array.

An update reads the weights and slots of the step before and writes others, so that any part of it can be made twice by
anybody, with the same bits. What must never happen is that a worker which stood still in the middle of a slice wakes up
steps later, and writes old values over weights in use. Three rules prevent it:

1. A worker makes a slice only while it has the lock on its own file, which the system releases when its process ends,
   however it ends. The server withdraws a slice by getting that lock, and keeps it until the worker has answered. So a
   slice that was not begun never will be, and one whose worker is dead is made again in place.
2. A worker that has the lock and is silent may write at any time. A connection that broke proves nothing: its process
   may have been stopped. Its slice is made again only in memory into which it cannot write: the run moves on into new
   files, which leases name, and leaves it alone with the old ones until it answers or is gone.
3. Where there is no room for other memory, the update waits.

Retiring one of several numbered buffers instead would save a copy of the weights in this rare case; it would cost a
spare buffer in every run, and the books of which buffers are tainted by whom.
"""

import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import assert_never

from msgspec import Struct

from lockstep.common.aggregation.slices import Slice
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.protocol.messages import LeaseKey, SliceResult
from lockstep.common.statemachine.machine import IGNORED, Machine, TimePassed, stays, table_of
from lockstep.ps.coordinator.effects import ForgetWorker

#: Values below which updates are never leased. An update of 535,818 weights takes 0.56 ms alone, and leasing half of it
#: saves 0.27 ms and costs 0.3 ms for messages on the two cores where this was measured; 25 million take 57 and 37 ms.
LEAST_VALUES = 262_144

#: By how much the server's own share of an update is changed at once, and the least and most that it may be.
SHARE_STEP, SHARES = 1 / 64, (0.125, 0.875)

#: The server waits for this part of the time of its own slice at most, or for so many seconds, in which an answer is
#: heard; otherwise it takes a larger share.
WAIT, LEAST_WAIT_S = 0.05, 1e-4

#: Updates by which a way is judged: the last ones that were made so.
SAMPLES = 7

#: Updates after which slower ways are tried again, since other processes and other workers come and go.
PERIOD = 1000


class UpdateMode(Enum):
    """Who makes an update."""

    ALONE = "the server alone"
    TOGETHER = "the server and workers"
    WORKERS = "workers alone"


@dataclass
class ModeChoice:
    """How the next update is made, from the durations of those before: whichever is fastest.

    The choice never changes the bits. None is fastest everywhere: for a small vector the messages take longer than the
    arithmetic; and with as many workers as cores, each kept to its own, the server takes the core of one of them.
    """

    #: If False, all possible ways take turns.
    is_measured: bool = True
    _updates: int = 0
    _last: UpdateMode | None = None
    #: The seconds of the last updates of each kind, and their medians once there are enough.
    _seconds: dict[UpdateMode, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=SAMPLES)))
    _medians: dict[UpdateMode, float] = field(default_factory=dict)

    def choose(self, possible: Sequence[UpdateMode]) -> UpdateMode:
        """Return how the next update is made, of at least one way that is possible."""
        if len(possible) == 1:
            return possible[0]
        if not self.is_measured:
            return possible[self._updates % len(possible)]
        for mode in possible:
            if mode not in self._medians:
                return mode
        # One update more than counts, as the first one after a change is not measured.
        trial, ranked = self._updates % PERIOD // (SAMPLES + 1), sorted(possible, key=self._medians.__getitem__)
        return ranked[trial + 1] if trial + 1 < len(ranked) else ranked[0]

    def record(self, mode: UpdateMode, seconds: float) -> None:
        """Record how long an update took; the first one after a change finds its memory out of the caches."""
        self._updates += 1
        if mode is self._last:
            recent = self._seconds[mode]
            recent.append(seconds)
            if len(recent) == SAMPLES:
                self._medians[mode] = statistics.median(recent)
        self._last = mode


@dataclass(frozen=True, kw_only=True)
class ParallelUpdateConfig:
    """What decides who helps."""

    #: Most processes that make an update at the same time: as many as there are cores. With one, the server makes all.
    cores: int = 1
    least_values: int = LEAST_VALUES
    #: Slices begin at multiples of it.
    unit: int = BLOCK
    #: Whether the fastest way is found out by measuring; otherwise all take turns.
    is_measured: bool = True
    #: Seconds until a slice is withdrawn once the server has nothing else to do, and between two attempts.
    withdraw_s: float = 0.003
    #: Seconds until memory is left to a worker that stands still in it: at least, and for each value. A process with a
    #: core of its own takes two nanoseconds for a value.
    patience_s: float = 0.25
    patience_s_per_value: float = 5e-8


class UpdatePhase(Enum):
    """The phases of an update."""

    #: There is no update to be made.
    IDLE = "between two updates"
    #: Parts of it are being made, here or by workers.
    UPDATING = "updating"
    #: A worker has stopped within its slice, and memory is being left to it.
    MOVING = "moving"


# Events


class HelperAdmitted(Struct, frozen=True, kw_only=True):
    """A worker shares our memory, so that slices may be leased to it."""

    rank: int


class HelperLeased(Struct, frozen=True, kw_only=True):
    """It was leased micro-batches: it does not read messages until it has answered."""

    rank: int
    lease: LeaseKey


class HelperAnswered(Struct, frozen=True, kw_only=True):
    rank: int
    lease: LeaseKey


class SumsCompleted(Struct, frozen=True, kw_only=True):
    """The sums of a step are whole: it may be updated."""

    step: int
    #: Whether all that a slice needs is in memory that workers share.
    can_share: bool


class OwnPartUpdated(Struct, frozen=True, kw_only=True):
    part: Slice


class WithdrawalTried(Struct, frozen=True, kw_only=True):
    """Slices were withdrawn, or not: by number."""

    #: Their workers have written all of them, or will never write any of them again.
    withdrawn: tuple[int, ...]
    #: Their workers cannot be prevented from writing: they are in the middle of them.
    held: tuple[int, ...]


class MemoryMoved(Struct, frozen=True, kw_only=True):
    """The run has left the memory that workers may still write into, or cannot, because there is no room."""

    is_done: bool


class RunInterrupted(Struct, frozen=True, kw_only=True):
    """The run is about to end: whatever is left of the update is to be made at once."""


ParallelUpdateEvent = (
    HelperAdmitted
    | HelperLeased
    | HelperAnswered
    | ForgetWorker
    | SumsCompleted
    | OwnPartUpdated
    | SliceResult
    | WithdrawalTried
    | MemoryMoved
    | RunInterrupted
    | TimePassed
)

# Effects


class LeaseSlice(Struct, frozen=True, kw_only=True):
    """Lease a slice of the update at hand to a worker."""

    number: int
    rank: int
    part: Slice


class UpdateOwnPart(Struct, frozen=True, kw_only=True):
    """Update a part in this process; answered by `OwnPartUpdated`."""

    part: Slice


class WithdrawSlices(Struct, frozen=True, kw_only=True):
    """Prevent workers from beginning slices, where they have not; answered by `WithdrawalTried`."""

    #: By number, the worker's rank.
    ranks: dict[int, int]


class EndWithdrawal(Struct, frozen=True, kw_only=True):
    """Let a worker make slices again: it has reported what became of the one that was withdrawn."""

    rank: int


class MoveMemory(Struct, frozen=True, kw_only=True):
    """Continue in other memory, as it was before the update; answered by `MemoryMoved`."""


class CompleteUpdate(Struct, frozen=True, kw_only=True):
    """All parts have their new values."""

    step: int


ParallelUpdateEffect = LeaseSlice | UpdateOwnPart | WithdrawSlices | EndWithdrawal | MoveMemory | CompleteUpdate

_IDLE, _UPDATING, _MOVING = UpdatePhase

#: What may follow. Memory is moved at once: nothing comes in between.
TRANSITIONS = table_of(
    UpdatePhase,
    {
        HelperAdmitted: stays(_IDLE, _UPDATING),
        HelperLeased: stays(_IDLE, _UPDATING),
        HelperAnswered: stays(_IDLE, _UPDATING),
        ForgetWorker: stays(_IDLE, _UPDATING),
        SumsCompleted: {_IDLE: {_UPDATING}},
        OwnPartUpdated: {_UPDATING: {_UPDATING, _IDLE}},
        SliceResult: {_IDLE: {_IDLE}, _UPDATING: {_UPDATING, _IDLE}},
        WithdrawalTried: {_UPDATING: {_UPDATING, _MOVING}},
        MemoryMoved: {_MOVING: {_UPDATING}},
        RunInterrupted: {_IDLE: IGNORED, _UPDATING: {_UPDATING}},
        TimePassed: {_IDLE: IGNORED, _UPDATING: {_UPDATING}},
    },
)


@dataclass
class Helper:
    """What is known of a worker that shares memory."""

    #: The last lease of micro-batches that it was sent, and the last that it answered. It answers them in order.
    leased: LeaseKey | None = None
    answered: LeaseKey | None = None
    #: The number of the slice that it has not answered, None if there is none.
    slice_number: int | None = None
    #: Seconds per value of its last slice.
    pace_s: float = 0.0

    def is_idle(self) -> bool:
        """Tell whether it is waiting for messages, as far as we know."""
        return self.slice_number is None and self.leased == self.answered


@dataclass
class SliceLoan:
    """A slice that a worker is to make, and that nobody has made yet."""

    rank: int
    part: Slice
    #: When it is to be withdrawn, or that is to be tried again.
    due: float


@dataclass
class ParallelUpdate(Machine[ParallelUpdateEvent, ParallelUpdateEffect]):
    """The update of a step, and who helps with it."""

    transitions = TRANSITIONS
    config: ParallelUpdateConfig
    #: Values of the vector.
    size: int
    phase: UpdatePhase = UpdatePhase.IDLE
    choice: ModeChoice = field(init=False)
    #: By rank.
    helpers: dict[int, Helper] = field(default_factory=dict)
    #: By number, the slices of the update at hand that are awaited.
    loans: dict[int, SliceLoan] = field(default_factory=dict)
    #: The parts that are still to be made here, one after the other.
    own: list[Slice] = field(default_factory=list)
    #: By number, the workers whose slices were withdrawn, until they answer. That of a worker that was removed stays:
    #: its process may not have read the lease yet.
    withdrawn: dict[int, int] = field(default_factory=dict)
    step: int = 0
    mode: UpdateMode = UpdateMode.ALONE
    #: By the number of workers that help, the server's own share: such that neither waits for the other.
    shares: dict[int, float] = field(default_factory=dict)
    #: Workers that help with the update at hand.
    helping: int = 0
    #: Slices leased so far.
    leased: int = 0
    #: When the update began, and when the server's own part was made.
    began: float = 0.0
    own_made: float = 0.0
    #: When memory is left to workers that stand still in it.
    patient_until: float = 0.0
    #: Whether no worker is waited for, since the run is about to end.
    is_interrupted: bool = False

    def __post_init__(self) -> None:
        self.choice = ModeChoice(self.config.is_measured)

    def handle(self, event: ParallelUpdateEvent, now: float) -> list[ParallelUpdateEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        if self.phase is not UpdatePhase.UPDATING or self.own:
            return None
        return min((loan.due for loan in self.loans.values()), default=None)

    def may_lease(self) -> bool:
        """Tell whether any update may ever be leased: on this machine, for a vector of this size."""
        return self.size >= self.config.least_values and self.config.cores > 1

    def has_slice(self, rank: int) -> bool:
        """Tell whether a worker has not answered a slice, and may make it."""
        helper = self.helpers.get(rank)
        return rank in self.withdrawn.values() or (helper is not None and helper.slice_number is not None)

    def wants_help(self) -> bool:
        """Tell whether the next update is to be leased, if all that it needs is in shared memory."""
        return self._choose() is not UpdateMode.ALONE

    def _choose(self) -> UpdateMode:
        if not self.may_lease():
            return UpdateMode.ALONE
        idle = sum(helper.is_idle() for helper in self.helpers.values())
        possible = (UpdateMode.ALONE, UpdateMode.TOGETHER, UpdateMode.WORKERS)
        return self.choice.choose(possible[: 1 + min(idle, 2)])

    def _idle(self) -> list[int]:
        """Return the workers that may help: those first that were fastest, or have not been tried."""
        idle = [rank for rank, helper in self.helpers.items() if helper.is_idle()]
        return sorted(idle, key=lambda rank: self.helpers[rank].pace_s)

    def react(self, event: ParallelUpdateEvent, now: float) -> list[ParallelUpdateEffect]:
        match event:
            case HelperAdmitted(rank=rank):
                self.helpers[rank] = Helper()
                return []
            case HelperLeased(rank=rank, lease=lease):
                if rank in self.helpers:
                    self.helpers[rank].leased = lease
                return []
            case HelperAnswered(rank=rank, lease=lease):
                if rank in self.helpers:
                    self.helpers[rank].answered = lease
                return []
            case ForgetWorker(rank=rank):  # its process may not have ended
                return self._remove(rank)
            case SumsCompleted():
                return self._begin(event, now)
            case OwnPartUpdated(part=part):
                self.own.remove(part)
                return self._own_part_made(now)
            case SliceResult():
                return self._on_answer(event, now)
            case WithdrawalTried():
                return self._on_withdrawal(event, now)
            case MemoryMoved():
                return self._on_moved(now, is_done=event.is_done)
            case RunInterrupted():
                self.is_interrupted = True
                return self._withdraw(list(self.loans))
            case TimePassed():
                return self._withdraw([number for number, loan in self.loans.items() if now >= loan.due])
            case _:
                assert_never(event)

    # An update begins

    def _begin(self, event: SumsCompleted, now: float) -> list[ParallelUpdateEffect]:
        self.mode = self._choose() if event.can_share else UpdateMode.ALONE
        self.phase, self.step, self.began, self.is_interrupted = UpdatePhase.UPDATING, event.step, now, False
        match self.mode:
            case UpdateMode.ALONE:
                return [self._update_here(Slice(0, self.size))]
            case UpdateMode.TOGETHER:
                helpers = self._idle()[: self.config.cores - 1]
                self.helping = len(helpers)
                own, *others = self._cut(self.helping, self._share(self.helping))
                return [*self._lease(helpers, others), self._update_here(own)]
            case UpdateMode.WORKERS:
                helpers = self._idle()[: self.config.cores]
                _, *parts = self._cut(len(helpers), 0.0)
                leases = self._lease(helpers, parts)
                self._wait(now)
                return leases
            case _:
                assert_never(self.mode)

    def _share(self, helpers: int) -> float:
        return self.shares.setdefault(helpers, 1 / (1 + helpers))

    def _cut(self, helpers: int, share: float) -> list[Slice]:
        """Return our part of the vector and those of the workers; fewer if it is short, and ours may be empty."""
        size, unit = self.size, self.config.unit
        units = -(-size // unit)
        own = max(1, round(units * share)) if share else 0
        bounds = [0, *(min((own + (units - own) * place // helpers) * unit, size) for place in range(helpers + 1))]
        first, *others = (Slice(low, high) for low, high in pairwise(bounds))
        return [first, *(part for part in others if len(part) > 0)]

    def _balance(self, now: float) -> None:
        """Let our share grow if we had to wait for workers, and shrink if not."""
        if self.mode is not UpdateMode.TOGETHER or not self.helping:
            return
        least_s = max(LEAST_WAIT_S, WAIT * (self.own_made - self.began))
        step = SHARE_STEP if now - self.own_made > least_s else -SHARE_STEP
        low, high = SHARES
        self.shares[self.helping] = min(max(self._share(self.helping) + step, low), high)

    def _lease(self, ranks: Sequence[int], parts: Sequence[Slice]) -> list[ParallelUpdateEffect]:
        leases = list[ParallelUpdateEffect]()
        for rank, part in zip(ranks, parts, strict=False):
            self.leased += 1
            self.helpers[rank].slice_number = self.leased
            # Until our own part is made, nothing is withdrawn: `due` is set then.
            self.loans[self.leased] = SliceLoan(rank, part, due=self.began)
            leases.append(LeaseSlice(number=self.leased, rank=rank, part=part))
        return leases

    def _wait(self, now: float) -> None:
        """Wait for workers from now on, while nothing is left to do here."""
        for loan in self.loans.values():
            loan.due = now + self.config.withdraw_s
        self.patient_until = now + max(self.config.patience_s, self.config.patience_s_per_value * self.size)

    def _update_here(self, part: Slice) -> UpdateOwnPart:
        self.own.append(part)
        return UpdateOwnPart(part=part)

    # Parts are made

    def _own_part_made(self, now: float) -> list[ParallelUpdateEffect]:
        if not self.own:
            self.own_made = now
            self._wait(now)
            if self.is_interrupted:
                return [*self._withdraw(list(self.loans)), *self._complete(now)]
        return self._complete(now)

    def _on_answer(self, event: SliceResult, now: float) -> list[ParallelUpdateEffect]:
        number, effects = event.number, list[ParallelUpdateEffect]()
        for helper in self.helpers.values():
            if helper.slice_number == number:
                helper.slice_number = None
                if event.is_done and number in self.loans:
                    helper.pace_s = event.seconds / len(self.loans[number].part)
        if number in self.withdrawn:
            effects.append(EndWithdrawal(rank=self.withdrawn.pop(number)))
        loan = self.loans.pop(number, None)
        if loan is not None and not event.is_done:
            return [*effects, self._update_here(loan.part)]
        return effects if loan is None else [*effects, *self._complete(now)]

    def _complete(self, now: float) -> list[ParallelUpdateEffect]:
        if self.own or self.loans:
            return []
        self.phase = UpdatePhase.IDLE
        self._balance(now)
        self.choice.record(self.mode, now - self.began)
        return [CompleteUpdate(step=self.step)]

    # Workers do not answer

    def _remove(self, rank: int) -> list[ParallelUpdateEffect]:
        self.helpers.pop(rank, None)
        return self._withdraw([number for number, loan in self.loans.items() if loan.rank == rank])

    def _withdraw(self, numbers: Sequence[int]) -> list[ParallelUpdateEffect]:
        ranks = {number: self.loans[number].rank for number in numbers}
        return [WithdrawSlices(ranks=ranks)] if ranks else []

    def _on_withdrawal(self, event: WithdrawalTried, now: float) -> list[ParallelUpdateEffect]:
        """Make what was withdrawn; then wait for workers that are in the middle of a slice, but not for ever."""
        taken = {number: self.loans.pop(number) for number in event.withdrawn}
        self.withdrawn.update((number, loan.rank) for number, loan in taken.items())
        for number in event.held:
            self.loans[number].due = now + self.config.withdraw_s
        if taken or self.own:
            return [self._update_here(loan.part) for loan in taken.values()]
        if not (self.is_interrupted or now >= self.patient_until):
            return []
        self.phase = UpdatePhase.MOVING
        return [MoveMemory()]

    def _on_moved(self, now: float, *, is_done: bool) -> list[ParallelUpdateEffect]:
        """Make all of the update here, in the new memory, or wait further for those that hold the old one."""
        self.phase, self.is_interrupted = UpdatePhase.UPDATING, self.is_interrupted and is_done
        if not is_done:
            for loan in self.loans.values():
                loan.due = now + self.config.patience_s
            return []
        self.loans.clear()
        return [self._update_here(Slice(0, self.size))]

    def validate(self) -> None:
        """Raise AssertionError if the state contradicts itself: for tests, after each event."""
        assert (self.phase is UpdatePhase.IDLE) == (not self.loans and not self.own)
        ranks = [loan.rank for loan in self.loans.values()]
        assert len(set(ranks)) == len(ranks), "a worker has two slices"
        assert not self.loans.keys() & self.withdrawn.keys(), "a slice is awaited that was withdrawn"
        parts = sorted([*self.own, *(loan.part for loan in self.loans.values())])
        assert all(low.stop <= high.start for low, high in pairwise(parts)), "parts overlap"
