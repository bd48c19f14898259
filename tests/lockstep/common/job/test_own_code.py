"""Which values of a job name functions, and which of these updates call; and the transformation of samples."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.data.records import as_records
from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.own_code import NAMING, OwnCode, Transform, functions_of, needs_code, transform_of
from lockstep.common.numerics.random import Purpose, generator


@pytest.mark.parametrize("value", NAMING)
def test_each_value_may_name_a_function(value: str) -> None:
    job = replace(Job(), **{value: "mine.py:it"})
    assert functions_of(job) == {value: "mine.py:it"}
    assert needs_code(job) is (value in ("optimizer", "schedule"))


def test_other_jobs_name_none() -> None:
    assert functions_of(Job()) == {}
    assert not needs_code(Job(optimizer="adam", schedule="cosine"))


def test_a_metric_is_named_by_its_function() -> None:
    named = functions_of(Job(metrics=("f1", "mine.py:odd", "other.py:even"), loss="mine.py:loss"))
    assert named == {"loss": "mine.py:loss", "metrics.odd": "mine.py:odd", "metrics.even": "other.py:even"}


def test_each_function_is_in_its_place() -> None:
    found: dict[str, Any] = {value: object() for value in (*NAMING, "metrics.odd", "build")}
    own = OwnCode.of(found)
    assert {value: getattr(own, value) for value in NAMING} == {value: found[value] for value in NAMING}
    assert own.metrics == {"odd": found["metrics.odd"]}
    assert OwnCode.of({}) == OwnCode()


SAMPLES = np.arange(24, dtype=np.float32).reshape(6, 4)
LABELS = np.arange(6)


def noisy(sample: Any, rng: np.random.Generator) -> Any:
    return sample + rng.normal(size=sample.shape).astype(np.float32)


def swapped(sample: Any, target: Any, rng: np.random.Generator) -> Any:
    return sample[::-1], target + int(rng.integers(2))


def transformed(function: Any, places: list[int], epoch: int = 0) -> tuple[Any, Any]:
    indices = np.array(places)
    return Transform(function, "mine.py:it", 3).apply(SAMPLES[indices], LABELS[indices], indices, epoch)


def test_what_is_drawn_depends_on_the_sample_and_the_epoch_alone() -> None:
    whole, _ = transformed(noisy, [0, 1, 2, 3])
    turned, labels = transformed(noisy, [3, 1])
    np.testing.assert_array_equal(turned, whole[[3, 1]])
    assert labels.tolist() == [3, 1]
    later, _ = transformed(noisy, [0, 1, 2, 3], epoch=1)
    assert (later != whole).all()
    assert (whole != SAMPLES[:4]).all()


def test_it_does_not_matter_whether_pytorch_is_loaded() -> None:
    pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
    (made,), _ = transformed(noisy, [3])
    drawn = generator(3, Purpose.TRANSFORM, at=0, micro_batch=3).normal(size=4).astype(np.float32)
    np.testing.assert_array_equal(made, SAMPLES[3] + drawn)


def test_a_target_is_transformed_along_if_the_function_takes_it() -> None:
    samples, labels = transformed(swapped, [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(samples, SAMPLES[:, ::-1])
    assert set(labels - LABELS) == {0, 1}


def test_several_inputs_are_a_dictionary() -> None:
    records = as_records({"image": SAMPLES, "row": LABELS.astype(np.int32)})

    def doubled(sample: Any, rng: np.random.Generator) -> Any:
        assert isinstance(sample, dict)
        return {"image": 2 * sample["image"], "row": sample["row"]}

    samples, _ = Transform(doubled, "mine.py:it", 3).apply(records, LABELS, np.arange(6), 0)
    np.testing.assert_array_equal(samples["image"], 2 * SAMPLES)
    np.testing.assert_array_equal(samples["row"], LABELS)


class Counting:
    """Keeps a state of its own."""

    calls = 0

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        self.calls += 1
        return sample + self.calls


def test_one_that_makes_something_else_the_second_time_is_refused() -> None:
    Transform(noisy, "mine.py:it", 3).check(SAMPLES, LABELS)
    with pytest.raises(ModelError, match=r"transform = 'mine.py:it' makes something else of a sample the second time"):
        Transform(Counting(), "mine.py:it", 3).check(SAMPLES, LABELS)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda sample, rng: sample[:2], r"makes a sample of shape \(2,\) and dtype 'float32': expected \(4,\)"),
        (
            lambda sample, target, rng: (sample, np.zeros(2)),
            r"makes a target of shape \(2,\) and dtype 'float64': expected \(\) and 'int64', as it is stored",
        ),
        (lambda sample, rng: sample.astype(complex), "dtype 'complex128': expected .* and 'float32'"),
        (
            lambda sample, rng: sample.flip(),
            "raised AttributeError: .*: expected a function of a sample and a generator",
        ),
    ],
)
def test_what_does_not_fit_is_named(function: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        transformed(function, [0])


def test_what_pytorch_draws_within_it_depends_on_the_sample_and_the_epoch_and_is_not_what_the_generator_draws() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

    def drawing(sample: Any, rng: np.random.Generator) -> Any:
        return torch.rand(4).numpy()

    whole, _ = transformed(drawing, [0, 1, 2])
    np.testing.assert_array_equal(transformed(drawing, [2, 0])[0], whole[[2, 0]])
    assert len({tuple(each) for each in (*whole, *transformed(drawing, [0, 1, 2], 1)[0])}) == 6
    with torch.random.fork_rng(devices=[]):
        seed = generator(3, Purpose.TRANSFORM, at=0, micro_batch=2, layer=1).integers(2**63)
        torch.default_generator.manual_seed(int(seed))
        np.testing.assert_array_equal(whole[2], torch.rand(4).numpy())


def test_a_job_without_one_transforms_nothing() -> None:
    assert transform_of(Job(), OwnCode()) is None
    made = transform_of(Job(transform="mine.py:it", seed=7), OwnCode(transform=noisy))
    assert made == Transform(noisy, "mine.py:it", 7)
