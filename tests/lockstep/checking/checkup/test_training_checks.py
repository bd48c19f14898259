"""What a trial of a job decides, from trials that are given: on both sides of each limit, with hardly a step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.checking.checkup.training import (
    TrialRun,
    TrialSubject,
    check_dead_units,
    check_last_layer,
    check_mixed_samples,
    check_training,
    check_trial,
)
from lockstep.common import nn
from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from lockstep.common.job.own_code import OwnCode
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.runtime.clock import ManualClock

#: What guessing costs of two classes as frequent as each other.
GUESS = math.log(2)


def model_of(*after: nn.Module, outputs: int = 2) -> AutogradModel:
    return AutogradModel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, outputs), *after).initialize(3))


def data_of(samples: int = 40, *, is_regression: bool = False) -> TrainTest:
    features = np.random.default_rng(4).normal(size=(samples, 3)).astype(np.float32)
    labels: NDArray[Any] = np.arange(samples) % 2
    features[:, 0] += 2 * labels
    if is_regression:
        labels = (labels - 0.5).astype(np.float32)[:, np.newaxis]
    part = Dataset(features, labels, 0 if is_regression else 2)
    return TrainTest("arrays", part, part)


class Told(TrialSubject, frozen=True):
    """A subject whose trials come to what is given by the rate's factor, and by whether the samples are few."""

    came_to: Mapping[tuple[float, bool], TrialRun] = msgspec.field(default_factory=dict)
    asked: list[tuple[int, float, bool]] = msgspec.field(default_factory=list)
    #: By a value of the job, what a trial without it comes to.
    without: Mapping[str, TrialRun] = msgspec.field(default_factory=dict)

    def run(
        self, steps: int, scale: float = 1.0, data: TrainTest | None = None, rates: Sequence[float] = ()
    ) -> TrialRun:
        self.asked.append((steps, scale, data is not None))
        for name, made in self.without.items():
            if not getattr(self.job, name):
                return made
        found = self.came_to.get((scale, data is not None), trial(9.0))
        return replace(found, rate=self.job.lr * scale)


def trial(last: float, *losses: float, norm: float = 1.0) -> TrialRun:
    """Return a trial in which all weights changed."""
    size = model_of().layout.size
    made = [*(losses or (GUESS,)), *[last] * 5]
    return TrialRun(made, np.full(size, 7.0, np.float32), norm, np.ones(size, np.float32), 0.0)


def subject(came_to: Mapping[tuple[float, bool], TrialRun] | None = None, **values: Any) -> Told:
    job = Job(**{"global_batch": 10, "micro_batches": 2, "lr": 0.5, **values})
    weights = model_of().first_weights(0)
    return Told(job, data_of(is_regression=job.loss == "mse"), model_of, weights, ManualClock(), came_to=came_to or {})


def found_in(given: Told) -> list[tuple[str, str]]:
    return [(finding.kind, str(finding)) for finding in check_trial(given)]


def test_what_guessing_costs() -> None:
    assert subject().guess == pytest.approx(GUESS)
    few = replace(data_of().train, labels=(np.arange(40) % 4 == 0).astype(np.int64))
    uneven = replace(subject(), data=TrainTest("arrays", few, few))
    assert uneven.guess == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    one = replace(few, labels=np.ones(40, np.int64))
    assert replace(subject(), data=TrainTest("arrays", one, one)).guess == 0.0
    assert subject(loss="mse").guess == pytest.approx(0.25)


@pytest.mark.parametrize(("norm", "is_found"), [(999.0, False), (1e3, True), (math.nan, True), (math.inf, True)])
def test_the_first_gradient_is_not_huge(norm: float, is_found: bool) -> None:
    given = subject({(1.0, False): trial(0.1, norm=norm)})
    found = [text for kind, text in found_in(given) if kind == "exploding"]
    assert [f"the first has a norm of {norm:.3g}" in text for text in found] == [True] * is_found
    assert given.asked == [(200, 1.0, False)]


