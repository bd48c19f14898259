"""Arrays handed over to a run: written where workers find them, and taken away where the run cannot begin."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lockstep import Run, doctor, find_lr, fit, load_run, nn
from lockstep.api.exported_model import ModelText
from lockstep.api.job_inputs import job_inputs, named_arrays
from lockstep.cli.main import run as run_command
from lockstep.common.data.folder import read_manifest
from lockstep.common.data.source import load
from lockstep.common.errors import DataError, JobError, RunError, UsageError
from lockstep.common.files.safetensors import read
from lockstep.runs.run_dir import claimed_run_dir
from tests.lockstep.tiny_data import tiny_arrays

pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")

BRIEF: dict[str, Any] = {"workers": 0, "epochs": 2, "global_batch": 40, "micro_batches": 4, "verbose": False}

rng = np.random.default_rng(0)
COLUMNS = {"a": rng.normal(size=300).round(3), "town": rng.choice(["Bern", "Zug"], 300), "price": rng.normal(size=300)}


def frame() -> Any:
    """Return what pandas and Polars are to us: an object that gives its rows as Arrow does."""
    return pa.table(COLUMNS)


class Dataset:
    """A dataset as those of Hugging Face are: rows by batch, and features that may name classes."""

    def __init__(self, table: Any, names: tuple[str, ...] = ()) -> None:
        self.table = table
        self.features = Features(table.schema, {"town": SimpleNamespace(names=names)} if names else {})

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def with_format(self, kind: str) -> "Dataset":
        assert kind == "arrow"
        return self

    def iter(self, batch_size: int) -> Iterator[Any]:
        for begin in range(0, len(self), 70):
            yield self.table.slice(begin, min(70, batch_size))


class Features(dict[str, Any]):
    def __init__(self, schema: Any, named: dict[str, Any]) -> None:
        super().__init__({name: named.get(name, SimpleNamespace()) for name in schema.names})
        self.arrow_schema = schema


def priced(folder: Path, data: Any, name: str = "run", **values: Any) -> Run:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    return fit(model, data, run_dir=folder / name, target="price", loss="mse", **BRIEF, **values)


@pytest.mark.parametrize("is_file", [False, True], ids=["frame", "file"])
def test_with_mean_squared_error_few_integers_are_predicted_as_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_file: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = pa.table({"a": COLUMNS["a"], "stars": np.arange(300) % 5})
    csv.write_csv(table, tmp_path / "cars.csv")
    data = str(tmp_path / "cars.csv") if is_file else table
    run = fit(nn.Linear(1, 1), data, run_dir=tmp_path / "run", target="stars", loss="mse", **BRIEF)
    assert read_manifest(Path(run.job.data)).classes == 0


@pytest.mark.parametrize("values", [[4, 9], [True, False], ["no", "yes"]], ids=["int64", "bool", "texts"])
def test_classes_are_predicted_as_the_values_that_the_table_has(tmp_path: Path, values: list[Any]) -> None:
    target = pa.array([values[int(value > 0)] for value in COLUMNS["a"]])
    table = pa.table({"a": COLUMNS["a"], "kind": target})
    run = fit(nn.Linear(1, 2), table, run_dir=tmp_path / "run", target="kind", **{**BRIEF, "epochs": 30, "lr": 0.5})
    found, expected = run.predict(table.drop(["kind"])), np.array(target.to_pylist())
    assert found.dtype == expected.dtype
    assert np.mean(found == expected) > 0.9
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        odd = run.predict(pa.table({"a": [1.5, None]}))
    assert odd.tolist() == [values[1], None]


def test_a_frame_a_dataset_and_a_file_of_one_table_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    csv.write_csv(frame(), tmp_path / "t.csv")
    sources = [frame(), Dataset(frame()), str(tmp_path / "t.csv"), tmp_path / "t.csv"]
    runs = [priced(tmp_path, source, str(number)) for number, source in enumerate(sources)]
    assert len({run.weights_sha256 for run in runs}) == 1
    assert (tmp_path / "0" / "data" / "dataset.json").is_file()
    assert runs[0].test_r2 is not None


def test_a_pair_or_a_mapping_is_one_to_train_and_one_to_test_with(tmp_path: Path) -> None:
    train, test = frame().slice(0, 200), frame().slice(200, 100)
    pair = priced(tmp_path, (train, test), "pair")
    named = priced(tmp_path, {"train": Dataset(train), "test": Dataset(test)}, "named")
    assert pair.weights_sha256 == named.weights_sha256
    assert pair.test_r2 == named.test_r2


def test_a_frame_is_reported_as_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(2, 1)
    fit(model, frame(), run_dir=tmp_path / "run", target="price", **{**BRIEF, "verbose": True})
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("packed 240 samples to train on and 60 to test with into ")
    assert "  town   category, codes     Bern, Zug" in told


def test_arrays_without_a_test_set_are_divided_as_those_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    x, y = rng.normal(size=(90, 4)).astype(np.float32), np.arange(90) % 3
    np.savez(tmp_path / "one.npz", x=x, y=y)
    sources = {"arrays": (x, y), "file": tmp_path / "one.npz"}
    runs = {}
    for name, data in sources.items():
        values = {**BRIEF, "verbose": True, "test_split": 0.1}
        runs[name] = fit(nn.Linear(4, 3), data, run_dir=tmp_path / name, **values)
        assert "the test set is 10% of it, drawn by seed 0 (test_split)" in capsys.readouterr().out
    assert runs["arrays"].weights_sha256 == runs["file"].weights_sha256
    assert runs["arrays"].test_accuracy == runs["file"].test_accuracy
    assert doctor(nn.Linear(4, 3), (x, y), global_batch=40).subject == "Linear on arrays"
    with pytest.raises(DataError, match="20% of 4 samples is none: expected more samples, a larger test_split"):
        fit(nn.Linear(4, 3), (x[:4], y[:4]), **BRIEF)
    with pytest.raises(DataError, match="arrays of 90 and 4 samples"):
        fit(nn.Linear(4, 3), (x, y[:4]), **BRIEF)


def test_classes_of_a_dataset_have_its_names(tmp_path: Path) -> None:
    codes = np.searchsorted(["Bern", "Zug"], COLUMNS["town"])
    data = Dataset(pa.table({**COLUMNS, "town": codes}), names=("Zug", "Bern"))
    model = nn.Linear(2, 2)
    run = fit(model, data, run_dir=tmp_path / "run", target="town", **BRIEF)
    assert '"Bern"' in (run.folder / "data" / "dataset.json").read_text()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such column": ({"target": "prise"}, r"the Table: no column 'prise' \(did you mean 'price'\?\)"),
    "no target": ({}, "the Table: which column is to be predicted"),
    "a number": ({"target": 3}, "target"),
    "rule": ({"target": "price", "missing": "median"}, "missing = 'median': expected 'drop', 'mean' or a number"),
    "split": ({"target": "price", "test_split": 1.0}, "test_split = 1.0: expected a share"),
    "size": ({"target": "price", "size": "big"}, r"size = 'big': expected \(height, width\)"),
    "delimiter": ({"target": "price", "delimiter": "ab"}, "delimiter = 'ab': expected one character"),
    "encoding": ({"target": "price", "encoding": "utf-99"}, "encoding = 'utf-99': expected one like 'cp1252'"),
    "decimal": ({"target": "price", "decimal": "-"}, "decimal = '-': expected '.' or ','"),
    "twice": ({"target": "price", "columns": ["a", "a"]}, r"columns=\['a', 'a'\]: names 'a' twice: expected once"),
    "what is missing": (
        {"target": "price", "na": "Zug"},
        "is missing: expected .* a rule: missing='drop', or missing='mean', which makes a missing text a category",
    ),
    "what is dropped": ({"target": "price", "drop": "b"}, "no column 'b': expected one of a, town, price"),
    "two kinds": ({"target": "price", "one_hot": "a", "numbers": ["a"]}, "one_hot='a' and numbers='a': expected one"),
    "task": ({"target": "price", "task": "both"}, "task = 'both': expected 'classes' or 'numbers'"),
}


@pytest.mark.parametrize(("values", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(tmp_path: Path, values: dict[str, Any], text: str) -> None:
    with pytest.raises((DataError, JobError), match=text):
        fit(nn.Linear(2, 1), frame(), run_dir=tmp_path / "run", **BRIEF, **values)
    assert list(tmp_path.iterdir()) == []


def test_columns_are_chosen_as_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = frame().append_column("id", pa.array([f"r{row}" for row in range(300)]))
    with pytest.raises(DataError, match="drop='id' leaves the column out, categories='id' makes each a category"):
        priced(tmp_path, table)
    (tmp_path / "t.csv").write_text("a|town|price\n" + "".join(f"{row}|n.a.|{row}\n" for row in range(300)))
    run = fit(
        nn.Linear(2, 1), tmp_path / "t.csv", run_dir=tmp_path / "run", target="price", loss="mse", na=["n.a.", -1],
        missing="mean", delimiter="|", encoding="latin-1", one_hot=" town", **BRIEF
    )  # fmt: skip
    assert [column.one_hot for column in read_manifest(Path(run.job.data)).columns] == [False, True]


def test_options_of_packing_are_of_no_use_to_arrays(tmp_path: Path) -> None:
    arrays = ((np.zeros((4, 2)), np.zeros(4, int)), (np.zeros((2, 2)), np.zeros(2, int)))
    with pytest.raises(DataError, match="target with a tuple: expected a data frame, or a file to pack"):
        fit(nn.Linear(2, 2), arrays, run_dir=tmp_path / "run", target="price", **BRIEF)


@pytest.mark.parametrize("is_file", [False, True], ids=["frame", "file"])
def test_the_doctor_and_find_lr_take_the_tables_of_fit(
    is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data: Any = tmp_path / "homes.csv" if is_file else (frame().slice(0, 200), frame().slice(200))
    if is_file:
        csv.write_csv(frame(), data)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).initialize(1)
    call: dict[str, Any] = {"target": "price", "one_hot": "town", "loss": "mse", "global_batch": 40}
    found = doctor(model, data, lr=30.0, **call)
    assert [finding.group for finding in found.findings] == ["first steps"], found
    assert found.subject.endswith("on a table") or is_file
    assert find_lr(model, data, steps=30, **call).suggestion > 0


def test_data_and_weights_are_found_by_the_names_given(tmp_path: Path) -> None:
    weights = {"0.weight": np.ones((2, 3), dtype=np.float32)}
    with job_inputs(tmp_path / "runs" / "mine", weights, named_arrays(tiny_arrays())) as paths:
        assert set(paths) == {"initial", "data"}
        np.testing.assert_array_equal(load(paths["data"]).train.labels, tiny_arrays()[0][1])
        np.testing.assert_array_equal(read(Path(paths["initial"]))[0]["0.weight"], weights["0.weight"])
    assert Path(paths["data"]).is_file()


def test_where_there_is_nothing_no_folder_is_made(tmp_path: Path) -> None:
    with job_inputs(tmp_path / "mine", None, None) as paths:
        assert paths == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [UsageError, RunError, KeyboardInterrupt])
def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    text = ModelText("Net", "build", "def build(): ...")
    with (
        pytest.raises(error),
        claimed_run_dir(tmp_path / "runs" / "mine", "mine") as folder,
        job_inputs(folder, {}, named_arrays(tiny_arrays()), text, {"loss": text}),
    ):
        raise error("no")
    assert list(tmp_path.iterdir()) == []


def test_what_a_person_has_next_to_a_claim_of_a_killed_process_stays(tmp_path: Path) -> None:
    (tmp_path / "job.toml").touch()
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError), claimed_run_dir(tmp_path, "mine"):
        raise UsageError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_run_that_has_begun_keeps_what_it_was_given(tmp_path: Path) -> None:
    with claimed_run_dir(tmp_path / "mine", "mine") as folder, job_inputs(folder, {}, None):
        (folder / "job.toml").write_text('model = "mlp"')
    assert {path.name for path in folder.iterdir()} == {"initial.safetensors", "job.toml"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (3, "data is a int of another form: expected a name, a path, arrays as"),
        ((1, 2), r"data is a tuple \(int, int\) of another form: expected a name, a path, arrays as"),
        (tiny_arrays()[0], r"data is a tuple \(ndarray, ndarray\) of another form"),
        (((np.ones(3), ["a", "b"]), (1, 2)), "y_train is of dtype '<U1': expected an array of numbers; number classes"),
        (((np.ones(3), [None]), (1, 2)), "y_train is of dtype 'object'"),
    ],
)
def test_what_is_no_dataset_is_told(data: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        named_arrays(data)


def test_x_and_y_given_one_by_one_are_refused_with_the_right_call() -> None:
    (x, y), _ = tiny_arrays()
    for call in (fit, find_lr, doctor):
        untyped: Any = call
        with pytest.raises(DataError, match=rf"2 were given .*: expected {call.__name__}\(model, \(\(x_train, y_train"):
            untyped("linear", x, y)


@pytest.mark.parametrize("call", [doctor, find_lr, fit])
def test_a_mistake_in_arrays_names_no_file_that_is_gone(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.ones((40, 3)), np.arange(40) % 2
    x[15] = np.nan
    with pytest.raises(DataError, match=r"^the arrays: train: sample 15 holds an infinity or NaN"):
        call(nn.Linear(3, 2), ((x, y), (x, y)), global_batch=20, workers=0)
    assert list(tmp_path.rglob("*.npz")) == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [("Dataset", "the Dataset has no __len__"), ("IterableDataset", "an IterableDataset, whose samples have no num")],
)
def test_a_dataset_whose_samples_cannot_be_counted_is_named(kind: str, text: str) -> None:
    part = type(kind, (), {"__getitem__": lambda _, place: (0.0, place)})()
    with pytest.raises(DataError, match=text):
        named_arrays((part, part))


def test_pictures_need_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, shade in (("night", 20), ("noon", 220)):
        (tmp_path / "skies" / name).mkdir(parents=True)
        for number in range(10):
            image.new("L", (8, 8), shade + number).save(tmp_path / "skies" / name / f"{number}.png")
    brief: dict[str, Any] = {"workers": 0, "steps": 2, "global_batch": 8, "verbose": False}
    run = fit(str(tmp_path / "skies"), run_dir=tmp_path / "run", **brief)
    assert (run.job.model_name(), run.class_names) == ("conv", ["night", "noon"])
    assert run.weights_sha256 == fit("conv", tmp_path / "skies", run_dir=tmp_path / "two", **brief).weights_sha256


VECTORS = (rng.normal(size=(300, 5)).astype(np.float32), rng.integers(0, 3, 300))
PRICES = (VECTORS[0], VECTORS[0].sum(axis=1))
STEPS: dict[str, Any] = {"workers": 0, "steps": 2, "verbose": False}

ALONE: dict[str, tuple[Any, str, str]] = {
    "vectors": (VECTORS, "dense", "cross-entropy"),
    "two sets of vectors": ((VECTORS, VECTORS), "dense", "cross-entropy"),
    "numbers to predict": (PRICES, "dense", "mse"),
    "pictures": (tiny_arrays(), "conv", "cross-entropy"),
    "as many pictures as LeNet takes": (tiny_arrays(1000), "lenet", "cross-entropy"),
}


@pytest.mark.parametrize(("data", "model", "loss"), ALONE.values(), ids=ALONE)
def test_arrays_need_no_model(data: Any, model: str, loss: str, tmp_path: Path) -> None:
    alone = fit(data, run_dir=tmp_path / "alone", **STEPS)
    assert (alone.job.model_name(), alone.job.loss) == (model, loss)
    named = fit(model, data, run_dir=tmp_path / "named", loss=loss, **STEPS)
    assert alone.weights_sha256 == named.weights_sha256


@pytest.mark.parametrize("is_divided", [True, False])
def test_a_file_of_arrays_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_divided: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names = ("x_train", "y_train", "x_test", "y_test") if is_divided else ("x", "y")
    arrays: dict[str, Any] = dict(zip(names, (*VECTORS, *VECTORS), strict=False))
    np.savez("points.npz", **arrays)
    run = fit("points.npz", **STEPS)
    assert run.folder.name.endswith("-dense")
    assert run.weights_sha256 == fit("dense", "points.npz", **STEPS).weights_sha256
    assert run_command(["train", "--data", "points.npz", "--steps", "2", "--workers", "0", "--run-dir", "there"]) == 0
    assert run.weights_sha256 == load_run("there").weights_sha256


def test_the_doctor_and_the_range_test_take_arrays_alone() -> None:
    assert doctor(PRICES).subject == "dense on arrays"
    assert doctor(data=VECTORS).subject == "dense on arrays"
    rates = find_lr(PRICES, steps=30).rates
    np.testing.assert_array_equal(rates, find_lr("dense", PRICES, loss="mse", steps=30).rates)


def test_a_file_of_arrays_that_is_not_there_is_data_and_no_model() -> None:
    with pytest.raises(DataError, match=r"points\.npz: cannot be read"):
        fit("points.npz", **STEPS)
