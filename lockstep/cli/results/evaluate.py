"""`lockstep evaluate`: a finished run's weights on a test set."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.cli.options.job import takes_trust
from lockstep.cli.options.packing import READING_OPTIONS, say_if_changed, training_data_of
from lockstep.cli.options.run import CHECKPOINT_OPTION, RUN_ARGUMENT, TRAINING_DATA_OPTION
from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.job.metrics import Score
from lockstep.common.numerics.choice import prefer_numerics
from lockstep.common.runtime.notice import notice
from lockstep.results.display import print_plainly
from lockstep.results.evaluation.assessment import assess, lines, record_of, scored
from lockstep.runs.own_command import with_own_commands
from lockstep.runs.run_dir import EXAMPLES, finished
from lockstep.runs.trained_model import Moment, Trained, data_advice, demand_data, has_data, open_trained


@click.command(short_help="Test the weights of a run.")
@RUN_ARGUMENT
@click.option(
    "--data",
    metavar="DATA",
    help="test on this data instead: a table, a folder of pictures, .npz or IDX files as they are, or a packed folder",
)
@TRAINING_DATA_OPTION
@CHECKPOINT_OPTION
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
@READING_OPTIONS
@takes_trust
def evaluate(
    run: Path, data: str | None, training_data: str | None, moment: Moment, as_json: bool, **reading: Any
) -> None:
    """Test the weights of the run in the folder RUN on its test set or on other data, in total and per class.

    DATA becomes samples as the data of the training did. If the model was trained on a table, it is a CSV or Parquet
    file with the same columns, the predicted one included; if it was trained on pictures, a folder of pictures for each
    class. Only the run's own test set needs the training data: without that, the command prints the figures that were
    recorded when the run ended.

    The precision of a class is the share of the samples predicted as this class that belong to it. Its recall is the
    share of its samples that are predicted as this class. For a regression, R² is the share of the targets' variance
    that the model explains; it is undefined if all targets are equal, as those of a single row are.

    \b
      lockstep evaluate runs/20261124-231714-lenet
      lockstep evaluate runs/20261124-231714-lenet --data my_digits.npz
      lockstep evaluate runs/20261127-101500-net --data new_houses.csv
      lockstep evaluate runs/20261124-231714-lenet --checkpoint best
    """
    trained = open_trained(run, moment).with_data(training_data_of(run, training_data))
    prefer_numerics(trained.job.numerics)
    if data is None and not has_data(trained.job):
        show_recorded(trained, as_json=as_json)
        return
    say_if_changed(run, data or training_data)
    tested = assess(trained, data, **reading)
    if tested.left_out:
        targets = " or ".join(repr(column.name) for column in trained.data.targets)
        were = "1 row was" if tested.left_out == 1 else f"{tested.left_out:,} rows were"
        click.echo(notice(f"{were} left out, without {targets} to compare with"), err=True)
    dataset = data or trained.data.origin.test_source or trained.job.data
    if as_json:
        record = {"run": run.name, "dataset": dataset, **record_of(tested)}
        click.echo(msgspec.json.encode({**record, "weights_sha256": weights_digest(trained.weights)}).decode())
        return
    console = Console(highlight=False)
    print_plainly(console, *lines(tested, dataset, weights_digest(trained.weights)))


def show_recorded(trained: Trained, *, as_json: bool) -> None:
    """Print the figures that a run has recorded of its test set; `DataError` if it has none of these weights."""
    digest, result = weights_digest(trained.weights), finished(trained.folder)
    epochs = [] if result is None else result.history
    epoch = next((each for each in epochs if each.weights_sha256 == digest), None)
    if epoch is None:
        demand_data(trained.folder, trained.job)
        return
    examples = trained.folder / EXAMPLES
    score, others = Score(epoch.test_accuracy, epoch.test_r2), epoch.of_set("test_")
    samples, source = trained.data.test_samples, trained.data.origin.test_source or "the test set"
    if as_json:
        figures = {**scored(score), **{f"test_{name}": value for name, value in others.items()}}
        record = {"run": trained.folder.name, "dataset": source, "is_recorded": True, "test_loss": epoch.test_loss}
        rest = {"samples": samples, "weights_sha256": digest}
        if examples.is_file():
            rest["examples"] = record_of(assess(trained, str(examples)))
        click.echo(msgspec.json.encode({**record, **figures, **rest}).decode())
        return
    shown = [f"test {score.name:<9} {score.text()}"] if score.name else []
    shown += [f"{'test ' + name:<14} {value:.4f}" for name, value in others.items()]
    recorded = f"recorded after epoch {epoch.epoch}, over {samples:,} samples of {source}"
    advice = with_own_commands(data_advice(trained.folder, trained.job))
    nothing = f"nothing was computed, because the data is not here: {advice}"
    below = [f"test loss      {epoch.test_loss:.4f}", f"weights sha256 {digest}", "", recorded, nothing]
    print_plainly(Console(highlight=False), *shown, *below)
    if examples.is_file():
        tested = assess(trained, str(examples))
        print_plainly(Console(highlight=False), "", *lines(tested, f"{EXAMPLES} of the run, computed now", digest))
