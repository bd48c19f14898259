"""The names of the package are imported when they are used, and are those that it promises."""

import subprocess
import sys

import pytest

import lockstep
from common.runtime.environment import child_environment


def test_every_public_name_is_there() -> None:
    assert [name for name in lockstep.__all__ if getattr(lockstep, name, None) is None] == []
    assert set(lockstep.__all__) <= set(dir(lockstep))


def test_what_has_the_name_of_a_room_too_is_the_function() -> None:
    import lockstep.checkup.consultation

    assert lockstep.doctor is lockstep.checkup.consultation.doctor


def test_another_name_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'lockstep' has no attribute 'fitt'"):
        lockstep.fitt  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("process", ["worker", "shard"])
def test_a_process_of_a_run_does_not_import_what_only_a_person_needs(process: str) -> None:
    code = f"import sys, lockstep.cli.machines.{process}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()
    needless = ("rich", "asyncio", "email", "lockstep.api", "lockstep.launch.cluster", "lockstep.reports")
    assert [name for name in modules if name.startswith(needless)] == []
