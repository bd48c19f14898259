"""From a file to predictions by command: classes have names from then on, and numbers the units of the table."""

import json
from pathlib import Path

import numpy as np
import pytest

from lockstep.cli.main import run
from lockstep.results.evaluation.export.formats import write_model
from lockstep.runs.trained_model import open_trained

pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")
Image = pytest.importorskip("PIL.Image")

MODELS = """
from lockstep import nn

def price(): return nn.Linear(3, 1)
def town(): return nn.Linear(2, 3)
def colour(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
"""
BRIEF = ["--epochs", "20", "--workers", "0", "--global-batch", "40", "--micro-batches", "4", "--no-picture"]

rng = np.random.default_rng(0)
AREA, ROOMS = rng.uniform(40, 200, 400).round(1), rng.integers(1, 8, 400)
TOWN = np.array(["Aarau", "Bern", "Zug"])[np.digitize(AREA, [80, 140])]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(MODELS)
    price = 1000.0 * AREA + 5000.0 * ROOMS
    csv.write_csv(pa.table({"area": AREA, "rooms": ROOMS, "town": TOWN, "price": price}), "homes.csv")
    csv.write_csv(pa.table({"rooms": [2, 5], "town": ["Aarau", "Zug"], "area": [50.0, 160.0]}), "new.csv")
    for name, colour in (("night", 20), ("noon", 220)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (4, 4), (colour + number % 5,) * 3).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def test_a_price_is_predicted_in_the_units_of_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--run-dir", "run", *BRIEF)  # fmt: skip
    head, *rows = told(capsys, "predict", "run", "new.csv").splitlines()
    assert head == "price"
    assert [float(row) for row in rows] == pytest.approx([60_000, 185_000], rel=0.02)
    lines = told(capsys, "predict", "run", "new.csv", "--json").splitlines()
    assert [json.loads(line)["price"] for line in lines] == pytest.approx([60_000, 185_000], rel=0.02)


def test_errors_are_in_the_units_of_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--run-dir", "run", *BRIEF)  # fmt: skip
    (figures,) = json.loads(told(capsys, "evaluate", "run", "--json"))["targets"]
    homes = csv.read_csv("homes.csv")
    csv.write_csv(homes, "all.csv")
    predicted = np.array([float(row) for row in told(capsys, "predict", "run", "all.csv").splitlines()[1:]])
    error = np.abs(predicted - homes["price"].to_numpy()).mean()
    # One is of the test set, and the other of all rows.
    assert figures["name"] == "price"
    assert figures["mae"] == pytest.approx(error, rel=0.5)
    assert "\n price  " in told(capsys, "evaluate", "run")


ODD = {
    "unknown text": ("rooms,town,area\n1,Zug,3\n2,Rom,4\n", "row 3, column 'town': 'Rom' did not occur in training"),
    "missing": ("rooms,town,area\n1,Zug,3\n,Zug,4\n", "row 3, column 'rooms': is missing: expected a value"),
    "infinite": ("rooms,town,area\n1,Zug,inf\n", "row 2, column 'area': is infinite: expected a finite number"),
    "no column": ("rooms,town\n1,Zug\n", "no column 'area'"),
    "texts": ("rooms,town,area\nx,Zug,3\n", "row 2, column 'rooms': 'x' is not a number, as all were in training"),
    "numbers": ("rooms,town,area\n1,2,3\n", "row 2, column 'town': '2' did not occur in training"),
}


def test_what_the_training_set_did_not_have_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--run-dir", "run", *BRIEF)  # fmt: skip
    for text, expected in ODD.values():
        (place / "odd.csv").write_text(text)
        assert run(["predict", "run", "odd.csv"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: odd.csv: {expected}")
        assert error.count("\n") == 1


def test_a_new_table_is_read_as_that_of_the_training_was(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{'-' if row % 9 == 4 else f'{row},5'};{['Bern', 'Zug'][row % 2]};2024-01-{1 + row % 28:02d};{row}"
            for row in range(60)]  # fmt: skip
    (place / "old.csv").write_text("\n".join(["area;town;day;price", *rows, ""]))
    (place / "net.py").write_text("from lockstep import nn\ndef price(): return nn.Linear(4, 1)\n")
    flags = ["--na", "-", "--missing", "mean", "--decimal", ",", "--one-hot", "town"]
    told(capsys, "train", "--data", "old.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--run-dir", "run", *flags, *BRIEF)  # fmt: skip
    new = [*rows[:8], rows[4].replace("-;", "29,5;")]
    (place / "new.csv").write_text("\n".join(["area;town;day;price", *new, ""]))
    predicted = told(capsys, "predict", "run", "new.csv").splitlines()[1:]
    # A missing area counts as the mean of those that are known, which is about 29.5.
    assert float(predicted[4]) == pytest.approx(float(predicted[8]), abs=3)
    assert len({*predicted[:4]}) == 4
    other = pa.table({"town": ["Bern"], "day": pa.array([19723], pa.date32()), "area": [0.5]})
    csv.write_csv(other, "typed.csv", csv.WriteOptions(delimiter=";"))
    (place / "typed.csv").write_text((place / "typed.csv").read_text().replace("0.5", "0,5"))
    assert told(capsys, "predict", "run", "typed.csv").splitlines()[1] == predicted[0]


def test_classes_have_names_everywhere(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "town", "--columns", "area,rooms", "--model",
         "net.py:town", "--run-dir", "run", *BRIEF)  # fmt: skip
    text = told(capsys, "evaluate", "run")
    assert "Aarau" in text
    assert "\n0 Aarau" in text
    figures = json.loads(told(capsys, "evaluate", "run", "--json"))
    assert figures["class_names"] == ["Aarau", "Bern", "Zug"]
    assert told(capsys, "predict", "run", "new.csv").splitlines()[0] == "town,probability"
    rows = told(capsys, "predict", "run", "new.csv").splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == ["Aarau", "Zug"]
    found = json.loads(told(capsys, "predict", "run", "new.csv", "--json").splitlines()[1])
    assert found["class"] == "Zug"
    assert sum(found["probabilities"]) == pytest.approx(1)


def test_pictures_by_class(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "train", "--data", "pictures", "--model", "net.py:colour", "--run-dir", "run", *BRIEF)
    assert out.startswith("packed 64 samples to train on and 16 to test with into ")
    assert "2 classes: night, noon" in out
    shown = told(capsys, "predict", "run", "pictures/noon/3.png")
    assert shown.split()[1] == "noon"
    named = json.loads(told(capsys, "predict", "run", "pictures/night/3.png", "--json"))
    assert (named["class"], named["name"]) == (0, "night")
    assert "night" in told(capsys, "evaluate", "run")
    onnx = pytest.importorskip("onnx")
    write_model(open_trained(Path("run")), place / "m.onnx", "onnx")
    metadata = {entry.key: entry.value for entry in onnx.load("m.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == ["night", "noon"]


def test_a_run_has_its_data_and_takes_no_other_when_it_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--resume", "run", "--target", "town"]) == 2
    assert capsys.readouterr().err.startswith("error: --resume with --target: the run has its data")
