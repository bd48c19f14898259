"""The scripts make, keep and repair their environment. A stub stands for Python, so that nothing is installed."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

COMMANDS = (
    *("train", "server", "worker", "shard"),
    *("test", "check", "notebooks", "mutate", "golden", "docs", "versions", "figures"),
)

#: What is compiled when the project is installed.
KERNELS = "lockstep/common/numerics/kernels"

#: What is asked of Python itself goes to the real one; `-m venv` and `-m pip` are written down and imitated.
STUB = """#!/bin/sh
case "$1 $2" in
"-m venv")
    echo venv >>"$LOG"
    mkdir -p "$4/bin" && cp "$STUB" "$4/bin/python" && touch "$4/pyvenv.cfg" ;;
"-m pip")
    echo "pip $*" >>"$LOG"
    if [ -n "$PIP_TRAP" ]; then trap 'exit 1' INT; kill -INT 0; fi
    if [ -n "$PIP_EXIT" ]; then echo "$PIP_PRINTS" >&2; exit "$PIP_EXIT"; fi
    printf '#!/bin/sh\\necho "$PWD $*"\\nexit 7\\n' >"${0%python}lockstep" && chmod +x "${0%python}lockstep" ;;
"-m lockstep.common.numerics.kernels.compilation")
    if [ -n "$NO_COMPILER" ]; then exit 1; fi ;;
"-m lockstep.common.numerics.kernels.library")
    if [ -n "$NO_KERNELS" ]; then echo "error: $NO_KERNELS" >&2; exit 1; fi ;;
"-m pytest" | "-m ruff" | "-m mypy" | "-m sphinx" | "-m tests."* | "-m docs."*)
    echo "$PWD: $*"
    if [ "$2" = "$FAILING" ]; then exit 3; fi ;;
*)
    exec "$REAL" "$@" ;;
