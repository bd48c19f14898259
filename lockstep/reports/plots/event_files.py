"""Writes a run's course as TensorBoard's event files; the only file that imports tensorboardX, which is an extra."""

from pathlib import Path

from tensorboardX import SummaryWriter

from lockstep.reports.plots.course import RunCurves
from lockstep.reports.plots.throughput import parts_of

#: How the names of our files end.
SUFFIX = ".lockstep"


def write_events(course: RunCurves, folder: Path, began: float) -> None:
    """Write one run's figures into a folder of its own; `began` is when it did, in seconds since 1970.

    Training is by step. A test stands at the number of steps after which it was made. What an earlier call wrote there
    is replaced: TensorBoard would draw both as one line, to and fro.
    """
    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(folder), max_queue=1000, filename_suffix=SUFFIX) as writer:
        parts = parts_of(course)
        for place, step in enumerate(course.steps):
            at = began + float(course.seconds[place])
            figures = {
                "loss/train": step.loss,
                **_score("train", step.accuracy, step.r2),
                "learning_rate": step.lr,
                "throughput/samples_per_s": step.samples / step.round_s if step.round_s else 0.0,
                **{f"step_ms/{name}": 1e3 * float(values[place]) for name, values in parts.items()},
            }
            for tag, value in figures.items():
                writer.add_scalar(tag, value, step.step, walltime=at)
        for epoch in course.epochs:
            at, after = began + epoch.wall_s, course.ends.get(epoch.epoch, 0)
            figures = {"loss/test": epoch.test_loss, **_score("test", epoch.test_accuracy, epoch.test_r2)}
            if epoch.val_loss is not None:
                figures |= {"loss/validation": epoch.val_loss, **_score("validation", epoch.val_accuracy, None)}
            for tag, value in figures.items():
                writer.add_scalar(tag, value, after, walltime=at)


def _score(part: str, accuracy: float | None, r2: float | None) -> dict[str, float]:
    return {f"{name}/{part}": value for name, value in (("accuracy", accuracy), ("r2", r2)) if value is not None}
