"""Bench everything that the performance page shows, part by part, into one file from which the page is made.

Each part of the file has the machine and the moment of its measurement."""

import platform
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec
from rich.console import Console

from lockstep.bench import bench as options
from lockstep.bench import peers
from lockstep.bench.bench import Bench
from lockstep.bench.coordinator import CoordinatorBench
from lockstep.bench.exchange import ExchangeBench, WireBench
from lockstep.bench.scaling import ScalingBench
from lockstep.bench.step import StepBench
from lockstep.bench.straggler import StragglerBench
from lockstep.bench.timed_run import BenchSession
from lockstep.cli.options.types import whole_number
from lockstep.common.errors import FileFormatError, LockstepError, UsageError
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


#: Of what a person would train here.
NETS = ("mlp", "lenet", "cnn")

#: Seconds of a model that sleeps, and the most processes that do.
SLEEP_S, MOST_SLEEPERS = 0.020, 16

#: The part of the machine's cores that other programs may use when the measurement begins.
BUSY = 0.1


def parts_of(python: Path | None, rounds: int) -> dict[str, Bench[Any]]:
    """Return the benches by the name of their part. Steps are as few as give a steady figure in a turn."""
    compared: dict[str, Any] = {"rounds": rounds, "peer_python": python}
    return {
        "step": StepBench(
            models=("linear", *NETS),
            batches=(32, 128),
            steps=max(30, 20 * rounds),
            rounds=rounds,
            peer_python=python,
            is_compiling=False,
        ),
        "scaling": ScalingBench(
            models=NETS,
            batches=(32, 128),
            workers=(cores(),),
            cuts=(1, 4),
            steps=max(8, 100 * rounds),
            **compared,
        ),
        "micro-batches": StepBench(
            models=("linear", *NETS),
            batches=(128,),
            cuts=(1, 2, 4, 8, 16, 32),
            steps=max(30, 12 * rounds),
            rounds=rounds,
        ),
        "exchange": ExchangeBench(
            parameters=(535_818, 25_000_000),
            transports=("auto", "tcp"),
            steps=max(8, 15 * rounds),
            **compared,
        ),
        "straggler": StragglerBench(steps=200 * rounds, rounds=rounds),
        **_of_sleepers(rounds),
        "coordinator": CoordinatorBench(rounds=rounds),
        "wire": WireBench(rounds=rounds),
    }


def _of_sleepers(rounds: int) -> dict[str, Bench[Any]]:
    """Return the benches of a model that sleeps: in one team, and on as many hosts as there are workers."""
    sleepers = tuple(1 << power for power in range(MOST_SLEEPERS.bit_length()))
    shared: dict[str, Any] = {"sleep_s": SLEEP_S, "workers": sleepers, "rounds": rounds}
    hosts: dict[str, Any] = {"batches": (1,), "teams": (MOST_SLEEPERS,), "transports": ("tcp",)}
    return {
        "teams": ScalingBench(values=(535_818,), steps=40 * rounds, **shared),
        "hosts": ScalingBench(values=(62_000, 535_818), steps=60 * rounds, **shared, **hosts),
    }


#: The names of the parts.
PARTS = tuple(parts_of(None, 1))


def command_text(bench: Bench[Any]) -> str:
    """Return the command that measures the same; the Python with torch is `PYTHON`, whose place is of no interest."""
    words = ["lockstep", "bench", bench.name]
    for each in bench.options():
        value = getattr(bench, each.name)
        if value != each.default:
            words += _words(each.metadata["flags"][0], each.metadata["option"].keywords["type"], value)
    return " ".join(words)


def _words(flag: str, kind: options.Kind, value: Any) -> Iterator[str]:
    yield flag.split("/")[0 if value else -1]
    match value:
        case bool():
            return
        case tuple():
            yield ",".join(map(str, value))
        case Path():
            yield "PYTHON"
        case float() if kind is options.duration:
            yield f"{value * 1e3:g}ms"
        case _:
            yield str(value)


