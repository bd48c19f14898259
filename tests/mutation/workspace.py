"""A copy of the checkout in which mutmut changes modules, and what it found there."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lockstep.common.runtime.environment import child_environment
from tests.architecture.source import PACKAGES, ROOT

#: Where the copy lies; `mutmut browse` can be called there afterwards.
FOLDER = ROOT / ".mutation"

#: How many times their usual time tests may take, and seconds on top: so a change ends that makes a loop endless.
TIMEOUT, MORE_S = 5.0, 5.0

#: What each process runs first that a test starts. While mutmut records which test calls what, changed functions look
#: for its settings, which are in the working folder of its own process alone: others record nothing.
AT_START = """\
import os

if os.environ.get("MUTANT_UNDER_TEST") == "stats":
    os.environ["MUTANT_UNDER_TEST"] = ""
"""

#: What mutmut says of a change that no test noticed.
SURVIVED = ("survived", "no tests")


@dataclass(frozen=True)
class Mutant:
    """One change of one function."""

    #: As mutmut calls it: the module, the function, a number.
    name: str
    #: What became of it: "killed", "survived", "timeout", "no tests" or another word of mutmut's.
    status: str

    @property
    def function(self) -> str:
        """The function as mutmut's figures call it."""
        return self.name.rpartition("__mutmut_")[0]


def mirrored_tests(module: Path) -> Path:
    """Return the folder of the tests that mirror a module's, or the nearest above it that exists."""
    folder = Path("tests") / module.parent
    return next(path for path in (folder, *folder.parents) if (ROOT / path).is_dir())


def module_paths(given: list[str]) -> list[Path]:
    """Return the modules that paths name, a folder standing for all in it. Raises ValueError for what is no module."""
    found: list[Path] = []
    for text in given:
        path = (ROOT / text).resolve()
        # Never read what is around the checkout: others may be changing it.
        inside = path.is_relative_to(ROOT) and path != ROOT
        paths = sorted(path.rglob("*.py")) if inside and path.is_dir() else [path]
        relative = [each.relative_to(ROOT) for each in paths if each.is_relative_to(ROOT) and each.is_file()]
        if not relative or any(each.parts[0] not in PACKAGES for each in relative):
            raise ValueError(
                f"{text!r} is no module: expected a path as lockstep/common/aggregation/tree.py, or a folder"
            )
        found += relative
    return found


def prepare(modules: list[Path], tests: list[str]) -> None:
    """Copy the checkout, with a configuration that changes these modules and runs these tests."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, FOLDER / name)
    with (FOLDER / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(configuration(modules, tests))
    # There from the start: Python never looks again into a folder of its path that was missing when it began.
    (FOLDER / "mutants").mkdir()
    # The name is Python's: see the module `site`.
    (FOLDER / "mutants" / "sitecustomize.py").write_text(AT_START, encoding="utf-8")


def configuration(modules: list[Path], tests: list[str]) -> str:
    """Return the section of pyproject.toml that mutmut reads."""
    visible = sorted(path.name for path in ROOT.iterdir() if not path.name.startswith("."))
    values = {
        "source_paths": list(PACKAGES),
        "only_mutate": [path.as_posix() for path in modules],
        "also_copy": [name for name in visible if name not in (*PACKAGES, "tests")],
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ["-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"],
        "timeout_multiplier": TIMEOUT,
        "timeout_constant": MORE_S,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["", "[tool.mutmut]", *lines, ""])


def mutmut(*arguments: str, is_shown: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run mutmut in the copy."""
    mutants = FOLDER / "mutants"
    environ = {**child_environment(), "PYTHONPATH": os.fspath(mutants)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "mutmut", *arguments],
        cwd=FOLDER,
        env=environ,
        check=False,
        text=True,
        stdout=None if is_shown else subprocess.PIPE,
    )


def results() -> list[Mutant]:
    """Return what became of each change."""
    lines = mutmut("results", "--all", "true").stdout.splitlines()
    return [Mutant(*line.strip().rsplit(": ", 1)) for line in lines if "__mutmut_" in line]


def tests_by_function() -> dict[str, list[str]]:
    """Return which tests call a function, by the name that mutmut gives it."""
    figures = json.loads((FOLDER / "mutants" / "mutmut-stats.json").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = figures["tests_by_mangled_function_name"]
    return found


def difference(mutant: Mutant) -> list[str]:
    """Return the lines that a change takes away and puts in their place."""
    shown = mutmut("show", mutant.name).stdout.splitlines()
    return [line for line in shown if line[:1] in "+-" and line[:3] not in ("+++", "---")]
