"""Writes a run's course as TensorBoard's event files; the only file that imports tensorboardX, which is an extra."""

from pathlib import Path

from tensorboardX import SummaryWriter

from lockstep.plots.course import Course
from lockstep.plots.throughput import parts_of


def write_events(course: Course, folder: Path, began: float) -> None:
    """Write one run's figures into a folder of its own; `began` is when it did, in seconds since 1970.

    Training is by step. A test stands at the number of steps after which it was made.
    """
    with SummaryWriter(str(folder), max_queue=1000) as writer:
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
            writer.add_scalar("loss/test", epoch.test_loss, after, walltime=at)
            for tag, value in _score("test", epoch.test_accuracy, epoch.test_r2).items():
                writer.add_scalar(tag, value, after, walltime=at)


def _score(part: str, accuracy: float | None, r2: float | None) -> dict[str, float]:
    return {f"{name}/{part}": value for name, value in (("accuracy", accuracy), ("r2", r2)) if value is not None}
