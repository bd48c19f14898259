"""`lockstep predict`: pictures of any kind, and what a file that is none is told."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit, load_run, nn
from lockstep.cli.main import run
from lockstep.common.autograd import functional as F
from lockstep.common.errors import DataError
from lockstep.common.runtime.environment import child_environment
from lockstep.results.evaluation.assessment import assess, probabilities_of
from lockstep.results.evaluation.predictor import line, spelled
from lockstep.runs.trained_model import open_trained
from tests.lockstep.small_runs import small_run
from tests.lockstep.tiny_data import tiny_arrays

Image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow: .venv/bin/pip install -e '.[predict]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run, whose classes are bright rows."""
    folder = tmp_path_factory.mktemp("predict")
    small_run(folder, nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epochs=20)
    return folder


def predictions(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert run(["predict", *arguments, "--json"]) == 0
    return [json.loads(text) for text in capsys.readouterr().out.splitlines()]


def rows(folder: Path, count: int) -> list[str]:
    """Write test images as PNGs of another size; return their paths."""
    images, _ = tiny_arrays()[1]
    paths = [folder / f"{index}.png" for index in range(count)]
    for image, path in zip(images[:count], paths, strict=True):
        Image.fromarray(image).resize((112, 112)).save(path)
    return [str(path) for path in paths]


def test_pictures_of_another_size_are_taken_for_their_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = predictions(capsys, str(folder / "run"), *rows(folder, 10), "--no-center")
    assert [each["class"] for each in told] == [str(label) for label in range(10)]
    for each in told:
        probabilities = each["probabilities"]
        assert isinstance(probabilities, dict)
        assert list(probabilities) == [str(label) for label in range(10)]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert max(probabilities, key=probabilities.__getitem__) == each["class"]


def test_a_folder_stands_for_the_pictures_in_it(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "scans" / "more").mkdir(parents=True)
    paths = [*rows(tmp_path / "scans", 2), *rows(tmp_path / "scans" / "more", 3)]
    told = predictions(capsys, str(folder / "run"), str(tmp_path / "scans"), "--no-center")
    assert sorted(str(each["picture"]) for each in told) == sorted(paths)
    (tmp_path / "scans" / "readme.txt").write_text("not a picture")
    assert run(["predict", str(folder / "run"), str(tmp_path / "scans")]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 5
    assert shown.err == "notice: skipped 1 file in folders that is not a picture\n"
    assert run(["predict", str(folder / "run"), str(tmp_path / "scans" / "readme.txt")]) == 2
    assert "is not a picture that can be read" in capsys.readouterr().err
    assert run(["predict", str(folder / "run"), str(tmp_path / "nowhere")]) == 2
    assert "nowhere: there is no such file or folder" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert run(["predict", str(folder / "run"), str(tmp_path / "none")]) == 2
    assert "is an empty folder: expected pictures in it" in capsys.readouterr().err


def test_the_rows_of_a_table_are_counted_from_its_header(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = tmp_path / "homes.csv"
    table.write_text("rooms,price\n" + "".join(f"{row % 7},{row % 7 * 2.5}\n" for row in range(60)))
    options = ["--target", "price", "--workers", "0", "--steps", "2"]
    assert run(["train", "--data", str(table), *options, "--run-dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    (tmp_path / "new.csv").write_text("rooms\n3\nmany\n")
    assert run(["predict", str(tmp_path / "run"), str(tmp_path / "new.csv")]) == 2
    assert "row 3, column 'rooms': 'many' is not a number" in (told := capsys.readouterr().err)
    assert told.endswith("; row 1 is the header, the first line of the file\n")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "I;16", "F"])
def test_every_kind_of_picture_gives_the_same_digit(
    folder: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    page = np.full((60, 90), 255, np.uint8)
    page[20:40, 30:33] = 0
    Image.fromarray(page).save(folder / "plain.png")
    if mode == "I;16":
        Image.fromarray(page.astype(np.uint16) * 257).save(folder / "other.tiff")
    elif mode == "F":
        Image.fromarray(page.astype(np.float32) / 255).save(folder / "other.tiff")
    else:
        Image.fromarray(page).convert(mode).save(folder / "other.tiff")
    plain, other = predictions(capsys, str(folder / "run"), str(folder / "plain.png"), str(folder / "other.tiff"))
    assert plain["probabilities"] == pytest.approx(other["probabilities"], abs=0.01)


@pytest.mark.parametrize("ink", [0, 255])
def test_what_is_drawn_on_nothing_is_seen(folder: Path, capsys: pytest.CaptureFixture[str], ink: int) -> None:
    page = np.zeros((60, 90, 4), np.uint8)
    page[20:40, 30:33] = (ink, ink, ink, 255)
    Image.fromarray(page).save(folder / "ink.png")
    gray = np.full((60, 90), 255, np.uint8)
    gray[20:40, 30:33] = 0
    Image.fromarray(gray).save(folder / "gray.png")
    seen, expected = predictions(capsys, str(folder / "run"), str(folder / "ink.png"), str(folder / "gray.png"))
    assert seen["probabilities"] == expected["probabilities"]


def test_lines_are_for_people_and_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = rows(folder, 3)
    assert run(["predict", str(folder / "run"), *paths, "--no-center"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[1] for text in lines] == ["0", "1", "2"]
    assert all(len(text) <= 80 for text in lines)
    assert line("a" * 50, np.array([0.25, 0.75]), 12) == "…" + "a" * 11 + "  1   75.00%   or 0 25.00%"


def test_what_is_no_picture_or_empty_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((30, 30), 200, np.uint8)).save(folder / "blank.png")
    (folder / "text.png").write_text("no picture")
    cases = {
        "gone.png": "there is no such file or folder: expected a picture, or a folder of pictures",
        "text.png": "is not a picture that can be read (not a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM, or damaged)",
        "blank.png": "nothing is drawn in it",
    }
    for name, text in cases.items():
        assert run(["predict", str(folder / "run"), str(folder / name)]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith(f"error: {folder / name}: {text}")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("new.npy", "cannot be read"),
        ("new.NPZ", "cannot be read"),
        ("new.csv", "is a table and not a picture, and the run was not trained on a table: expected pictures, or an"),
    ],
)
def test_files_of_another_kind_are_named(
    name: str, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(folder / "run"), name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: {text}")


def test_a_model_of_features_takes_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images, labels), (test, truth) = tiny_arrays()
    flat = tmp_path / "flat.npz"
    np.savez(flat, x_train=images.reshape(-1, 784), y_train=labels, x_test=test.reshape(-1, 784), y_test=truth)
    small = ["--data", str(flat), "--model", "linear", "--epochs", "1", "--workers", "0", "--global-batch", "32"]
    assert run(["train", *small, "--run-dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert run(["predict", str(tmp_path / "run"), "x.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the model was trained on samples of shape (784,): expected images")
    assert error.endswith("predict from an .npy or .npz file with such samples\n")


def test_arrays_are_predicted_as_in_python(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, done = tiny_arrays()[1][0][:7], load_run(folder / "run")
    np.save(tmp_path / "new.npy", images)
    np.savez(tmp_path / "new.npz", x=images, y=np.zeros(7))
    np.savez(tmp_path / "alone.npz", digits=images)
    np.savez(tmp_path / "others.npz", a=images, b=images)
    shares = done.predict_proba(images)
    expected = [f"{label},{share:.4f}" for label, share in zip(done.predict(images), shares.max(axis=1), strict=True)]
    for name in ("new.npy", "new.npz", "alone.npz"):
        assert run(["predict", str(folder / "run"), str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.splitlines() == ["class,probability", *expected]
        np.testing.assert_array_equal(done.predict_proba(tmp_path / name), shares)
        assert done.predict(str(tmp_path / name)).tolist() == done.predict(images).tolist()
    told = predictions(capsys, str(folder / "run"), str(tmp_path / "new.npy"))
    assert [list(each["probabilities"].values()) for each in told] == shares.tolist()  # type: ignore[attr-defined]
    assert run(["predict", str(folder / "run"), str(tmp_path / "others.npz")]) == 2
    assert capsys.readouterr().err.endswith("others.npz: has a, b: expected the samples to predict from, as 'x'\n")
    np.save(tmp_path / "odd.npy", np.zeros((3, 5), np.uint8))
    assert run(["predict", str(folder / "run"), str(tmp_path / "odd.npy")]) == 2
    assert "rows of shape (3, 5) and dtype 'uint8': expected (n, 28, 28) or (n, 1, 28, 28)" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "new.npy", tiny_arrays()[1][0])
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-P", "-m", "lockstep", "predict", str(folder / "run"), str(tmp_path / "new.npy")]
    # What is written last is still in a buffer when the command ends.
    environment = {**child_environment(), "PYTHONUNBUFFERED": ""}
    with os.fdopen(writer, "w") as stdout:
        ended = subprocess.run(words, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_numbers_are_predicted_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    values: dict[str, Any] = {"loss": "mse", "workers": 0, "steps": 2, "global_batch": 20, "verbose": False}
    for targets, head in ((x[:, :1], ["y"]), (x[:, :2], ["y0", "y1"])):
        done = fit(nn.Linear(3, len(head)), (x, targets), run_dir=tmp_path / str(len(head)), **values)
        np.save(tmp_path / "new.npy", x[:4])
        assert run(["predict", str(done.folder), str(tmp_path / "new.npy")]) == 0
        rows = [row.split(",") for row in capsys.readouterr().out.splitlines()]
        assert rows[0] == head
        np.testing.assert_allclose(np.array(rows[1:], float), done.predict(x[:4]).reshape(4, -1), rtol=1e-4)
        assert list(predictions(capsys, str(done.folder), str(tmp_path / "new.npy"))[0]) == head
        for odd, kind in (({"x": x}, "dict"), ([x, x[:, :2]], "list")):
            with pytest.raises(
                DataError, match=rf"^rows of type '{kind}' are not an array of .*: expected \(n, 3\) and"
            ):
                done.predict(odd)


class Steps(nn.Module):
    """Predicts a number from the one input of a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 3, 1)

    def forward(self, x: Any) -> Any:
        return self.linear(x.reshape(len(x), -1))


class Both(nn.Module):
    """Predicts a number from two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 3 + 2, 1)

    def forward(self, x: Any, z: Any) -> Any:
        return self.linear(F.concatenate([x.reshape(len(x), -1), z], dim=1))


class Difference(nn.Module):
    """Predicts a number from two inputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, z: Any, a: Any) -> Any:
        return self.linear(z - a)


SERIES, MORE = (np.random.default_rng(seed).normal(2.0, 3.0, shape) for seed, shape in ((0, (60, 8, 3)), (1, (60, 2))))
SUMS = SERIES.sum(axis=(1, 2)) + 100.0
OF_INPUTS: dict[str, Any] = {"loss": "mse", "workers": 0, "steps": 3, "global_batch": 20, "verbose": False}


def test_an_array_is_the_only_input_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = fit(Steps, (({"x": SERIES}, SUMS), ({"x": SERIES[:9]}, SUMS[:9])), run_dir=tmp_path / "run", **OF_INPUTS)
    expected = done.predict({"x": SERIES[:9]})
    for given in (SERIES[:9], SERIES[:9].tolist(), (SERIES[:9],), SERIES[:9].astype(np.float32)):
        assert done.predict(given).tolist() == expected.tolist()
    np.save(tmp_path / "new.npy", SERIES[:9])
    np.savez(tmp_path / "new.npz", x=SERIES[:9], y=SUMS[:9])
    np.savez(tmp_path / "named.npz", **{"x.x": SERIES[:9], "y": SUMS[:9]})
    np.savez(tmp_path / "test.npz", x_test=SERIES[:9], y_test=SUMS[:9])
    own = evaluation(capsys, done.folder)
    for name in ("new.npy", "new.npz", "named.npz", "test.npz"):
        assert run(["predict", str(done.folder), str(tmp_path / name)]) == 0
        np.testing.assert_allclose(np.array(capsys.readouterr().out.split()[1:], float), expected, rtol=1e-4)
        assert done.predict(tmp_path / name).tolist() == expected.tolist()
        if not name.endswith(".npy"):
            found = evaluation(capsys, done.folder, "--data", str(tmp_path / name))
            assert (found["test_loss"], found["targets"]) == (own["test_loss"], own["targets"])
    np.savez(tmp_path / "weighed.npz", x=SERIES[:9], y=np.rint(SUMS[:9]).astype(int), w=np.arange(9.0))
    weighed = evaluation(capsys, done.folder, "--data", str(tmp_path / "weighed.npz"))["targets"][0]["mae"]
    assert weighed == pytest.approx(np.average(np.abs(expected - np.rint(SUMS[:9])), weights=np.arange(9.0)), rel=1e-4)


def evaluation(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict[str, Any]:
    assert run(["evaluate", str(folder), *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_several_inputs_come_by_name_or_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = {"x": SERIES, "z": MORE}
    done = fit(Both, ((inputs, SUMS), (inputs, SUMS)), run_dir=tmp_path / "run", **OF_INPUTS)
    expected = done.predict(inputs)
    assert done.predict({"z": MORE, "x": SERIES}).tolist() == expected.tolist()
    numbered = fit(Both, (((SERIES, MORE), SUMS), ((SERIES, MORE), SUMS)), run_dir=tmp_path / "numbered", **OF_INPUTS)
    for given in ((SERIES, MORE), [SERIES, MORE], {"1": MORE, "0": SERIES}):
        assert numbered.predict(given).tolist() == expected.tolist()
    np.savez(tmp_path / "new.npz", **{"x.x": SERIES, "x.z": MORE, "y": SUMS})
    assert done.predict(tmp_path / "new.npz").tolist() == expected.tolist()
    found = evaluation(capsys, done.folder, "--data", str(tmp_path / "new.npz"))
    assert found["targets"] == evaluation(capsys, done.folder)["targets"]


def test_a_tuple_of_inputs_that_have_names_is_refused(tmp_path: Path) -> None:
    # The file of the run's data has no order but the alphabet's: a tuple would be taken in another one in silence.
    inputs = {"z": MORE, "a": MORE[:, ::-1]}
    done = fit(Difference, ((inputs, SUMS), (inputs, SUMS)), run_dir=tmp_path / "run", **OF_INPUTS)
    for given in (tuple(inputs.values()), list(inputs.values())):
        with pytest.raises(
            DataError, match=r"without their names: expected 'a' of .*, as \{'a': \.\.\., 'z': \.\.\.\}$"
        ):
            done.predict(given)


def test_inputs_of_another_form_are_refused_with_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = fit(Steps, (({"x": SERIES}, SUMS), ({"x": SERIES}, SUMS)), run_dir=tmp_path / "alone", **OF_INPUTS)
    inputs = {"x": SERIES, "z": MORE}
    both = fit(Both, ((inputs, SUMS), (inputs, SUMS)), run_dir=tmp_path / "both", **OF_INPUTS)
    one = "'x' of shape (n, 8, 3) and dtype float32"
    two = f"{one}, 'z' of shape (n, 2) and dtype float32"
    for done, given, found, wanted in (
        (alone, SERIES[:, :7], "'x' of shape (60, 7, 3) and dtype float64", one),
        (alone, {"z": SERIES}, "'z' of shape (60, 8, 3) and dtype float64", one),
        (alone, (SERIES, MORE), "of shape (60, 8, 3) and dtype float64, of shape (60, 2) and dtype float64", one),
        (both, SERIES, "of shape (60, 8, 3) and dtype float64", two),
        (both, (MORE, SERIES), "in a tuple, without their names", two),
        (both, (SERIES, MORE, MORE), "of shape (60, 8, 3) and dtype float64, of shape (60, 2) and dtype", two),
        (both, {}, "without an array", two),
    ):
        with pytest.raises(DataError) as raised:
            done.predict(given)
        assert str(raised.value).startswith(f"inputs {found}")
        assert f": expected {wanted}, as it was trained on" in str(raised.value)
    with pytest.raises(
        DataError, match=r"^rows of type 'list' are not an array of numbers: expected 'x' of shape \(n, 8"
    ):
        alone.predict([SERIES, MORE])
    np.savez(tmp_path / "unlabelled.npz", x=SERIES)
    np.savez(tmp_path / "short.npz", x=SERIES[:, :7], y=SUMS)
    for name, told in (("unlabelled", "no array 'y': expected the"), ("short", "inputs 'x' of shape (60, 7, 3) and d")):
        assert run(["evaluate", str(alone.folder), "--data", str(tmp_path / f"{name}.npz")]) == 2
        assert f"{name}.npz: {told}" in capsys.readouterr().err


def test_a_picture_is_predicted_by_its_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = rows(folder, 1)
    (told,) = predictions(capsys, str(folder / "run"), path)
    done = load_run(folder / "run")
    assert [str(label) for label in done.predict(path)] == [told["class"]]
    assert done.predict_proba(Path(path))[0].tolist() == list(told["probabilities"].values())  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"nowhere.png"):
        done.predict(folder / "nowhere.png")


def test_a_folder_of_pictures_is_predicted_by_its_path(folder: Path) -> None:
    paths, done = rows(folder, 4), load_run(folder / "run")
    (folder / "new").mkdir()
    names = [Path(path).rename(folder / "new" / Path(path).name).name for path in paths]
    alone = [done.predict(folder / "new" / name)[0] for name in sorted(names)]
    assert len(set(alone)) > 1
    assert done.predict(folder / "new").tolist() == alone
    (folder / "none").mkdir()
    with pytest.raises(DataError, match="none: is an empty folder: expected pictures in it"):
        done.predict(folder / "none")


def test_a_picture_becomes_the_sample_that_packing_makes_of_it(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Light parts on nothing, of which only a person knows whether they lie on white or on black.
        picture = drawn.integers(128, 256, (9, 12, 4)).astype(np.uint8)
        picture[..., 3] = 255 * (drawn.random((9, 12)) < 0.3)
        Image.fromarray(picture).save(path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, 2))
    small: dict[str, Any] = {"size": (5, 7), "epochs": 1, "global_batch": 8, "workers": 0, "verbose": False}
    done = fit(model, tmp_path / "pictures", run_dir=tmp_path / "run", **small)
    tested = assess(open_trained(done.folder), str(tmp_path / "pictures"))
    np.testing.assert_allclose(done.predict_proba(tmp_path / "pictures"), probabilities_of(tested.outputs), rtol=1e-6)


def test_no_digit_in_front_of_the_point_is_lost() -> None:
    numbers = (-1234567.25, 453_567_123.0, 123456.7891, 0.5, 1e20, 0.0)
    known = ["-1234567.25", "453567123", "123457", "0.5", "1e+20", "0"]
    assert [spelled(number, deviation=1e5) for number in numbers] == known


def test_a_number_far_from_0_has_the_digits_of_its_deviation() -> None:
    assert spelled(999999999998.8361, deviation=1.0) == "999999999998.836"
    assert spelled(1700085062.25, deviation=3e4) == "1700085062"
    assert spelled(512.3456789, deviation=0.01) == "512.3456789"
    assert spelled(512.3456789, deviation=80.0) == "512.346"
    assert spelled(1e300, deviation=1e-300) == "1e+300"
    assert [spelled(number, deviation=1e9) for number in (5e-324, math.inf, math.nan)] == ["4.94066e-324", "inf", "nan"]
