"""`scripts/simulate`: many runs in virtual time, with faults of all kinds, and the violations found."""

import sys
from collections import Counter

import click

from lockstep.cli.options.types import number_range
from tests.simulation.simulator.oracle import simulate
from tests.simulation.simulator.scenario import scenario_of

#: Failed seeds after which to stop.
MOST_FAILURES = 5


@click.command()
@click.option("--seeds", type=number_range, default="0..99", metavar="A..B", help="runs to simulate  [0..99]")
@click.option("--trace", "is_traced", is_flag=True, help="print all events")
def simulate_command(seeds: range, is_traced: bool) -> None:
    """Simulate runs of small jobs with faults of all kinds, in one process and in virtual time.

    The coordinator, the shards and the workers are the real ones, with their shells and files. Each worker is a team of
    one to four processes. Network, clocks and disk are simulated. The seed decides the processes and the faults:
    crashes and restarts at any moment, processes that stop or are slow, clocks that jump, connections that break or
    fall silent in one or both directions, networks that split and heal in any order, messages that arrive late or
    twice, and a full disk.

    Each run has to end in bounded time with the same bits, figures and receipt as a single process. Every sample must
    be used once, and nothing may be left behind. The same seed always gives the same run. If a seed fails, the exit
    code is 1.
    """
    failed, faults, events = list[int](), Counter[str](), 0
    for runs, seed in enumerate(seeds, 1):  # noqa: B007 -- the last one is counted
        scenario = scenario_of(seed)
        outcome = simulate(scenario, is_traced=is_traced)
        faults += outcome.faults
        events += outcome.world.events
        for line in [scenario.summary(), *outcome.world.trace] if is_traced else []:
            click.echo(line)
        if outcome.violations:
            failed.append(seed)
            click.echo(f"seed {seed}: {outcome.violations[0]}\n  replay: scripts/simulate --seeds {seed} --trace")
        if len(failed) == MOST_FAILURES:
            break
    click.echo(f"faults: {', '.join(f'{name} {count}' for name, count in sorted(faults.items())) or 'none'}")
    click.echo(f"{runs} runs, {events:,} events; digest of the last trace: {outcome.world.digest()}")
    if failed:
        sys.exit(f"error: {len(failed)} of {runs} simulated runs broke the promise: seeds {failed}")


if __name__ == "__main__":
    simulate_command()
