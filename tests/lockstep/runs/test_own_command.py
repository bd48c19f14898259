"""Commands that are printed to be pasted start the environment that printed them."""

import shlex
import subprocess
from pathlib import Path

from lockstep.runs.own_command import command_for, own_command


def script_in(folder: Path) -> Path:
    """Return the Python of an environment in a folder, with the program's script next to it."""
    script = folder / "bin" / "lockstep"
    script.parent.mkdir(parents=True)
    script.touch(0o755)
    return script.with_name("python")


def test_an_activated_environment_needs_the_name_alone(tmp_path: Path) -> None:
    python = script_in(tmp_path / ".venv")
    assert command_for(python, str(python.with_name("lockstep")), tmp_path) == "lockstep"


def test_in_a_checkout_the_path_is_short(tmp_path: Path) -> None:
    python, other = script_in(tmp_path / ".venv"), script_in(tmp_path / "other")
    assert command_for(python, None, tmp_path) == ".venv/bin/lockstep"
    # A shell would find another program of this name.
    assert command_for(python, str(other.with_name("lockstep")), tmp_path) == ".venv/bin/lockstep"


def test_from_elsewhere_the_path_is_whole_and_quoted(tmp_path: Path) -> None:
    python = script_in(tmp_path / "my env")
    assert shlex.split(command_for(python, None, tmp_path / "elsewhere")) == [
        str(tmp_path / "my env" / "bin" / "lockstep")
    ]


def test_without_a_script_python_runs_the_module(tmp_path: Path) -> None:
    assert command_for(tmp_path / "bin" / "python", None, tmp_path) == f"{tmp_path}/bin/python -m lockstep"


def test_the_command_of_this_process_runs() -> None:
    done = subprocess.run(own_command("--version"), shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lockstep ")
