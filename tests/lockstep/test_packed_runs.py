"""From a file to predictions by command: classes have names from then on, and numbers the units of the table."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit, load_run, nn, resume
from lockstep.api.callbacks import LambdaCallback
from lockstep.api.run import Run
from lockstep.cli.main import run
from lockstep.common.errors import DataError, JobError
from lockstep.common.files.safetensors import read
from lockstep.results.evaluation.export import write_model
from lockstep.runs.own_command import with_own_commands
from lockstep.runs.trained_model import open_trained

pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")
Image = pytest.importorskip("PIL.Image")

MODELS = """
from lockstep import nn

def price(): return nn.Linear(5, 1)
def two(): return nn.Linear(2, 2)
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
    shutil.rmtree(load_run("run").job.data)
    assert told(capsys, "predict", "run", "new.csv").splitlines() == [head, *rows]


def test_without_its_data_a_run_says_how_to_make_it_again_and_takes_the_source(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--run-dir", "run", *BRIEF)  # fmt: skip
    computed = json.loads(told(capsys, "evaluate", "run", "--json"))
    shutil.rmtree(load_run("run").job.data)
    recorded = json.loads(told(capsys, "evaluate", "run", "--json"))
    assert recorded["is_recorded"]
    assert {name: recorded[name] for name in ("test_loss", "test_r2", "samples", "weights_sha256")} == {
        name: computed[name] for name in ("test_loss", "test_r2", "samples", "weights_sha256")
    }
    shown = told(capsys, "evaluate", "run")
    command = f"lockstep pack {place / 'homes.csv'} homes.data --target price --task numbers"
    assert with_own_commands(f"`{command}`") in shown
    assert "each of" in told(capsys, "ledger", "run")
    assert run(["verify", "run"]) == 2
    assert f"`{command}`" in (error := capsys.readouterr().err)
    assert len(error.splitlines()) == 1
    assert "the same bits" in told(capsys, "verify", "run", "--training-data", "homes.csv")
    told(capsys, *command.split()[1:])
    assert "the same bits" in told(capsys, "verify", "run", "--training-data", "homes.data")
    assert json.loads(told(capsys, "evaluate", "run", "--training-data", "homes.data", "--json")) == computed


def test_errors_are_in_the_units_of_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--set", "metrics=mae", "--run-dir", "run", *BRIEF)  # fmt: skip
    (figures,) = json.loads(told(capsys, "evaluate", "run", "--json"))["targets"]
    homes = csv.read_csv("homes.csv")
    csv.write_csv(homes, "all.csv")
    predicted = np.array([float(row) for row in told(capsys, "predict", "run", "all.csv").splitlines()[1:]])
    error = np.abs(predicted - homes["price"].to_numpy()).mean()
    # One is of the test set, and the other of all rows.
    assert figures["name"] == "price"
    assert figures["mae"] == pytest.approx(error, rel=0.5)
    shown = told(capsys, "evaluate", "run")
    assert "\n price  " in shown
    assert re.search(r"\ntest mae       0\.\d+ deviations of the target\n", shown)


ODD = {
    "no column": ("rooms,town\n1,Zug\n", "has no column 'area', which that of the training has: it has rooms, town"),
    "no columns": ("rooms\n1\n", "has no columns 'area' and 'town', which that of the training has: it has rooms\n"),
    "texts in two columns": (
        "rooms,town,area\nx,Zug,y\n",
        "row 2, column 'area': 'y' is not a number, as all values were in training; column 'rooms' is refused too",
    ),
    "commas": (
        "rooms,town,area\n1,Zug,'2,5'\n".replace("'", '"'),
        "row 2, column 'area': '2,5' is not a number: give --decimal , if the comma begins its fraction",
    ),
    "texts": (
        "rooms,town,area\nx,Zug,3\n",
        "row 2, column 'rooms': 'x' is not a number, as all values were in training",
    ),
    "a huge number": (
        "rooms,town,area\n1e300,Zug,3\n",
        "row 2, column 'rooms': 1e+300 is 5.3e+299 deviations of the training set from its mean",
    ),
    "numbers": ("rooms,town,area\n1,2,3\n", "row 2, column 'town': '2' did not occur in training"),
}


def trained(place: Path, capsys: pytest.CaptureFixture[str], kind: str = "price") -> Run:
    """Train on prices, or on towns by numbers, or on whether something is dear by texts too."""
    flags = {
        "price": ["--target", "price", "--model", "net.py:price", "--loss", "mse"],
        "town": ["--target", "town", "--columns", "area,rooms", "--model", "net.py:town"],
    }[kind]
    told(capsys, "train", "--data", "homes.csv", *flags, "--run-dir", "run", *BRIEF)
    return load_run("run")


def test_a_run_on_a_table_with_a_loss_of_labels_predicts_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "town", "--run-dir", "run", *BRIEF)
    # As an earlier version has trained it.
    job = place / "run" / "job.toml"
    job.write_text(job.read_text().replace('loss = "cross-entropy"', 'loss = "bce"'))
    for command in (["predict", "run", "new.csv"], ["evaluate", "run"], ["evaluate", "run", "--data", "homes.csv"]):
        assert run(command) == 2
        out, error = capsys.readouterr()
        assert (out, len(error.splitlines())) == ("", 1)
        assert "'run' was trained on a table with loss = 'bce', of which nothing can be predicted: train it" in error
    shutil.rmtree(load_run("run").job.data)
    assert run(["evaluate", "run"]) == 2


