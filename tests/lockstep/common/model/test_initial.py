"""How a file of weights fits a model, and what a run begins with: without a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.aggregation.layout import FrozenArray, ParameterLayout
from lockstep.common.errors import FileFormatError, ModelError
from lockstep.common.files.safetensors import write
from lockstep.common.job.job import Job
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.initial import fit_of, initial_weights, kept_next_to, read_initial, read_weights

#: Two parameters, two statistics, a frozen parameter and a constant.
LAYOUT = ParameterLayout.of(
    {"w": (2, 3), "b": (2,)},
    {"norm.running_mean": (2,), "norm.running_var": (2,)},
    [
        FrozenArray.of("held", np.ones(4, np.float32), is_parameter=True),
        FrozenArray.of("scale", np.ones((), np.float32), is_parameter=False),
    ],
)


def arrays(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name.replace("__", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}


WHOLE = arrays(w=(2, 3), b=(2,), norm__running_mean=(2,), norm__running_var=(2,), held=(4,))


def test_a_whole_file_has_no_problem_with_or_without_constants_and_counters() -> None:
    for more in ({}, arrays(scale=()), arrays(norm__num_batches_tracked=())):
        found = fit_of(LAYOUT, {**WHOLE, **more})
        assert (found.problems(), found.missing, found.unexpected, found.reshaped) == ("", [], [], {})
        assert list(found.taken) == [*WHOLE, *(name for name in more if name == "scale")]


def test_all_that_does_not_fit_is_named() -> None:
    given = arrays(w=(3, 2), held=(4,), scale=(1,), num_batches_tracked=(), norm__running_var=(2,))
    found = fit_of(LAYOUT, given)
    assert list(found.taken) == ["held", "norm.running_var"]
    assert found.missing == ["b", "norm.running_mean"]
    assert found.unexpected == ["num_batches_tracked"]
    assert found.reshaped == {"w": ((3, 2), (2, 3)), "scale": ((1,), ())}
    assert found.problems() == (
        "missing: 'b', 'norm.running_mean'; unexpected: 'num_batches_tracked'; of another shape: "
        "'w' ((3, 2), not (2, 3)), 'scale' ((1,), not ())"
    )


@pytest.mark.parametrize(
    ("count", "text"), [(3, "'0', '1', '2'"), (4, "'0', '1', '2' and 1 more"), (6, "'0', '1', '2' and 3 more")]
)
def test_a_line_names_three_at_most(count: int, text: str) -> None:
    more = {str(number): np.ones(1, np.float32) for number in range(count)}
    assert fit_of(LAYOUT, {**WHOLE, **more}).problems() == f"unexpected: {text}"


def test_a_long_name_of_a_file_is_shortened() -> None:
    line = fit_of(LAYOUT, {**WHOLE, "n" * 500: np.ones(1, np.float32)}).problems()
    assert len(line.removeprefix("unexpected: ").strip("'")) == 79


def test_a_run_keeps_the_file_next_to_the_folder_of_its_model() -> None:
    assert kept_next_to("runs/7/model") == Path("runs/7/initial.safetensors")
    assert kept_next_to("") is None


def test_a_checkpoint_is_read_for_its_weights(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    write(tmp_path / "c.safetensors", {"w": 2 * ones, "optimizer/slot/w": ones, "lockstep/step": ones}, {})
    found = read_weights(tmp_path / "c.safetensors")
    assert list(found) == ["w"]
    assert found["w"].tolist() == [2.0, 2.0]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"none: cannot be read \(.*\): expected a safet"):
        read_weights(tmp_path / "none")
    # As long as a file begins, that decides who reads it.
    for start in (b"PK", b"PK\x03", b"\x80"):
        (tmp_path / "short").write_bytes(start)
        with pytest.raises(FileFormatError, match=r"short: claims a header .* or of another format"):
            read_weights(tmp_path / "short")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02"], ids=["zip", "pickle"])
def test_a_file_of_torch_is_known_by_its_start(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "w").write_bytes(start + b"junk")
    with pytest.raises(FileFormatError, match=r"/w: .*torch\.(load|save)"):
        read_weights(tmp_path / "w")


def model_of() -> AutogradModel:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).initialize(5)
    dict(module.named_parameters())["0.weight"].requires_grad = False
    return AutogradModel(module)


def job_with(path: Path | None, *, is_partial: bool = False, seed: int = 3) -> Job:
    return Job(initial=None if path is None else str(path), initial_partial=is_partial, seed=seed)


#: All that the model has.
ALL = {"0.weight": (2, 3), "0.bias": (2,), "1.weight": (2, 2), "1.bias": (2,)}


def file_with(path: Path, value: float, *names: str) -> Path:
    write(path, {name: np.full(ALL.get(name, (1,)), value, np.float32) for name in names}, {})
    return path


def test_without_a_file_the_weights_are_drawn(tmp_path: Path) -> None:
    job, model = job_with(None), model_of()
    assert read_initial(job, model, file_with(tmp_path / "copy", 1.0, *ALL)) is None
    found = initial_weights(job, model)
    assert found.vector.tobytes() == model_of().first_weights(3).tobytes() != model_of().first_weights(4).tobytes()
    assert found.taken == {}
    assert found.notices == ["trains 8 of 14 parameters: the others are frozen"]


def test_a_whole_file_is_what_a_run_begins_with_and_says_nothing(tmp_path: Path) -> None:
    model = model_of()
    found = initial_weights(job_with(file_with(tmp_path / "w", 0.5, *ALL)), model)
    here = model.layout.read(found.vector)
    assert sorted(here) == sorted(found.taken) == sorted(ALL)
    assert all(np.all(array == 0.5) for array in here.values())
    assert np.all(model.layout.frozen[0].array == 0.5)
    assert len(found.notices) == 1


def test_a_part_is_taken_only_if_the_job_allows_it(tmp_path: Path) -> None:
    path = file_with(tmp_path / "w", 0.5, "1.bias", "more")
    with pytest.raises(ModelError, match=r"w' do not fit the model: missing: .*; to take those that fit, add --set"):
        read_initial(job_with(path), model_of())
    model, other = model_of(), model_of()
    found, vector = initial_weights(job_with(path, is_partial=True), model), other.first_weights(3)
    here, drawn = model.layout.read(found.vector), other.layout.read(vector)
    assert list(found.taken) == ["1.bias"]
    assert [name for name in here if here[name].tobytes() != drawn[name].tobytes()] == ["1.bias"]
    assert found.notices[0] == (
        f"takes 1 arrays of {str(path)!r}, and leaves the rest: missing: '0.bias', '1.weight', '0.weight'; "
        "unexpected: 'more'"
    )


def test_a_file_that_has_nothing_of_the_model_is_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path / "w", 0.5, "more")
    with pytest.raises(ModelError, match=r"have nothing that the model has: missing: .*: expected its names, as '0\."):
        read_initial(job_with(path, is_partial=True), model_of())


def test_the_copy_of_a_run_is_read_if_there_is_one_and_has_to_be_whole(tmp_path: Path) -> None:
    named, copy = file_with(tmp_path / "named", 1.0, *ALL), tmp_path / "copy"
    job = job_with(named, is_partial=True)
    for expected in (1.0, 2.0):  # without the copy, and with it
        found = read_initial(job, model_of(), copy)
        assert found is not None
        assert np.all(found.taken["1.bias"] == expected)
        assert np.all(initial_weights(job, model_of(), copy).taken["1.bias"] == expected)
        file_with(copy, 2.0, *ALL)
    file_with(copy, 2.0, "1.bias")
    with pytest.raises(ModelError, match="copy' do not fit the model: missing"):
        read_initial(job, model_of(), copy)
