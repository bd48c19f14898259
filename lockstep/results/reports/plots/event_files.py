"""Write the curves of a run as event files of TensorBoard; the only file that imports tensorboardX, an extra."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from lockstep.results.reports.plots.curves import RunCurves, parts_of

#: The suffix of our files.
SUFFIX = ".lockstep"


def write_events(curves: RunCurves, folder: Path, start: float) -> None:
    """Write the figures of one run into a folder of its own; `start` is its beginning in seconds since 1970.

    Training figures are by step, and evaluations at the number of steps before them. Replaces the files of an earlier
    call, since TensorBoard would draw both as one zigzag line.
    """
    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(folder), max_queue=1000, filename_suffix=SUFFIX) as writer:
        parts = parts_of(curves.column)
        for place, step in enumerate(curves.steps):
            at = start + float(curves.seconds[place])
            figures = {
                "loss/train": step.loss,
                **_score("train", step.accuracy, step.r2, step.metrics),
                "learning_rate": step.lr,
                "throughput/samples_per_s": step.samples / step.round_s if step.round_s else 0.0,
                **{f"step_ms/{name}": 1e3 * float(values[place]) for name, values in parts.items()},
            }
            for tag, value in figures.items():
                writer.add_scalar(tag, value, step.step, walltime=at)
        for epoch in curves.epochs:
            at, after = start + epoch.wall_s, curves.ends.get(epoch.epoch, 0)
            figures = {
                "loss/test": epoch.test_loss,
                **_score("test", epoch.test_accuracy, epoch.test_r2, epoch.of_set("test_")),
            }
            if epoch.val_loss is not None:
                figures |= {
                    "loss/validation": epoch.val_loss,
                    **_score("validation", epoch.val_accuracy, epoch.val_r2, epoch.of_set("val_")),
                }
            for tag, value in figures.items():
                writer.add_scalar(tag, value, after, walltime=at)


def _score(
    part: str, accuracy: float | None, r2: float | None, metrics: Mapping[str, float] | None
) -> dict[str, float]:
    named = {"accuracy": accuracy, "r2": r2, **(metrics or {})}
    return {f"{name}/{part}": value for name, value in named.items() if value is not None}
