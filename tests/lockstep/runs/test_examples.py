"""A run keeps a hundred samples of its validation set if it is asked to, and its file has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import Tensor, fit, nn
from lockstep.cli.main import run as lockstep
from lockstep.common.data.source import load, with_validation
from lockstep.results.evaluation.assessment import assess
from lockstep.runs.run_dir import EXAMPLES
from lockstep.runs.shared_run import opened_run, share
from lockstep.runs.trained_model import open_trained
from tests.lockstep.tiny_data import write_tiny

BRIEF: dict[str, Any] = {"epochs": 1, "global_batch": 32, "micro_batches": 4, "workers": 0, "verbose": False}


@pytest.mark.parametrize(("split", "count"), [(0.75, 100), (0.25, 40), (0.0, 40)])
def test_they_are_the_first_of_the_validation_set_or_of_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: float, count: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(write_tiny(tmp_path))
    run = fit("linear", path, run_dir=tmp_path / "run", with_examples=True, validation_split=split, seed=5, **BRIEF)
    data = with_validation(load(path), split, 5)
    expected = data.validation or data.test
    share(run.folder, tmp_path / "run.zip")
    with np.load(opened_run(tmp_path / "run.zip") / EXAMPLES) as kept:
        np.testing.assert_array_equal(kept["x"], expected.images[:count])
        np.testing.assert_array_equal(kept["y"], expected.labels[:count])
    tested = assess(open_trained(run.folder), str(run.folder / EXAMPLES))
    assert len(tested.dataset) == count


def test_a_program_gets_their_figures_next_to_the_recorded_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit("linear", write_tiny(tmp_path), run_dir=tmp_path / "run", with_examples=True, **BRIEF)
    (tmp_path / "tiny.npz").unlink()
    assert lockstep(["evaluate", str(run.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tested = assess(open_trained(run.folder), str(run.folder / EXAMPLES))
    assert (found["is_recorded"], found["examples"]["samples"]) == (True, len(tested.dataset))
    assert found["examples"]["test_loss"] == tested.tally.loss
    assert len(found["examples"]["classes"]) == 10


def test_a_run_keeps_none_unless_it_is_asked_to(tmp_path: Path) -> None:
    run = fit("linear", write_tiny(tmp_path), run_dir=tmp_path / "run", **BRIEF)
    assert not (run.folder / EXAMPLES).exists()


def test_samples_of_several_arrays_with_weights_are_kept_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays = {"a": rng.normal(size=(60, 3)).astype("f4"), "b": rng.normal(size=(60, 2)).astype("f4")}
    data = (arrays, np.arange(60) % 2, rng.uniform(0.5, 2.0, 60).astype("f4"))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.one(a) + self.other(b)

    run = fit(Two(), (data, data), run_dir=tmp_path / "run", with_examples=True, **BRIEF)
    assert len(load(str(run.folder / EXAMPLES)).test) == 60
