"""Show the end of a run: a table of its epochs, its figures, and advice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from lockstep.common.job.job import LEAST_SAMPLES, default_micro_batches
from lockstep.common.job.metrics import Score
from lockstep.common.protocol.messages import EpochRecord, Status
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.run_folder import RunResult
from lockstep.results.display import in_teams, print_note, print_plainly, thinned
from lockstep.runs.cost_model import Measured, fitted

#: Seconds of training below which times mean nothing.
NOTED_S = 0.5

#: The gain in accuracy or R² within the last quarter of a run's epochs from which on more of them are advised.
WORTHWHILE = 0.01

#: How many times its lowest value a loss on samples that are not trained has at the end of a run that was too long.
#: Less is the noise of small sets.
RISEN = 1.1

#: With more columns of figures than these, headings have two lines, and with more than these one blank is between
#: two columns: so 80 columns have room for nine. (Rich would break headings anywhere.)
LONG_HEADINGS, WIDE_GAPS = 5, 7


def show_summary(console: Console, result: RunResult, folder: Path | None) -> None:
    """Print the epochs and the figures of a run."""
    epochs, shown = len(result.history), thinned(result.history, result.weights_epoch)
    console.print(epochs_table(shown))
    if len(shown) < epochs and folder is not None:
        print_plainly(console, f"{len(shown)} of {epochs} epochs; metrics.jsonl in the run's folder has all")
    print_plainly(console, *summary_lines(result, folder))


def show_advice(console: Console, result: RunResult, cores: int | None = None) -> None:
    """Print advice on a run whose workers shared `cores` cores; None if they ran on several machines."""
    for note in advice(result, cores):
        print_note(console, f"note: {note}")


def epochs_table(history: list[EpochRecord]) -> Table:
    """Return a table with one line per epoch.

    A run with a validation set has columns for it, and its other metrics are those of that set: it is what one looks
    at while choosing, and 80 columns have no room for both.
    """
    rows = [_figures(epoch) for epoch in history]
    headings = list(dict.fromkeys(name for row in rows for name in row)) or ["train loss", "test loss"]
    gap = 2 if len(headings) <= WIDE_GAPS else 1
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for heading in ("epoch", *headings, "seconds"):
        text = heading if len(headings) <= LONG_HEADINGS else heading.replace(" ", "\n", 1)
        table.add_column(text, justify="right")
    for epoch, row in zip(history, rows, strict=True):
        table.add_row(str(epoch.epoch), *(row.get(name, "") for name in headings), f"{epoch.wall_s:.1f}")
    return table


def _figures(epoch: EpochRecord) -> dict[str, str]:
    """Return what an epoch's line shows of its sets, by heading."""
    sets = {
        "train": (epoch.loss, Score(epoch.accuracy, epoch.r2)),
        "val": (epoch.val_loss, Score(epoch.val_accuracy, epoch.val_r2)),
        "test": (epoch.test_loss, Score(epoch.test_accuracy, epoch.test_r2)),
    }
    looked_at, figures = "test" if epoch.val_loss is None else "val", dict[str, str]()
    for name, (loss, score) in sets.items():
        if loss is None:
            continue
        figures[f"{name} loss"] = f"{loss:.4f}"
        if score.name:
            figures[f"{name} {score.name}"] = score.text()
        if name == looked_at:
            figures |= {f"{name} {each}": f"{value:.4f}" for each, value in epoch.of_set(f"{name}_").items()}
    return figures


