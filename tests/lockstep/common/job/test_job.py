"""A job is checked value by value, and its digest tells any two apart."""

from typing import Any

import msgspec
import pytest

from lockstep.common.errors import JobError
from lockstep.common.job.job import Job, check

#: For each field another value than the default.
OTHER: dict[str, Any] = {
    "model": "mlp",
    "data": "digits.npz",
    "hidden": [4, 3],
    "seed": 1,
    "epochs": 4,
    "steps": 5,
    "global_batch": 64,
    "micro_batches": 4,
    "initial": "w.safetensors",
    "initial_partial": True,
    "wire": "int8",
    "wire_weights": "bfloat16",
    "loss": "mse",
    "label_smoothing": 0.1,
    "target_scale": [512.0, 80.5],
    "class_weights": [1.0, 2.0],
    "ignore_index": 255,
    "metrics": ["rmse", "mine.py:dice"],
    "transform": "mine.py:flip",
    "no_decay": ["vectors"],
    "lr_factors": ["head.*=10"],
    "clip_value": 0.5,
    "ema_decay": 0.99,
    "decay_power": 2.0,
    "min_lr": 0.001,
    "normalize": False,
    "max_shift": 2,
    "optimizer": "adam",
    "lr": 0.25,
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.1,
    "beta1": 0.8,
    "beta2": 0.99,
    "alpha": 0.9,
    "eps": 1e-6,
    "clip_norm": 1.0,
    "schedule": "cosine",
    "warmup_steps": 3,
    "decay_every": 2,
    "decay_factor": 0.5,
    "local_steps": 8,
    "local_optimizer": "adam",
    "local_lr": 0.1,
    "local_momentum": 0.5,
    "local_nesterov": True,
    "local_weight_decay": 0.1,
    "local_beta1": 0.8,
    "local_beta2": 0.99,
    "local_alpha": 0.9,
    "local_eps": 1e-6,
    "local_clip_norm": 1.0,
    "local_clip_value": 0.5,
    "local_min_lr": 0.01,
    "local_schedule": "cosine",
    "local_warmup_steps": 3,
    "validation_split": 0.25,
    "patience": 3,
    "monitor": "loss",
    "monitor_mode": "max",
    "min_delta": 0.01,
    "keep_best": True,
    "numerics": "native",
}


def test_every_field_has_another_value_here() -> None:
    assert set(OTHER) == set(Job.__struct_fields__)


@pytest.mark.parametrize("field", OTHER)
def test_the_digest_changes_with_each_field(field: str) -> None:
    changed = msgspec.convert({field: OTHER[field]}, Job)
    assert changed.digest() != Job().digest()
    assert len(changed.digest()) == 64


@pytest.mark.parametrize(
    ("value", "elsewhere"),
    [
        ("model", "/home/anna/work/net.py:build"),
        ("data", "/home/anna/.cache/lockstep/datasets/homes-1/"),
        ("initial", "/home/anna/w.safetensors"),
        ("loss", "my/own.py:loss"),
        ("metrics", ("f1", "/home/anna/own.py:figure")),
    ],
)
def test_the_digest_does_not_depend_on_the_folder_of_a_file(value: str, elsewhere: Any) -> None:
    here = {
        "model": "net.py:build",
        "data": "homes-1",
        "initial": "../w.safetensors",
        "loss": "own.py:loss",
        "metrics": ("f1", "./own.py:figure"),
    }
    one, other = (msgspec.convert({**here, **changed}, Job) for changed in ({}, {value: elsewhere}))
    assert one.digest() == other.digest()
    renamed = msgspec.convert({**here, "model": "nets.py:build"}, Job)
    assert one.digest() != renamed.digest()


def test_the_digest_does_not_depend_on_the_order_of_the_values() -> None:
    description = {"class": "Linear", "args": [784, 10], "kwargs": {"bias": True}}
    turned = dict(reversed(description.items()))
    one = msgspec.convert({**OTHER, "model": description}, Job)
    other = msgspec.convert(dict(reversed({**OTHER, "model": turned}.items())), Job)
    assert one.digest() == other.digest()


