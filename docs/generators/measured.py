"""Tables of speed, all from one file of `lockstep bench all`: no figure of these is typed by hand."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from docs.generators.tables import table
from lockstep.bench.bench import ranged
from lockstep.bench.exchange import ExchangeRow
from lockstep.bench.peers import BaselineRow
from lockstep.bench.performance import BUSY, BenchMachine, MeasuredPart, read_measurements
from lockstep.bench.scaling import ScalingRow
from lockstep.bench.step import StepFigures

R = TypeVar("R", bound=msgspec.Struct)

#: The cells of a row by the headings of their columns.
Columns = Mapping[str, Callable[[R], str]]

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "measured.json"

#: Columns of a command in a page.
WIDTH = 92

#: Turns of a measurement that is not a short one.
ENOUGH = 5

Spread = tuple[float, float]


def decimals(value: float) -> str:
    """Return how a time is written with three digits that mean something."""
    return ",.0f" if value >= 100 else f".{2 if value < 10 else 1}f" if value >= 1 else ".3f"


def time(value: float, spread: Spread) -> str:
    """Return a time with its spread."""
    return ranged(value, spread, decimals(value))


def speed(row: ScalingRow) -> str:
    """Return images/s with their spread."""
    fast, slow = (row.global_batch / ms * 1e3 if ms else row.images_per_s for ms in row.ms_spread)
    return ranged(row.images_per_s, (slow, fast), ",.0f")


def step_time(row: StepFigures | ScalingRow | BaselineRow) -> str:
    """Return the milliseconds of a step with their spread."""
    return time(row.ms_per_step, row.ms_spread)


def peer_time(peer: BaselineRow | None) -> str:
    """Return the milliseconds of a baseline with their spread."""
    return "" if peer is None else step_time(peer)


def ratio(peer: BaselineRow | None) -> str:
    """Return how many times as fast as a baseline we are, with the spread."""
    return "" if peer is None else ranged(peer.ratio, peer.ratio_spread)


def wrapped(command: str) -> str:
    """Return a command as a block, on lines that fit, with no flag apart from its value."""
    first, *flags = command.split(" --")
    lines = [first]
    for flag in flags:
        if len(lines[-1]) + len(flag) > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" --{flag}"
    return "```bash\n" + "\n".join(lines) + "\n```\n"


class Report:
    """The parts of a file, as pieces of pages."""

    def __init__(self, file: Path = FILE) -> None:
        self.file = file
        self.measurements = read_measurements(file)

    def part(self, name: str, kind: type[R]) -> tuple[MeasuredPart, list[R]]:
        """Return a part and its rows. Raises KeyError if it was not measured."""
        part = self.measurements.parts[name]
        return part, part.rows_as(kind)

    def rows(self, name: str, kind: type[R], columns: Columns[R], *more: list[str]) -> str:
        """Return the command of a part, and its rows as a table with `more` lines below them."""
        part, rows = self.part(name, kind)
        lines = [[cell(row) for cell in columns.values()] for row in rows]
        return wrapped(part.command) + "\n" + table(tuple(columns), [*lines, *more])

    def machine(self) -> str:
        """Return the machines, and whether the measurement was a steady one."""
        texts = [_described(machine) for machine in self.measurements.machines()]
        parts = self.measurements.parts
        if any(part.rounds < ENOUGH for part in parts.values()):
            texts.append("This was a short measurement, with fewer turns than a steady figure needs.")
        if any(part.busy_cores > BUSY * part.machine.cores for part in parts.values()):
            texts.append("Other programs used the machine in some parts, so expect other figures on a quiet one.")
        return "\n\n".join(texts) + "\n"

    def losses(self) -> str:
        """Return everything in which PyTorch was faster in the middle turn, the largest loss first."""
        found = sorted(self._comparisons(), key=lambda each: each[0])
        lost = [[what, against, text] for value, what, against, text in found if value < 1]
        counts = f"PyTorch was faster in {len(lost)} of {len(found)} comparisons"
        if not lost:
            return f"{counts} of this measurement: each ratio of the tables below is above 1.\n"
        return f"{counts}:\n\n{table(('what', 'in comparison with', 'times as fast as it'), lost)}"

    def _comparisons(self) -> Iterator[tuple[float, str, str, str]]:
        parts = self.measurements.parts
        for step in parts["step"].rows_as(StepFigures) if "step" in parts else ():
            what = f"one process with one thread, {step.model} at {step.batch}"
            yield from _compared(what, "PyTorch with one thread", step.peer)
        for row in parts["scaling"].rows_as(ScalingRow) if "scaling" in parts else ():
            what = f"{row.workers} workers, {row.model} at {row.batch} each, {row.micro_batches} micro-batches"
            yield from _compared(what, f"PyTorch with {threads_of(row)} threads", row.all_threads)
            yield from _compared(what, "the same with `torch.compile`", row.compiled)
            yield from _compared(what, "DDP over gloo", row.peer)
        for exchange in parts["exchange"].rows_as(ExchangeRow) if "exchange" in parts else ():
            what = f"exchange of {exchange.parameters:,} values, {exchange.carrier}"
            yield from _compared(what, "gloo's all-reduce", exchange.peer)

    def scaling(self) -> str:
        """Return images/s of a worker per core, over all that PyTorch has for the same batch."""
        threads = max(map(threads_of, self.part("scaling", ScalingRow)[1]))
        columns: Columns[ScalingRow] = {
            "model": lambda row: row.model,
            "batch of each": lambda row: str(row.batch),
            "micro-batches": lambda row: str(row.micro_batches),
            "images/s": speed,
            "of the ceiling": lambda row: f"{row.of_ceiling:.0%}",
            f"over PyTorch, {threads} threads": lambda row: ratio(row.all_threads),
            "over `torch.compile`": lambda row: ratio(row.compiled),
            "over DDP": lambda row: ratio(row.peer),
        }
        return self.rows("scaling", ScalingRow, columns)

    def step(self) -> str:
        """Return the milliseconds of a step next to PyTorch, with one thread and with all."""
        ratios = [row.peer.ratio for row in self.part("step", StepFigures)[1] if row.peer is not None]
        more = [["geometric mean", "", "", f"{statistics.geometric_mean(ratios):.2f}", "", "", ""]] if ratios else []
        columns: Columns[StepFigures] = {
            "model, batch": lambda row: f"{row.model} {row.batch}",
            "ms per step": step_time,
            "PyTorch, one thread": lambda row: peer_time(row.peer),
            "ratio": lambda row: ratio(row.peer),
            "its faster layout": lambda row: row.peer.layout if row.peer else "",
            "ratio to all its threads": lambda row: ratio(row.all_threads),
            "MB, Lockstep / PyTorch": lambda row: (
                f"{row.peak_rss_mb:.0f} / {row.peer.peak_rss_mb:.0f}" if row.peer else ""
            ),
        }
        return self.rows("step", StepFigures, columns, *more)

    def micro_batches(self) -> str:
        """Return the speed with several numbers of micro-batches over that with one."""
        part, rows = self.part("micro-batches", StepFigures)
        cuts = sorted({row.micro_batches for row in rows})
        first = {row.model: row for row in rows if row.micro_batches == cuts[0]}
        by_place = {(row.model, row.micro_batches): row for row in rows}
        lines = [
            [f"{model} {one.batch}", step_time(one), *(_over(one, by_place[model, cut]) for cut in cuts[1:])]
            for model, one in first.items()
        ]
        headings = ("model, batch", f"{cuts[0]}, ms", *map(str, cuts[1:]))
        return wrapped(part.command) + "\n" + table(headings, lines)

    def piece(self, name: str) -> str:
        """Return what a page shows of a part."""
        return MAKERS[name](self)


MAKERS: Mapping[str, Callable[[Report], str]] = {
    "machine": Report.machine,
    "losses": Report.losses,
    "scaling": Report.scaling,
    "step": Report.step,
    "micro-batches": Report.micro_batches,
}


def _described(machine: BenchMachine) -> str:
    chosen = f", which `OPENBLAS_CORETYPE={machine.coretype}` asked for" if machine.coretype else ""
    return (
        f"The figures of this page are from one machine with {machine.cores} cores ({machine.processor}), "
        f"{machine.memory_gib} GiB, {machine.system}, Python {machine.python}, NumPy {machine.numpy} and "
        f"{machine.blas} with its kernel {machine.kernel}{chosen}, Lockstep {machine.lockstep}."
    )


def _compared(what: str, against: str, peer: BaselineRow | None) -> Iterator[tuple[float, str, str, str]]:
    if peer is not None:
        yield peer.ratio, what, against, ratio(peer)


def threads_of(row: ScalingRow) -> int:
    """Return the threads of PyTorch in one process; the cores, if it was not measured."""
    return row.cores if row.all_threads is None else row.all_threads.threads


def _over(one: StepFigures, row: StepFigures) -> str:
    fast, slow = (one.ms_per_step / ms for ms in row.ms_spread)
    return ranged(one.ms_per_step / row.ms_per_step, (slow, fast), ".2f")