def summary_lines(result: RunResult, folder: Path | None) -> list[str]:
    """Return the figures of a run, one per line."""
    who = f"{in_teams(result.workers, result.teams)} over {result.transport}" if result.workers else "one process"
    score = Score(result.test_accuracy, result.test_r2)
    last = score.text() or (f"{result.test_loss:.4f}" if result.history else "none")
    if result.history and result.weights_epoch not in (0, result.history[-1].epoch):
        last += f", with the weights after epoch {result.weights_epoch}"
    lines = [
        "",
        f"{'test ' + (score.name or 'loss'):<15} {last}",
        *(f"{'test ' + name:<15} {value:.4f}" for name, value in result.test_metrics.items()),
        f"throughput      {result.images_per_s:,.0f} samples/s, {who}",
        f"time            {result.wall_s:.1f} s in all, {result.train_s:.1f} s of it training",
        f"weights sha256  {result.weights_sha256}",
        f"numerics        {numerics_line(result.numerics)}",
    ]
    # One team that shares the server's memory sends nothing but the sums of some first and last steps.
    is_shared = result.teams == 1 and result.transport == "shm"
    if result.moved.sums and not is_shared:
        lines.insert(-2, f"sent per step   {moved_line(result)}")
    if result.audited or result.unaudited:
        lines.append(f"audit           {audit_line(result)}")
    if folder is not None:
        lines.append(f"run folder      {folder}")
    return lines


def numerics_line(numerics: Mapping[str, Any]) -> str:
    """Return the numerics that another machine needs for the same digest."""
    versions = f"NumPy {numerics.get('numpy')} with {numerics.get('blas')}"
    if numerics.get("mode") == "portable":
        return f"portable, contract {numerics['contract']}"
    return f"native, {versions}, kernel {numerics.get('kernel')}"


def moved_line(result: RunResult) -> str:
    """Return what crossed sockets in an average step."""
    sums, weights = result.moved.sums / 1e3, result.moved.weights / 1e3
    serving = f", for {result.local_steps} local steps" if result.local_steps > 1 else ""
    return f"{sums:,.1f} kB of sums ({result.wire}) and {weights:,.1f} kB of weights ({result.wire_weights}){serving}"


def audit_line(result: RunResult) -> str:
    """Return how many micro-batches were audited, and how many could not be."""
    if not result.audited:
        return f"none of the {result.unaudited:,} chosen micro-batches: no other worker was ready to recompute them"
    audited = f"{result.audited:,} micro-batches recomputed by another worker, with the same bits"
    return f"{audited}; {result.unaudited:,} not, as no other was ready" if result.unaudited else audited


