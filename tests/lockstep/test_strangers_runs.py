"""Somebody else's run folder is opened with every command: no code that it names runs, unless the person has agreed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from lockstep import load_run, resume
from lockstep.cli.main import PLACES, run
from lockstep.common.errors import UsageError
from lockstep.ps.records.run_folder import CHECKPOINTS, MODEL, RECEIPT, RESULT, read_receipt
from lockstep.results.evaluation.model_answers import ModelAnswers
from lockstep.runs.run_dir import (
    RECORDS,
    trusted_list,
)
from tests.lockstep.small_runs import small_run

NET = (
    "from lockstep import nn\nfrom helpers import WIDTH\n\n\n"
    "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))\n"
)

#: What each command is given to open the folder of a run.
OPENING = {
    "train": (["{job}", "--workers", "0", "--run-dir", "{out}/run"], ["--resume", "{unfinished}"]),
    "find-lr": (["{job}", "--tries", "30"],),
    "doctor": (["{job}"],),
    "evaluate": (["{run}"], ["{run}", "--checkpoint", "best"], ["{unfinished}", "--checkpoint", "10"]),
    "predict": (["{run}", "{picture}"],),
    "export": (["{run}", "{out}/weights.npz"],),
    "plot": (["{run}", "--to", "{out}"],),
    "verify": (["{run}"],),
    "replay": (["{run}", "--step", "0", "--micro-batch", "0"],),
    "server": (["{job}", "--bind", "ipc://{out}/s"], ["--resume", "{unfinished}", "--bind", "ipc://{out}/s"]),
    "node": (["{job}"], ["--run-dir", "{unfinished}"]),
}

#: Commands that would serve until somebody comes.
SERVING = ("server", "node")

#: Commands that read what a run recorded, as text and numbers, and have no use for a model.
RECORDS_ONLY = {
    "ledger": ["{run}"],
    "compare": ["{run}", "{run}"],
}

#: The page is asked below, and the others open no folder of a run.
OTHERS = {"watch", "pack", "worker", "shard", "keys", "status", "bench"}

CASES = [(name, arguments) for name, calls in OPENING.items() for arguments in calls]


class Folders:
    """A run that was trained here, and what a stranger makes of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.marker = root, root / "it-ran"
        (root / "mine").mkdir()
        self.write({"helpers.py": "WIDTH = 12\n", "net.py": NET})
        with chdir(root):
            self.run = small_run(root, "mine/net.py:build").folder

    def write(self, texts: dict[str, str], folder: str = "mine") -> None:
        for name, text in texts.items():
            (self.root / folder / name).write_text(text)

    @property
    def evil(self) -> str:
        return f"{NET}\nopen({str(self.marker)!r}, 'w').close()\n"

    def stranger(self, change: Callable[["Folders", Path], None]) -> dict[str, Path]:
        """Return the places in a copy of the run that was changed, which the arguments of commands name."""
        theirs = self.root / "theirs"
        shutil.copytree(self.run, theirs)
        (self.root / "mine").rename(self.root / "elsewhere")
        change(self, theirs)
        unfinished = self.root / "unfinished"
        shutil.copytree(theirs, unfinished)
        (unfinished / RESULT).unlink()
        (self.root / "out").mkdir()
        picture = self.root / "picture.png"
        picture.write_bytes(b"")
        return {
            "run": theirs,
            "job": theirs / "job.toml",
            "unfinished": unfinished,
            "out": self.root / "out",
            "picture": picture,
        }

    def sign(self, theirs: Path, texts: dict[str, str]) -> None:
        """Write a model's files and a receipt that lists them, as whoever makes a folder can."""
        shutil.rmtree(theirs / MODEL)
        (theirs / MODEL).mkdir()
        for name, text in texts.items():
            (theirs / MODEL / name).write_text(text)
        files = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        sums = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
        receipt = json.loads((theirs / RECEIPT).read_text())
        receipt["predicate"]["model_files"] = [{"place": name, "sha256": digest} for name, digest in files.items()]
        receipt["predicate"]["model_source_sha256"] = hashlib.sha256(sums.encode()).hexdigest()
        (theirs / RECEIPT).write_text(json.dumps(receipt))

    def name(self, theirs: Path, model: str) -> None:
        """Let the run's job name another model."""
        job = (theirs / "job.toml").read_text().splitlines()
        lines = [f"model = {json.dumps(model)}" if line.startswith("model = ") else line for line in job]
        (theirs / "job.toml").write_text("\n".join(lines) + "\n")


def whole(folders: Folders, theirs: Path) -> None:
    folders.sign(theirs, {"net.py": folders.evil, "helpers.py": "WIDTH = 12\n"})


