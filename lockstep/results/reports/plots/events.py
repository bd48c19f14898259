"""The curves of a run as event files of TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lockstep.results.reports.plots.curves import RunCurves, parts_of

#: The suffix of our event files.
SUFFIX = ".lockstep"


def write_events(curves: RunCurves, folder: Path, start: float) -> None:
    """Write the figures of one run into a folder of its own; `start` is its beginning in seconds since 1970.

    Training figures are by step, and evaluations at the number of steps before them. Replaces the files of an earlier
    call, since TensorBoard would draw both as one zigzag line.
    """
    # Imported here, since the extra may not be installed.
    from tensorboardX import SummaryWriter

    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(folder), max_queue=1000, filename_suffix=SUFFIX) as writer:
        seconds, steps = curves.steps["round_s"], curves.steps["step"].astype(int).tolist()
        scores = [name for name in ("accuracy", "r2", *curves.steps.others) if curves.has(name)]
        columns = {
            "loss/train": curves.steps["loss"],
            **{f"{name}/train": curves.steps[name] for name in scores},
            "learning_rate": curves.steps["lr"],
            "throughput/samples_per_s": np.divide(
                curves.steps["samples"], seconds, out=np.zeros(len(steps)), where=seconds > 0
            ),
            **{f"step_ms/{name}": 1e3 * values for name, values in parts_of(curves.steps).items()},
        }
        ended_s = curves.seconds
        for place, step in enumerate(steps):
            for tag, values in columns.items():
                writer.add_scalar(tag, float(values[place]), step, walltime=start + float(ended_s[place]))
        ends = curves.ends
        for epoch in curves.epochs:
            at, after = start + epoch.wall_s, ends.get(epoch.epoch, 0)
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
