"""All pictures of some runs, as files; what cannot be drawn is told and left out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from common.errors import UsageError
from lockstep.evaluation.assessment import Assessment, assess
from lockstep.reports.plots.attendance import read_attendance
from lockstep.reports.plots.course import RunCurves
from lockstep.reports.plots.learning import learning
from lockstep.reports.plots.results import answers, confusion_matrix, first_layer, worst_mistakes
from lockstep.reports.plots.style import save
from lockstep.reports.plots.throughput import throughput
from lockstep.reports.plots.timeline import timeline
from lockstep.runs.trained import Trained, open_trained


@dataclass(frozen=True)
class Subject:
    """One run; its weights are read, and tested, once they are needed."""

    folder: Path
    course: RunCurves

    @cached_property
    def trained(self) -> Trained:
        return open_trained(self.folder)

    @cached_property
    def assessment(self) -> Assessment:
        return assess(self.trained)

    def pictures(self) -> dict[str, Callable[[], Figure]]:
        """Return what can be drawn of one run, by the file's name."""
        makers = {
            "timeline": lambda: timeline(self.course, read_attendance(self.folder)),
            "confusion": lambda: confusion_matrix(self.assessment.confusion),
            "first_layer": lambda: first_layer(self.trained.model, self.assessment.dataset.sample_shape),
            "mistakes": lambda: worst_mistakes(self.assessment),
        }
        if self.course.is_regression:
            return {"timeline": makers["timeline"], "answers": lambda: answers(self.assessment)}
        return makers


def draw(subjects: Sequence[Subject], folder: Path) -> Iterator[str]:
    """Draw all pictures into a folder; yield a line on each, written or left out."""
    courses = [subject.course for subject in subjects]
    yield from _drawn(folder / "learning.png", lambda: learning(courses))
    yield from _drawn(folder / "throughput.png", lambda: throughput(courses))
    for subject in subjects:
        prefix = f"{subject.course.name}-" if len(subjects) > 1 else ""
        for name, make in subject.pictures().items():
            yield from _drawn(folder / f"{prefix}{name}.png", make)


def _drawn(path: Path, make: Callable[[], Figure]) -> Iterator[str]:
    try:
        figure = make()
    except UsageError as error:
        yield f"left out {path.name}: {error}"
        return
    save(figure, path)
    yield f"wrote {path}"
