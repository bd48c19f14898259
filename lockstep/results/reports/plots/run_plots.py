"""Plot runs into files, and report which plots are left out."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
from matplotlib.figure import Figure

from lockstep.common.errors import UsageError
from lockstep.results.evaluation.assessment import Assessment, assess
from lockstep.results.reports.plots.curves import RunCurves
from lockstep.results.reports.plots.results import confusion_matrix, first_layer, regression_outputs, worst_mistakes
from lockstep.results.reports.plots.style import save
from lockstep.results.reports.plots.timeline import timeline
from lockstep.results.reports.plots.training import learning, throughput
from lockstep.results.reports.plots.worker_timeline import read_timeline
from lockstep.runs.trained_model import Trained, open_trained


class Subject(msgspec.Struct, frozen=True, dict=True):
    """One run, whose weights are read and evaluated when they are needed."""

    folder: Path
    curves: RunCurves

    @cached_property
    def trained(self) -> Trained:
        return open_trained(self.folder)

    @cached_property
    def assessment(self) -> Assessment:
        return assess(self.trained)

    def plots(self) -> dict[str, Callable[[], Figure]]:
        """Return the plots of one run by the names of their files."""
        makers = {
            "timeline": lambda: timeline(self.curves, read_timeline(self.folder)),
            "confusion": lambda: confusion_matrix(self.assessment.confusion),
            "first_layer": lambda: first_layer(self.trained.arrays(), self.assessment.dataset.sample_shape),
            "mistakes": lambda: worst_mistakes(self.assessment),
        }
        if self.curves.is_regression:
            return {"timeline": makers["timeline"], "answers": lambda: regression_outputs(self.assessment)}
        return makers


def plot_runs(subjects: Sequence[Subject], folder: Path) -> Iterator[str]:
    """Write all plots into a folder; yield a line about each, written or left out."""
    runs = [subject.curves for subject in subjects]
    yield from _written(folder / "learning.png", lambda: learning(runs))
    yield from _written(folder / "throughput.png", lambda: throughput(runs))
    for subject in subjects:
        prefix = f"{subject.curves.name}-" if len(subjects) > 1 else ""
        for name, make in subject.plots().items():
            yield from _written(folder / f"{prefix}{name}.png", make)


def _written(path: Path, make: Callable[[], Figure]) -> Iterator[str]:
    try:
        figure = make()
    except UsageError as error:
        yield f"left out {path.name}: {error}"
        return
    save(figure, path)
    yield f"wrote {path}"
