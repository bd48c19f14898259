"""Tables and pictures of speed, all from one file of `lockstep bench all`: no figure of these is typed by hand.

python -m docs.generators.measured             draws the pictures that are not of this file
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console

from docs.generators.tables import table
from lockstep.bench.bench import ranged
from lockstep.bench.coordinator import CoordinatorRow
from lockstep.bench.exchange import ExchangeRow, QuantizationRow
from lockstep.bench.peers import BaselineRow
from lockstep.bench.performance import BUSY, BenchMachine, MeasuredPart, read_measurements
from lockstep.bench.predict import PredictBench, PredictionRow, basis_of_rows
from lockstep.bench.scaling import SLEEP, ScalingRow
from lockstep.bench.step import StepFigures
from lockstep.bench.straggler import StragglerRow, case_name
from lockstep.bench.timed_run import BenchSession

R = TypeVar("R", bound=msgspec.Struct)

#: The cells of a row by the headings of their columns.
Columns = Mapping[str, Callable[[R], str]]

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "measured.json"

#: Columns of a command in a page.
WIDTH = 92

#: Turns of a measurement that is not a short one.
ENOUGH = 5

#: Of the links in predictions, bytes per second.
FAST_LINK, SLOW_LINK = 1.25e9, 12.5e6

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
        """Return the machines, and when each part was measured."""
        texts = [_described(machine) for machine in self.measurements.machines()]
        parts = self.measurements.parts
        rows = [
            [name, part.begun, f"{part.took_s:,.0f}", str(part.rounds), f"{part.busy_cores:.1f}"]
            for name, part in parts.items()
        ]
        headings = ("part", "measured on", "seconds", "turns", "cores that others used before")
        if any(part.rounds < ENOUGH for part in parts.values()):
            texts.append("This was a short measurement, with fewer turns than a steady figure needs.")
        if any(part.busy_cores > BUSY * part.machine.cores for part in parts.values()):
            texts.append("Other programs used the machine in some parts, so expect other figures on a quiet one.")
        return "\n\n".join([*texts, table(headings, rows)])

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

    def exchange(self) -> str:
        """Return the milliseconds of an exchange next to gloo."""
        columns: Columns[ExchangeRow] = {
            "values": lambda row: f"{row.parameters:,}",
            "over": lambda row: row.carrier,
            "ms": lambda row: time(row.ms_per_exchange, row.ms_spread),
            "gloo's all-reduce, ms": lambda row: peer_time(row.peer),
            "times as fast": lambda row: ratio(row.peer),
        }
        return self.rows("exchange", ExchangeRow, columns)

    def straggler(self) -> str:
        """Return the speeds with a slow worker."""
        columns: Columns[StragglerRow] = {
            "the last worker": lambda row: case_name(row.case),
            "images/s": lambda row: f"{row.images_per_s:,.0f}",
            "of the fast one alone": lambda row: f"{row.of_alone:.2f}",
            "of two fast ones": lambda row: f"{row.of_all:.2f}",
            "of the ideal": lambda row: ranged(row.of_ideal, row.of_ideal_spread),
            "leased and not used": lambda row: f"{row.duplicates:.1%}",
            "micro-batches, fast / slow": lambda row: (
                f"{row.micro_batches_of_fast:.1f} / {_or_none(row.micro_batches_of_slow, '.1f')}"
            ),
        }
        return self.rows("straggler", StragglerRow, columns)

    def teams(self) -> str:
        """Return the time of a step by the number of processes of a team, and what the server takes for it."""
        columns: Columns[ScalingRow] = {
            "processes": lambda row: str(row.workers),
            "ms per step": step_time,
            "processor time of the server, ms": lambda row: _spent(row, "server_ms", ".2f"),
            "of a process, ms": lambda row: _spent(row, "process_ms", ".2f"),
        }
        return self.rows("teams", ScalingRow, columns)

    def hosts(self) -> str:
        """Return the time of a step by the number of hosts, measured and calculated, and what the server takes."""
        rows, calculated = self.part("hosts", ScalingRow)[1], dict[tuple[int, int], float]()
        for size in {row.parameters for row in rows}:
            basis = basis_of_rows([row for row in rows if row.parameters == size])
            calculated |= {(size, at.hosts): basis.model.step_s(at) for at, _ in basis.measured}
        columns: Columns[ScalingRow] = {
            "values": lambda row: f"{row.parameters:,}",
            "hosts": lambda row: str(row.teams),
            "ms per step": step_time,
            "calculated": lambda row: f"{calculated[row.parameters, row.teams] * 1e3:.1f}",
            "processor time of the server, ms": lambda row: _spent(row, "server_ms", ".1f"),
            "per host, ms": lambda row: _spent(row, "server_ms", ".2f", row.teams),
            "of a worker, ms": lambda row: _spent(row, "leader_ms", ".2f"),
            "MB per step": lambda row: f"{row.socket_bytes / 1e6:,.1f}",
        }
        return self.rows("hosts", ScalingRow, columns)

    def more_hosts(self) -> str:
        """Return what is calculated for more hosts than were measured, each with its own core and link."""
        bench = PredictBench(
            hosts=(1, 4, 16, 64, 256, 1024),
            servers=(1, 16),
            link=FAST_LINK,
            sources=(self.file,),
            models=(SLEEP,),
            batch=1,
            values=max(row.parameters for row in self.part("hosts", ScalingRow)[1]),
        )
        found = {(row.hosts, row.servers): row for row in self._predicted(bench)[1]}
        lines = [
            [
                *(f"{hosts:,}", f"{found[hosts, 1].ms_per_step:,.1f}", f"{found[hosts, 16].ms_per_step:,.1f}"),
                *(f"{found[hosts, 1].link_share:.0%}", str(found[hosts, 1].shards)),
            ]
            for hosts in bench.hosts
        ]
        headings = ("hosts", "ms per step, 1 server", "16 servers", "use of the link of 1 server", "servers needed")
        return table(headings, lines)

    def slow_network(self) -> str:
        """Return what `bench predict` calculates for mlp on a slow link, from the rows of the scaling bench."""
        rows = [row for row in self.part("scaling", ScalingRow)[1] if row.model == "mlp"]
        batch, lines = max(row.batch for row in rows), []
        for local_steps in (1, 16):
            bench = PredictBench(
                hosts=(1, 2, 4, 8),
                workers=(1,),
                servers=(1,),
                link=SLOW_LINK,
                sources=(self.file,),
                models=("mlp",),
                batch=batch,
                local_steps=local_steps,
            )
            lines += [
                [
                    *(str(local_steps), str(row.hosts), f"{row.ms_per_step:,.1f}", f"{row.images_per_s:,.0f}"),
                    *(f"{row.speedup:.3f}", f"{row.link_share:.0%}"),
                ]
                for row in self._predicted(bench)[1]
            ]
        headings = ("local steps", "hosts", "ms per step", "images/s", "times one process", "use of the link")
        measured = f"Measured with {batch} samples per worker and {rows[0].workers} workers on one machine:"
        return f"{measured}\n\n{table(headings, lines)}"

    def _predicted(self, bench: PredictBench) -> tuple[PredictBench, list[PredictionRow]]:
        rows = bench.measure(BenchSession(self.file.parent, Console(quiet=True)))
        return bench, [row for row in rows if not row.is_spread]

    def coordinator(self) -> str:
        """Return what the decisions of the coordinator cost."""
        columns: Columns[CoordinatorRow] = {
            "simulated workers": lambda row: f"{row.workers:,}",
            "µs per event": lambda row: ranged(row.us_per_event, row.us_spread, ".1f"),
            "ms of all decisions per step": lambda row: f"{row.ms_per_step:.2f}",
        }
        return self.rows("coordinator", CoordinatorRow, columns)

    def wire(self) -> str:
        """Return what rounding and packing cost."""
        columns: Columns[QuantizationRow] = {
            "type": lambda row: row.wire,
            "ns per value to add two halves and round": lambda row: ranged(row.add_ns, row.add_spread),
            "to pack": lambda row: ranged(row.pack_ns, row.pack_spread),
            "to unpack": lambda row: ranged(row.unpack_ns, row.unpack_spread),
        }
        return self.rows("wire", QuantizationRow, columns)

    def piece(self, name: str) -> str:
        """Return what a page shows of a part; how to measure it, if the file does not have it."""
        missing = [part for part in NEEDED.get(name, (name,)) if part not in self.measurements.parts]
        if not missing:
            return MAKERS[name](self)
        return (
            f"The file of measurements that this page was made from lacks {' and '.join(missing)}. `lockstep bench all "
            f"--only {','.join(missing)} --peer-python PYTHON --to docs/measured.json` measures what is missing.\n"
        )


MAKERS: Mapping[str, Callable[[Report], str]] = {
    "machine": Report.machine,
    "losses": Report.losses,
    "scaling": Report.scaling,
    "step": Report.step,
    "micro-batches": Report.micro_batches,
    "exchange": Report.exchange,
    "straggler": Report.straggler,
    "teams": Report.teams,
    "hosts": Report.hosts,
    "more hosts": Report.more_hosts,
    "slow network": Report.slow_network,
    "coordinator": Report.coordinator,
    "wire": Report.wire,
}


#: The parts that a piece needs, if it is not called as its part is.
NEEDED = {"machine": (), "losses": (), "more hosts": ("hosts",), "slow network": ("scaling",)}


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


def _or_none(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _spent(row: ScalingRow, name: str, form: str, by: int = 1) -> str:
    """Return the processor time of a kind of process per step, divided by a number."""
    value = getattr(row.processors, name, None)
    return _or_none(None if value is None else value / by, form)