def whole_in_a_helper(folders: Folders, theirs: Path) -> None:
    text = f"WIDTH = 12\nopen({str(folders.marker)!r}, 'w').close()\n"
    folders.sign(theirs, {"net.py": NET, "helpers.py": text})


def unsigned(folders: Folders, theirs: Path) -> None:
    (theirs / MODEL / "net.py").write_text(folders.evil)


def named(folders: Folders, theirs: Path) -> None:
    (theirs / "evil.py").write_text(folders.evil)
    folders.name(theirs, f"{theirs}/evil.py:build")  # and the copy is still the user's own


def of_an_older_version(folders: Folders, theirs: Path) -> None:
    text = folders.evil.replace("from helpers import WIDTH", "WIDTH = 12")
    folders.sign(theirs, {"evil.py": text})
    receipt = json.loads((theirs / RECEIPT).read_text())["predicate"]
    del receipt["model_files"]
    receipt["model_source_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (theirs / RECEIPT).write_text(json.dumps(receipt))
    (theirs / MODEL / "evil.py").rename(theirs / "evil.py")
    folders.name(theirs, f"{theirs}/evil.py:build")


def without_a_receipt(folders: Folders, theirs: Path) -> None:
    unsigned(folders, theirs)
    (theirs / RECEIPT).unlink()
    folders.name(theirs, f"{theirs}/{MODEL}/net.py:build")


#: How a stranger may have made the folder. With the first, all is as Lockstep would have written it.
MAKERS = (whole, whole_in_a_helper, unsigned, of_an_older_version, without_a_receipt)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("strangers"))


