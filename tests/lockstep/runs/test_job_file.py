"""Job files: a written job resolves to the same one, flags override files, a mistake is named; values in groups."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.errors import JobError
from lockstep.common.job.job import SIZED, Job
from lockstep.common.nn.models import MODELS
from lockstep.common.protocol.run_options import RunOptions, default_options
from lockstep.runs.job_file import (
    OUTER,
    SHIPPED,
    fields,
    named,
    read_values,
    resolve,
    shipped_values,
    shown_values,
    to_toml,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
ARGUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
DESCRIPTIONS = st.recursive(
    st.fixed_dictionaries({"class": TEXT, "args": st.lists(ARGUMENTS, max_size=3), "kwargs": st.just({})}),
    lambda inner: st.fixed_dictionaries({"class": TEXT, "args": st.lists(inner, max_size=3), "kwargs": st.just({})}),
    max_leaves=5,
)
JOBS = st.builds(
    Job,
    model=TEXT | DESCRIPTIONS,
    data=TEXT,
    seed=st.integers(0, 2**63 - 1),
    steps=st.none() | st.integers(1, 2**31 - 1),
    initial=st.none() | TEXT,
    lr=st.floats(1e-30, 1e30),
    clip_norm=st.none() | st.floats(1e-30, 1e30),
    normalize=st.booleans(),
    schedule=st.sampled_from(["constant", "step", "cosine", "one-cycle"]),
)
LAUNCHES = st.builds(RunOptions, workers=st.integers(0, 1024), transport=st.sampled_from(["auto", "ipc", "tcp"]))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(JOBS, LAUNCHES)
def test_what_is_written_resolves_to_the_same(job: Job, launch: RunOptions) -> None:
    text = to_toml(job, launch)
    assert resolve(tomllib.loads(text), {}) == (job, launch)
    # A value a line, those that are None left out.
    assert len(text.splitlines()) >= sum(getattr(job, name) is not None for name in Job.__struct_fields__)


@pytest.mark.parametrize("model", SHIPPED)
def test_a_shipped_job_is_of_its_model_and_whole(model: str) -> None:
    job, launch = resolve({}, {"model": model})
    assert job.model == model
    assert (job.micro_batches, job.momentum, launch) == (8, 0.9, default_options())


def test_every_model_has_a_shipped_job() -> None:
    assert set(SHIPPED) == {*MODELS, *SIZED}


def test_without_anything_it_is_lenet() -> None:
    assert resolve({}, {})[0].model == "lenet"


def test_a_model_of_ones_own_has_the_defaults_of_a_job() -> None:
    assert resolve({}, {"model": "mine.py:build"})[0] == Job(model="mine.py:build")


def test_flags_lie_over_the_file_and_the_file_over_the_defaults() -> None:
    job, launch = resolve({"model": "mlp", "lr": 0.5, "seed": 3, "workers": 7}, {"lr": 0.25})
    assert (job.lr, job.seed, launch.workers, job.momentum) == (0.25, 3, 7, Job().momentum)


def test_a_file_takes_nothing_from_the_shipped_job() -> None:
    assert shipped_values("mlp")["epochs"] != Job().epochs
    assert resolve({"model": "mlp"}, {})[0] == Job(model="mlp")


def test_flags_lie_over_the_shipped_job() -> None:
    job, _ = resolve({}, {"model": "linear", "epochs": 1})
    assert (job.epochs, job.schedule) == (1, "one-cycle")


def test_local_steps_take_the_shipped_optimizer_and_the_outer_one_is_nesterovs() -> None:
    job, usual = resolve({}, {"model": "mlp", "local_steps": 16})[0], resolve({}, {"model": "mlp"})[0]
    assert (job.local_momentum, job.local_weight_decay, job.local_schedule) == (
        *(usual.momentum, usual.weight_decay, usual.schedule),
    )
    # Each local step of all micro-batches together takes as many samples as a step of the shipped job.
    assert (job.global_batch, job.epochs) == (16 * usual.global_batch, usual.epochs)
    assert (job.optimizer, job.nesterov, job.schedule, job.weight_decay) == ("sgd", True, "constant", 0.0)
    assert (job.lr, job.momentum) == (OUTER["lr"], OUTER["momentum"])


@pytest.mark.parametrize(
    ("local_steps", "micro_batches", "rate"),
    [(4, 2, 0.2), (4, 8, 0.14), (16, 1, 0.2), (16, 4, 0.1), (16, None, 0.071), (64, 2, 0.071), (64, 8, 0.035)],
)
def test_the_rate_of_local_steps_falls_with_the_root_of_all_local_batches(
    local_steps: int, micro_batches: int | None, rate: float
) -> None:
    given = {} if micro_batches is None else {"micro_batches": micro_batches}
    job, _ = resolve({}, {"model": "mlp", "local_steps": local_steps, **given})
    assert job.local_lr == rate


def test_values_of_local_steps_need_their_number() -> None:
    text = r"local_lr = 0\.1 without local_steps: expected local_steps too, as .*, or lr in place of local_lr"
    for values in ({}, {"model": "mlp"}):
        with pytest.raises(JobError, match=text):
            resolve(values, {"local_lr": 0.1})
    # As in a comparison of several numbers of local steps.
    assert resolve({}, {"local_lr": 0.1, "local_steps": 1})[0].local_lr == 0.1


def test_a_run_has_one_length() -> None:
    with pytest.raises(JobError, match=r"^epochs = 3 and steps = 100: expected one of the two"):
        resolve({}, {"model": "mlp", "epochs": 3, "steps": 100})
    assert resolve({"epochs": 3}, {"steps": 100})[0].steps == 100
    assert resolve({}, {"epochs": 3, "steps": None})[0].epochs == 3


@pytest.mark.parametrize("wrong", [0, -1, "four", None])
def test_wrong_micro_batches_of_local_steps_are_named(wrong: Any) -> None:
    with pytest.raises(JobError, match=r"micro_batches = .*: expected a whole number"):
        resolve({}, {"model": "mlp", "local_steps": 4, "micro_batches": wrong})


def test_what_is_given_counts_more_than_the_defaults_of_local_steps() -> None:
    given = {"local_steps": 4, "lr": 1.0, "momentum": 0.0, "local_lr": 0.01, "global_batch": 640}
    job, _ = resolve({}, {"model": "mlp", **given})
    assert {name: getattr(job, name) for name in given} == given
    assert not job.nesterov
    assert resolve({}, {"local_steps": 4, "optimizer": "adam", "lr": 0.01})[0].optimizer == "adam"
    in_file, _ = resolve({"model": "mlp", "local_steps": 4, "local_lr": 0.1}, {})
    assert (in_file.local_lr, in_file.lr, in_file.nesterov) == (0.1, OUTER["lr"], True)
    assert (in_file.local_momentum, in_file.global_batch) == (Job().local_momentum, Job().global_batch)


def test_one_local_step_changes_nothing() -> None:
    assert resolve({}, {"model": "mlp", "local_steps": 1}) == resolve({}, {"model": "mlp"})


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"modle": "mlp"}, "the job has no key 'modle' (did you mean 'model'?)"),
    "key of another library": ({"batch_size": 32}, "the job has no key 'batch_size' (did you mean 'global_batch'?)"),
    "unknown key of the launch": ({"worker": 2}, "the job has no key 'worker' (did you mean 'workers'?)"),
    "unlike any": (
        {"zzz": 1},
        "the job has no key 'zzz': expected one of model, hidden, data, .*, checkpoint_every_seconds",
    ),
    "a wrong one in a list": ({"hidden": [0]}, "hidden = [0]: expected a whole number >= 1"),
    "text for a number": ({"lr": "fast"}, "lr = 'fast': expected a number, got text"),
    "table for a number": ({"lr": {"peak": 1}}, "lr = {'peak': 1}: expected a number, got a table"),
    "fraction": ({"epochs": 1.5}, "epochs = 1.5: expected a whole number, got a number"),
    "number for a truth value": ({"nesterov": 1}, "nesterov = 1: expected true or false, got a whole number"),
    "list for text": ({"data": ["mnist"]}, "data = ['mnist']: expected text, got a list"),
    "number for a model": ({"model": 3}, "model = 3: expected text or a table, got a whole number"),
    "too small": ({"epochs": 0}, "epochs = 0: expected a whole number >= 1"),
    "no local steps": ({"local_steps": 0}, "local_steps = 0: expected a whole number >= 1"),
    "text for local steps": ({"local_steps": "8"}, "local_steps = '8': expected a whole number, got text"),
    "too many local steps": ({"local_steps": 99}, "local_steps = 99 is more than the samples of a micro-batch .*"),
    "too large": ({"micro_batches": 9999999}, "micro_batches = 9999999: expected a whole number <= 4096"),
    "not a number": ({"lr": float("nan")}, "lr = nan: expected a number > 0.0"),
    "infinite": ({"lr": float("inf")}, "lr = inf: expected a number <= 1e+30"),
    "not a choice": (
        {"optimizer": "sdg"},
        r"optimizer = 'sdg' (did you mean 'sgd'?): expected one of sgd, adam, .*, or FILE.py:CLASS",
    ),
    "contradiction": (
        {"global_batch": 4, "micro_batches": 8},
        "micro_batches = 8 is more than global_batch = 4: expected .*",
    ),
}


@pytest.mark.parametrize(
    ("batch", "micro_batches"), [(1, 1), (31, 1), (32, 2), (63, 2), (64, 4), (100, 4), (127, 4), (128, 8), (4096, 8)]
)
def test_micro_batches_that_nobody_names_have_16_samples_at_least(batch: int, micro_batches: int) -> None:
    for values, flags in (({"global_batch": batch}, {}), ({"model": "mlp"}, {"global_batch": batch})):
        assert resolve(values, flags)[0].micro_batches == micro_batches
    assert resolve({"micro_batches": 1}, {"global_batch": batch})[0].micro_batches == 1


@pytest.mark.parametrize(("values", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_what_was_expected(values: dict[str, Any], text: str) -> None:
    pattern = re.escape(text).replace(r"\.\*", ".*")
    with pytest.raises(JobError, match=f"^{pattern}$"):
        resolve(values, {})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"lr = = 1\n", "is not valid TOML: "),
        (b"\xff\xfe", "is not valid TOML: "),
        (None, "cannot read the job file .*: .*: expected a .toml"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError, match=text):
        read_values(path)


def test_what_toml_cannot_say_is_refused() -> None:
    job = msgspec.structs.replace(Job(), model={"class": "Linear", "args": [None]})
    with pytest.raises(JobError, match="None cannot be written to a job file"):
        to_toml(job, RunOptions())


def test_a_job_file_says_how_many_workers_a_run_begins_with() -> None:
    job, launch = resolve({"model": "mlp", "min_workers": 2}, {"workers": 4})
    assert (launch.min_workers, launch.workers) == (2, 4)
    assert "min_workers = 2\n" in to_toml(job, launch)
    assert "min_workers" not in to_toml(job, RunOptions())
    with pytest.raises(JobError, match=r"min_workers = 0: expected a whole number >= 1"):
        resolve({"min_workers": 0}, {})


def test_every_value_of_job_and_launch_is_there_once() -> None:
    assert sorted(fields()) == sorted((*Job.__struct_fields__, *RunOptions.__struct_fields__))


def test_every_field_is_described() -> None:
    assert [field.name for field in fields().values() if not field.description] == []


def test_kinds_are_what_a_flag_can_say() -> None:
    kinds = {name: field.kind for name, field in fields().items()}
    assert {kinds["model"], kinds["initial"], kinds["schedule"]} == {str}
    assert (kinds["steps"], kinds["clip_norm"], kinds["nesterov"]) == (int, float, bool)


def test_choices_are_those_of_the_type() -> None:
    assert fields()["transport"].choices == ("auto", "shm", "ipc", "tcp")
    assert fields()["lr"].choices == ()


@pytest.mark.parametrize(
    ("text", "numerics"),
    [
        ("from lockstep import nn\n", "portable"),
        ("import torch\n", "native"),
        ("def build():\n    from torchvision.models import resnet18\n", "native"),
        ("# import torch\n", "portable"),
    ],
)
def test_the_numerics_of_a_job_that_does_not_say_which(tmp_path: Path, text: str, numerics: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(text)
    model = f"{path}:build"
    assert resolve({}, {"model": model})[0].numerics == numerics
    assert resolve({"model": model}, {"numerics": "portable"})[0].numerics == "portable"
    assert resolve({"model": model, "numerics": "native"}, {})[0].numerics == "native"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/you/runs/net/data.npz", "data.npz"),
        ("/home/you/runs/net/model/model.py:build", "model.py:build"),
        ("runs/homes.csv", "runs/homes.csv"),
        ("mnist", "mnist"),
        (0.1, 0.1),
        (None, None),
    ],
)
def test_a_whole_path_is_told_by_its_name(value: object, expected: object) -> None:
    assert named(value) == expected


def test_what_is_shown_of_a_job_has_no_whole_path() -> None:
    job, launch = resolve({}, {"model": "/home/you/net.py:build", "data": "/home/you/runs/net/data.npz"})
    shown = {value.name: value for values in shown_values(job, launch).values() for value in values}
    assert [shown[name].text for name in ("model", "data")] == ["net.py:build", "data.npz"]
    assert shown["data"].is_unusual


def test_usual_values_are_those_of_a_job_of_the_same_model() -> None:
    job, launch = resolve({}, {"model": "/home/you/net.py:build", "epochs": 6, "lr": 0.005})
    shown = {value.name: value for values in shown_values(job, launch).values() for value in values}
    assert {name for name, value in shown.items() if value.is_unusual} == {"model", "lr"}
    assert (shown["lr"].text, shown["weight_decay"].text) == (f"0.005  (usually {Job().lr})", str(Job().weight_decay))
    # They are not those of lenet, whose job has a schedule.
    assert resolve({}, {})[0].schedule != shown["schedule"].text == "constant"


def test_shares_are_marked_so_that_flags_take_per_cent() -> None:
    shares = {name for name, field in fields().items() if field.is_share}
    assert shares >= {"audit", "validation_split", "label_smoothing"}
    assert not shares & {"momentum", "lr", "lease_timeout"}