def measure_parts(
    file: Path, parts: dict[str, Bench[Any]], machine: BenchMachine, rounds: int, session: BenchSession
) -> None:
    """Measure parts, and replace those in the file one after the other, so that an interrupt loses only one.

    Parts of another machine are not kept next to new ones.
    """
    kept = read_measurements(file).parts if file.exists() else {}
    kept = {name: part for name, part in kept.items() if part.machine == machine}
    for number, (name, bench) in enumerate(parts.items(), 1):
        session.say(f"part {number} of {len(parts)}: {name}")
        session.say(f"{command_text(bench)}")
        busy, begun, start = busy_cores(), moment(), session.clock.now()
        rows = [msgspec.to_builtins(row) for row in bench.report(session)]
        kept[name] = MeasuredPart(
            command=command_text(bench),
            machine=machine,
            begun=begun,
            took_s=round(session.clock.now() - start, 1),
            rounds=rounds,
            busy_cores=round(busy, 2),
            rows=rows,
        )
        Measurements(parts={each: kept[each] for each in PARTS if each in kept}).write(file)
        session.say(f"{name} took {kept[name].took_s:.0f} s; it is in {file}")
        session.say("")


def check_same_machine(file: Path, machine: BenchMachine, only: Sequence[str]) -> None:
    """Raise UsageError if some parts would be measured here, and the rest of the file was on another machine."""
    others = {name: part for name, part in read_measurements(file).parts.items() if name not in only}
    for name, part in others.items():
        there, here = (msgspec.structs.asdict(each) for each in (part.machine, machine))
        if differs := [each for each in here if there[each] != here[each]]:
            was, now = (", ".join(str(values[each]) for each in differs) for values in (there, here))
            raise UsageError(
                f"{str(file)!r} has {name} with {', '.join(differs)} {was}, and here it is {now}: expected the same "
                "machine; without --only, all parts are measured"
            )


def check_quiet(busy: float, of_cores: int) -> None:
    """Raise UsageError if other programs use the machine."""
    if busy > BUSY * of_cores:
        raise UsageError(
            f"other programs use {busy:.1f} of {of_cores} cores: expected a quiet machine, since the figures would be "
            "theirs too; end them, or add --even-if-busy"
        )


@click.command("all", short_help="All of the performance page, into one file.")
@click.option("--peer-python", "python", type=click.Path(path_type=Path), metavar="PYTHON", help=options.PEER_TEXT)
@click.option(
    "--to",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=Path("measured.json"),
    help="the file, of which measured parts are replaced  [measured.json]",
)
@click.option(
    "--only",
    type=options.Several(click.Choice(PARTS)),
    metavar="PARTS",
    help="measure only these parts again",
)
@click.option("--rounds", type=whole_number(1), default=5, metavar="N", help="turns of each measurement  [5]")
@click.option("--even-if-busy", is_flag=True, help="measure also if other programs use the machine")
def all_parts(python: Path | None, file: Path, only: tuple[str, ...] | None, rounds: int, even_if_busy: bool) -> None:
    """Measure everything that the performance page shows, and write it into one file.

    Each figure is that of the middle one of five turns, in which Lockstep and PyTorch alternate. The file has the
    lowest and the highest turn too, and the machine, the versions and the time of each part. It takes twenty
    minutes on two cores. Each part is written when it is complete; after an interrupt, --only measures the rest.

    The parts are step, scaling, micro-batches, exchange, straggler, teams, hosts, coordinator and wire.

    \b
      lockstep bench all --peer-python ~/torch/bin/python --to measured.json
      lockstep bench all --only step,wire --rounds 3
      lockstep bench predict --from measured.json --model mlp --link 1Gbit
    """
    chosen = {name: bench for name, bench in parts_of(python, rounds).items() if only is None or name in only}
    machine = this_machine()
    if only is not None and file.exists():
        check_same_machine(file, machine, only)
    if not even_if_busy:
        check_quiet(busy_cores(), cores())
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        session = BenchSession(Path(folder), Console(highlight=False))
        if python is None:
            session.say(peers.ADVICE)
        try:
            measure_parts(file, chosen, machine, rounds, session)
        except (KeyboardInterrupt, LockstepError):
            done = read_measurements(file).parts if file.exists() else {}
            missing = [name for name in chosen if name not in done]
            if missing:
                session.say(f"{file} lacks {', '.join(missing)}; to measure them: --only {','.join(missing)}")
            raise