def advice(result: RunResult, cores: int | None = None) -> list[str]:
    """Return advice on the length of a run, and from its times on the workers; `cores` as in `show_advice`."""
    notes = [*filter(None, [on_length(result)])]
    if result.workers == 0:
        return notes
    if result.obstacle:
        notes.append(f"gradients and weights went through sockets: {result.obstacle}")
    if result.workers > result.micro_batches:
        notes.append(
            f"{result.micro_batches} micro-batches keep at most {result.micro_batches} workers busy; "
            "a larger --micro-batches allows more, but changes the bits"
        )
    samples = result.global_batch // (result.micro_batches * result.local_steps)
    wider = default_micro_batches(result.global_batch // result.local_steps)
    if samples < LEAST_SAMPLES and result.workers <= wider < result.micro_batches:
        notes.append(
            f"each micro-batch had {samples} samples, too few for fast products: --micro-batches {wider} makes it "
            f"{result.global_batch // (wider * result.local_steps)}, but changes the bits"
        )
    if result.crowding:
        # Times of processes that wait for a core say nothing about the model.
        return [*notes, result.crowding]
    if result.train_s > NOTED_S and (note := on_processes(result, cores)):
        notes.append(note)
    return notes


def on_length(result: RunResult) -> str:
    """Return that a run was too short or too long for its samples that are not trained; else an empty string.

    A run that ended early, or has the weights of its best epoch, was to end so; one epoch has nothing to compare with.
    """
    history = result.history
    if len(history) < 2 or result.stopped:
        return ""
    name = "test" if history[-1].val_loss is None else "validation"
    held_out, at = [_held_out(epoch) for epoch in history], max(0, len(history) * 3 // 4 - 1)
    best = min(range(len(history)), key=lambda place: held_out[place][0])
    (lowest, _), (before, _), (last, _) = held_out[best], held_out[at], held_out[-1]
    number = history[-1].epoch
    if last > RISEN * lowest and _gain(held_out[best], held_out[-1]) <= 0.0 and result.weights_epoch == number:
        split = "--set validation_split=0.1 " if name == "test" else ""
        # While samples are learned by heart, the loss of training falls: a rate that is too high makes it rise too.
        has_left = history[-1].loss > RISEN * min(epoch.loss for epoch in history)
        return (
            f"the {name} loss was lowest in epoch {history[best].epoch} ({lowest:.4g}; {last:.4g} at the end): "
            + ("that of training has risen too, so try a lower --lr; " if has_left else "")
            + f"{split}--set keep_best=true would end with the weights of the best epoch"
        )
    if last > lowest or not _gain(held_out[at], held_out[-1]) > WORTHWHILE:
        return ""
    return (
        f"the {name} loss still falls ({before:.4g} in epoch {history[at].epoch}, {last:.4g} in epoch {number}): "
        f"{2 * len(history)} epochs, or twice as many steps, would train longer"
    )


def _held_out(epoch: EpochRecord) -> tuple[float, float | None]:
    """Return the loss, and the accuracy or R² if there is one, over the validation set, or else the test set.

    That of the training set always falls at the end of a schedule whose rate does.
    """
    if epoch.val_loss is not None:
        return epoch.val_loss, epoch.val_r2 if epoch.val_accuracy is None else epoch.val_accuracy
    return epoch.test_loss, epoch.test_r2 if epoch.test_accuracy is None else epoch.test_accuracy


def _gain(before: tuple[float, float | None], after: tuple[float, float | None]) -> float:
    """Return by how much an epoch is better than another: in accuracy or R², or else in the share of its loss."""
    (loss, score), (later_loss, later_score) = before, after
    if score is not None and later_score is not None:
        return later_score - score
    return 1.0 - later_loss / loss if loss > 0.0 else 0.0


def gain_of_one_more(measured: Measured, cores: int | None) -> float:
    """Return how many times as fast one more worker would make a run."""
    model, at = fitted([measured], cores=cores), measured.machines()
    # To those of one process each, another is added; other teams grow.
    hosts = at.hosts + 1 if at.hosts == at.workers and not at.is_local else at.hosts
    return model.step_s(at) / model.step_s(replace(at, workers=at.workers + 1, hosts=hosts))


def on_processes(result: RunResult, cores: int | None) -> str:
    """Return how long a single process and one more worker would have trained, with one verdict on both.

    Nothing is returned if the run was faster than a single process, and its steps were not timed. One more worker is
    worth it if it makes the faster of the run and a single process faster by at least half of the ideal gain.
    """
    measured, took_s = Measured.of(result), result.train_s
    # A single process would need the same computing and updates, without an exchange.
    single_s, more = result.compute_s + result.update_s, result.workers + 1
    is_single_faster, is_worth_it = single_s < took_s, False
    others = [f"a single process would take about {single_s:.1f} s"] if is_single_faster else []
    if measured is not None:
        more_s = took_s / gain_of_one_more(measured, cores)
        where = f" on {cores} cores" if cores is not None and cores < more else ""
        others.append(f"{more} workers{where} would take about {more_s:.1f} s")
        is_worth_it = min(single_s, took_s) / more_s - 1 >= 0.5 / result.workers
    if not others:
        return ""
    verdict = f"{more} workers are worth it" if is_worth_it else "not worth it"
    if is_single_faster and not is_worth_it:
        verdict = "workers are not worth it (use --workers 0)"
    return f"training took {took_s:.1f} s; for the same bits, {', and '.join(others)}: {verdict}"


def final_status(result: RunResult) -> Status:
    """Return the status of a finished run."""
    history = result.history
    return Status(
        run=result.run,
        model=result.model,
        phase=RunPhase.FINISHED.value,
        epoch=history[-1].epoch,
        epochs=result.epochs,
        step=result.steps,
        steps=result.steps,
        loss=result.train_loss,
        accuracy=history[-1].accuracy,
        r2=history[-1].r2,
        images_per_s=result.images_per_s,
        elapsed_s=history[-1].wall_s,
        min_workers=result.workers,
        history=history,
    )
