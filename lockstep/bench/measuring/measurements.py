"""A file of measurements: what several benches have measured, each with the machine and the moment."""

import platform
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.runtime.blas import CORETYPE
from lockstep.common.runtime.clock import wall_time
from lockstep.common.runtime.environment import busy_cores_s, cores, memory_bytes, own_environment, processor_name

R = TypeVar("R", bound=msgspec.Struct)

#: Seconds over which the use of the machine's cores is looked at.
LOOK_S = 1.0


class BenchMachine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and versions of figures; those of different machines are not comparable."""

    processor: str
    cores: int
    memory_gib: int
    system: str
    python: str
    numpy: str
    #: Name and version of the BLAS, and the kernel that it uses.
    blas: str
    kernel: str
    #: The value of `OPENBLAS_CORETYPE`, by which a kernel was chosen; empty if OpenBLAS chose by itself.
    coretype: str
    lockstep: str


class MeasuredPart(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one bench."""

    #: The command that measures them.
    command: str
    machine: BenchMachine
    begun: str
    took_s: float
    #: Turns; each figure is that of the middle one.
    rounds: int
    #: Cores that other programs used in the second before.
    busy_cores: float
    #: As the bench writes them.
    rows: list[dict[str, Any]]

    def rows_as(self, kind: type[R]) -> list[R]:
        """Return the rows with their types. Raises FileFormatError if they are of another bench or version."""
        try:
            return msgspec.convert(self.rows, list[kind])  # type: ignore[valid-type]  # known at run time only
        except msgspec.ValidationError as error:
            raise FileFormatError(f"the rows of `{self.command}` are not those of this version: {error}") from error


class Measurements(msgspec.Struct, frozen=True, kw_only=True):
    """The parts by name."""

    format: Literal[1] = 1
    parts: dict[str, MeasuredPart]

    def write(self, file: Path) -> None:
        """Replace the file. Raises UsageError if it cannot be written."""
        try:
            write_atomically(file, [msgspec.json.format(msgspec.json.encode(self), indent=1), b"\n"])
        except OSError as error:
            raise UsageError(f"cannot write {str(file)!r}: {error.strerror}") from error

    def rows_of(self, bench: str, kind: type[R]) -> list[R]:
        """Return the rows of all parts that one bench has measured."""
        parts = [part for part in self.parts.values() if part.command.split()[2] == bench]
        return [row for part in parts for row in part.rows_as(kind)]

    def machines(self) -> list[BenchMachine]:
        """Return the machines on which parts were measured, each once."""
        return list(dict.fromkeys(part.machine for part in self.parts.values()))


def read_measurements(file: Path) -> Measurements:
    """Return what a file holds. Raises UsageError if it cannot be read, FileFormatError if it holds something else."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Measurements)
    except OSError as error:
        raise UsageError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise FileFormatError(f"{str(file)!r} is not a file of `lockstep bench all --to FILE`: {error}") from error


def this_machine(environment: Mapping[str, str] | None = None) -> BenchMachine:
    """Return what this machine and this process have."""
    shown = fingerprint()
    return BenchMachine(
        processor=processor_name(),
        cores=cores(),
        memory_gib=round(memory_bytes() / 2**30),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        numpy=shown.numpy,
        blas=shown.blas,
        kernel=shown.kernel,
        coretype=(own_environment() if environment is None else environment).get(CORETYPE, ""),
        lockstep=shown.lockstep,
    )


def moment() -> str:
    """Return the local date and time, as `2026-11-24 23:17`."""
    now = wall_time()
    return f"{now[:4]}-{now[4:6]}-{now[6:8]} {now[9:11]}:{now[11:13]}"


def busy_cores(busy_s: Callable[[], float] = busy_cores_s) -> float:
    """Look for a second at the machine, whose cores were busy for `busy_s`; return how many of them are."""
    before = busy_s()
    threading.Event().wait(LOOK_S)
    return (busy_s() - before) / LOOK_S