@pytest.fixture
def folders(trained: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Return copies of the run's folders, by a user who has trained it."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    found = Folders.__new__(Folders)
    found.root, found.marker, found.run = tmp_path, tmp_path / "it-ran", tmp_path / trained.run.name
    return found


def called(name: str, arguments: list[str], places: dict[str, Path]) -> int:
    return run([name, *(argument.format(**places) for argument in arguments)])


def test_each_command_is_here() -> None:
    assert {*OPENING, *RECORDS_ONLY, *OTHERS} == set(PLACES)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_no_command_runs_the_code_of_a_stranger(
    folders: Folders, capfd: pytest.CaptureFixture[str], maker: Callable[[Folders, Path], None]
) -> None:
    places = folders.stranger(maker)
    for name, arguments in CASES:
        code, told = called(name, arguments, places), capfd.readouterr()
        assert not folders.marker.exists(), f"{name} {arguments} ran it"
        if name == "plot":
            assert told.out.count("left out ") == 3
        else:
            assert code == 2, f"{name} {arguments}: {told}"
            assert len(told.err.strip().splitlines()) == 1, told.err
        assert any(word in told.out + told.err for word in ("model", "receipt"))
    for name, arguments in RECORDS_ONLY.items():
        called(name, arguments, places)
    with pytest.raises(UsageError):
        ModelAnswers(places["run"]).evaluation()
    with pytest.raises(UsageError):
        _ = load_run(places["run"]).model
    with pytest.raises(UsageError):
        resume(places["unfinished"], verbose=False)
    assert not folders.marker.exists()
    assert not list(places["out"].glob("run*")), "no run has begun"


@pytest.mark.parametrize(
    ("name", "arguments"), [case for case in CASES if case[0] not in SERVING], ids=lambda case: str(case)[:30]
)
def test_who_agrees_runs_it(folders: Folders, name: str, arguments: list[str]) -> None:
    places = folders.stranger(whole)
    called(name, [*arguments, "--trust-model"], places)
    assert folders.marker.exists(), "otherwise the test above shows nothing"


def test_who_has_agreed_once_is_not_asked_again(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    places = folders.stranger(whole)
    assert called("evaluate", ["{run}"], places) == 2
    told = capfd.readouterr().err
    asked = told.partition("Python code that you have not trained on this machine: read '")[2].partition("` once")[0]
    assert [name for name in ("helpers.py'", "net.py'") if name in asked] == ["helpers.py'", "net.py'"]
    command = told.rpartition("`lockstep ")[2].partition("`")[0].split()
    assert command == ["evaluate", str(places["run"]), "--trust-model"]
    assert run(command) == 0
    assert called("evaluate", ["{run}"], places) == 0
    assert load_run(places["run"]).model is not None
    capfd.readouterr()
    assert called("evaluate", ["{run}", "--json"], places) == 0
    assert ModelAnswers(places["run"]).evaluation()["loss"] == json.loads(capfd.readouterr().out)["test_loss"]
    mode = os.stat(trusted_list()).st_mode & 0o777
    assert mode == 0o600


def test_another_function_of_files_that_are_trusted_is_not(folders: Folders) -> None:
    def other(folders: Folders, theirs: Path) -> None:
        folders.name(theirs, "net.py:remove_all")

    places = folders.stranger(other)
    assert called("evaluate", ["{run}"], places) == 2


def test_in_python_one_agrees_by_an_argument(folders: Folders) -> None:
    places = folders.stranger(whole_in_a_helper)
    assert load_run(places["run"], trust_model=True).model is not None
    assert folders.marker.exists()


@pytest.mark.parametrize("maker", [unsigned, named, without_a_receipt], ids=lambda maker: maker.__name__)
def test_nobody_can_agree_to_what_is_not_the_receipts(folders: Folders, maker: Callable[[Folders, Path], None]) -> None:
    places = folders.stranger(maker)
    for name, arguments in CASES:
        if name not in SERVING:
            called(name, [*arguments, "--trust-model"], places)
    assert not folders.marker.exists()


def test_a_run_of_this_user_needs_no_agreement_wherever_it_is(folders: Folders) -> None:
    def nothing(folders: Folders, theirs: Path) -> None:
        pass

    places = folders.stranger(nothing)
    assert not (folders.root / "mine").exists(), "its model is in the run's folder"
    for name in ("evaluate", "export", "verify", "replay"):
        assert called(name, OPENING[name][0], places) == 0


def test_a_model_of_the_library_needs_no_agreement(folders: Folders, tmp_path: Path) -> None:
    assert run(["evaluate", str(small_run(tmp_path, "linear", "shipped").folder)]) == 0


def test_a_job_file_next_to_a_records_name_is_a_runs(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    folders.write({"evil.py": folders.evil})
    job = folders.root / "mine" / "job.toml"
    job.write_text('model = "mlp"\nloss = "mine/evil.py:build"\n')
    for mark in RECORDS:
        (job.parent / mark).symlink_to("nothing")
        for arguments in (["find-lr", str(job)], ["find-lr", str(job), "--model", "mlp"]):
            assert run(arguments) == 2
            assert f"is the job file of a run, because {mark!r} is next to it" in capfd.readouterr().err
        assert not folders.marker.exists()
        (job.parent / mark).unlink()
    run(["find-lr", str(job)])
    assert folders.marker.exists()


def test_a_changed_file_is_not_believed(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(folders.run), "--json"]) == 0
    before = capfd.readouterr().out
    folders.write({"net.py": NET.replace("ReLU", "Tanh")})
    assert run(["evaluate", str(folders.run), "--json"]) == 0
    assert capfd.readouterr().out == before
    folders.write({"net.py": NET, "helpers.py": "raise ValueError"})
    assert run(["evaluate", str(folders.run), "--json"]) == 0
    assert capfd.readouterr().out == before
    assert run(["verify", str(folders.run)]) == 0


def test_the_run_of_an_older_version_is_still_read(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    folders.write({"old.py": NET.replace("from helpers import WIDTH", "WIDTH = 12")})
    old = small_run(folders.root, f"{folders.root}/mine/old.py:build", "old").folder
    receipt = json.loads((old / RECEIPT).read_text())["predicate"]
    del receipt["model_files"]
    (old / RECEIPT).write_text(json.dumps(receipt))
    shutil.rmtree(old / MODEL)
    assert run(["evaluate", str(old)]) == 0
    assert run(["verify", str(old)]) == 0
    folders.write({"old.py": NET.replace("from helpers import WIDTH", "WIDTH = 12").replace("ReLU", "Tanh")})
    capfd.readouterr()
    assert run(["evaluate", str(old)]) == 2
    assert "is not that of the run in" in capfd.readouterr().err


def test_the_receipt_and_the_folder_have_all_files(folders: Folders) -> None:
    receipt = read_receipt(folders.run)
    assert [file.place for file in receipt.model_files] == ["net.py", "helpers.py"]
    for file in receipt.model_files:
        assert hashlib.sha256((folders.run / MODEL / file.place).read_bytes()).hexdigest() == file.sha256


def test_a_changed_helper_is_named_when_receipts_are_compared(
    folders: Folders, capfd: pytest.CaptureFixture[str]
) -> None:
    folders.write({"helpers.py": "WIDTH = 12\nSLOPE = 1\n"})
    other = small_run(folders.root, "mine/net.py:build", "other", lr=0.06).folder
    assert run(["verify", str(folders.run), "--against", str(other)]) == 1
    assert "what differs: 'helpers.py' SHA-256: " in capfd.readouterr().err


def test_a_resumed_run_has_the_model_that_it_began_with(folders: Folders) -> None:
    before = load_run(folders.run).weights_sha256
    (folders.run / RESULT).unlink()
    for checkpoint in sorted((folders.run / CHECKPOINTS).iterdir())[1:]:
        checkpoint.unlink()
    folders.write({"net.py": NET.replace("ReLU", "Tanh")})
    assert resume(folders.run, verbose=False).weights_sha256 == before
    assert (folders.run / MODEL / "net.py").read_text() == NET
