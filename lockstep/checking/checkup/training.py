"""Try a job for some hundred steps, and report the findings: whether it learns, with which rates, and what stays fixed.

Works with whatever computes gradients: our autograd or PyTorch. A trial is the job on batches of at most `SAMPLES`
samples, with a constant rate after a short warm-up or with given rates, in this process.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import msgspec
import numpy as np
from msgspec.structs import replace

from lockstep.checking.checkup.activations import dead_units
from lockstep.checking.checkup.target import ExaminedData, Finding, found
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import OwnSchedule, policy_of, spans_of
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.model.port import DrawKey, Model
from lockstep.common.runtime.clock import Clock
from lockstep.ps.shard.shard import Shard
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import NotFiniteError

#: Steps of the trial, and of those with other rates; samples of a step at most, and steps of warm-up.
STEPS, SHORT_STEPS, SAMPLES, WARM_UP_STEPS = 200, 80, 128, 20

#: Seconds after which a trial ends with fewer steps, and the fewest that say something.
TRIAL_S, FEWEST_STEPS = 8.0, 20

#: Samples that are looked at before, and of the test set after it.
LOOKED_AT, TESTED = 256, 1000

#: Shares of the loss of guessing: above the first nothing was learned, below the second something was, and below the
#: third, of a test loss, a little that holds for other samples.
NOTHING, SOMETHING, BEYOND_CHANCE = 0.97, 0.85, 0.99

#: Values of the job that may keep a model from learning: name -> its value if it is off, why it does, advice.
HOLDING: dict[str, tuple[float | None, str, str]] = {
    "weight_decay": (0.0, "it takes more from the weights than the gradient gives", "set it to 0, or to 0.0001"),
    "clip_norm": (None, "it makes each step far shorter than the gradient", "leave it out, or set it to 1"),
    "clip_value": (None, "it makes each step far shorter than the gradient", "leave it out, or set it to 1"),
}

#: The share of the deviation of the outputs by which they differ for the same sample if samples are mixed.
MIXED = 1e-2

#: Steps before and after one over which its loss is averaged; the share of the loss of guessing by which it has to fall
#: later: of R², as much.
AROUND, MISSED = 3, 0.05

#: Rates to try, as multiples of the job's: the nearest first.
LOWER, HIGHER = (0.1, 0.01, 0.001), (10.0, 100.0, 1e3, 1e4, 1e5, 1e6)

#: The largest norm of the first gradient. In healthy nets it is below 20.
LARGEST_GRADIENT = 1e3

#: The share of outputs that may be exactly 0 if the last layer is not a ReLU.
ZEROS = 0.02

#: A loss is never this many times the sum of the first loss and of that of guessing, if the rate is good.
OVERSHOOT = 5.0

#: Samples, and steps, to learn by heart.
FEW, HEART_STEPS = 32, 200


class TrialRun(msgspec.Struct, frozen=True, dict=True):
    """The outcome of some steps."""

    #: The mean loss of each step's batch before its update; the last one is not finite if the trial broke off.
    losses: list[float]
    #: After the steps.
    weights: Vector
    #: The norm of the first step's gradient.
    first_norm: float
    #: Of each parameter, the largest absolute value that its gradient had in any step.
    largest: Vector
    #: The largest one.
    rate: float
    #: Median seconds of a step, 0 if none was made.
    step_s: float = 0.0

    @cached_property
    def last(self) -> float:
        """The mean loss of the last tenth of the steps, infinite if it was not finite."""
        part = self.losses[-max(5, len(self.losses) // 10) :]
        return float(np.mean(part)) if np.isfinite(part).all() else math.inf


class TrialSubject(ExaminedData, frozen=True):
    """A model with the weights to begin with, its data with their moments, and the job that would train it."""

    #: Returns the model with values that may be changed: an engine keeps those that it is bound to.
    fresh: Callable[[], Model]
    weights: Vector
    clock: Clock
    #: Functions of the user's own that the job names.
    own: OwnCode = NO_CODE

    @cached_property
    def guess(self) -> float:
        """The loss of always giving the frequencies of the classes, or the mean of the targets."""
        return self.guess_of(self.data.train)

    def guess_of(self, part: Dataset) -> float:
        """Return the loss of guessing, for a set whose frequencies, or mean, are known."""
        mean = self.objective.guess(part)
        if mean is not None:
            return mean
        classes = self.objective.compared(self.objective.targets(part.labels[:]))
        shares = np.bincount(classes) / classes.size
        return float(-sum(share * math.log(share) for share in shares if share))

    def run(
        self, steps: int, scale: float = 1.0, data: TrainTest | None = None, rates: Sequence[float] = ()
    ) -> TrialRun:
        """Make steps with `scale` times the job's rate, or with `rates`, while all is finite and there is time."""
        data = data or self.data
        job = self._job(steps, scale, len(data.train))
        model = self.fresh()
        policy = policy_of(job, len(data.train), spans_of(job, model.layout), model.momenta(), self.own)
        if rates:
            policy = replace(policy, schedule=OwnSchedule(1.0, steps, lambda step, _: rates[step], "trial"))
        shard = Shard((self.begin(model), model.layout.new_vector()), policy, job.micro_batches)
        compute, whole = Compute(job, model, data, shard.served, own=self.own), Node(0, job.micro_batches)
        losses, norm, ends = list[float](), 0.0, [self.clock.now()]
        largest = model.layout.new_vector()
        for step in range(steps):
            compute.turn(step)
            try:
                sums, tally = compute.train(step, whole)
            except NotFiniteError:
                losses.append(math.inf)
                break
            losses.append(tally.loss)
            np.maximum(largest, np.abs(sums), out=largest)
            if step == 0:
                norm = float(np.linalg.norm(sums[: model.layout.parameter_size].astype(np.float64))) / tally.count
            shard.update_by(sums, step, tally.count)
            if shard.not_finite is not None:
                losses.append(math.inf)
                break
            ends.append(self.clock.now())
            if step >= FEWEST_STEPS and ends[-1] > ends[0] + TRIAL_S:
                break
        step_s = float(np.median(np.diff(ends))) if len(ends) > 1 else 0.0
        return TrialRun(losses, shard.weights.copy(), norm, largest, max(rates, default=job.lr), step_s)

    def begin(self, model: Model) -> Vector:
        """Return a copy of the first weights, in memory that begins as an engine needs it."""
        vector = model.layout.new_vector()
        vector[:] = self.weights
        return vector

    def _job(self, steps: int, scale: float, samples: int) -> Job:
        job = self.job
        return msgspec.structs.replace(
            job,
            lr=job.lr * scale,
            steps=steps,
            schedule="constant",
            warmup_steps=min(job.warmup_steps, WARM_UP_STEPS, steps - 1),
            global_batch=min(job.global_batch, SAMPLES, samples),
            micro_batches=1,
            wire="float32",
            wire_weights="float32",
        )

    def outputs(self, part: Dataset, most: int, weights: Vector) -> tuple[Array, Array]:
        """Return the outputs for the first samples of a set, and their targets."""
        model = self.fresh()
        model.load(weights)
        outputs = model.outputs(self.preparation.images(part.images[:most])).copy()
        return outputs, self.objective.targets(part.labels[:most])

    def test_loss(self, weights: Vector) -> tuple[float, float]:
        """Return the mean loss and the share of right answers over the first samples of the test set."""
        outputs, targets = self.outputs(self.data.test, TESTED, weights)
        if self.objective.is_regression:
            return float(np.mean(np.square(outputs.reshape(targets.shape) - targets, dtype=np.float64))), 0.0
        # A job with weights, or with targets that are none, is not tried.
        total, _ = self.objective.test_loss(Tensor(outputs), targets)
        return total.item() / targets.size, self.objective.correct(outputs, targets) / targets.size

    def first_few(self) -> TrainTest:
        """Return the first samples of the training set, as all that there is."""
        few = first_of(self.data.train, FEW)
        return TrainTest(self.data.name, few, few)


