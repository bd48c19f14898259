"""Commands to paste start the environment that printed them, or install an extra in it."""

import ast
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from lockstep.common.errors import UsageError
from lockstep.common.runtime.version import DISTRIBUTION
from lockstep.runs.own_command import command_for, demand, own_command, pip_command, with_own_commands
from tests.architecture.source import PACKAGES, ROOT


def script_in(folder: Path) -> Path:
    """Return the Python of an environment in a folder, with the program's script next to it."""
    script = folder / "bin" / "lockstep"
    script.parent.mkdir(parents=True)
    script.touch(0o755)
    return script.with_name("python")


def test_an_activated_environment_needs_the_name_alone(tmp_path: Path) -> None:
    python = script_in(tmp_path / ".venv")
    assert command_for(python, str(python.with_name("lockstep")), tmp_path) == "lockstep"


def test_commands_within_a_text_are_those_of_this_environment() -> None:
    text = "make it again with `lockstep pack x.csv` or `lockstep train`, as lockstep does"
    assert with_own_commands(text) == (
        f"make it again with `{own_command('pack', 'x.csv')}` or `{own_command('train')}`, as lockstep does"
    )


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


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

#: Where people read how something is installed.
TEXTS = ("*.py", "*.md", "*.ipynb", "*.toml", "*.yml", "*.yaml", "*.sbatch", "Dockerfile", "scripts/*")


def test_the_checkout_names_its_own_environment(tmp_path: Path) -> None:
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    python = checkout / ".venv" / "bin" / "python"
    assert pip_command("plot", checkout, checkout / ".venv", python, checkout) == ".venv/bin/pip install -e '.[plot]'"
    elsewhere = shlex.split(pip_command("plot", checkout, checkout / ".venv", python, tmp_path))
    assert elsewhere == [str(python), "-m", "pip", "install", "-e", f"{checkout}[plot]"]


def test_another_environment_is_named_by_its_path(tmp_path: Path) -> None:
    python = Path("/opt/my env/bin/python")
    words = shlex.split(pip_command("plot", tmp_path, python.parents[1], python, tmp_path))
    assert words == [str(python), "-m", "pip", "install", "-e", f"{tmp_path}[plot]"]


def test_a_wheel_is_asked_for_by_its_name() -> None:
    words = shlex.split(pip_command("plot", None, Path("/opt"), Path("/opt/bin/python"), Path("/")))
    assert words == ["/opt/bin/python", "-m", "pip", "install", f"{DISTRIBUTION}[plot]"]


def test_what_is_missing_is_named_with_the_command() -> None:
    with pytest.raises(
        UsageError, match=r"^this needs no-such-thing, which is not installed: .*pip install .*\[plot\]"
    ):
        demand("no-such-thing", "plot", "this")


def test_the_distribution_has_the_name_that_its_code_says() -> None:
    assert PROJECT["name"] == DISTRIBUTION


def test_every_demand_names_an_extra_that_brings_the_package() -> None:
    demands = [
        node.args
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "demand"
    ]
    assert demands
    for distribution, extra, _ in demands:
        assert isinstance(distribution, ast.Constant)
        assert isinstance(extra, ast.Constant)
        required = {re.split(r"[\[>=]", line)[0].lower() for line in EXTRAS[str(extra.value)]}
        assert str(distribution.value).lower() in required


def test_no_text_installs_the_package_of_somebody_else() -> None:
    own = Path(__file__).resolve()
    paths = {path for pattern in TEXTS for path in ROOT.rglob(pattern) if ".venv" not in path.parts and path != own}
    found = 0
    for path in sorted(path for path in paths if path.is_file()):
        for command in re.findall(r"pip install[^\n]*", path.read_text(encoding="utf-8")):
            found += 1
            where = f"{path.relative_to(ROOT)}: {command}"
            assert not re.search(r"(?<![\w/.-])lockstep(?![\w/.-])", command.partition(" #")[0].partition("  ")[0]), (
                where
            )
            for extra in re.findall(r"(?:\.|lockstep-sgd)\[([\w,]+)\]", command):
                assert set(extra.split(",")) <= EXTRAS.keys(), where
    assert found > 10
