"""Predictions from a run's arrays: the names of the classes are those of the columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import fit, nn
from lockstep.common.numerics.random import Purpose, generator

Array = NDArray[Any]


def pictures(ignored: int) -> tuple[Array, Array]:
    """Return pictures with one of three classes for each place, of which a row is ignored."""
    rng = generator(4, Purpose.CANARY)
    x, y = rng.standard_normal((24, 1, 4, 6)).astype(np.float32), rng.integers(0, 3, (24, 4, 6))
    y[:, 0] = ignored
    return x, y


def rows(kind: str) -> tuple[Array, Array]:
    """Return rows, each with three labels that hold or do not, one of four classes, or 0 or 1."""
    rng = generator(5, Purpose.CANARY)
    x, y = rng.standard_normal((24, 5)).astype(np.float32), rng.integers(0, 2, (24, 3))
    y[0] = (1, 0, 1)
    return x, {"labels": y, "classes": np.arange(24) % 4, "numbers": y[:, 0]}[kind]


@pytest.mark.parametrize(
    ("model", "data", "job", "names"),
    [
        (nn.Conv2d(1, 3, 1), pictures(255), {"ignore_index": 255}, ["0", "1", "2"]),
        (nn.Conv2d(1, 3, 1), pictures(-1), {"ignore_index": -1}, ["0", "1", "2"]),
        (nn.Linear(5, 3), rows("classes"), {"ignore_index": 3}, ["0", "1", "2"]),
        (nn.Linear(5, 4), rows("classes"), {"ignore_index": 3}, ["0", "1", "2", "3"]),
        (nn.Linear(5, 4), rows("classes"), {"ignore_index": 1}, ["0", "1", "2", "3"]),
        (nn.Linear(5, 3), rows("labels"), {"loss": "bce"}, ["0", "1", "2"]),
    ],
    ids=["places", "places below 0", "the last", "an output for it", "one between", "labels"],
)
def test_columns_of_probabilities_have_as_many_names(
    tmp_path: Path, model: nn.Module, data: tuple[Array, Array], job: dict[str, Any], names: list[str]
) -> None:
    net = nn.Sequential(model).initialize(1)
    run = fit(net, (data, data), workers=0, verbose=False, run_dir=tmp_path / "run", steps=2, global_batch=8, **job)
    assert run.class_names == names
    assert run.predict_proba(data[0]).shape[-1] == len(names)


def test_numbers_have_no_classes(tmp_path: Path) -> None:
    data, folder = rows("numbers"), tmp_path / "run"
    net = nn.Sequential(nn.Linear(5, 1)).initialize(1)
    run = fit(net, (data, data), loss="mse", workers=0, verbose=False, run_dir=folder, steps=2)
    assert run.class_names == []
