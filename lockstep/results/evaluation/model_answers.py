"""The answers of a run's model so far: probabilities for a drawn digit, the confusion matrix, the worst mistakes.

Computed only on request, in a thread of this process, one after the other. The run is not asked for anything: the
weights are those of its last checkpoint, or its final ones.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.source import load
from lockstep.common.errors import UsageError
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.job.metrics import score_of
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.records.run_folder import CHECKPOINTS, WEIGHTS
from lockstep.results.evaluation.assessment import Assessment, assess
from lockstep.results.evaluation.figures import shown_names
from lockstep.results.evaluation.pictures import FIELD, Recognizer
from lockstep.results.evaluation.predictor import Predictor
from lockstep.runs.run_dir import recorded_job
from lockstep.runs.trained_model import Moment, dataset_of, description_of, has_data, open_trained

#: Worst mistakes that are shown.
MOST_MISTAKES = 24

#: Bytes of a file of data that is read to find out what its samples are; a dataset folder is only mapped.
MOST_DATA_BYTES = 2**28

#: Most classes of a confusion matrix that is sent.
MOST_CLASSES = 100


@dataclass
class ModelAnswers:
    """The model of one run, opened again when there are newer weights."""

    folder: Path
    _lock: Lock = field(default_factory=Lock)
    #: The weights that were opened last, and when they were written.
    _opened: tuple[Moment, int] | None = None
    #: Of these weights.
    _recognizer: Recognizer | None = None
    _evaluation: dict[str, Any] | None = None
    _drawing: dict[str, Any] | None = None

    def _newest(self) -> Moment:
        """Return the newest weights; `UsageError` before the first checkpoint."""
        steps = CheckpointFolder(self.folder / CHECKPOINTS).steps()
        if (self.folder / WEIGHTS).is_file():
            moment: Moment = "last"
            written = (self.folder / WEIGHTS).stat().st_mtime_ns
        elif steps:
            moment, written = steps[-1], 0
        else:
            raise UsageError("there are no weights yet: expected a checkpoint, which a run writes once per minute")
        if self._opened != (moment, written):
            self._opened, self._recognizer, self._evaluation = (moment, written), None, None
        return moment

    def drawing(self) -> dict[str, Any]:
        """Return whether the model was trained on images as a person can draw them, (1, 28, 28), and its classes."""
        with self._lock:
            if self._drawing is None:
                self._drawing = _drawing_of(self.folder)
            return self._drawing

    def probabilities(self, pixels: NDArray[np.float64]) -> dict[str, Any]:
        """Return what the model sees in an image (28, 28) from 0 to 1; `UsageError` if it has no answer to that."""
        with self._lock:
            moment = self._newest()
            if self._recognizer is None:
                recognizer = Recognizer.of(Predictor(open_trained(self.folder, moment)), centres=True)
                if recognizer.shape != (1, FIELD, FIELD):
                    raise UsageError(f"the model was trained on samples of shape {recognizer.shape}: expected 1x28x28")
                self._recognizer = recognizer
            image = np.broadcast_to(pixels, (3, FIELD, FIELD))
            return {"weights": str(moment), "probabilities": self._recognizer.probabilities(image).tolist()}

    def evaluation(self) -> dict[str, Any]:
        """Return how the model does on its test set; `UsageError` if that cannot be told."""
        with self._lock:
            moment = self._newest()
            if self._evaluation is None:
                self._evaluation = {"weights": str(moment), **_evaluated(assess(open_trained(self.folder, moment)))}
            return self._evaluation


def _drawing_of(folder: Path) -> dict[str, Any]:
    job = recorded_job(folder)
    path = Path(job.data)
    is_large = path.is_file() and path.stat().st_size > MOST_DATA_BYTES
    if kind_of(job.loss) is not LossKind.CLASSES or is_large:
        return {"is_possible": False, "names": []}
    data = description_of(folder, job)
    # People do not draw clothes with a finger: of data of this size, only MNIST will do, in any form.
    is_possible = [form.shape for form in data.inputs] == [(1, FIELD, FIELD)] and (
        job.data == "mnist"
        or (has_data(job) and np.array_equal(dataset_of(folder, job).test.labels, load("mnist").test.labels))
    )
    return {"is_possible": is_possible, "names": _names(data.class_names, data.classes)}


def _names(names: Sequence[str], classes: int) -> list[str]:
    return shown_names(names, classes) if classes <= MOST_CLASSES else []


def _evaluated(assessment: Assessment) -> dict[str, Any]:
    if assessment.objective.kind is not LossKind.CLASSES:
        raise UsageError("there are no classes of which one is right: `lockstep evaluate` reports the figures")
    confusion = assessment.confusion
    if len(confusion) > MOST_CLASSES:
        raise UsageError(f"a matrix of {len(confusion)} classes is too large to show: expected {MOST_CLASSES}")
    return {
        "loss": assessment.tally.loss,
        "accuracy": score_of(assessment.objective.metrics, assessment.tally).accuracy,
        "names": _names(assessment.class_names, len(confusion)),
        "counts": confusion.tolist(),
        "mistakes": _mistakes(assessment),
    }


def _mistakes(assessment: Assessment) -> list[dict[str, Any]]:
    """Return the mistakes of which the model is most certain, with their images if they are images."""
    dataset = assessment.dataset
    if dataset.images.ndim != 4 or dataset.labels.ndim != 1:
        return []
    found = []
    for index in assessment.surest_mistakes()[:MOST_MISTAKES].tolist():
        image = dataset.images[index].astype(np.float64).mean(axis=0)
        low, high = float(image.min()), float(image.max())
        gray = np.rint(255 * (image - low) / ((high - low) or 1.0)).astype(np.uint8)
        found.append(
            {
                "label": int(assessment.targets[index]),
                "predicted": int(assessment.outputs[index].argmax()),
                "height": gray.shape[0],
                "width": gray.shape[1],
                "gray": base64.b64encode(gray.tobytes()).decode(),
            }
        )
    return found
