"""How a command gets into a process with the numerics of its job: it begins again, before it has done anything."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lockstep.common.runtime.environment import own_environment
from lockstep.common.runtime.numerics import Numerics, environment_with, own_numerics
from lockstep.common.runtime.portable import demand_portable_machine


class RestartNeededError(Exception):
    """This command has to begin again in a process with other numerics: what holds them is read once, by NumPy."""

    def __init__(self, numerics: Numerics) -> None:
        super().__init__(f"this process does not have {numerics} numerics")
        self.numerics: Numerics = numerics


def begin_with(numerics: Numerics) -> None:
    """Raise `RestartNeededError` if this process has other numerics; `NumericsError` if none here can have them.

    A process that was started with portable numerics looks whether it has them when it takes its fingerprint.
    """
    demand_numerics(numerics)
    if own_numerics() != numerics:
        raise RestartNeededError(numerics)


def demand_numerics(numerics: Numerics) -> None:
    """Raise `NumericsError` if no process of this machine can have these numerics."""
    if numerics == "portable":
        demand_portable_machine()


def restart(arguments: Sequence[str], numerics: Numerics) -> NoReturn:
    """Replace this process by one that has these numerics and runs the same command."""
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: as in `Child.start`.
    command = [sys.executable, "-P", "-m", "lockstep", *arguments]
    os.execve(sys.executable, command, environment_with(numerics, own_environment()))