def test_the_last_tenth_of_the_losses_counts_and_five_at_least() -> None:
    assert replace(trial(0.0), losses=[9.0, 1.0, 2.0, 3.0, 4.0, 5.0]).last == 3.0
    assert replace(trial(0.0), losses=[9.0] * 72 + [1.0] * 4 + [3.0] * 4).last == 2.0
    assert replace(trial(0.0), losses=[1.0, 2.0]).last == 1.5
    assert replace(trial(0.0), losses=[1.0, math.inf]).last == math.inf
    assert replace(trial(0.0), losses=[1.0, math.nan]).last == math.inf


def unchanged(*names: str, has_gradient: bool = False) -> TrialRun:
    """Return a trial that learned, in which these parameters did not change."""
    layout, made = model_of().layout, trial(0.1)
    for entry in layout.parameters:
        if entry.name in names:
            entry.view(made.weights)[...] = entry.view(subject().weights)
            entry.view(made.largest)[...] = 0.0
            if has_gradient:
                entry.view(made.largest).flat[0] = 1e-9
    return made


def test_what_did_not_change_and_had_no_gradient_is_frozen() -> None:
    ((kind, text),) = found_in(subject({(1.0, False): unchanged("0.bias", "0.weight")}))
    assert kind == "frozen"
    assert text.startswith("'0.weight' does not learn: in 6 steps not a bit of 2 parameters changed")
    for others in (unchanged("0.weight", has_gradient=True), unchanged()):
        assert "frozen" not in dict(found_in(subject({(1.0, False): others})))
    # With factors, a part may be meant to stay; and of a trial that broke off, nothing is known.
    factors = subject({(1.0, False): unchanged("0.weight")}, lr_factors={"0.*": 0.5})
    assert "frozen" not in dict(found_in(factors))
    broken = replace(unchanged("0.weight"), losses=[GUESS, math.inf])
    assert "frozen" not in dict(found_in(subject({(1.0, False): broken})))


@pytest.mark.parametrize(("last", "tries"), [(0.849 * GUESS, False), (0.851 * GUESS, True)])
def test_a_job_that_learned_something_is_not_tried_again(last: float, tries: bool) -> None:
    given = subject({(1.0, False): trial(last)})
    found_in(given)
    assert (len(given.asked) > 1) is tries


@pytest.mark.parametrize(("highest", "tries"), [(9.9, False), (10.1, True)])
def test_a_job_that_overshot_is_tried_with_lower_rates(highest: float, tries: bool) -> None:
    # 5 times the first loss, 1.3069, and guessing.
    first = 2.0 - GUESS
    given = subject({(1.0, False): trial(0.1, first, highest)})
    found = found_in(given)
    assert given.asked[1:] == [(80, scale, False) for scale in (0.1, 0.01, 0.001)] * tries
    assert "rate" not in dict(found)


HELD = {"weight_decay": 0.25, "clip_norm": 0.5, "clip_value": 0.125}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize(
    ("here", "there", "is_found"),
    [(1.0, 0.849, True), (1.0, 0.851, False), (0.9, 0.799, True), (0.9, 0.801, False), (0.84, 0.1, False)],
)
def test_a_value_that_holds_the_model_back_is_named(name: str, here: float, there: float, is_found: bool) -> None:
    given = subject({(1.0, False): trial(here * GUESS)}, **{name: HELD[name]})
    given = replace(given, without={name: trial(there * GUESS)})
    found = [text for kind, text in found_in(given) if kind == "held-back"]
    starts = f"{name} = {HELD[name]:g} keeps the model from learning: after 6 steps the loss is {here * GUESS:.3g}"
    assert [text.startswith(starts) for text in found] == [True] * is_found
    assert [f"without {name} it came to {there * GUESS:.3g} in fewer st" in text for text in found] == [True] * is_found
    assert ((80, 1.0, False) in given.asked) is (here > 0.85)


def test_the_first_value_that_holds_the_model_back_is_named_and_none_that_is_not_set() -> None:
    without = dict.fromkeys(("clip_norm", "clip_value"), trial(0.1))
    given = replace(subject({(1.0, False): trial(GUESS)}, **HELD), without=without)
    ((_, text),) = found_in(given)
    assert text.startswith("clip_norm = 0.5 keeps the model from learning")
    assert [steps for steps, *_ in given.asked] == [200, 80, 80]
    assert "held-back" not in dict(found_in(subject({(1.0, False): trial(GUESS)})))


