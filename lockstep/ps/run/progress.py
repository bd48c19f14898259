"""The progress and the speed of a run, where the time of its steps goes, and its traffic. Pure: time is an argument."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from lockstep.common.job.metrics import Guess, Metrics, Score, score_of
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.codec import Buffer, arrays_of
from lockstep.common.protocol.messages import EpochRecord, Lease, Message, Result, SumsFrame, Weights


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that crossed sockets: sums came in, weights went out. With shared memory, none does."""

    #: Bytes of sums.
    sums: int = 0
    #: Bytes of weights.
    weights: int = 0

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(sums=self.sums + other.sums, weights=self.weights + other.weights)

    def mean(self, steps: int) -> "Moved":
        """Return what an average step moved, in whole bytes."""
        return Moved(sums=self.sums // max(1, steps), weights=self.weights // max(1, steps))


NOTHING = Moved()


@dataclass
class Traffic:
    """Counts what crosses the sockets of one server, and what other servers report."""

    _moved: Moved = NOTHING

    def record_received(self, message: Message, frames: Sequence[Buffer]) -> None:
        """Count a message that was received, if it brings sums."""
        if isinstance(message, SumsFrame | Result) and arrays_of(message):
            self._moved += Moved(sums=_bytes_of(frames))

    def record_sent(self, message: Message, frames: Sequence[Buffer]) -> None:
        """Count a message that was sent, if it brings weights."""
        if isinstance(message, Weights | Lease) and arrays_of(message):
            self._moved += Moved(weights=_bytes_of(frames))

    def add(self, moved: Moved) -> None:
        """Count what crossed another server's sockets."""
        self._moved += moved

    def drain(self) -> Moved:
        """Return the bytes that were counted since the last call."""
        moved, self._moved = self._moved, NOTHING
        return moved


def _bytes_of(frames: Sequence[Buffer]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """The times of one training step."""

    #: Seconds from the last result of the step before to its own last result. In between the weights are updated and
    #: sent, except for an epoch's first step: before that one comes the evaluation, and the update before it.
    round_s: float
    #: Seconds of computing that went into it, by the workers' own clocks: the mean over the workers that might have
    #: been given work, and the most that any of them has.
    mean_s: float
    slowest_s: float


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the time of an average step; the four add up to it.

    Of all steps but each epoch's first, which follows an evaluation.
    """

    #: Number of steps that were averaged.
    steps: int
    #: Seconds that the average worker computes: forward, backward, the sums of its own micro-batches. By its own clock:
    #: what other processes take of its core meanwhile is in it, what it sends meanwhile is not.
    compute_s: float
    #: Seconds in which sums and weights are on their way, copied or added. It is the rest of the step: the slowest
    #: worker does not compute and nothing is updated. An exchange that hides behind computing is not in it.
    exchange_s: float
    #: Seconds that the server takes to change the weights, for which all workers wait.
    update_s: float
    #: Seconds that the average worker waits for the slowest one of the step: uneven shares of the work, uneven cores.
    waiting_s: float

    @property
    def step_s(self) -> float:
        """The seconds of the whole step."""
        return self.compute_s + self.exchange_s + self.update_s + self.waiting_s


@dataclass
class StepTimeTotals:
    """Adds up the times of steps, which are added in their order."""

    steps: int = 0
    round_s: float = 0.0
    mean_s: float = 0.0
    slowest_s: float = 0.0
    update_s: float = 0.0
    #: Seconds of the last step's update: it lies within the round of the next step.
    _last_update_s: float = 0.0

    def add(self, time: StepTime, update_s: float, *, is_counted: bool) -> None:
        """Add a step and its update; a step that does not count, an epoch's first, only matters for the next."""
        if is_counted:
            self.steps += 1
            self.round_s += time.round_s
            self.mean_s += time.mean_s
            self.slowest_s += time.slowest_s
            self.update_s += self._last_update_s
        self._last_update_s = update_s

    def split(self) -> Split | None:
        """Return where the time went, None if no step counted."""
        if not self.steps:
            return None
        return Split(
            steps=self.steps,
            compute_s=self.mean_s / self.steps,
            exchange_s=(self.round_s - self.slowest_s - self.update_s) / self.steps,
            update_s=self.update_s / self.steps,
            waiting_s=(self.slowest_s - self.mean_s) / self.steps,
        )


#: Seconds over which the speed is measured.
WINDOW_S = 5.0

Count = Annotated[int, Meta(ge=0)]


class RunTotals(msgspec.Struct, kw_only=True):
    """The totals of a run: its progress counts them, and checkpoints and `result.json` have the same fields."""

    #: Training steps that were made.
    steps: Count = 0
    #: Training samples in all.
    samples: Count = 0
    #: Seconds in training rounds, without evaluations.
    train_s: float = 0.0
    #: Seconds that all workers spent in computing the accepted results.
    compute_s: float = 0.0
    #: Seconds that the server spent in updates.
    update_s: float = 0.0
    #: Micro-batches that a second worker audited, with the same bits.
    audited: Count = 0
    #: Micro-batches that were to be audited, and were not for lack of a second worker.
    unaudited: Count = 0

    def totals(self) -> dict[str, Any]:
        """Return the totals by name, for another record that has them."""
        return {name: getattr(self, name) for name in RunTotals.__struct_fields__}


class Progress(RunTotals, kw_only=True):
    """The figures of a run so far."""

    #: The run's: see `RunInfo`.
    targets: int = 1
    guess: Guess | None = None
    metrics: Metrics = Metrics.of("cross-entropy", ())
    #: When the first step was begun, in seconds of the coordinator's clock; None before.
    started: float | None = None
    #: Seconds before that which count as well, of a run that was resumed from a checkpoint.
    before_s: float = 0.0
    #: Over the training samples of the epoch so far.
    epoch: Tally = Tally()
    history: list[EpochRecord] = []
    #: Of the current epoch, once it is evaluated; a run that is resumed from before that evaluates it again.
    validation: Tally | None = None
    #: Of the training step that ended last.
    last_step: StepTime = StepTime(round_s=0.0, mean_s=0.0, slowest_s=0.0)
    #: When the current round began.
    round_started: float = 0.0
    #: `(seconds of training, samples)` at past steps, at most `WINDOW_S` back.
    recent: deque[tuple[float, int]] = msgspec.field(default_factory=lambda: deque([(0.0, 0)]))

    def begin_round(self, now: float) -> None:
        """Record that a round begins."""
        self.started = now if self.started is None else self.started
        self.round_started = now

    def end_step(self, tally: Tally, now: float, computed: tuple[float, float] = (0.0, 0.0)) -> None:
        """Record a finished step; `computed` are the seconds that its workers computed: the mean and the most."""
        # First, so that after an interrupt it shows that the rest of this may be missing.
        self.steps += 1
        mean_s, slowest_s = computed
        self.last_step = StepTime(round_s=now - self.round_started, mean_s=mean_s, slowest_s=slowest_s)
        self.epoch = self.epoch + tally
        self.samples += tally.count // self.targets
        self.train_s += self.last_step.round_s
        self.recent.append((self.train_s, self.samples))
        while len(self.recent) > 2 and self.train_s - self.recent[0][0] > WINDOW_S:
            self.recent.popleft()

    def end_update(self, seconds: float) -> None:
        """Record how long the update after the last step took."""
        self.update_s += seconds

    def end_validation(self, validation: Tally) -> None:
        """Record a finished evaluation of the validation set."""
        self.validation = validation

    def end_epoch(self, number: int, evaluation: Tally, now: float) -> EpochRecord:
        """Record a finished evaluation of the test set, and begin the next epoch."""
        validation, self.validation = self.validation, None
        score, guess = self.score(self.epoch), self.guess
        test = score_of(self.metrics, evaluation, guess and guess.test)
        val = None if validation is None else score_of(self.metrics, validation, guess and guess.validation)
        status = EpochRecord(
            epoch=number,
            loss=self.epoch.loss,
            accuracy=score.accuracy,
            r2=score.r2,
            test_loss=evaluation.loss,
            test_accuracy=test.accuracy,
            test_r2=test.r2,
            wall_s=self.elapsed(now),
            val_loss=None if validation is None else validation.loss,
            val_accuracy=val and val.accuracy,
            val_r2=val and val.r2,
            metrics=score.named("") | ({} if val is None else val.named("val_")) | test.named("test_"),
        )
        self.history.append(status)
        self.epoch = Tally()
        return status

    def score(self, tally: Tally) -> Score:
        """Return the score of training samples."""
        return score_of(self.metrics, tally, self.guess and self.guess.train)

    def elapsed(self, now: float) -> float:
        """Return the seconds since the first step began, without those when nothing ran."""
        return self.before_s + (0.0 if self.started is None else now - self.started)

    def images_per_s(self) -> float:
        """Return the training samples per second over the last steps."""
        (then_s, then), (now_s, now) = self.recent[0], self.recent[-1]
        return (now - then) / (now_s - then_s) if now_s > then_s else 0.0

    def eta_s(self, samples_in_all: int) -> float:
        """Return the seconds of training that are left at the speed of the last steps, 0 while that is unknown."""
        speed = self.images_per_s()
        return max(0, samples_in_all - self.samples) / speed if speed else 0.0
