"""What Tab completes: asked by the protocol that a shell uses, and once by bash itself."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from lockstep.cli.main import SECTIONS, cli, run
from lockstep.cli.options.completion import runs_like
from lockstep.common.runtime.environment import child_environment


def offered(*words: str) -> list[str]:
    """Return what is offered for the last word."""
    *before, incomplete = words
    completer = BashComplete(cli, {}, "lockstep", VARIABLE)
    return [item.value for item in completer.get_completions(before, incomplete) if item.type == "plain"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs, and something in their folder that is not a run."""
    monkeypatch.chdir(tmp_path)
    for name in ("20261124-lenet", "20261125-mlp"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "job.toml").touch()
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path


#: The variable by which a shell asks: click derives it from the name of the program.
VARIABLE = "_LOCKSTEP_COMPLETE"

RUNS = ["runs/20261125-mlp", "runs/20261124-lenet"]

CASES: dict[str, tuple[Sequence[str], list[str]]] = {
    "commands": (["tr"], ["train"]),
    "commands of a group": (["keys", "re"], ["revoke"]),
    "flags": (["train", "--chaos"], ["--chaos", "--chaos-seed"]),
    "values": (["train", "--set", "checkpoint_every_s"], ["checkpoint_every_steps=", "checkpoint_every_seconds="]),
    "choices": (["train", "--optimizer", "adam"], ["adam", "adamw"]),
    "models": (["train", "--model", "l"], ["linear", "lenet"]),
    "lists of models": (["bench", "step", "--model", "mlp,l"], ["mlp,linear", "mlp,lenet"]),
    "a list does not repeat": (["bench", "step", "--model", "linear,l"], ["linear,lenet"]),
    "lists of choices": (["bench", "exchange", "--transport", "ipc,t"], ["ipc,tcp"]),
    "runs, newest first": (["evaluate", ""], RUNS),
    "some runs": (["verify", "runs/20261124"], RUNS[1:]),
    "several runs": (["plot", "runs/20261124-lenet", "runs/20261125"], RUNS[:1]),
    "a run to resume": (["train", "--resume", ""], RUNS),
}


@pytest.mark.parametrize(("words", "values"), CASES.values(), ids=CASES)
def test_what_is_offered(place: Path, words: Sequence[str], values: list[str]) -> None:
    assert offered(*words) == values


def test_all_commands_are_offered() -> None:
    assert sorted(offered("")) == sorted(name for names in SECTIONS.values() for name in names)


def test_without_a_folder_of_runs_the_shell_looks_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs_like("") == []
    items = BashComplete(cli, {}, "lockstep", VARIABLE).get_completions(["evaluate"], "elsewhere/")
    assert [(item.type, item.value) for item in items] == [("dir", "elsewhere/")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_process_answers_each_shell(place: Path, shell: str) -> None:
    asked = {VARIABLE: f"{shell}_complete", "COMP_WORDS": "lockstep evaluate runs/20261124", "COMP_CWORD": "2"}
    if shell == "fish":
        asked["COMP_CWORD"] = "runs/20261124"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lockstep"],
        env={**child_environment(), **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert RUNS[1] in done.stdout
    assert RUNS[0] not in done.stdout


def test_bash_completes_with_the_script_of_click(place: Path) -> None:
    (place / "completion.bash").write_text(BashComplete(cli, {}, "lockstep", VARIABLE).source(), encoding="utf-8")
    program = place / "bin" / "lockstep"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m lockstep "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    ask = (
        "source completion.bash; compopt() { :; }; COMP_WORDS=(lockstep train --model le); COMP_CWORD=3; "
        '_lockstep_completion lockstep; echo "${COMPREPLY[@]}"'
    )
    environment = {**child_environment(), "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "lenet\n"


def test_what_is_offered_is_what_there_is() -> None:
    from lockstep.cli.options import completion
    from lockstep.common.nn.models import MODELS as BUILT
    from lockstep.ps.records.run_folder import JOB
    from lockstep.runs import job_file, run_dir

    assert (*BUILT, "dense", "conv") == completion.MODELS == job_file.SHIPPED
    assert (completion.RUNS, completion.JOB) == (run_dir.RUNS, JOB)


@pytest.mark.parametrize("command", ["watch", "evaluate"])
def test_a_file_of_a_run_that_is_not_there_is_reported_and_not_waited_for(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, str(tmp_path / "sent.zip")]) == 2
    assert f"there is no file {str(tmp_path / 'sent.zip')!r}: expected one of" in capsys.readouterr().err
