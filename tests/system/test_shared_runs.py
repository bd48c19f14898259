"""A colleague with another home, an empty cache and no data uses a run that was sent: with the bits of its owner."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
import pytest

from lockstep.launch.supervision.template import ProcessTemplate
from tests.system.forking import fork

pytest.importorskip("pyarrow")
Image = pytest.importorskip("PIL.Image")

MODELS = """
from lockstep import nn

def five(): return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
def colour(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2))
def four(): return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
"""
BRIEF = ("--epochs", "2", "--workers", "0", "--global-batch", "32", "--micro-batches", "2", "--no-picture")

#: The predictions of arrays, as the bytes that they are.
PREDICT = (
    "import sys, numpy; from lockstep import load_run; "
    "print(load_run(sys.argv[1], trust_model=True).predict_proba(numpy.load('new.npy')).tobytes().hex())"
)


class Person(NamedTuple):
    """A folder to work in, with a home of its own."""

    folder: Path
    template: ProcessTemplate

    def run(self, *words: str, code: int = 0) -> str:
        """Return the output of a command."""
        process = fork(self.template, words, self.folder, self.environment())
        out, error = process.communicate(timeout=300)
        assert process.returncode == code, error
        return out + (error if code else "")

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "LOCKSTEP"))}
        return {**kept, "HOME": str(self.folder / "home")}

    def python(self, program: str, *words: str) -> str:
        """Return the output of a program."""
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory, template: ProcessTemplate) -> Person:
    person = Person(tmp_path_factory.mktemp("owner"), template)
    (person.folder / "net.py").write_text(MODELS)
    write_table(person.folder / "clients.csv", 200, seed=1)
    for name, shade in (("night", 30), ("noon", 200)):
        (person.folder / "pictures" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (4, 4), (shade + number % 7,) * 3).save(
                person.folder / "pictures" / name / f"{number}.png"
            )
    rng = np.random.default_rng(3)
    x = rng.normal(5.0, 3.0, (150, 4)).astype(np.float32)
    np.savez(person.folder / "arrays.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    person.run("train", *TABLE, "--run-dir", "run-table", *BRIEF)
    return person


@pytest.fixture
def colleague(tmp_path: Path, template: ProcessTemplate) -> Person:
    person = Person(tmp_path / "colleague", template)
    person.folder.mkdir()
    write_table(person.folder / "new.csv", 40, seed=2)
    for name, shade in (("night", 33), ("noon", 190)):
        (person.folder / "others" / name).mkdir(parents=True)
        Image.new("RGB", (9, 7), (shade,) * 3).save(person.folder / "others" / name / "one.png")
    x = np.random.default_rng(4).normal(5.0, 3.0, (20, 4)).astype(np.float32)
    np.save(person.folder / "new.npy", x)
    np.savez(person.folder / "new.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    return person


def write_table(path: Path, rows: int, seed: int) -> None:
    drawn = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["plan", "age", "visits", "price"])
        for row in range(rows):
            plan, age, visits = drawn.choice(["free", "pro", "team"]), drawn.randint(18, 80), drawn.random() * 10
            writer.writerow([plan, age if row % 9 else "", f"{visits:.3f}", f"{2 * age + 3 * visits + len(plan):.2f}"])


#: What the owner trains on, what the colleague predicts from, and what it is tested on.
TABLE = ("--data", "clients.csv", "--target", "price", "--missing", "mean", "--model", "net.py:five", "--loss", "mse")
PICTURES = ("--data", "pictures", "--size", "4x4", "--model", "net.py:colour")
ARRAYS = ("--data", "arrays.npz", "--model", "net.py:four", "--set", "with_examples=true")
CASES = {
    "table": (TABLE, ["new.csv"], "new.csv"),
    "pictures": (PICTURES, ["others/night/one.png", "others/noon/one.png"], "others"),
    "arrays": (ARRAYS, [], "new.npz"),
}


def predicted(person: Person, run: str, inputs: list[str]) -> str:
    """Return predictions with all of their digits."""
    if not inputs:
        return person.python(PREDICT, run)
    return person.run("predict", run, *inputs, "--json", "--trust-model")


@pytest.mark.parametrize("kind", CASES)
def test_a_colleague_uses_a_run_without_its_data(kind: str, owner: Person, colleague: Person) -> None:
    flags, inputs, tests = CASES[kind]
    if kind != "table":
        owner.run("train", *flags, "--run-dir", f"run-{kind}", *BRIEF)
    owner.run("export", f"run-{kind}", str(colleague.folder / "run.zip"))
    for name in ("new.csv", "others", "new.npy"):
        if not (owner.folder / name).exists():
            (owner.folder / name).symlink_to(colleague.folder / name)
    expected = predicted(owner, f"run-{kind}", inputs)
    for name in ("new.csv", "others", "new.npy"):
        (owner.folder / name).unlink()

    # The model is code of somebody else, and the command that the error names works without the data.
    refused = colleague.run("export", "run.zip", "model.npz", code=2)
    advised = refused.partition("`")[2].partition("`")[0].partition("lockstep ")[2].split()
    assert advised[0] == "evaluate"
    assert "nothing was computed, because the data is not here" in colleague.run(*advised)

    assert predicted(colleague, "run.zip", inputs) == expected
    for name in ("model.safetensors", "model.npz"):
        colleague.run("export", "run.zip", name)
    assert "was used once" in colleague.run("ledger", "run.zip")
    assert "the same weights" in colleague.run("verify", "run.zip", "--against", str(owner.folder / f"run-{kind}"))
    assert "1 and 2: the same weights" in colleague.run("compare", "run.zip", str(owner.folder / f"run-{kind}"))
    found = json.loads(colleague.run("evaluate", "run.zip", "--data", tests, "--json"))
    assert found["samples"] == {"table": 40, "pictures": 2, "arrays": 20}[kind]
    recorded = json.loads(colleague.run("evaluate", "run.zip", "--json"))
    assert recorded["is_recorded"]
    assert recorded["test_loss"] == json.loads(owner.run("evaluate", f"run-{kind}", "--json"))["test_loss"]
    if kind == "arrays":
        assert "examples.npz of the run, computed now" in colleague.run("evaluate", "run.zip")


def test_a_run_is_recomputed_from_the_source_of_its_data(owner: Person, colleague: Person) -> None:
    owner.run("export", "run-table", str(colleague.folder / "run.zip"))
    refused = colleague.run("verify", "run.zip", "--trust-model", code=2)
    command = "lockstep pack clients.csv clients.data --target price --task numbers --missing mean"
    assert command.partition(" ")[2] in refused
    (colleague.folder / "clients.csv").write_bytes((owner.folder / "clients.csv").read_bytes())
    assert "the same bits" in colleague.run("verify", "run.zip", "--training-data", "clients.csv")
    colleague.run(*command.split()[1:])
    replayed = ("replay", "run.zip", "--step", "1", "--micro-batch", "1", "--training-data", "clients.data")
    assert "recorded as" in colleague.run(*replayed)


def test_a_model_in_onnx_is_the_owners(owner: Person, colleague: Person) -> None:
    pytest.importorskip("onnx")
    owner.run("export", "run-table", str(colleague.folder / "run.zip"))
    owner.run("export", "run-table", "run.zip")
    owner.run("export", "run.zip", "model.onnx")
    colleague.run("export", "run.zip", "model.onnx", "--trust-model")
    assert (colleague.folder / "model.onnx").read_bytes() == (owner.folder / "model.onnx").read_bytes()


def test_the_page_and_the_plots_of_a_run_that_was_sent(owner: Person, colleague: Person) -> None:
    pytest.importorskip("matplotlib")
    owner.run("export", "run-table", str(colleague.folder / "run.zip"))
    told = colleague.run("plot", "run.zip", "--trust-model")
    assert "wrote plots/run/learning.png" in told
    assert "left out answers.png: the run in " in told
    assert (colleague.folder / "plots" / "run" / "timeline.png").is_file()
    assert "left out answers.png: the run in 'run.zip' needs its training data" in told
    shutil.copy(owner.folder / "clients.csv", colleague.folder)
    told = colleague.run("plot", "run.zip", "--trust-model", "--training-data", "clients.csv")
    assert "wrote plots/run/answers.png" in told


def test_messages_name_the_file_that_was_given(owner: Person, colleague: Person) -> None:
    owner.run("export", "run-table", str(colleague.folder / "named.zip"))
    told = colleague.run("export", "named.zip", "model.onnx", code=2)
    assert "error: the run in 'named.zip' has Python code" in told
    # The file to read is where it was unpacked.
    assert Path(told.partition("read '")[2].partition("'")[0]).is_file()
    told = colleague.run("verify", "named.zip", code=2)
    assert "error: the run in 'named.zip' needs its training data" in told
    told = colleague.run("evaluate", "named.zip", "--checkpoint", "3", "--trust-model", code=2)
    assert "'named.zip' holds no whole checkpoint after 3 steps: it has only its last weights" in told
    assert colleague.run("compare", "named.zip", "named.zip").startswith("1  named.zip\n2  named.zip\n")
    assert "expected a .toml, or the job.toml of the run in it" in colleague.run("doctor", "named.zip", code=2)


def test_the_page_of_a_run_that_was_sent(owner: Person, colleague: Person) -> None:
    owner.run("export", "run-table", str(colleague.folder / "seen.zip"))
    call = [sys.executable, "-m", "lockstep", "watch", "seen.zip"]
    with subprocess.Popen(
        call, cwd=colleague.folder, env=colleague.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[2]
        try:
            with urlopen(address, timeout=60) as page:
                assert "<title>Lockstep" in page.read().decode()
            with urlopen(f"{address}metrics", timeout=60) as page:
                assert "lockstep_" in page.read().decode()
        finally:
            process.terminate()