@pytest.mark.parametrize(
    ("change", "count", "is_found"),
    [(0.0, 3, False), (0.0099, 3, False), (0.0101, 3, True), (-0.0101, 3, True), (1.0, 2, False), (1.0, 6, False)],
)
def test_outputs_for_a_sample_do_not_depend_on_others(change: float, count: int, is_found: bool) -> None:
    class Given(Told, frozen=True):
        def outputs(self, part: Dataset, most: int, weights: Vector) -> tuple[Any, Any]:
            three = np.tile([-1.0, 1.0], (count if most == 3 else 2, 1))
            three[:, 1] += change * (most == 2)
            return three, part.labels

    shown = subject()
    found = list(check_mixed_samples(Given(shown.job, shown.data, shown.fresh, shown.weights, shown.clock)))
    assert [finding.kind for finding in found] == ["mixed-samples"] * is_found
    assert [f"change by up to {abs(change):.3g} when" in each.evidence for each in found] == [True] * is_found


@pytest.mark.parametrize("scale", [0.1, 0.01, 0.001, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6])
def test_another_rate_that_learns_is_named(scale: float) -> None:
    given = subject({(1.0, False): trial(GUESS), (scale, False): trial(0.2)})
    ((kind, text),) = found_in(given)
    is_wrong, change = ("large", "lower") if scale < 1 else ("small", "raise")
    assert kind == "rate"
    assert text.startswith(
        f"the learning rate is too {is_wrong}: lr = 0.5: after 6 steps the loss is 0.693; guessing has 0.6"
    )
    rate = f"{0.5 * scale:.3g}"
    assert text.endswith(f"{change} lr to {rate} (--lr {rate}): with it the loss came to 0.2 in fewer steps")
    assert given.asked[-1] == (80, scale, False)


@pytest.mark.parametrize(
    ("here", "there", "is_found"),
    [
        (0.9, 0.849, False),  # less than a tenth of guessing better
        (0.9, 0.799, True),
        (0.96, 0.851, False),  # not below what is something
        (0.96, 0.849, True),
    ],
)
def test_another_rate_has_to_be_much_better(here: float, there: float, is_found: bool) -> None:
    given = subject({(1.0, False): trial(here * GUESS), (0.1, False): trial(there * GUESS)})
    assert ("rate" in dict(found_in(given))) is is_found


class WithTestLoss(Told, frozen=True):
    """A subject whose weights hold what they cost on the test set, as a share of guessing."""

    def test_loss(self, weights: Vector) -> tuple[float, float]:
        return float(weights[0]) * GUESS, 0.5


def trials_of(**shares: tuple[float, float]) -> WithTestLoss:
    """Return a subject by the shares of guessing of its trials, in training and test."""
    scales = {"own": 1.0, "lower": 0.1, "higher": 10.0}
    came_to = {
        (scales[name], False): replace(trial(last * GUESS), weights=np.full(model_of().layout.size, test, np.float32))
        for name, (last, test) in shares.items()
    }
    given = subject(came_to)
    return WithTestLoss(given.job, given.data, given.fresh, given.weights, given.clock, came_to=came_to)


@pytest.mark.parametrize(("test", "kind"), [(0.989, "rate"), (0.991, "no-learning")])
def test_of_noisy_labels_a_rate_learns_little_that_holds_for_the_test_set(test: float, kind: str) -> None:
    ((found, text),) = found_in(trials_of(own=(1.0, 1.0), lower=(0.98, test)))
    assert found == kind
    assert ("too large: lr = 0.5: after 6 steps the loss is 0.693" in text) is (kind == "rate")


def test_a_test_set_with_more_of_a_common_class_shows_nothing_by_that() -> None:
    given = trials_of(own=(1.0, 1.0), lower=(0.98, 0.9))
    mostly = replace(given.data.test, labels=(np.arange(40) % 4 == 0).astype(np.int64))
    # Guessing three to one has 0.562, which is 0.81 of the loss of guessing with equal classes.
    uneven = replace(given, data=replace(given.data, test=mostly))
    assert [kind for kind, _ in found_in(uneven)] == ["no-learning"]


