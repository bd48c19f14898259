"""`lockstep replay`: one micro-batch of a recorded run, looked into."""

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lockstep.checking.recorded_run import (
    LayerReplay,
    MicroBatchReplay,
    RecordedRun,
    load_checkpoint_before,
    open_again,
    read_run,
    replay,
)
from lockstep.cli.options.job import takes_trust
from lockstep.cli.options.packing import training_data_of
from lockstep.cli.options.run import RUN_ARGUMENT, TRAINING_DATA_OPTION
from lockstep.cli.options.types import whole_number
from lockstep.common.errors import UsageError
from lockstep.common.files.sanitize import one_line
from lockstep.common.numerics.choice import take_numerics
from lockstep.results.display import print_plainly

#: Samples that are shown; `--json` has them all.
MOST_SAMPLES = 16


@click.command("replay", short_help="Recompute one micro-batch and look inside.")
@RUN_ARGUMENT
@click.option("--step", type=whole_number(0), required=True, metavar="T", help="training step; the first is 0")
@click.option(
    "--micro-batch", type=whole_number(0), required=True, metavar="M", help="micro-batch of the step; the first is 0"
)
@click.option(
    "--local-step", type=whole_number(0), default=0, metavar="K", help="local step of the micro-batch; the first is 0"
)
@click.option("--allow-mixed-numerics", is_flag=True, help="allow a machine or version whose bits may differ")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@TRAINING_DATA_OPTION
@takes_trust
def replay_command(
    run: Path,
    step: int,
    micro_batch: int,
    local_step: int,
    allow_mixed_numerics: bool,
    as_json: bool,
    training_data: str | None,
) -> None:
    """Recompute one micro-batch of the run in the folder RUN, and show what happens in it.

    The report has its samples, its loss, the norm of each layer's output and of each parameter's gradient, and the
    first number that is not finite. The step may be the one at which the run failed.

    \b
      lockstep replay runs/20261124-231714-lenet --step 412 --micro-batch 5
    """
    console = Console(highlight=False, stderr=as_json)
    recorded = read_run(run, training_data_of(run, training_data))
    take_numerics(recorded.job.numerics)
    check_place(recorded, step, micro_batch, local_step)
    setup = open_again(recorded, allows_mixed_numerics=allow_mixed_numerics)
    load_checkpoint_before(setup, run, step, lambda text: print_plainly(console, text))
    replayed = replay(recorded, setup, step, micro_batch, local_step)
    if as_json:
        click.echo(msgspec.json.encode(replayed).decode())
        return
    for line in summary_lines(replayed):
        print_plainly(console, line)
    console.print(layers_table(replayed.layers))
    print_plainly(console, f"first number that is not finite: {replayed.first_nonfinite or 'none'}")


def check_place(recorded: RecordedRun, step: int, micro_batch: int, local_step: int = 0) -> None:
    """Raise `UsageError` if the run has not reached that step, or has no such micro-batch or local step."""
    made = len(recorded.steps())
    last = min(made, recorded.receipt.total_steps - 1)
    if step > last:
        raise UsageError(f"--step {step}: the run has made {made} steps: expected 0 to {last}")
    last_one = recorded.job.micro_batches - 1
    if micro_batch > last_one:
        raise UsageError(f"--micro-batch {micro_batch}: expected 0 to {last_one}, as the job has it")
    if local_step >= recorded.job.local_steps:
        raise UsageError(f"--local-step {local_step}: expected 0 to {recorded.job.local_steps - 1}, as the job has it")


def summary_lines(replayed: MicroBatchReplay) -> list[str]:
    """Return the lines above the table of layers."""
    shown = ", ".join(map(str, replayed.samples[:MOST_SAMPLES]))
    more = f", … ({len(replayed.samples)} in all)" if len(replayed.samples) > MOST_SAMPLES else ""
    recorded = "not recorded" if replayed.recorded_loss_sum is None else f"recorded as {replayed.recorded_loss_sum!r}"
    if replayed.local_step is not None:
        recorded = "a part of the recorded step"
    at = "" if replayed.local_step is None else f", local step {replayed.local_step}"
    inputs = replayed.inputs if isinstance(replayed.inputs, dict) else {"": replayed.inputs}
    named = [f"{name} {each.shape}, norm {each.norm:.6g}".strip() for name, each in inputs.items()]
    return [
        f"step {replayed.step}, micro-batch {replayed.micro_batch}{at} of run {replayed.run}",
        f"samples   {shown}{more}",
        f"inputs    {'; '.join(named)}, SHA-256 {replayed.inputs_sha256[:12]}…",
        f"loss sum  {replayed.loss_sum!r}, {recorded}",
        *([] if replayed.correct is None else [f"correct   {replayed.correct} of {replayed.targets}"]),
    ]


def layers_table(layers: list[LayerReplay]) -> Table:
    """Return a line for each layer, and below it one for each of its parameters."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "output", "norm", "largest", "nan, inf"):
        table.add_column(heading, justify="left" if heading in ("layer", "output") else "right", no_wrap=True)
    for layer in layers:
        for name, what, figures in (
            (layer.name or "the model", layer.kind, layer.output),
            *((f"  gradient of {name}", "", figures) for name, figures in layer.gradients.items()),
        ):
            shape = "x".join(map(str, figures.shape))
            cells = (f"{figures.norm:.6g}", f"{figures.largest:.6g}", str(figures.nonfinite or ""))
            # As texts: what a layer is called must not be taken for markup.
            table.add_row(*(Text(one_line(cell)) for cell in (name, f"{what} {shape}".strip(), *cells)))
    return table
