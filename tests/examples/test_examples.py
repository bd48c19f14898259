"""The examples, each in a short form: their data can be made, their jobs are sound, and they learn."""

import re
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import Run, fit
from lockstep.checking.doctor import examine_job
from lockstep.common.data.source import load
from lockstep.common.nn.description import build
from lockstep.runs.job_file import read_values, resolve
from tests.architecture.source import ROOT

EXAMPLES = ROOT / "examples"
JOBS = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.toml"))

#: Those whose layers the doctor can look into.
OWN_JOBS = [name for name in JOBS if not name.startswith("pytorch/")]

#: Those that the doctor tries for many seconds: small nets of their kinds are in tests/lockstep/checking.
LONG_JOBS = ("batchnorm_cnn.toml", "cnn.toml", "language/job.toml")

#: What language/data.py says of its text: the nats of a character of which only its share is known.
UNIGRAM = 3.1509


@cache
def script(name: str) -> dict[str, Any]:
    """Return what a script of the examples defines, without running it as a program."""
    return runpy.run_path(str(EXAMPLES / name))


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arrays that language/data.py writes."""
    path = tmp_path_factory.mktemp("text") / "characters.npz"
    script("language/data.py")["main"](path)
    return path


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a job are those of the folder in which it is started."""
    monkeypatch.chdir(ROOT)


def values_of(name: str, characters: Path) -> dict[str, Any]:
    values = read_values(EXAMPLES / name)
    return values | {"data": str(characters)} if name.startswith("language") else values


def train(name: str, characters: Path, folder: Path, **changed: Any) -> Run:
    values = values_of(name, characters) | {"workers": 0} | changed
    if "steps" in changed:
        del values["epochs"]
    model = values.pop("model")
    return fit(model if isinstance(model, str) else build(model), run_dir=folder / "run", verbose=False, **values)


@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG_JOBS else name for name in OWN_JOBS]
)
def test_a_job_gives_no_alarm(name: str, characters: Path) -> None:
    job, _ = resolve(values_of(name, characters), {})
    found = examine_job(job)
    assert found.is_healthy, found


