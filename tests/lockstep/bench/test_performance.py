"""All benches of the performance page write into one file, part by part."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from rich.console import Console

from lockstep.bench.bench import Bench
from lockstep.bench.coordinator import CoordinatorBench, CoordinatorRow
from lockstep.bench.exchange import QuantizationRow, WireBench
from lockstep.bench.performance import (
    LOOK_S,
    PARTS,
    BenchMachine,
    MeasuredPart,
    Measurements,
    busy_cores,
    check_quiet,
    check_same_machine,
    command_text,
    measure_parts,
    parts_of,
    read_measurements,
    this_machine,
)
from lockstep.bench.timed_run import BenchSession
from lockstep.cli.bench import command_of
from lockstep.cli.main import run
from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.runtime.environment import busy_cores_s, memory_bytes, processor_name

HERE = this_machine({})
WIRE, COORDINATOR = WireBench(values=64, repeats=1, rounds=2), CoordinatorBench(workers=(1, 2), steps=2, rounds=2)


class InterruptedRow(msgspec.Struct):
    """Never yielded."""


@dataclass(kw_only=True)
class InterruptedBench(Bench[InterruptedRow]):
    """Somebody presses Ctrl-C."""

    name: ClassVar = "wire"
    summary: ClassVar = ""
    row: ClassVar = InterruptedRow

    def measure(self, session: BenchSession) -> Iterator[InterruptedRow]:
        raise KeyboardInterrupt
        yield


def measure(file: Path, parts: dict[str, Bench[Any]], machine: BenchMachine = HERE) -> None:
    measure_parts(file, parts, machine, 2, BenchSession(file.parent, Console(quiet=True)))


def test_parts_are_written_one_after_the_other_and_an_interrupt_keeps_them(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    with pytest.raises(KeyboardInterrupt):
        measure(file, {"coordinator": COORDINATOR, "wire": InterruptedBench()})
    kept = read_measurements(file)
    assert list(kept.parts) == ["coordinator"]
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]
    measure(file, {"wire": WIRE})
    both = read_measurements(file)
    assert (list(both.parts), both.parts["coordinator"]) == (["coordinator", "wire"], kept.parts["coordinator"])
    part = both.parts["wire"]
    assert (part.command, part.rounds, part.machine) == (
        "lockstep bench wire --values 64 --repeats 1 --rounds 2",
        2,
        HERE,
    )
    for row in part.rows_as(QuantizationRow):
        assert row.add_spread[0] <= row.add_ns <= row.add_spread[1]
    for each in both.rows_of("coordinator", CoordinatorRow):
        assert each.us_spread[0] <= each.us_per_event <= each.us_spread[1]


def test_figures_of_another_machine_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    measure(file, {"coordinator": COORDINATOR})
    other = msgspec.structs.replace(HERE, kernel="Prescott")
    with pytest.raises(UsageError, match=r"has coordinator with kernel .*, and here it is Prescott: expected the same"):
        check_same_machine(file, other, ["wire"])
    check_same_machine(file, other, ["coordinator"])
    check_same_machine(file, HERE, ["wire"])
    measure(file, {"wire": WIRE}, other)
    assert list(read_measurements(file).parts) == ["wire"]


@pytest.mark.parametrize("name", PARTS)
def test_the_command_of_a_part_measures_that_part(name: str) -> None:
    part = parts_of(Path("PYTHON"), 5)[name]
    words = command_text(part).split()
    # One of its own: a command keeps the option for help of its first context.
    values = command_of(type(part)).make_context(words[2], words[3:]).params
    assert words[2] == part.name
    assert type(part)(**{each.name: values[each.name] for each in fields(part) if each.metadata}) == part


def test_one_part_is_measured_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "measured.json"
    assert run(["bench", "all", "--only", "wire", "--rounds", "1", "--even-if-busy", "--to", str(file)]) == 0
    part = read_measurements(file).parts["wire"]
    assert (part.rounds, [row["wire"] for row in part.rows]) == (1, ["float32", "float16", "bfloat16", "int8"])
    assert part.took_s > 0
    shown = capsys.readouterr().out.splitlines()
    assert "part 1 of 1: wire" in shown
    assert "--peer-python PYTHON" in shown[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "wire,speed"], "invalid value for '--only': "),
        (["--only", "wire", "--to", "nowhere/measured.json", "--even-if-busy"], "cannot write 'nowhere/measured.json'"),
        (["--only", "step", "--peer-python", "nowhere", "--even-if-busy"], "cannot run --peer-python 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "all", "--to", str(tmp_path / "measured.json"), "--rounds", "1", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_busy_machine_is_refused() -> None:
    check_quiet(0.1, 2)
    with pytest.raises(UsageError, match=r"other programs use 0.3 of 2 cores: expected a quiet machine"):
        check_quiet(0.3, 2)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("[]")
    with pytest.raises(FileFormatError, match="is not a file of `lockstep bench all --to FILE`"):
        read_measurements(file)
    part = MeasuredPart(
        command="lockstep bench wire", machine=HERE, begun="", took_s=1, rounds=1, busy_cores=0, rows=[{"wire": 1}]
    )
    with pytest.raises(FileFormatError, match="the rows of `lockstep bench wire` are not those of this version"):
        Measurements(parts={"wire": part}).rows_of("wire", QuantizationRow)


def test_what_the_machine_is(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some: Processor\n")
    assert processor_name(str(cpuinfo)) == "Some: Processor"
    assert processor_name(str(tmp_path / "none")) == "unknown"
    assert memory_bytes() > 2**28


def test_how_many_cores_are_busy(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    # user, nice, system, idle, waiting, two kinds of interrupts, stolen, and what the guests had of it.
    stat.write_text("cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert busy_cores_s(str(stat)) * os.sysconf("SC_CLK_TCK") == pytest.approx(100 + 20 + 30 + 6 + 7 + 8)
    assert busy_cores_s(str(tmp_path / "none")) == 0.0
    assert busy_cores(iter([100.0, 100.0 + 1.5 * LOOK_S]).__next__) == 1.5
