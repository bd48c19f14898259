"""What the version before had, and this one has not: each use of it gets one line, exit code 2, and changes nothing.

`previous/` was recorded with that version: all its commands with their flags, the names of a job's values, the folders
of a finished run and of one that was killed, the first lines of a ledger with signatures, and two messages.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from lockstep.cli.main import cli, run
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import decode
from lockstep.common.protocol.messages import Refused, ServerMessage, WorkerMessage
from lockstep.common.protocol.run_options import RunOptions
from lockstep.runs.removed import OPTIONS, VALUES

PREVIOUS = Path(__file__).parent / "previous"
RECORDED = json.loads((PREVIOUS / "commands.json").read_text())
FRAMES = json.loads((PREVIOUS / "frames.json").read_text())


def command_of(name: str) -> click.Command | None:
    """Return a command by the words that follow `lockstep`, None if there is no such command."""
    found: click.Command | None = cli
    for word in name.split():
        found = found.get_command(click.Context(found), word) if isinstance(found, click.Group) else None
    return found


def flags_of(command: click.Command) -> set[str]:
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


def gone() -> Iterator[tuple[str, ...]]:
    """Yield each command line that the version before took, and this one does not: a command alone or with one flag."""
    for name, flags in RECORDED["commands"].items():
        if (command := command_of(name)) is None:
            yield tuple(name.split())
        else:
            yield from ((*name.split(), flag, "3") for flag in flags if flag not in flags_of(command))


def one_line(error: str) -> bool:
    """Tell whether a command has printed one line of an error, which is its last one."""
    *_, last = error.splitlines()
    return last.startswith("error: ") and error.count("error: ") == 1


@pytest.mark.parametrize("arguments", sorted(gone()), ids=" ".join)
def test_a_command_line_that_is_gone_gets_a_line_that_says_what_to_do(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*arguments]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "is gone: " in error or "expected --set " in error
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "name", sorted(set(RECORDED["values"]) - {*Job.__struct_fields__, *RunOptions.__struct_fields__})
)
def test_a_value_of_a_job_that_is_gone_is_known(name: str) -> None:
    assert name in VALUES or f"--{name}" in OPTIONS


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with copies of the runs, in which commands are run."""
    shutil.copytree(PREVIOUS, tmp_path / "runs")
    shutil.copytree(PREVIOUS / "finished", tmp_path / "runs" / "signed")
    shutil.copy(PREVIOUS / "signed-ledger.jsonl", tmp_path / "runs" / "signed" / "ledger.jsonl")
    np.save(tmp_path / "new.npy", np.ones((4, 3), np.float32))
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def content(folder: Path) -> dict[str, bytes]:
    """Return all files but logs, with which a process that is refused says why."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate finished",
        "evaluate signed",
        "compare finished signed",
        "ledger finished",
        "ledger stopped",
        "verify finished --against signed",
        "predict finished ../new.npy",
        "export finished ../new.npz",
        "train --resume finished",
    ],
)
def test_a_run_is_read_as_it_is(folders: Path, arguments: str) -> None:
    before = content(folders)
    assert run(arguments.split()) == 0
    assert content(folders) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("verify finished", "the numerics differ from the run's"),
        ("replay finished --step 1 --micro-batch 0", "the numerics differ from the run's"),
        ("verify stopped", "the numerics differ from the run's"),
        ("verify signed", "another version of lockstep wrote it: use that version"),
        ("ledger signed", "signer"),
        ("train --resume stopped", "resume the run with that version"),
        ("server --resume stopped --bind tcp://127.0.0.1:0", "resume the run with that version"),
    ],
)
def test_what_would_give_other_bits_is_refused(
    folders: Path, arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(folders)
    assert run(arguments.split()) == 2
    error = capsys.readouterr().err
    assert one_line(error)
    assert line in error
    assert content(folders) == before


@pytest.mark.parametrize(("name", "value"), [("spread", '"auto"'), ("standby", "true")])
@pytest.mark.parametrize("command", ["train --resume", "server --bind tcp://127.0.0.1:0 --resume", "verify", "ledger"])
def test_a_run_that_used_what_is_gone_is_refused_by_name(
    folders: Path, name: str, value: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = folders / "stopped" / "job.toml"
    lines = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in job.read_text().splitlines()]
    job.write_text("\n".join(lines) + "\n")
    before = content(folders)
    assert run([*command.split(), "stopped"]) == 2
    error = capsys.readouterr().err
    assert one_line(error)
    assert f"{name} = " in error
    assert "the value is gone: " in error
    assert content(folders) == before


def test_a_worker_of_the_version_before_is_refused_with_what_to_install() -> None:
    with pytest.raises(RemoteProtocolError, match="a header that is not a message of this protocol"):
        decode([bytes.fromhex(FRAMES["join"])], WorkerMessage)


def test_a_worker_understands_why_a_server_of_the_version_before_refuses_it() -> None:
    message, _ = decode([bytes.fromhex(FRAMES["refused"])], ServerMessage)
    assert isinstance(message, Refused)
    assert "install the same version of lockstep on both" in message.reason