def test_the_digest_outlives_the_wire() -> None:
    job = msgspec.convert(OTHER, Job)
    assert msgspec.convert(msgspec.to_builtins(job), Job).digest() == job.digest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("epochs", 0),
        ("steps", 0),
        ("global_batch", 0),
        ("micro_batches", 0),
        ("micro_batches", 4097),
        ("label_smoothing", 1.0),
        ("loss", 3),
        ("class_weights", [1.0, -1.0]),
        ("class_weights", 1.0),
        ("ignore_index", 1.5),
        ("max_shift", -1),
        ("ema_decay", 1.0),
        ("clip_value", 0.0),
        ("no_decay", "bias"),
        ("lr", 0.0),
        ("lr", float("inf")),
        ("lr", float("nan")),
        ("weight_decay", -0.1),
        ("weight_decay", float("inf")),
        ("momentum", 1.0),
        ("beta2", 1.5),
        ("eps", 0.0),
        ("clip_norm", 0.0),
        ("clip_norm", float("inf")),
        ("warmup_steps", -1),
        ("decay_factor", float("nan")),
        ("local_steps", 0),
        ("local_steps", -8),
        ("local_lr", 0.0),
        ("local_momentum", 1.0),
        ("local_optimizer", "descent"),
        ("epochs", 1.5),
        ("epochs", "3"),
        ("normalize", 1),
        ("model", 3),
        ("epoch", 3),
    ],
)
def test_a_value_out_of_range_or_of_another_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({field: value}, Job)


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (Job(nesterov=True, optimizer="adam"), "nesterov = true with optimizer = 'adam'"),
        (Job(nesterov=True, momentum=0.0), "momentum = 0.0"),
        (Job(loss="mean"), "loss = 'mean': expected one of cross-entropy, nll, bce, mse, l1, smooth-l1, or FILE.py"),
        (Job(loss="l2"), "loss = 'l2': expected one of cross-entropy"),
        (Job(loss="bce", label_smoothing=0.1), "label_smoothing = 0.1 with loss = 'bce': expected 0, or cross-entropy"),
        (
            Job(loss="mse", class_weights=(1.0,)),
            "class_weights with loss = 'mse': expected a loss of classes",
        ),
        (Job(class_weights=(0.0, 0.0)), "expected at least one above 0"),
        (Job(loss="bce", ignore_index=1), "ignore_index = 1 with loss = 'bce': expected cross-entropy or nll"),
        (Job(optimizer="descent"), "optimizer = 'descent': expected one of sgd, adam, adamw, .*, or FILE.py:CLASS"),
        (Job(schedule="linear"), "schedule = 'linear': expected one of constant, step, exponential"),
        (Job(optimizer="lion.py:Lion", weight_decay=0.1), "weight_decay = 0.1 with optimizer = 'lion.py:Lion'"),
        (Job(transform="flip"), "transform = 'flip': expected FILE.py:FUNCTION"),
        (Job(lr=0.1, min_lr=0.2), "min_lr = 0.2 is above lr = 0.1"),
        (Job(monitor="val_accuracy"), "monitor = 'val_accuracy' without a validation set"),
        (
            Job(monitor="test_accuracy", loss="mse"),
            "monitor = 'test_accuracy' .*with loss = 'mse': expected one of loss, .*test_r2",
        ),
        (Job(metrics=("iuo",)), r"metrics has 'iuo' \(did you mean 'iou'\?\): expected accuracy, topK \(as top5\), f1"),
        (Job(metrics=("top0",)), "metrics has 'top0'"),
        (Job(metrics=("mine.py",)), "metrics has 'mine.py': expected"),
        (
            Job(metrics=("mae",)),
            "metrics has 'mae' with loss = 'cross-entropy': expected accuracy, top5, f1, iou",
        ),
        (Job(loss="l1", metrics=("f1",)), "metrics has 'f1' with loss = 'l1': expected mae, rmse, r2"),
        (Job(loss="my.py:loss", metrics=("perplexity",)), "metrics has 'perplexity' with loss = 'my.py:loss'"),
        (Job(metrics=("a.py:dice", "b.py:dice")), "metrics has 'dice' twice: expected a name for each"),
        (Job(metrics=("a.py:val_dice",)), "metrics has a function 'val_dice', which is the name of another figure"),
        (Job(metrics=("a.py:f1",)), "metrics has a function 'f1', which is the name of another figure"),
        (Job(monitor="test_f1"), r"monitor = 'test_f1' .* expected one of loss, val_loss, .*; add metrics = \['f1'\]"),
        (Job(loss="mse", monitor="val_f1", validation_split=0.2), "expected one of loss, val_loss, .* test_r2$"),
        (Job(loss="mse", monitor="accuracy"), "expected one of loss, val_loss, .* test_r2$"),
        (Job(loss="mse", monitor="mae"), r"test_r2; add metrics = \['mae'\]$"),
        (Job(loss="my.py:loss", monitor="perplexity"), "expected one of loss, val_loss, test_loss$"),
        (Job(metrics=("a.py:dice",), monitor="test_dice"), "monitor = 'test_dice' is a metric of your own: .* 'max'"),
        (Job(metrics=("f1",), monitor_mode="max"), "monitor_mode = 'max' without a metric of your own: remove it"),
        (
            Job(local_steps=17),
            r"local_steps = 17 is more than .* \(global_batch = 128, micro_batches = 8\): expected at most 16; .* 4352",
        ),
        (Job(local_steps=2, clip_norm=1.0), "clip_norm = 1.0 with local_steps = 2: .* set local_clip_norm instead"),
        (Job(local_steps=2, weight_decay=0.1), "weight_decay = 0.1 with .* set local_weight_decay instead"),
        (Job(local_steps=2, clip_value=1.0), "clip_value = 1.0 with .* set local_clip_value instead"),
        (Job(local_steps=2, local_min_lr=1.0), "local_min_lr = 1.0 is above local_lr = 0.05"),
        (
            Job(local_steps=2, local_nesterov=True, local_optimizer="adam"),
            "local_nesterov = true with local_optimizer = 'adam'",
        ),
        (Job(local_steps=2, local_nesterov=True, local_momentum=0.0), "local_momentum = 0.0"),
        (Job(micro_batches=129), "micro_batches = 129 is more than global_batch = 128"),
    ],
)
def test_values_that_contradict_each_other_are_refused(job: Job, text: str) -> None:
    with pytest.raises(JobError, match=text):
        check(job)


def test_a_job_without_contradiction_is_returned() -> None:
    job = Job(nesterov=True)
    assert check(job) is job


@pytest.mark.parametrize(("steps", "expected"), [(None, 24), (5, 5)])
def test_steps_take_the_place_of_epochs(steps: int | None, expected: int) -> None:
    assert Job(epochs=3, steps=steps).total_steps(1000) == expected


def test_a_model_given_as_data_is_called_custom() -> None:
    assert Job(model={"class": "Linear"}).model_name() == "custom"
    assert Job(model="mlp").model_name() == "mlp"