def first_of(part: Dataset, most: int) -> Dataset:
    """Return the first samples of a set."""
    return replace(part, images=part.images[:most], labels=part.labels[:most])


def check_training(subject: TrialSubject) -> Iterator[Finding]:
    """Yield what a trial of the job shows; what follows from an earlier finding is not looked for."""
    for check in (check_last_layer, check_dead_units, check_mixed_samples, check_trial):
        findings = list(check(subject))
        yield from findings
        if findings:
            return


def check_last_layer(subject: TrialSubject) -> Iterator[Finding]:
    """Yield whether the model ends in a ReLU, which scores and negative targets cannot pass."""
    outputs, _ = subject.outputs(subject.data.train, LOOKED_AT, subject.weights)
    zeros = float(np.mean(outputs == 0))
    if (outputs < 0).any() or zeros < ZEROS:
        return
    if not subject.objective.is_regression:
        yield found("last-relu", zeros=zeros, why="a score of 0 is the lowest that a class can get")
    elif (least := float(np.min(subject.objective.targets(subject.data.train.labels[:])))) < 0:
        scaled = ", scaled" if subject.job.target_scale else ""
        yield found("last-relu", zeros=zeros, why=f"targets go down to {least:.3g}{scaled}, which it can never reach")


def check_dead_units(subject: TrialSubject) -> Iterator[Finding]:
    """Yield each layer of ReLUs most of which are dead, by what the engine shows of its layers."""
    model = subject.fresh()
    engine = model.engine(subject.objective)
    engine.bind([subject.begin(model)], [model.layout.new_vector()])
    train = subject.data.train
    images = subject.preparation.images(train.images[:LOOKED_AT])
    targets = subject.objective.targets(train.labels[:LOOKED_AT])
    for layer in engine.inspect(images, targets, DrawKey(subject.job.seed, 0, 0)).layers:
        if layer.kind == "ReLU" and layer.output.ndim >= 2:
            finding = dead_units(f"{layer.name} ({layer.kind})", layer.output, len(images))
            yield from [finding] if finding is not None else []


