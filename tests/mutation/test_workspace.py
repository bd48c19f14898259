"""What `scripts/mutate` changes and runs; mutmut itself is not needed here."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture.source import PACKAGES, ROOT
from tests.mutation.workspace import AT_START, Mutant, configuration, mirrored_tests, module_paths


def test_the_tests_of_a_module_are_those_of_its_folder() -> None:
    assert mirrored_tests(Path("lockstep/common/aggregation/tree.py")) == Path("tests/lockstep/common/aggregation")
    assert mirrored_tests(Path("lockstep/common/no/such/folder/module.py")) == Path("tests/lockstep/common")


def test_a_folder_stands_for_its_modules() -> None:
    found = module_paths(["lockstep/common/aggregation"])
    assert Path("lockstep/common/aggregation/tree.py") in found
    assert Path("lockstep/common/aggregation/quantization.py") in found
    assert module_paths(["lockstep/worker/state.py"]) == [Path("lockstep/worker/state.py")]


@pytest.mark.parametrize("given", ["tests/conftest.py", "lockstep/worker/no_such_module.py", "..", "README.md"])
def test_what_is_no_module_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="is no module: expected a path as"):
        module_paths([given])


def test_the_configuration_changes_the_modules_alone_and_copies_all_that_tests_read() -> None:
    told = tomllib.loads(configuration([Path("lockstep/worker/state.py")], ["tests/lockstep/worker"]))["tool"]["mutmut"]
    assert told["only_mutate"] == ["lockstep/worker/state.py"]
    assert told["pytest_add_cli_args_test_selection"] == ["tests/lockstep/worker"]
    assert set(told["source_paths"]) == set(PACKAGES)
    assert {"README.md", "docker-compose.yml", "scripts"} <= set(told["also_copy"])
    assert all((ROOT / name).exists() for name in told["also_copy"])


def test_a_change_is_one_of_a_function() -> None:
    assert Mutant("lockstep.worker.state.x_start__mutmut_12", "survived").function == "lockstep.worker.state.x_start"


@pytest.mark.parametrize(("given", "found"), [("stats", ""), ("lockstep.worker.state.x_start__mutmut_12", None)])
def test_a_process_that_a_test_starts_has_the_change_and_records_nothing(
    tmp_path: Path, given: str, found: str | None
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_START, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import os; print(os.environ['MUTANT_UNDER_TEST'])"],
        env={"PYTHONPATH": os.fspath(tmp_path), "MUTANT_UNDER_TEST": given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (given if found is None else found)
