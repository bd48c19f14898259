"""A run's folder as something to use, and what a folder that is none is told."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import FileFormatError, JobError, ModelError
from common.files.safetensors import write
from lockstep import nn
from lockstep.runs.trained import open_trained
from tests.lockstep.small_runs import small_run


def test_the_model_has_the_weights_of_the_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    run = small_run(tmp_path, model)
    trained = open_trained(run.folder)
    assert not trained.model.training
    assert trained.job == run.job
    expected = run.model.state_dict()
    assert expected.keys() == trained.layout.read(trained.weights).keys()
    for name, array in trained.model.state_dict().items():
        np.testing.assert_array_equal(array, expected[name])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = small_run(tmp_path).folder
    write(folder / "weights.safetensors", {"1.weight": np.ones((10, 3), np.float32), "1.bias": np.ones(10, np.float32)})
    with pytest.raises(ModelError, match=r"weights do not fit the model: '1.weight' is \(10, 3\), not \(10, 784\)"):
        open_trained(folder)


def test_a_folder_without_weights_and_damaged_ones_are_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"holds no weights of a run: expected a run folder, with job.toml and weights"):
        open_trained(tmp_path)
    folder = small_run(tmp_path).folder
    (folder / "weights.safetensors").write_bytes(b"nonsense that is long enough")
    with pytest.raises(FileFormatError, match="claims a header of"):
        open_trained(folder)