def test_a_table_that_is_another_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(place, capsys)
    for text, expected in ODD.values():
        (place / "odd.csv").write_text(text)
        assert run(["predict", "run", "odd.csv"]) == 2
        out, error = capsys.readouterr()
        # A row of which nothing is predicted is an empty line, a table that cannot be read no line at all.
        assert len(out.splitlines()) == (0 if "has no column" in expected else 2)
        assert f"odd.csv: {expected}" in error
        assert error.count("\n") == 1


def test_a_new_table_is_read_as_that_of_the_training_was(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{'-' if row % 9 == 4 else f'{row + 100},5'};{['Bern', 'Zug'][row % 2]};2024-01-{1 + row % 28:02d};{row}"
            for row in range(60)]  # fmt: skip
    (place / "old.csv").write_text("\n".join(["area;town;day;price", *rows, ""]))
    (place / "net.py").write_text("from lockstep import nn\ndef price(): return nn.Linear(4, 1)\n")
    flags = ["--na", "-", "--missing", "mean", "--decimal", ",", "--one-hot", "town"]
    told(capsys, "train", "--data", "old.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--run-dir", "run", *flags, *BRIEF)  # fmt: skip
    new = [*rows[:8], rows[4].replace("-;", "129,5;")]
    (place / "new.csv").write_text("\n".join(["area;town;day;price", *new, ""]))
    predicted = told(capsys, "predict", "run", "new.csv").splitlines()[1:]
    # A missing area counts as the mean of those that are known, which is about 129.5.
    assert float(predicted[4]) == pytest.approx(float(predicted[8]), abs=3)
    assert len({*predicted[:4]}) == 4
    (place / "other.csv").write_text("\n".join(["area;town;day;price", rows[4].replace("-", "k.A.", 1), ""]))
    assert run(["predict", "run", "other.csv"]) == 2
    assert (
        ": write it as one, or give --na k.A. if it stands for a missing value; row 1 is the header"
        in capsys.readouterr().err
    )
    assert told(capsys, "predict", "run", "other.csv", "--na", "x,k.A.").splitlines()[1] == predicted[4]
    assert f"{load_run('run').predict('other.csv', na='k.A.')[0]:.6g}" == predicted[4]
    other = pa.table({"town": ["Bern"], "day": pa.array([19723], pa.date32()), "area": [100.5]})
    csv.write_csv(other, "typed.csv", csv.WriteOptions(delimiter=";"))
    (place / "typed.csv").write_text((place / "typed.csv").read_text().replace("100.5", "100,5"))
    assert told(capsys, "predict", "run", "typed.csv").splitlines()[1] == predicted[0]


