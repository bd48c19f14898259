"""`lockstep verify`: a recorded run, computed again on this machine."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import click
import msgspec
from msgspec.structs import replace
from rich.console import Console

from lockstep.checking.comparison import comparison, read_compared
from lockstep.checking.recorded_run import (
    RecordedRun,
    load_checkpoint_before,
    open_again,
    other_numerics,
    read_run,
)
from lockstep.checking.verify import (
    Verifier,
    check_chain,
    coverage_lines,
    coverage_of,
    demand_coverage,
    file_difference,
)
from lockstep.cli.options.completion import RunPath
from lockstep.cli.options.job import takes_trust
from lockstep.cli.options.packing import progress_of, say_if_changed, training_data_of
from lockstep.cli.options.run import RUN_ARGUMENT, TRAINING_DATA_OPTION
from lockstep.cli.options.types import number_range
from lockstep.common.data.folder import MANIFEST, check_folder
from lockstep.common.errors import DifferenceError, NumericsError, UsageError
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.exit_codes import ExitCode
from lockstep.packing.options import ReadProgress
from lockstep.results.display import PLAIN_EVERY_S, print_plainly


@click.command(short_help="Recompute a run and compare every bit.")
@RUN_ARGUMENT
@click.option("--steps", metavar="A..B", help="verify only steps A to B, from the nearest checkpoint on")
@click.option(
    "--against",
    type=RunPath(),
    metavar="RECEIPT",
    help="compare with the receipt of another run (a receipt.json or run folder), and compute nothing",
)
@click.option("--allow-mixed-numerics", is_flag=True, help="allow a machine or version whose bits may differ")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
@TRAINING_DATA_OPTION
@takes_trust
@click.pass_context
def verify(
    context: click.Context,
    run: Path,
    steps: str | None,
    against: Path | None,
    allow_mixed_numerics: bool,
    as_json: bool,
    training_data: str | None,
) -> None:
    """Recompute the run in the folder RUN in this process, and compare every bit; or check a packed dataset.

    The command compares the ledger, the loss of each micro-batch, a checksum of the weights after each step, their
    SHA-256 after each epoch and checkpoint, and the files of a finished run with the digests in its receipt. It reports
    the first step and micro-batch that differ, and the worker that computed them. The exit code is 1 if anything
    differs. If RUN is the folder of a dataset, each of its blocks is compared with its digest.

    \b
      lockstep verify runs/20261124-231714-lenet
      lockstep verify runs/20261124-231714-lenet --steps 400..419
      lockstep verify runs/20261124-231714-lenet --against hers/receipt.json
      lockstep verify pictures.data
    """
    console = Console(highlight=False, stderr=as_json)
    if against is not None or (run / MANIFEST).is_file():
        print_plainly(console, checked_dataset(run) if against is None else compared(run, against))
        return
    recorded = read_run(run, training_data_of(run, training_data))
    with suppress(NumericsError) if allow_mixed_numerics else nullcontext():
        take_numerics(recorded.job.numerics)
    low, high = wanted_steps(recorded, steps)
    recorded.demand_data()
    say_if_changed(run, training_data)
    print_plainly(console, *coverage_lines(recorded, report := coverage_of(recorded)))
    demand_coverage(report)
    setup = open_again(recorded, allows_mixed_numerics=allow_mixed_numerics)
    check_chain(recorded, setup)
    if low:
        load_checkpoint_before(setup, run, low, lambda text: print_plainly(console, text))
    verifier, first = Verifier(recorded, setup), setup.shard.updates
    found = verifier.verify(high, progress_to(console, high)) or file_difference(recorded, setup, high)
    if found is not None and (numerics := other_numerics(recorded, setup)):
        differ = f"the numerics differ from the run's, and so may the bits: {numerics}"
        found = replace(found, text=f"{differ}; {found.text}")
    if as_json:
        figures = {"run": run.name, "steps": [first, high], "micro_batches": verifier.micro_batches}
        click.echo(msgspec.json.encode({**figures, "is_same": found is None, "difference": found}).decode())
        context.exit(ExitCode.DONE if found is None else ExitCode.FAILED)
    if found is not None:
        raise DifferenceError(found.text)
    counted = f"the losses of {verifier.micro_batches:,} micro-batches"
    print_plainly(console, f"the same bits: steps {first} to {high - 1}, {counted} and the weights after each step")


def checked_dataset(folder: Path) -> str:
    """Compare every block of a dataset with its digest; return a line about it. `DataError` if one has changed."""
    with progress_of(f"checking {folder}") as watch:
        progress = ReadProgress(watch, sum(path.stat().st_size for path in folder.glob("*.npy")))
        manifest = check_folder(folder, progress.advance)
    checked = f"all {progress.done:,} bytes are as they were packed"
    return f"{folder}: {checked}; dataset sha256 {manifest.digest()}"


def compared(run: Path, against: Path) -> str:
    """Return in which epochs two runs have the same weights; raise `DifferenceError` if not in all."""
    ours = read_compared(run)
    if difference := comparison(ours, read_compared(against)):
        raise DifferenceError(difference)
    chain = ours.receipt.chain
    return f"the same weights after each of {len(chain) - 1} epochs: {chain[-1].weights_sha256}"


def progress_to(console: Console, until: int) -> Callable[[int], None]:
    """Return what prints now and then how far it is, by the step that was compared last."""
    clock = SystemClock()
    shown = clock.now()

    def watch(step: int) -> None:
        nonlocal shown
        if clock.now() - shown >= PLAIN_EVERY_S:
            shown = clock.now()
            print_plainly(console, f"step {step + 1}/{until}: the same so far")

    return watch


def wanted_steps(recorded: RecordedRun, text: str | None) -> tuple[int, int]:
    """Return the first step to compare and the one after the last; `UsageError` if the run does not have them."""
    total = 1 + max(recorded.steps(), default=-1)
    if not total:
        raise UsageError(f"the run in {str(recorded.folder)!r} has not made a step yet, so there is nothing to compare")
    try:
        steps = number_range(text or "..", total)
    except click.BadParameter:
        raise UsageError(f"--steps {text!r}: expected A..B with 0 <= A <= B <= {total - 1}, the run's steps") from None
    return steps.start, steps.stop