def test_the_rate_that_is_best_on_the_test_set_is_named() -> None:
    ((_, text),) = found_in(trials_of(own=(1.0, 1.0), lower=(0.94, 0.98), higher=(0.96, 0.97)))
    assert "too small: lr = 0.5" in text
    assert text.endswith(f"raise lr to 5 (--lr 5): with it the loss came to {0.96 * GUESS:.3g} in fewer steps")


def test_a_rate_that_learns_less_is_not_named() -> None:
    ((kind, _),) = found_in(trials_of(own=(0.99, 1.0), lower=(0.991, 0.9)))
    assert kind == "no-learning"


def test_a_job_that_overshot_and_learned_all_the_same_is_not_tried_with_higher_rates() -> None:
    given = subject({(1.0, False): trial(0.1, GUESS, 99.0), (10.0, False): trial(0.0)})
    assert found_in(given) == []
    assert [scale for _, scale, _ in given.asked] == [1.0, 0.1, 0.01, 0.001]


@pytest.mark.parametrize(
    ("by_heart", "scale", "kind", "text"),
    [
        (0.49, 1.0, "labels", "32 samples are learned by heart (0.34)"),
        (0.49, 0.1, "labels", "32 samples are learned by heart (0.34)"),
        (0.49, 10.0, "labels", "32 samples are learned by heart (0.34)"),
        (0.51, 1.0, "no-learning", "after 6 steps the loss is 0.693; guessing has 0.693; nor does it learn 32 samples"),
    ],
)
def test_if_no_rate_learns_a_few_samples_are_learned_by_heart(
    by_heart: float, scale: float, kind: str, text: str
) -> None:
    given = subject({(1.0, False): trial(GUESS), (scale, True): trial(by_heart * GUESS)})
    ((found, said),) = found_in(given)
    assert found == kind
    assert text in said
    tried = [1.0, 0.1, 0.01, 0.001, 10.0]
    last = tried.index(scale) + 1 if kind == "labels" else len(tried)
    assert [each for each in given.asked if each[2]] == [(200, each, True) for each in tried[:last]]


def test_what_learns_slowly_is_judged_by_the_test_set() -> None:
    # 0.97 of guessing: a little was learned, if only by heart. All weights are 7: the test loss is large.
    slow = subject({(1.0, False): trial(0.969 * GUESS)})
    ((kind, text),) = found_in(slow)
    assert (kind, "is of no use on the test set" in text) == ("labels", True)
    assert not any(is_few for _, _, is_few in slow.asked)
    nothing = subject({(1.0, False): trial(0.971 * GUESS)})
    assert dict(found_in(nothing)).keys() == {"no-learning"}


def judged(right: int, samples: int = 100, *, guess: int = 50) -> list[str]:
    """Return the findings of a model that learned and is right on so many of these test samples, confidently so."""
    model = AutogradModel(nn.Sequential(nn.Linear(1, 2)))
    weights = model.layout.new_vector()
    model.layout.write(weights, {"0.weight": np.array([[-99], [99]], np.float32), "0.bias": np.zeros(2, np.float32)})
    labels = (np.arange(samples) >= guess).astype(np.int64)
    signs = np.where(np.arange(samples) % samples < right, 2 * labels - 1, 1 - 2 * labels).astype(np.float32)
    test = Dataset(signs[:, np.newaxis], labels, 2)
    job = Job(global_batch=10, micro_batches=2, normalize=False)
    learned = TrialRun([0.7, *[0.1] * 5], weights, 1.0, np.ones_like(weights), 0.0)
    data = TrainTest("arrays", test, test)
    given = Told(job, data, lambda: model, np.zeros_like(weights), ManualClock(), came_to={(1.0, False): learned})
    return [str(finding) for finding in check_trial(given)]


@pytest.mark.parametrize(
    ("right", "guess", "is_found"),
    # Two standard deviations of 100 throws of a coin are 10; of a class with 80 of 100, 8.
    [(60, 50, True), (61, 50, False), (88, 80, True), (89, 80, False), (100, 50, False), (0, 50, True)],
)
def test_right_answers_are_to_be_more_than_chance(right: int, guess: int, is_found: bool) -> None:
    found = judged(right, guess=guess)
    assert len(found) == is_found
    for text in found:
        assert "the training loss fell to 0.1; on 100 test samples it is" in text
        assert f"guessing has {-sum(p * math.log(p) for p in (guess / 100, 1 - guess / 100)):.3g}" in text