def test_a_new_file_has_the_encoding_and_the_delimiter_of_the_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{row}:{['Köln', 'Zürich'][row % 2]}:{row}" for row in range(60)]
    (place / "old.csv").write_text("\n".join(["Fläche:Ort:price", *rows, ""]), encoding="cp1252")
    (place / "net.py").write_text("from lockstep import nn\ndef price(): return nn.Linear(2, 1)\n")
    told(capsys, "train", "--data", "old.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--run-dir", "run", "--encoding", "cp1252", "--delimiter", ":", *BRIEF)  # fmt: skip
    predicted = told(capsys, "predict", "run", "old.csv")
    assert predicted.count("\n") == 61
    (place / "other.csv").write_text("\n".join(["Fläche;Ort;price", *(row.replace(":", ";") for row in rows), ""]))
    assert told(capsys, "predict", "run", "other.csv", "--encoding", "utf-8", "--delimiter", ";") == predicted
    assert run(["predict", "run", "other.csv"]) == 2
    assert "; it was read as in training, with --encoding cp1252 --delimiter :: give others" in capsys.readouterr().err
    (place / "short.csv").write_text("Fläche:Ort\n1:Köln\n", encoding="cp1252")
    assert run(["evaluate", "run", "--data", "short.csv"]) == 2
    assert capsys.readouterr().err.endswith(
        "has no column 'price', which that of the training has: it has Fläche, Ort\n"
    )


