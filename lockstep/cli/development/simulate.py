"""`lockstep simulate`: many runs in virtual time, with faults of all kinds, and the violations found."""

import textwrap
from collections import Counter

import click
from rich.console import Console

from common.errors import DifferenceError
from common.runtime.clock import SystemClock
from lockstep.cli.options.types import number_range
from lockstep.reports.display import PLAIN_EVERY_S, print_plainly
from lockstep.simulation.oracle import Outcome, simulate
from lockstep.simulation.scenario import scenario_of

#: Characters per line.
WIDTH = 80

#: Failed seeds after which to stop.
MOST_FAILURES = 5


@click.command("simulate", short_help="Try the protocol in virtual time, with faults of all kinds.")
@click.option("--seeds", type=number_range, default="0:100", metavar="A:B", help="which runs to simulate  [0:100]")
@click.option("--workers", type=click.IntRange(1, 64), metavar="N", help="workers  [1 to 4, by the seed]")
@click.option("--servers", type=click.IntRange(1, 3), metavar="N", help="servers that share the weights  [by the seed]")
@click.option("--steps", type=click.IntRange(3, 1000), metavar="N", help="steps of the run  [by its job]")
@click.option("--trace", "is_traced", is_flag=True, help="print all events")
@click.pass_context
def simulate_command(
    context: click.Context,
    seeds: range,
    workers: int | None,
    servers: int | None,
    steps: int | None,
    is_traced: bool,
) -> None:
    """Simulate runs of small jobs, in one process and in virtual time, with faults of all kinds.

    The coordinator, the shards and the workers are the real ones, with their shells and files; network, clocks and disk
    are simulated. A seed determines the processes and the faults: crashes and restarts at any moment, processes that
    stop or are slow, clocks that jump, connections that break or fall silent in one direction or both, networks that
    split and heal in any order, messages that arrive late or twice, a full disk.

    Each run has to end in bounded time with the bits, figures and receipt of one process, every sample used once, and
    nothing left behind. A seed replays identically. A failed seed is reported with the command that replays it, and the
    exit code is 1.

    \b
      lockstep simulate --seeds 0:500
      lockstep simulate --seeds 17 --trace
    """
    console = Console(highlight=False, soft_wrap=True)
    clock = SystemClock()
    start = reported = clock.now()
    failed: list[int] = []
    tally = OutcomeTally()
    for seed in seeds:
        scenario = scenario_of(seed, workers=workers, servers=servers, steps=steps)
        outcome = simulate(scenario, is_traced=is_traced)
        tally.add(outcome)
        if is_traced:
            for line in (scenario.summary(), *outcome.trace):
                print_plainly(console, line)
        if outcome.violations:
            failed.append(seed)
            print_plainly(console, f"seed {seed}: {outcome.violations[0]}")
            print_plainly(console, f"  replay it with: {replay_command(seed, workers, servers, steps)}")
        if len(failed) == MOST_FAILURES:
            break
        if clock.now() - reported >= PLAIN_EVERY_S:
            reported = clock.now()
            print_plainly(console, f"seed {seed}: {tally.runs} runs, {len(failed)} failed so far")
    for line in tally.lines(clock.now() - start):
        print_plainly(console, line)
    if len(seeds) == 1:
        print_plainly(console, f"digest of the trace: {tally.digest}")
    if failed:
        raise DifferenceError(f"{len(failed)} of {tally.runs} simulated runs broke the promise: seeds {failed}")


def replay_command(seed: int, workers: int | None, servers: int | None, steps: int | None) -> str:
    """Return the command that replays a seed."""
    given = (("--workers", workers), ("--servers", servers), ("--steps", steps))
    flags = "".join(f" {flag} {value}" for flag, value in given if value is not None)
    return f"lockstep simulate --seeds {seed}{flags} --trace"


class OutcomeTally:
    """The totals of all runs."""

    def __init__(self) -> None:
        self.runs = self.events = 0
        self.seconds = 0.0
        self.faults: Counter[str] = Counter()
        self.digest = ""

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.events += outcome.events
        self.seconds += outcome.seconds
        self.faults += outcome.faults
        self.digest = outcome.digest

    def lines(self, took_s: float) -> list[str]:
        """Return the totals as lines."""
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        totals = f"{self.runs} runs, {self.events:,} events, {self.seconds:,.0f} s of virtual time in {took_s:.1f} s"
        return [*textwrap.wrap(f"faults: {kinds or 'none'}", WIDTH, break_on_hyphens=False), totals]