def test_no_more_than_a_thousand_test_samples_are_looked_at() -> None:
    (text,) = judged(400, 2000, guess=1000)
    assert "on 1,000 test samples" in text
    # All that are looked at are of class 0, of which 540 are right.
    assert judged(1000, 2000, guess=1000) == []


def test_a_regression_is_judged_by_its_loss_alone() -> None:
    learned = replace(trial(0.01), weights=np.full(model_of(outputs=1).layout.size, 7.0, np.float32))
    given = replace(subject({(1.0, False): learned}, loss="mse"), fresh=lambda: model_of(outputs=1))
    ((kind, text),) = found_in(given)
    assert (kind, "is of no use on the test set" in text) == ("labels", True)
    assert "on 40 test samples" in text


@pytest.mark.parametrize(
    ("outputs", "is_found"),
    [([0.0] * 4 + [1.0] * 196, True), ([0.0] * 3 + [1.0] * 197, False), ([0.0] * 99 + [-1e-9] + [1.0] * 100, False)],
)
def test_outputs_that_are_never_negative_and_often_0_are_a_relus(outputs: list[float], is_found: bool) -> None:
    class Given(Told, frozen=True):
        def outputs(self, part: Dataset, most: int, weights: Vector) -> tuple[Any, Any]:
            assert most == 256
            return np.array(outputs, np.float32).reshape(100, 2), part.labels

    shown = subject()
    given = Given(shown.job, shown.data, shown.fresh, shown.weights, shown.clock)
    found = list(check_last_layer(given))
    assert [finding.kind for finding in found] == ["last-relu"] * is_found
    assert ["a score of 0 is the lowest that a class can get" in each.cause for each in found] == [True] * is_found
    # Numbers that are never negative can be reached.
    numbers = replace(given, job=Job(loss="mse", global_batch=10), data=data_of(is_regression=True))
    assert ["go down to -0.5, which" in each.cause for each in check_last_layer(numbers)] == [True] * is_found
    labels = np.abs(numbers.data.train.labels)
    labels[0] = 0.0
    positive = replace(numbers.data.train, labels=labels)
    reached = replace(numbers, data=TrainTest("arrays", positive, positive))
    assert list(check_last_layer(reached)) == []
    # Unless they are scaled, and half of them are then below 0.
    halved = replace(reached, job=Job(loss="mse", global_batch=10, target_scale=(1.5, 0.5)))
    assert ["go down to -3, scaled, which" in each.cause for each in check_last_layer(halved)] == [True] * is_found


@pytest.mark.parametrize(("dead", "is_found"), [(2, False), (3, True)])
def test_most_units_of_a_model_are_alive(dead: int, is_found: bool) -> None:
    given = subject()
    layout = given.fresh().layout
    weights = given.weights.copy()
    for entry in layout.parameters:
        if entry.name == "0.bias":
            entry.view(weights)[:] = 5.0
            entry.view(weights)[:dead] = -50.0
    found = list(check_dead_units(replace(given, weights=weights)))
    assert [finding.what for finding in found] == ["3 of 4 ReLUs of 1 (ReLU) are dead"] * is_found
    assert [finding.evidence for finding in found] == ["they are 0 for all of 40 training samples"] * is_found


def test_what_follows_from_a_finding_is_not_looked_for() -> None:
    given = replace(subject(), fresh=lambda: model_of(nn.ReLU()))
    assert [finding.kind for finding in check_training(given)] == ["last-relu"]
    assert given.asked == []
    healthy = subject({(1.0, False): trial(GUESS), (0.1, False): trial(0.2)})
    assert [finding.kind for finding in check_training(healthy)] == ["rate"]


def real(**values: Any) -> TrialSubject:
    given = subject(**values)
    return TrialSubject(given.job, given.data, given.fresh, given.weights, ManualClock())