def test_the_encoding_that_an_error_proposes_can_be_given(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = trained(place, capsys, "town")
    (place / "odd.csv").write_text("rooms,area,Straße\n2,50,Rämistraße\n", encoding="cp1252")
    assert run(["predict", "run", "odd.csv"]) == 2
    assert "--encoding cp1252, if it should read" in capsys.readouterr().err
    assert told(capsys, "predict", "run", "odd.csv", "--encoding", "cp1252").splitlines()[1].startswith("Aarau,")
    with pytest.raises(DataError, match="encoding='cp1252', if it should read"):
        done.predict("odd.csv")
    assert done.predict("odd.csv", encoding="cp1252").tolist() == ["Aarau"]
    assert done.predict_proba("odd.csv", encoding="cp1252").shape == (1, 3)


def test_what_is_no_table_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = trained(place, capsys)
    for odd in ("pictures/noon/0.png", "nowhere.txt", "pictures"):
        assert run(["predict", "run", odd]) == 2
        assert capsys.readouterr().err.startswith(f"error: {odd}: is not a table or a folder of tables: expected")
        with pytest.raises(DataError, match=r"expected a name that ends in one of \.csv"):
            done.predict(odd)


#: Rows two and five have what the training set did not have.
SOME_ODD = "rooms,town,area\n2,Aarau,50\n1,Rom,3\n5,Zug,160\n5,Zug,160\n,Zug,4\n2,Aarau,50\n"


def test_rows_that_cannot_be_predicted_are_named_and_others_predicted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = trained(place, capsys)
    (place / "odd.csv").write_text(SOME_ODD)
    assert run(["predict", "run", "odd.csv"]) == 2
    shown = capsys.readouterr()
    rows = shown.out.splitlines()[1:]
    assert [rows[1], rows[4]] == ['""', '""']
    expected = [60_000, 185_000, 185_000, 60_000]
    assert [float(rows[number]) for number in (0, 2, 3, 5)] == pytest.approx(expected, rel=0.02)
    assert shown.err == (
        "error: nothing is predicted of 2 of 6 rows: odd.csv: row 3, column 'town': 'Rom' did not occur in training: "
        "expected one of Aarau, Bern, Zug; odd.csv: row 6, column 'rooms': is missing: expected a value; "
        "row 1 is the header, the first line of the file\n"
    )
    assert run(["predict", "run", "odd.csv", "--json"]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in lines] == [["price"], ["error"], ["price"], ["price"], ["error"], ["price"]]
    with pytest.warns(UserWarning, match=r"nothing is predicted of 2 of 6 rows: odd.csv: row 3, column 'town': 'Rom'"):
        found = done.predict("odd.csv")
    assert np.isnan(found).tolist() == [False, True, False, False, True, False]
    (place / "odd.csv").write_text("rooms,town,area\n" + "1,Rom,3\n" * 40)
    assert run(["predict", "run", "odd.csv"]) == 2
    assert capsys.readouterr().err.endswith("; and 37 more; row 1 is the header, the first line of the file\n")


def test_a_frame_is_predicted_as_its_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, frame = trained(place, capsys), csv.read_csv("homes.csv")
    numbers = done.predict(frame)
    assert numbers.shape == (400,)
    assert numbers.dtype == np.float64
    lines = told(capsys, "predict", "run", "homes.csv").splitlines()[1:]
    assert [f"{number:.6g}" for number in numbers] == lines
    assert np.array_equal(done.predict(Path("homes.csv")), numbers)
    with pytest.raises(JobError, match="a run with loss = 'mse' has no probabilities"):
        done.predict_proba(frame)


def test_classes_of_a_frame_have_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, frame = trained(place, capsys, "town"), csv.read_csv("homes.csv")
    names, shares = done.predict(frame), done.predict_proba(frame)
    assert names.tolist() == [
        line.partition(",")[0] for line in told(capsys, "predict", "run", "homes.csv").splitlines()[1:]
    ]
    assert shares.shape == (400, 3)
    assert np.array(["Aarau", "Bern", "Zug"])[shares.argmax(axis=1)].tolist() == names.tolist()
    odd = pa.table({"rooms": [1, None], "area": [50.0, 60.0]})
    with pytest.warns(UserWarning, match="the Table: row 2, column 'rooms': is missing"):
        assert done.predict(odd).tolist() == ["Aarau", None]


def test_arrays_are_predicted_as_they_were_stored(tmp_path: Path) -> None:
    x = rng.integers(0, 255, (40, 4)).astype(np.float32)
    data = ((x, np.arange(40) % 2), (x[:4], np.arange(4) % 2))
    done = fit(nn.Linear(4, 2), data, run_dir=tmp_path / "run", workers=0, epochs=1, global_batch=20, verbose=False)
    shares = done.predict_proba(x)
    assert done.predict(x[:3].astype(np.int64)).tolist() == shares[:3].argmax(axis=1).tolist()
    assert np.mean(done.predict(x[:4]) == np.arange(4) % 2) == done.test_accuracy
    with pytest.raises(DataError, match=r"rows of shape \(40, 3\) and dtype 'float32': expected \(n, 4\) and 'fl"):
        done.predict(x[:, :3])


def test_rows_of_another_shape_are_refused_with_the_shape_that_the_data_had(tmp_path: Path) -> None:
    x, y = rng.normal(size=(40, 3, 5)).astype(np.float32), np.arange(40) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(15, 2))
    done = fit(model, ((x, y), (x, y)), run_dir=tmp_path / "run", workers=0, epochs=1, global_batch=20, verbose=False)
    with pytest.raises(DataError, match=r"rows of shape \(3, 5\) .*: expected \(n, 3, 5\) or \(n, 1, 3, 5\) and"):
        done.predict(x[0])


def raw_columns(frame: Any, *names: str) -> dict[str, Any]:
    """Return columns as onnxruntime takes them: float64, and texts."""
    columns = {name: frame[name].to_numpy(zero_copy_only=False) for name in names}
    return {name: each if each.dtype == object else each.astype(np.float64) for name, each in columns.items()}


def test_onnxruntime_predicts_from_the_raw_columns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    done, frame = trained(place, capsys), csv.read_csv("homes.csv")
    told(capsys, "export", "run", "m.onnx")
    session = runtime.InferenceSession("m.onnx")
    assert {each.name: each.type for each in session.get_inputs()} == {
        "area": "tensor(double)", "rooms": "tensor(double)", "town": "tensor(string)"
    }  # fmt: skip
    columns = raw_columns(frame, "area", "rooms", "town")
    (found,) = session.run(None, columns)
    assert found.shape == (400, 1)
    np.testing.assert_allclose(found[:, 0], done.predict(frame), rtol=1e-6)
    columns["town"][3], columns["rooms"][4] = "Rom", np.nan
    (found,) = session.run(None, columns)
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [3, 4]