def check_mixed_samples(subject: TrialSubject) -> Iterator[Finding]:
    """Yield whether the outputs for a sample depend on which others are computed with it."""
    two, three = (subject.outputs(subject.data.train, most, subject.weights)[0] for most in (2, 3))
    if len(two) != 2 or len(three) != 3:
        return  # there are fewer samples, or rows are not samples
    change = float(np.max(np.abs(three[:2] - two), initial=0.0))
    if change > MIXED * float(np.std(three)):
        yield found("mixed-samples", change=change)


def check_trial(subject: TrialSubject) -> Iterator[Finding]:
    """Yield what the steps themselves show."""
    trial = subject.run(STEPS)
    if not trial.first_norm < LARGEST_GRADIENT:
        yield found("first-gradient", norm=trial.first_norm)
        return
    # With factors of its own, a part may be meant to stay.
    is_known = math.isfinite(trial.last) and not subject.job.lr_factors
    frozen = list(_unchanged(subject, trial)) if is_known else []
    if frozen:
        yield found("frozen-layer", first=frozen[0], count=len(frozen), steps=len(trial.losses))
        return
    overshoots = max(trial.losses) > OVERSHOOT * (trial.losses[0] + subject.guess)
    if overshoots or trial.last > SOMETHING * subject.guess:
        yield from _another_rate(subject, trial)
    else:
        yield from list(_unlike_the_test_set(subject, trial)) or _cut_short(subject, trial)