def test_a_trial_is_the_job_in_one_micro_batch() -> None:
    given = real(optimizer="sgd", momentum=0.0, normalize=False, schedule="cosine", global_batch=40, micro_batches=4)
    before = given.weights.copy()
    found = given.run(7)
    assert len(found.losses) == 7
    assert given.weights.tobytes() == before.tobytes()
    model = given.fresh()
    outputs, targets = given.outputs(given.data.train, 40, before)
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(40), targets]
    assert found.losses[0] == pytest.approx(losses.mean(), rel=1e-5)
    # A step of plain SGD: the weights move by the rate times the mean gradient.
    one = given.run(1)
    moved = (before - one.weights)[: model.layout.parameter_size] / 0.5
    assert one.first_norm == pytest.approx(float(np.linalg.norm(moved)), rel=1e-3)
    np.testing.assert_allclose(one.largest[: moved.size] / 40, np.abs(moved), atol=1e-5)
    slow = given.run(1, 0.1)
    np.testing.assert_allclose((before - slow.weights)[: moved.size] / 0.05, moved, atol=1e-4)
    assert (one.rate, slow.rate) == (0.5, 0.05)
    assert found.losses[-1] < found.losses[0]


def test_a_trial_calls_functions_of_the_users_own() -> None:
    given = real(transform="mine.py:hidden", normalize=False)
    hidden = replace(given, own=OwnCode(transform=lambda sample, rng: 0 * sample))
    weights = given.fresh().layout.read(given.weights)
    scores = weights["2.bias"] + weights["2.weight"] @ np.maximum(weights["0.bias"], 0)
    expected = float(np.log(np.exp(scores).sum()) - scores.mean())
    assert hidden.run(1).losses[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("batch", "samples", "expected"), [(10, 40, 10), (128, 400, 128), (200, 400, 128), (200, 40, 40)]
)
def test_a_step_has_few_samples(batch: int, samples: int, expected: int) -> None:
    job = replace(real(), data=data_of(samples), job=Job(global_batch=batch))._job(50, 2.0, samples)
    assert (job.global_batch, job.micro_batches, job.steps, job.lr) == (expected, 1, 50, 2.0 * Job().lr)


@pytest.mark.parametrize(("given", "expected"), [(0, 0), (20, 20), (21, 20)])
def test_a_warm_up_is_short(given: int, expected: int) -> None:
    job = real(warmup_steps=given, wire="int8", wire_weights="bfloat16", schedule="cosine")._job(50, 1.0, 40)
    assert (job.warmup_steps, job.schedule, job.wire, job.wire_weights) == (expected, "constant", "float32", "float32")


def test_a_trial_ends_with_the_first_number_that_is_not_finite() -> None:
    found = real(lr=1e30, momentum=0.0).run(50)
    assert 1 < len(found.losses) < 50
    assert found.last == math.inf
    assert all(map(math.isfinite, found.losses[:-1]))


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 50), (0.38, 22), (0.4, 21), (900.0, 21)])
def test_a_trial_ends_after_eight_seconds_and_has_twenty_one_steps_at_least(seconds: float, steps: int) -> None:
    class Slow(ManualClock):
        def now(self) -> float:
            self.advance(seconds)
            return super().now()

    assert len(replace(real(), clock=Slow()).run(50).losses) == steps


def test_the_samples_that_are_learned_by_heart_are_the_first() -> None:
    few = real().first_few()
    assert len(few.train) == len(few.test) == 32
    assert few.train.images[:].tobytes() == real().data.train.images[:32].tobytes()
    assert few.train.labels.tobytes() == real().data.train.labels[:32].tobytes()
    assert real().run(3, 1.0, few).losses[0] != real().run(3).losses[0]


def test_test_losses_are_means() -> None:
    given = real(normalize=False)
    outputs, targets = given.outputs(given.data.test, 1000, given.weights)
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    share = shifted[np.arange(40), targets] / shifted.sum(axis=1)
    loss, right = given.test_loss(given.weights)
    assert loss == pytest.approx(float(-np.log(share).mean()), rel=1e-5)
    assert right == (outputs.argmax(axis=1) == targets).mean()
    numbers = replace(real(loss="mse", normalize=False), fresh=lambda: model_of(outputs=1))
    weights = model_of(outputs=1).first_weights(0)
    outputs, targets = numbers.outputs(numbers.data.test, 1000, weights)
    assert numbers.test_loss(weights) == pytest.approx((float(((outputs - targets) ** 2).mean()), 0.0), rel=1e-5)
