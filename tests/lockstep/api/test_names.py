"""The names of the package are imported when they are used, and are those that it promises."""

import doctest
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import lockstep
from lockstep.common.runtime.environment import child_environment


def test_every_public_name_is_there() -> None:
    assert [name for name in lockstep.__all__ if getattr(lockstep, name, None) is None] == []
    assert set(lockstep.__all__) <= set(dir(lockstep))


def test_what_has_the_name_of_a_room_too_is_the_function() -> None:
    import lockstep.checking.doctor

    assert lockstep.doctor is lockstep.checking.doctor.doctor


@pytest.mark.parametrize("function", [lockstep.load, lockstep.check_gradients])
def test_the_examples_of_a_function_from_another_room_run(function: Callable[..., object]) -> None:
    (example,) = doctest.DocTestFinder().find(function, globs={})
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_a_wrong_gradient_is_caught_by_the_public_name() -> None:
    with pytest.raises(lockstep.GradientError, match="argument 0"):
        lockstep.check_gradients(lambda x: x * x.detach(), [np.array([3.0])], np.random.default_rng(0))


def test_another_name_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match=r"'lockstep' .* 'fitt'"):
        lockstep.fitt  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("process", ["worker", "shard"])
def test_a_process_of_a_run_does_not_import_what_only_a_person_needs(process: str) -> None:
    code = f"import sys, lockstep.cli.machines.{process}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()
    needless = ("rich", "asyncio", "email", "lockstep.api", "lockstep.launch.cluster", "lockstep.results")
    assert [name for name in modules if name.startswith(needless)] == []