def test_every_example_is_told_of() -> None:
    told = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [*JOBS, *(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py"))]
    assert [name for name in files if name not in told] == []
    # Each has its figures, and no name that stands where one is to come.
    assert re.findall(r"\b[A-Z]+_[A-Z]+\b", told) == []


def test_the_shipped_jobs_are_those_of_the_examples() -> None:
    shipped = {path.stem: path for path in (ROOT / "lockstep" / "jobs").glob("*.toml")}
    # It takes a table, and its other values follow from that.
    del shipped["dense"], shipped["conv"]
    assert shipped
    for path in shipped.values():
        assert path.read_text(encoding="utf-8") == (EXAMPLES / path.name).read_text(encoding="utf-8")


@pytest.mark.usefixtures("in_root")
def test_the_regression_explains_nearly_what_can_be(characters: Path, tmp_path: Path) -> None:
    run = train("regression/job.toml", characters, tmp_path, epochs=4)
    with np.load(EXAMPLES / "regression" / "friedman.npz") as arrays:
        noise = float(arrays["target_deviation"]) ** -2
    assert 0.9 < run.test_r2 < 1 - noise
    assert run.history[-1].test_loss == run.result.test_loss > noise


def test_the_regressions_file_is_what_its_script_draws(tmp_path: Path) -> None:
    script("regression/data.py")["main"](tmp_path / "again.npz")
    assert load(str(tmp_path / "again.npz")).digest == load(str(EXAMPLES / "regression" / "friedman.npz")).digest


@pytest.mark.slow
@pytest.mark.usefixtures("in_root")
def test_the_language_model_knows_more_than_how_often_characters_occur(characters: Path, tmp_path: Path) -> None:
    run = train("language/job.toml", characters, tmp_path, steps=25)
    assert run.result.test_loss < UNIGRAM - 0.15
    with np.load(characters) as arrays:
        alphabet = arrays["alphabet"]
    write_on = script("language/sample.py")["write_on"]
    tokens = np.array([5, 6, 7])
    written = [write_on(run.model, tokens, 80, 64, 1.0, seed) for seed in (0, 0, 1)]
    assert all(len(each) == 83 and each.max() < len(alphabet) for each in written)
    assert written[0].tolist() == written[1].tolist() != written[2].tolist()


def test_the_text_is_cut_into_what_follows_each_character(
    characters: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = load(str(characters))
    assert data.train.is_tokens
    assert data.train.classes == 64
    samples, labels = data.train.images, data.train.labels
    assert (samples[:, 1:] == labels[:, :-1]).all()
    assert (samples[1:, 0] == labels[:-1, -1]).all()
    with np.load(characters) as arrays:
        start = arrays["alphabet"][samples[0]].tobytes().decode()
    assert (EXAMPLES / "language" / "devils_dictionary.txt").read_text(encoding="ascii").startswith(start)
    script("language/data.py")["main"](tmp_path / "again.npz")
    assert f"costs {UNIGRAM} nats a character" in capsys.readouterr().out


def test_a_folder_of_idx_and_an_npz_of_ones_own_are_the_same_data(tmp_path: Path) -> None:
    script("own_data.py")["main"](tmp_path / "segments")
    folder, npz = (load(str(tmp_path / name)) for name in ("segments", "segments.npz"))
    assert folder.digest == npz.digest


@pytest.mark.usefixtures("in_root")
def test_the_net_with_batchnorm_learns(characters: Path, tmp_path: Path) -> None:
    mnist = load("mnist").train
    x, y = mnist.images[:, 0], mnist.labels
    data = tmp_path / "some.npz"
    np.savez(data, x_train=x[:1200], y_train=y[:1200], x_test=x[-300:], y_test=y[-300:])
    run = train("batchnorm_cnn.toml", characters, tmp_path, data=str(data), epochs=2, global_batch=60)
    assert run.test_accuracy > 0.85


@pytest.mark.slow
@pytest.mark.usefixtures("in_root")
def test_the_net_with_batchnorm_passes_993(characters: Path, tmp_path: Path) -> None:
    assert train("batchnorm_cnn.toml", characters, tmp_path, workers=2).test_accuracy >= 0.993


@pytest.mark.slow
@pytest.mark.usefixtures("in_root")
def test_lora_trains_its_own_matrices_and_leaves_the_gpt2_as_it_was(characters: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers: .venv/bin/pip install -e '.[zoo]'")
    brief: dict[str, Any] = {"global_batch": 64, "schedule": "constant"}
    base = train("pytorch/gpt2.toml", characters, tmp_path / "base", data=str(characters), steps=12, **brief)
    script("pytorch/lora.py")["main"](characters, tmp_path / "telegrams.npz")
    changed = {"data": str(tmp_path / "telegrams.npz"), "initial": str(base.folder / "weights.safetensors"), **brief}
    first, last = (train("pytorch/lora.toml", characters, tmp_path / str(n), steps=n, **changed) for n in (1, 12))
    assert last.result.test_loss < first.result.test_loss - 0.1
    assert last.result.parameters < 20_000
    before, after = base.model.state_dict(), last.model.state_dict()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.usefixtures("in_root")
def test_a_frozen_backbone_keeps_weights_and_averages_and_its_head_learns(characters: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs timm: .venv/bin/pip install -e '.[zoo]'")
    arrays = script("own_data.py")["drawn"]
    data = tmp_path / "segments.npz"
    (x_train, y_train), (x_test, y_test) = arrays(600, seed=0), arrays(200, seed=1)
    np.savez(data, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    whole = fit(
        "examples/pytorch/finetune.py:whole", data, run_dir=tmp_path / "whole", steps=10, workers=0, verbose=False
    )
    changed = {"data": str(data), "initial": str(whole.folder / "weights.safetensors"), "epochs": 2}
    run = train("pytorch/finetune.toml", characters, tmp_path, **changed)
    before, after = whole.model.backbone.state_dict(), run.model.backbone.state_dict()
    counters = [name for name in before if name.endswith("num_batches_tracked")]
    assert all(tensor.equal(after[name]) for name, tensor in before.items() if name not in counters)
    assert run.history[-1].loss < run.history[0].loss
    assert run.result.parameters == run.model.backbone.num_features * 10 + 10


def test_the_search_ranks_twelve_settings_beside_scikit_learns(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: .venv/bin/pip install -e '.[sklearn]'")
    digest = script("grid_search.py")["main"](samples=300, epochs=1, workers=0, beside_mlp=True)
    shown = capsys.readouterr().out
    assert re.search(r"Lockstep .* s for 37 fits\n", shown)
    assert f"ranking and all weights {digest[:12]}" in shown
    assert re.search(r"MLPClassifier .* s; best 0\.", shown)


@pytest.mark.slow
def test_the_script_trains(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script("fit_mnist.py")["main"]()
    assert "test accuracy 9" in capsys.readouterr().out


def test_a_table_and_pictures_of_ones_own_train_from_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("PIL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    brief: dict[str, Any] = {"workers": 0, "epochs": 2, "optimizer": "adamw", "lr": 0.01, "verbose": False}
    script("homes/data.py")["main"](tmp_path / "homes.csv")
    homes = fit(
        script("homes/model.py")["build"](),
        tmp_path / "homes.csv",
        target="price",
        missing="mean",
        loss="mse",
        run_dir=tmp_path / "homes",
        **brief,
    )
    assert homes.test_r2 is not None
    assert homes.test_r2 > 0.9
    script("shapes/data.py")["main"](tmp_path / "shapes", 60)
    shapes = fit(script("shapes/model.py")["build"](), tmp_path / "shapes", size=32, run_dir=tmp_path / "run", **brief)
    assert shapes.weights_sha256
    assert load(shapes.job.data).class_names == ("circle", "square", "triangle")


def test_a_gru_tells_waves_apart(tmp_path: Path) -> None:
    data = tmp_path / "waves.npz"
    script("series/waves.py")["main"](data)
    values: dict[str, Any] = {"steps": 60, "global_batch": 60, "micro_batches": 4, "lr": 0.3, "workers": 0}
    run = fit(f"{EXAMPLES}/series/waves.py:build", str(data), run_dir=tmp_path / "run", verbose=False, **values)
    assert run.result.test_loss < 1.0 < np.log(3)


@pytest.mark.slow
def test_an_lstm_knows_more_than_how_often_characters_occur(characters: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"steps": 60, "global_batch": 32, "micro_batches": 4, "lr": 1.0, "workers": 0}
    model = f"{EXAMPLES}/language/recurrent.py:build"
    run = fit(model, str(characters), run_dir=tmp_path / "run", verbose=False, **values)
    assert run.result.test_loss < UNIGRAM - 0.15