esac
"""


@dataclass
class Checkout:
    """A copy of the scripts in a folder of its own, with the stub for a Python."""

    root: Path
    log: Path
    environment: dict[str, str]

    def start(
        self, command: str, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(self.root / "scripts" / command), *arguments],
            cwd=cwd or self.root,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, command: str, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        process = self.start(command, *arguments, cwd=cwd, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def steps(self) -> list[str]:
        """Return what the stub was asked for since the last call."""
        text = self.log.read_text(encoding="utf-8")
        self.log.write_text("", encoding="utf-8")
        return [line.split()[0] for line in text.splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "a path with spaces"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / KERNELS / "source").mkdir(parents=True)
    shutil.copytree(ROOT / "requirements", root / "requirements")
    for name in ("pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, root)
    for name in ("source/product.c", "source/vector.h", "library.py", "compilation.py"):
        shutil.copy(ROOT / KERNELS / name, root / KERNELS / name)
    stub, log = tmp_path / "stub", tmp_path / "log"
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    log.touch()
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    named = {"PYTHON": str(stub), "STUB": str(stub), "LOG": str(log), "REAL": sys.executable}
    silent = {"NO_KERNELS": "", "PIP_EXIT": "", "PIP_PRINTS": "", "PIP_TRAP": "", "FAILING": ""}
    return Checkout(root, log, {**inherited, **named, **silent})


@pytest.mark.parametrize("script", [*(f"scripts/{command}" for command in COMMANDS), "scripts/environment", ".ci/run"])
def test_a_script_is_bash_that_parses(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("script", [*(f"scripts/{command}" for command in COMMANDS), ".ci/run"])
def test_a_script_can_be_executed_and_stops_at_errors(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["train", "server", "worker", "shard"])
def test_arguments_and_exit_code_pass_through_from_any_folder(checkout: Checkout, command: str, tmp_path: Path) -> None:
    done = checkout.run(command, "--help", "b c", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, f"{tmp_path} {command} --help b c\n")


def test_the_environment_is_made_once_and_says_so_on_one_line(checkout: Checkout) -> None:
    assert checkout.run("train").stderr == "installing Lockstep into .venv (once, up to a minute)\n"
    assert checkout.steps() == ["venv", "pip", "pip"]
    assert checkout.run("worker").stderr == ""
    assert checkout.steps() == []


def test_what_reads_tables_is_installed_for_a_table(checkout: Checkout) -> None:
    checkout.run("train", "--data", "csv")
    done = checkout.run("train", "--data", "my houses.csv", "--target", "price")
    assert done.stderr == "updating .venv (once, a few seconds)\n"
    assert done.stdout == f"{checkout.root} train --data my houses.csv --target price\n"
    found = re.findall(r"requirements/(\w+)\.txt", checkout.log.read_text(encoding="utf-8"))
    assert found == ["train", "data"]


def test_a_compiler_is_installed_if_none_works_here(checkout: Checkout) -> None:
    checkout.run("train", NO_COMPILER="yes")
    found = re.findall(r"requirements/(\w+)\.txt", checkout.log.read_text(encoding="utf-8"))
    assert found == ["train", "compiler"]


def test_an_installation_without_kernels_says_so_on_one_line(checkout: Checkout) -> None:
    said = checkout.run("train", NO_KERNELS="no C compiler works here: install one").stderr.splitlines()
    assert said[1:] == ["warning: jobs have native numerics here: no C compiler works here: install one"]
    assert checkout.run("train").stderr == ""


@pytest.mark.parametrize(
    "name",
    [
        "pyproject.toml",
        "requirements/watch.txt",
        "hatch_build.py",
        f"{KERNELS}/source/product.c",
        f"{KERNELS}/library.py",
    ],
)
def test_a_change_of_the_project_installs_again(checkout: Checkout, name: str) -> None:
    checkout.run("train")
    checkout.steps()
    with (checkout.root / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert checkout.run("train").stderr == "updating .venv (once, a few seconds)\n"
    assert checkout.steps() == ["pip", "pip"]
    checkout.run("train")
    assert checkout.steps() == []


def test_what_is_installed_is_what_the_lock_has_and_nothing_else(checkout: Checkout) -> None:
    checkout.run("train")
    _, locked, project = checkout.log.read_text(encoding="utf-8").splitlines()
    assert locked.endswith(" --require-hashes --requirement requirements/train.txt")
    assert project.endswith(" --no-deps --no-build-isolation --editable .")


def test_the_tests_add_their_tools_once(checkout: Checkout) -> None:
    checkout.run("train")
    checkout.run("test")
    assert checkout.log.read_text(encoding="utf-8").splitlines()[-2].endswith(" requirements/dev.txt")
    checkout.steps()
    checkout.run("check")
    checkout.run("train")
    assert checkout.steps() == []


def test_another_python_makes_it_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("train")
    checkout.steps()
    other = tmp_path / "other"
    # It says another version than the real one, whatever that is.
    other.write_text('#!/bin/sh\ncase "$2" in *base_prefix*) echo other ;; *) exec "$STUB" "$@" ;; esac\n')
    other.chmod(0o755)
    checkout.run("train", PYTHON=str(other), STUB=checkout.environment["PYTHON"])
    assert checkout.steps() == ["venv", "pip", "pip"]


@pytest.mark.parametrize("damage", ["bin/python", "installed-train"])
def test_a_damaged_environment_is_repaired(checkout: Checkout, damage: str) -> None:
    checkout.run("train")
    (checkout.root / ".venv" / damage).unlink()
    assert checkout.run("train").returncode == 7


def test_an_interrupt_while_it_is_made_is_repaired_by_the_next_start(checkout: Checkout) -> None:
    interrupted = checkout.run("train", PIP_TRAP="yes")
    assert (interrupted.returncode, interrupted.stderr) == (
        130,
        "installing Lockstep into .venv (once, up to a minute)\n",
    )
    assert checkout.steps() == ["venv", "pip"]
    assert checkout.run("train").returncode == 7
    assert checkout.steps() == ["pip", "pip"]


@pytest.mark.parametrize(
    ("prints", "expected"),
    [
        (
            (
                "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError('<pip._vendor'\n"
                "ERROR: Could not find a version that satisfies the requirement hatchling>=1.27\n"
                "ERROR: No matching distribution found for hatchling>=1.27"
            ),
            "pip cannot reach the package index: connect to the internet, or set HTTPS_PROXY",
        ),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certi",
            "pip does not trust the certificate of the package index: set PIP_CERT",
        ),
        (
            "  Preparing metadata\nERROR: Package 'x' requires a different Python\n[notice] A new release of pip",
            "cannot install into .venv: Package 'x' requires a different Python: fix that",
        ),
    ],
    ids=["network", "certificate", "anything else"],
)
def test_a_failed_installation_is_one_line_with_what_to_do_and_is_tried_again(
    checkout: Checkout, prints: str, expected: str
) -> None:
    failed = checkout.run("train", PIP_EXIT="1", PIP_PRINTS=prints)
    assert failed.returncode == 1
    first, line = failed.stderr.splitlines()
    assert first == "installing Lockstep into .venv (once, up to a minute)"
    assert line.startswith(f"error: {expected}")
    assert checkout.run("train").returncode == 7


def test_many_starts_at_once_make_it_once(checkout: Checkout) -> None:
    processes = [checkout.start("train") for _ in range(5)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [7] * 5
    assert checkout.steps() == ["venv", "pip", "pip"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/bin/sh\necho Python 3.10.1\nexit 1\n", "/python is Python 3.10.1: install it"),
        (
            '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\nexec "$REAL" "$@"\n',
            "its module venv (Debian, Ubuntu: ",
        ),
    ],
)
def test_an_unsuitable_python_is_refused(checkout: Checkout, tmp_path: Path, text: str, expected: str) -> None:
    python = tmp_path / "python"
    python.write_text(text, encoding="utf-8")
    python.chmod(0o755)
    refused = checkout.run("train", PYTHON=str(python))
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert expected in line
    assert not (checkout.root / ".venv").exists()


def test_the_newest_python_is_found_where_python3_is_too_old(checkout: Checkout, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"python3": "#!/bin/sh\nexit 1\n", "python3.19": STUB}.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    path = f"{folder}:{checkout.environment['PATH']}"
    assert checkout.run("train", PYTHON="", PATH=path).returncode == 7
    assert checkout.steps() == ["venv", "pip", "pip"]


def test_a_folder_that_is_no_environment_is_left_alone(checkout: Checkout) -> None:
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "mine").touch()
    refused = checkout.run("train")
    assert refused.returncode == 2
    assert "is not a Python environment" in refused.stderr
    assert (checkout.root / ".venv" / "mine").exists()


def test_pytest_gets_every_core_and_the_arguments(checkout: Checkout, tmp_path: Path) -> None:
    prefix = f"{checkout.root}: -m pytest -n auto --dist worksteal -m"
    assert checkout.run("test", cwd=tmp_path).stdout == f"{prefix} not slow\n"
    assert checkout.run("test", "tests/a b.py", "-x").stdout == f"{prefix} not slow tests/a b.py -x\n"
    assert checkout.run("test", "--all", "-x").stdout == f"{prefix} slow or not slow -x\n"


def test_all_checks_run_and_one_that_fails_counts(checkout: Checkout, tmp_path: Path) -> None:
    clean, failed = checkout.run("check", cwd=tmp_path), checkout.run("check", FAILING="ruff")
    tools = ("ruff check", "ruff format --check", "mypy")
    assert clean.stdout.splitlines() == [f"{checkout.root}: -m {tool}" for tool in tools]
    assert clean.stdout == failed.stdout
    assert (clean.returncode, failed.returncode) == (0, 1)


def test_notebooks_get_the_tools_and_the_arguments(checkout: Checkout, tmp_path: Path) -> None:
    done = checkout.run("notebooks", "notebooks/a b.ipynb", cwd=tmp_path)
    assert done.stdout == f"{checkout.root}: -m tests.notebooks notebooks/a b.ipynb\n"
    assert "requirements/dev.txt" in checkout.log.read_text(encoding="utf-8")


def test_the_site_is_built_with_warnings_as_errors_and_then_checked(checkout: Checkout, tmp_path: Path) -> None:
    done = checkout.run("docs", cwd=tmp_path)
    built, checked = done.stdout.splitlines()
    assert " -m sphinx " in built
    assert "--fail-on-warning" in built
    assert checked == f"{checkout.root}: -m docs.generators.check docs/_build/html"
    assert "requirements/docs.txt" in checkout.log.read_text(encoding="utf-8")
    assert checkout.run("docs", FAILING="sphinx").returncode == 3


@pytest.mark.slow
def test_a_fresh_clone_trains_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """Needs git and a package index. The commands that the README shows next need no other installation."""
    clone, run = tmp_path / "a fresh clone", tmp_path / "run"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    unwanted = ("PYTHON", "PYTHONPATH", "VIRTUAL_ENV", "LOCKSTEP_PICTURE")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    command = [str(clone / "scripts" / "train"), "--model", "linear", "--steps", "5", "--run-dir", str(run)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["steps"] == 5
    lockstep = str(clone / ".venv" / "bin" / "lockstep")
    subprocess.run([lockstep, "plot", str(run)], cwd=tmp_path, env=environment, check=True)
    subprocess.run([lockstep, "predict", str(run), str(run / "learning.png")], env=environment, check=True)


def test_advisories_that_cannot_be_asked_for_are_one_line(checkout: Checkout) -> None:
    done = checkout.run("check", "--advisories")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(
        "error: no advisory could be asked for: pip-audit needs the internet"
    )