def test_onnxruntime_names_the_classes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    done, frame = trained(place, capsys, "town"), csv.read_csv("homes.csv")
    told(capsys, "export", "run", "m.onnx")
    session, columns = runtime.InferenceSession("m.onnx"), raw_columns(frame, "area", "rooms")
    names, shares = session.run(["class", "probabilities"], columns)
    assert names.tolist() == done.predict(frame).tolist()
    np.testing.assert_allclose(shares, done.predict_proba(frame), atol=1e-6)
    columns["area"][7] = np.inf
    names, shares = session.run(["class", "probabilities"], columns)
    assert names[7] == ""
    assert np.isnan(shares[7]).all()
    assert np.isfinite(shares[8]).all()


@pytest.mark.parametrize("flags", [["--one-hot", ""], []], ids=["codes", "an input for each"])
def test_a_text_that_did_not_occur_is_not_filled_in_the_graph(
    place: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    inputs = 3 if flags else 5
    (place / "net.py").write_text(f"from lockstep import nn\ndef price(): return nn.Linear({inputs}, 1)\n")
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--missing", "mean", "--run-dir", "run", *flags, *BRIEF)  # fmt: skip
    told(capsys, "export", "run", "m.onnx")
    columns = raw_columns(csv.read_csv("homes.csv"), "area", "rooms", "town")
    columns["town"][3], columns["rooms"][4] = "Rom", np.nan
    (found,) = runtime.InferenceSession("m.onnx").run(None, columns)
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [3]


def test_what_is_missing_is_filled_in_the_graph_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    csv.write_csv(pa.table({"area": [*AREA[:-1], None], "rooms": ROOMS, "price": AREA, "town": TOWN}), "homes.csv")
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--missing", "mean", "--run-dir", "run", *BRIEF)  # fmt: skip
    told(capsys, "export", "run", "m.onnx")
    columns = raw_columns(csv.read_csv("homes.csv"), "area", "rooms", "town")
    (found,) = runtime.InferenceSession("m.onnx").run(None, columns)
    assert np.isnan(columns["area"][-1])
    np.testing.assert_allclose(found[:, 0], load_run("run").predict("homes.csv"), rtol=1e-6)


def test_a_missing_text_is_empty_in_the_graph_and_spaces_count_there(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    towns = [None, *TOWN[1:]]
    csv.write_csv(pa.table({"area": AREA, "rooms": ROOMS, "price": AREA, "town": towns}), "homes.csv")
    (place / "net.py").write_text("from lockstep import nn\ndef price(): return nn.Linear(6, 1)\n")
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--missing", "mean", "--run-dir", "run", *BRIEF)  # fmt: skip
    told(capsys, "export", "run", "m.onnx")
    columns, expected = (
        raw_columns(csv.read_csv("homes.csv"), "area", "rooms", "town"),
        load_run("run").predict("homes.csv"),
    )
    columns["town"][0], columns["town"][5] = "", f"{TOWN[5]} "
    (found,) = runtime.InferenceSession("m.onnx").run(None, columns)
    assert found[0, 0] == pytest.approx(expected[0], rel=1e-6)
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [5]


def test_the_columns_are_beside_exported_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(place, capsys)
    told(capsys, "export", "run", "m.safetensors")
    _, metadata = read(place / "m.safetensors")
    columns = {column["name"]: column for column in json.loads(metadata["columns"])}
    assert columns["town"]["categories"] == ["Aarau", "Bern", "Zug"]
    assert columns["area"]["mean"] == pytest.approx(AREA.mean(), rel=0.05)
    assert [target["name"] for target in json.loads(metadata["targets"])] == ["price"]


def test_a_column_may_not_be_called_like_a_part_of_the_graph(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    columns = {"samples": AREA, "rooms": ROOMS, "logits": ROOMS, "town": TOWN, "price": AREA}
    csv.write_csv(pa.table({**columns, "town": np.where(TOWN == "Zug", "Bern", TOWN)}), "homes.csv")
    (place / "net.py").write_text("from lockstep import nn\ndef price(): return nn.Linear(4, 1)\n")
    trained(place, capsys)
    assert run(["export", "run", "m.onnx"]) == 2
    assert capsys.readouterr().err.startswith("error: the input 'samples' is called like a part of the graph: expected")
    assert not (place / "m.onnx").exists()


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
    assert list(found["probabilities"]) == ["Aarau", "Bern", "Zug"]
    assert sum(found["probabilities"].values()) == pytest.approx(1)


def test_pictures_by_class(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "train", "--data", "pictures", "--model", "net.py:colour", "--run-dir", "run", *BRIEF)
    assert out.startswith("packed 64 samples to train on and 16 to test with into ")
    assert "2 classes: night, noon" in out
    shown = told(capsys, "predict", "run", "pictures/noon/3.png")
    assert shown.split()[1] == "noon"
    named = json.loads(told(capsys, "predict", "run", "pictures/night/3.png", "--json"))
    assert (named["class"], set(named["probabilities"])) == ("night", {"night", "noon"})
    assert "night" in told(capsys, "evaluate", "run")
    onnx = pytest.importorskip("onnx")
    write_model(open_trained(Path("run")), place / "m.onnx", "onnx")
    metadata = {entry.key: entry.value for entry in onnx.load("m.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == ["night", "noon"]
    assert metadata["data"] == "pictures"


def test_a_run_has_its_data_and_takes_no_other_when_it_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--resume", "run", "--target", "town"]) == 2
    assert capsys.readouterr().err.startswith("error: --resume with --target: the run has its data")


@pytest.mark.parametrize("way", ["train", "resume", "node"])
def test_data_that_left_the_cache_is_packed_again_if_its_source_is_as_it_was(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)

    def interrupt(training: Any, epoch: Any) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    brief: dict[str, Any] = {"target": "price", "epochs": 3, "workers": 0, "verbose": False}
    whole = fit("homes.csv", run_dir="whole", **brief)
    with pytest.raises(KeyboardInterrupt):
        fit("homes.csv", run_dir="run", callbacks=[LambdaCallback(on_epoch_end=interrupt)], **brief)
    shutil.rmtree(place / "cache")
    table = (place / "homes.csv").read_bytes()
    for content, why in ((b"", " with the file as it was then,"), (None, "")):
        (place / "homes.csv").unlink() if content is None else (place / "homes.csv").write_bytes(content)
        assert run(["node", "--run-dir", "run"] if way == "node" else ["train", "--resume", "run"]) == 2
        error = capsys.readouterr().err
        command = f"lockstep pack {place / 'homes.csv'} {whole.job.data} --target price"
        missing = f"needs its training data, which is not here: make it again{why} with `{command}`"
        assert error.endswith(f"{missing}, or resume the run with --data DATA, its source or a packed copy\n")
    (place / "homes.csv").write_bytes(table)
    if way == "train":
        assert "packed 320 samples" in told(capsys, "train", "--resume", "run", "--no-picture")
    else:
        resume("run", verbose=False)
    assert load_run("run").weights_sha256 == whole.weights_sha256


def trained_on_two(capsys: pytest.CaptureFixture[str]) -> tuple[Run, Any, Any]:
    """Train on two targets that differ in their means and deviations; return the table and what is to be predicted."""
    expected = np.stack([1000.0 * AREA + 5000.0 * ROOMS, 1950.0 + 4.0 * ROOMS - 0.1 * AREA], axis=1)
    table = pa.table({"area": AREA, "rooms": ROOMS, "price": expected[:, 0], "year": expected[:, 1]})
    csv.write_csv(table, "two.csv")
    told(capsys, "train", "--data", "two.csv", "--target", "price", "--target", "year", "--model", "net.py:two",
         "--loss", "mse", "--run-dir", "run", *BRIEF)  # fmt: skip
    return load_run("run"), table, expected


def test_a_date_is_predicted_as_a_date(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = np.datetime64("2024-01-01", "D") + (AREA + 10 * ROOMS).astype(int)
    table = pa.table({"area": AREA, "rooms": ROOMS, "ready": pa.array(days), "price": 1000.0 * AREA})
    csv.write_csv(table, "dates.csv")
    told(capsys, "train", "--data", "dates.csv", "--target", "ready", "--target", "price", "--model", "net.py:two",
         "--loss", "mse", "--run-dir", "run", *BRIEF)  # fmt: skip
    head, *rows = told(capsys, "predict", "run", "dates.csv").splitlines()
    assert head == "ready,price"
    found = [row.split(",") for row in rows]
    expected = load_run("run").predict("dates.csv")
    assert [float(price) for _, price in found] == pytest.approx(expected[:, 1], rel=1e-5)
    dates = np.array([date for date, _ in found], "datetime64[s]")
    assert np.abs(dates.astype("datetime64[us]").astype(float) - expected[:, 0]).max() < 1e6
    assert np.abs((dates - days) / np.timedelta64(1, "D")).max() < 20
    lines = told(capsys, "predict", "run", "dates.csv", "--json").splitlines()
    assert [json.loads(line)["ready"] for line in lines] == [date for date, _ in found]


#: How far a prediction may be from what it should be: less than the targets differ, and less than they vary.
NEAR = np.array([6000.0, 2.0])


def test_each_of_two_targets_is_predicted_in_its_own_units(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, table, expected = trained_on_two(capsys)
    found = done.predict(table)
    assert found.shape == (400, 2)
    assert (np.abs(found - expected) <= NEAR).all()
    head, *rows = told(capsys, "predict", "run", "two.csv").splitlines()
    assert head == "price,year"
    printed = np.array([row.split(",") for row in rows], np.float64)
    assert (np.abs(printed - found) <= 2e-5 * found.std(axis=0)).all()
    lines = told(capsys, "predict", "run", "two.csv", "--json").splitlines()
    assert [json.loads(line) for line in lines] == [
        dict(zip(("price", "year"), row, strict=True)) for row in found.tolist()
    ]


def test_a_row_that_cannot_be_used_has_no_prediction_of_any_target(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, _, expected = trained_on_two(capsys)
    (place / "odd.csv").write_text(f"area,rooms\n{AREA[0]},{ROOMS[0]}\nx,2\n{AREA[2]},{ROOMS[2]}\n")
    with pytest.warns(UserWarning, match=r"nothing is predicted of 1 of 3 rows: odd.csv: row 3, column 'area'"):
        found = done.predict("odd.csv")
    assert np.isnan(found).tolist() == [[False, False], [True, True], [False, False]]
    assert (np.abs(found[::2] - expected[:3:2]) <= NEAR).all()
    assert run(["predict", "run", "odd.csv"]) == 2
    assert capsys.readouterr().out.splitlines()[2] == ","


def test_the_errors_of_two_targets_are_in_the_units_of_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, table, expected = trained_on_two(capsys)
    figures = json.loads(told(capsys, "evaluate", "run", "--data", "two.csv", "--json"))["targets"]
    errors = done.predict(table) - expected
    assert [each["name"] for each in figures] == ["price", "year"]
    for name, values in (("mae", np.abs(errors).mean(axis=0)), ("mse", np.square(errors).mean(axis=0))):
        assert [each[name] for each in figures] == pytest.approx(values.tolist(), rel=1e-3)
    r2 = 1 - np.square(errors).sum(axis=0) / np.square(expected - expected.mean(axis=0)).sum(axis=0)
    assert [each["r2"] for each in figures] == pytest.approx(r2.tolist(), abs=1e-4)


def test_an_exported_graph_predicts_each_of_two_targets_in_its_own_units(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, table, _ = trained_on_two(capsys)
    told(capsys, "export", "run", "m.safetensors")
    _, metadata = read(place / "m.safetensors")
    targets = {target["name"]: target["mean"] for target in json.loads(metadata["targets"])}
    assert targets == {"price": pytest.approx(140_000, rel=0.1), "year": pytest.approx(1954, abs=3)}
    runtime = pytest.importorskip("onnxruntime")
    told(capsys, "export", "run", "m.onnx")
    (found,) = runtime.InferenceSession("m.onnx").run(None, raw_columns(table, "area", "rooms"))
    np.testing.assert_allclose(found, done.predict(table), rtol=1e-6)


@pytest.mark.parametrize("kind", ["price", "town"])
def test_a_run_on_a_table_is_tested_on_another_table(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    done = trained(place, capsys, kind)
    homes = csv.read_csv("homes.csv")
    csv.write_csv(homes, "all.csv")
    figures = json.loads(told(capsys, "evaluate", "run", "--data", "all.csv", "--json"))
    assert figures["samples"] == len(homes)
    found = done.predict("all.csv")
    if kind == "price":
        error = np.abs(found - homes["price"].to_numpy()).mean()
        assert figures["targets"][0]["mae"] == pytest.approx(error, rel=1e-4)
    else:
        assert figures["test_accuracy"] == np.mean(found == np.array(homes["town"].to_pylist()))
    told(capsys, "pack", "all.csv", "other", "--target", kind, "--test-split", "0.5")
    assert run(["evaluate", "run", "--data", "other"]) == 2
    assert "error: other: was packed with other columns, means or codes than the data" in capsys.readouterr().err
    csv.write_csv(homes, "tabs.csv", csv.WriteOptions(delimiter="\t"))
    assert json.loads(told(capsys, "evaluate", "run", "--data", "tabs.csv", "--delimiter", "tab", "--json")) == {
        **figures, "dataset": "tabs.csv"}  # fmt: skip
    csv.write_csv(homes.drop_columns([kind]), "blind.csv")
    assert run(["evaluate", "run", "--data", "blind.csv"]) == 2
    assert f"has no column '{kind}'" in capsys.readouterr().err


def test_one_row_to_test_with_has_no_r2_anywhere(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(place, capsys, "price")
    csv.write_csv(csv.read_csv("homes.csv").slice(0, 1), "one.csv")
    shown = told(capsys, "evaluate", "run", "--data", "one.csv")
    assert "test R²        - over 1 samples" in shown
    assert shown.rstrip().endswith(" -")


def test_rows_without_a_target_are_left_out_of_a_test_and_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(place, capsys, "price")
    homes = csv.read_csv("homes.csv")
    csv.write_csv(homes.slice(3), "known.csv")
    expected = json.loads(told(capsys, "evaluate", "run", "--data", "known.csv", "--json"))
    at, prices = homes.schema.get_field_index("price"), homes["price"].to_pylist()
    csv.write_csv(homes.set_column(at, "price", pa.array([None] * 3 + prices[3:])), "some.csv")
    capsys.readouterr()
    assert run(["evaluate", "run", "--data", "some.csv", "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out) == {**expected, "dataset": "some.csv"}
    assert found.err == "notice: 3 rows were left out, without 'price' to compare with\n"
    csv.write_csv(homes.set_column(at, "price", pa.array([None] * len(homes), pa.float64())), "none.csv")
    assert run(["evaluate", "run", "--data", "none.csv"]) == 2
    assert capsys.readouterr().err == "error: none.csv: has no row with 'price': expected some to test with\n"
    csv.write_csv(homes.set_column(0, "area", pa.array([None, *homes["area"].to_pylist()[1:]])), "odd.csv")
    assert run(["evaluate", "run", "--data", "odd.csv"]) == 2
    assert "row 2, column 'area': is missing" in capsys.readouterr().err


def test_predictions_are_scaled_as_in_training_without_the_validation_set(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "train", "--data", "homes.csv", "--target", "price", "--model", "net.py:price", "--loss", "mse",
         "--set", "validation_split=0.5", "--run-dir", "run", *BRIEF)  # fmt: skip
    homes = csv.read_csv("homes.csv")
    csv.write_csv(homes, "all.csv")
    (figures,) = json.loads(told(capsys, "evaluate", "run", "--data", "all.csv", "--json"))["targets"]
    error = np.abs(load_run("run").predict("all.csv") - homes["price"].to_numpy()).mean()
    assert figures["mae"] == pytest.approx(error, rel=1e-4)