def _cut_short(subject: TrialSubject, trial: TrialRun) -> Iterator[Finding]:
    """Yield that the job ends while its loss still falls: what the trial learns after as many steps."""
    planned = subject.job.total_steps(len(subject.data.train))
    steps = len(trial.losses)
    if 2 * planned > steps:
        return
    reached = float(np.mean(trial.losses[max(0, planned - AROUND) : planned + AROUND]))
    if reached > trial.last + MISSED * subject.guess:
        figures = {"planned": planned, "reached": reached, "steps": steps, "last": trial.last}
        epochs = -(-subject.job.epochs * steps // planned)
        longer = f"epochs = {epochs}" if subject.job.steps is None else f"steps = {steps}"
        yield found("cut-short", **figures, longer=longer)


def _unchanged(subject: TrialSubject, trial: TrialRun) -> Iterator[str]:
    """Yield the names of parameters in which no bit has changed, and at which no gradient has arrived.

    One that has a gradient may stay for other reasons. With a rate that is too low, no step moves a value of 1. A bias
    before a normalisation has no effect, so that only rounding errors arrive there.
    """
    layout = subject.fresh().layout
    for entry in layout.parameters:
        before, after = entry.view(subject.weights), entry.view(trial.weights)
        if before.tobytes() == after.tobytes() and not entry.view(trial.largest).any():
            yield entry.name


def _another_rate(subject: TrialSubject, trial: TrialRun) -> Iterator[Finding]:
    """Yield that another rate learns much more; if none does, what a few samples show, learned by heart."""
    shown = {"steps": len(trial.losses), "guess": subject.guess, "last": trial.last}
    if trial.last > SOMETHING * subject.guess and (held := list(_held_back(subject, trial, shown))):
        yield from held
        return
    facts, tried = {"lr": subject.job.lr, **shown}, dict[str, list[TrialRun]]()
    for name, scales in (("rate-too-high", LOWER), ("rate-too-low", HIGHER)):
        tried[name] = _until_one_learns(
            lambda scale: subject.run(SHORT_STEPS, scale), scales, SOMETHING * subject.guess
        )
        rate = tried[name][-1]
        if rate.last < min(SOMETHING * subject.guess, trial.last - 0.1 * subject.guess):
            yield found(name, **facts, rate=rate.rate, better=rate.last)
            return
        if trial.last < SOMETHING * subject.guess:
            return  # it learns, and overshot only at first
    if trial.last <= NOTHING * subject.guess:
        # It learns slowly, or learns samples without a rule by heart: the test set tells these apart.
        yield from _unlike_the_test_set(subject, trial)
        return
    yield from _rate_that_generalizes(subject, tried, facts) or _by_heart(subject, facts)


def _rate_that_generalizes(
    subject: TrialSubject, tried: Mapping[str, Sequence[TrialRun]], facts: Mapping[str, float]
) -> list[Finding]:
    """Return that one of the rates learns a little that is of use on the test set.

    With noisy labels, no model gets far below the loss of guessing. The training loss does not show whether one did:
    that of a few batches is too rough, and falls while samples are learned by heart.
    """
    runs = [(name, run) for name, runs in tried.items() for run in runs if run.last < facts["last"]]
    losses = [subject.test_loss(run.weights)[0] for _, run in runs]
    # Of the samples that are tested: by chance, these may have more of the common classes than the training set.
    guess = subject.guess_of(first_of(subject.data.test, TESTED))
    if not min(losses, default=math.inf) < BEYOND_CHANCE * guess:
        return []
    name, best = runs[losses.index(min(losses))]
    return [found(name, **facts, rate=best.rate, better=best.last)]


def _by_heart(subject: TrialSubject, facts: Mapping[str, float]) -> Iterator[Finding]:
    """Yield what a few samples show, learned by heart, of a model that learns with no rate."""
    few = subject.first_few()
    most, scales = 0.5 * subject.guess, (1.0, *LOWER, 10.0)
    by_heart = _until_one_learns(lambda scale: subject.run(HEART_STEPS, scale, few), scales, most)[-1].last
    if by_heart < most:
        yield found("unrelated-labels", **facts, few=len(few.train), by_heart=by_heart)
    else:
        yield found("learns-nothing", **facts, few=len(few.train))


def _held_back(subject: TrialSubject, trial: TrialRun, facts: Mapping[str, float]) -> Iterator[Finding]:
    """Yield that the model learns as soon as one value of the job is left out."""
    for name, (none, why, advice) in HOLDING.items():
        value = getattr(subject.job, name)
        if not value:
            continue
        without = msgspec.structs.replace(subject.job, **{name: none})
        better = replace(subject, job=without).run(SHORT_STEPS).last
        if better < min(SOMETHING * subject.guess, trial.last - 0.1 * subject.guess):
            yield found("held-back", name=name, value=value, better=better, why=why, advice=advice, **facts)
            return


def _until_one_learns(run: Callable[[float], TrialRun], scales: Sequence[float], most: float) -> list[TrialRun]:
    """Return trials up to the first that ends with a loss below `most`, or all of them if none does."""
    trials = list[TrialRun]()
    for scale in scales:
        trials.append(run(scale))
        if trials[-1].last < most:
            break
    return trials


def _unlike_the_test_set(subject: TrialSubject, trial: TrialRun) -> Iterator[Finding]:
    """Yield a finding if the model learned only the training set."""
    loss, right = subject.test_loss(trial.weights)
    if loss <= subject.guess:
        return
    tested = min(TESTED, len(subject.data.test)) * subject.data.train.targets
    if not subject.objective.is_regression:
        targets = subject.objective.compared(subject.objective.targets(subject.data.test.labels[:TESTED]))
        most = float(np.bincount(targets).max()) / targets.size
        # Two standard deviations above always giving the commonest class.
        if right > most + 2 * math.sqrt(most * (1 - most) / tested):
            return
    trained = len(subject.data.train)
    yield found("no-better-on-test", last=trial.last, guess=subject.guess, test=loss, tested=tested, trained=trained)
