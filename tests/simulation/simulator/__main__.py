"""`scripts/simulate`: many runs in virtual time, with faults of all kinds, and the violations found."""

import sys
import textwrap
from collections import Counter
from collections.abc import Mapping

import click
from rich.console import Console

from lockstep.cli.options.types import number_range, whole_number
from lockstep.common.runtime.clock import SystemClock
from lockstep.results.display import PLAIN_EVERY_S, print_plainly
from tests.simulation.simulator.oracle import simulate
from tests.simulation.simulator.scenario import scenario_of

#: Characters per line.
WIDTH = 80

#: Failed seeds after which to stop.
MOST_FAILURES = 5


@click.command()
@click.option("--seeds", type=number_range, default="0..99", metavar="A..B", help="runs to simulate  [0..99]")
@click.option("--workers", type=whole_number(1, 64), metavar="N", help="number of workers  [1 to 4, by the seed]")
@click.option("--processes", type=whole_number(1, 8), metavar="N", help="processes per worker  [1 to 4, by the seed]")
@click.option("--servers", type=whole_number(1, 3), metavar="N", help="number of servers  [by the seed]")
@click.option("--steps", type=whole_number(3, 1000), metavar="N", help="steps per run  [by the seed]")
@click.option("--trace", "is_traced", is_flag=True, help="print all events")
def simulate_command(
    seeds: range,
    workers: int | None,
    processes: int | None,
    servers: int | None,
    steps: int | None,
    is_traced: bool,
) -> None:
    """Simulate runs of small jobs with faults of all kinds, in one process and in virtual time.

    The coordinator, the shards and the workers are the real ones, with their shells and files. Each worker is a team of
    one to four processes. Network, clocks and disk are simulated. The seed decides the processes and the faults:
    crashes and restarts at any moment, processes that stop or are slow, clocks that jump, connections that break or
    fall silent in one or both directions, networks that split and heal in any order, messages that arrive late or
    twice, and a full disk.

    Each run has to end in bounded time with the same bits, figures and receipt as a single process. Every sample must
    be used once, and nothing may be left behind. The same seed always gives the same run. If a seed fails, the command
    to replay it is printed, and the exit code is 1.

    \b
      scripts/simulate --seeds 0..499
      scripts/simulate --seeds 17 --trace
    """
    given = {"workers": workers, "processes": processes, "servers": servers, "steps": steps}
    console = Console(highlight=False, soft_wrap=True)
    start = reported = (clock := SystemClock()).now()
    failed, faults, events, virtual_s = list[int](), Counter[str](), 0, 0.0
    for runs, seed in enumerate(seeds, 1):
        scenario = scenario_of(seed, workers=workers, servers=servers, steps=steps, processes=processes)
        outcome = simulate(scenario, is_traced=is_traced)
        faults += outcome.faults
        events, virtual_s = events + outcome.world.events, virtual_s + outcome.world.now
        if is_traced:
            print_plainly(console, scenario.summary(), *outcome.world.trace)
        if outcome.violations:
            failed.append(seed)
            print_plainly(console, f"seed {seed}: {outcome.violations[0]}")
            print_plainly(console, f"  replay it with: {replay_command(seed, given)}")
        if len(failed) == MOST_FAILURES:
            break
        if clock.now() - reported >= PLAIN_EVERY_S:
            reported = clock.now()
            print_plainly(console, f"seed {seed}: {runs} runs, {len(failed)} failed so far")
    totals = f"{runs} runs, {events:,} events, {virtual_s:,.0f} s of virtual time in {clock.now() - start:.1f} s"
    print_plainly(console, *fault_lines(faults), totals)
    if len(seeds) == 1:
        print_plainly(console, f"digest of the trace: {outcome.world.digest()}")
    if failed:
        sys.exit(f"error: {len(failed)} of {runs} simulated runs broke the promise: seeds {failed}")


def fault_lines(faults: Mapping[str, int]) -> list[str]:
    """Return how often each kind of fault occurred, as lines."""
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(faults.items()))
    return textwrap.wrap(f"faults: {kinds or 'none'}", WIDTH, break_on_hyphens=False)


def replay_command(seed: int, given: Mapping[str, int | None]) -> str:
    """Return the command that replays a seed, with the flags given."""
    flags = "".join(f" --{name} {value}" for name, value in given.items() if value is not None)
    return f"scripts/simulate --seeds {seed}{flags} --trace"


if __name__ == "__main__":
    simulate_command()
