"""The figures of an assessment, as lines for people and as a record for programs."""

from typing import Any

import numpy as np

from lockstep.common.job.losses import LossKind
from lockstep.common.job.metrics import NOTHING_EXPLAINED, Score, explained, score_of
from lockstep.results.evaluation.assessment import Assessment
from lockstep.results.evaluation.figures import (
    class_figures,
    class_lines,
    label_figures,
    label_lines,
    matrix_lines,
    target_lines,
)


def record_of(tested: Assessment) -> dict[str, Any]:
    """Return the figures for programs."""
    others = dict(score(tested).others)
    named = {"metrics": others} if others else {}
    return {"test_loss": tested.tally.loss, **figures(tested), **named, "samples": len(tested.dataset)}


def score(tested: Assessment) -> Score:
    """Return the metrics of the run's job over the test set."""
    objective = tested.objective
    return score_of(objective.metrics, tested.tally, objective.guess(tested.dataset))


def figures(tested: Assessment) -> dict[str, Any]:
    """Return the figures that only a classifier has, or only a regression."""
    if tested.objective.is_regression:
        return {"test_r2": explained(r2_of(tested)), "targets": tested.fit}
    if tested.objective.kind is LossKind.OWN and not tested.has_classes:
        return {**scored(score(tested)), **({"targets": tested.fit} if tested.has_numbers else {})}
    if tested.objective.kind is LossKind.LABELS:
        return {"test_accuracy": score(tested).accuracy, "labels": label_figures(tested.outputs, tested.targets)}
    confusion = tested.confusion
    return {
        "test_accuracy": score(tested).accuracy,
        "class_names": list(tested.class_names) or [str(label) for label in range(len(confusion))],
        "classes": class_figures(confusion),
        "confusion": confusion.tolist(),
    }


def scored(found: Score) -> dict[str, float | None]:
    """Return accuracy and R² as far as the run has them: R² is None if all targets are equal."""
    accuracy = {} if found.accuracy is None else {"test_accuracy": found.accuracy}
    return {**accuracy, **({} if found.r2 is None else {"test_r2": explained(found.r2)})}


def lines(tested: Assessment, dataset: str, digest: str) -> list[str]:
    """Return the figures for a person."""
    tally, samples = tested.tally, f"{len(tested.dataset):,} samples of {dataset}"
    found = score(tested)
    others = [f"{'test ' + name:<14} {value:.4f}{_unit(name, tested)}" for name, value in found.others.items()]
    below = [f"test loss      {tally.loss:.4f}", *others, f"weights sha256 {digest}", ""]
    if tested.objective.is_regression:
        return [f"test R²        {Score(None, r2_of(tested)).text()} over {samples}", *below, *target_lines(tested.fit)]
    if tested.objective.kind is LossKind.OWN:
        named = [f"test {found.name:<9} {found.text()}"] if found.name else []
        own = [f"test loss      {tally.loss:.4f} over {samples}", *named, *below[1:-1]]
        if tested.has_numbers:
            return [*own, "", *target_lines(tested.fit)]
        return [*own, "", *_lines_by_class(tested)] if tested.has_classes else own
    if tested.objective.kind is LossKind.LABELS:
        counted = f"{tally.count:,} labels of {samples}"
        shown = label_lines(label_figures(tested.outputs, tested.targets))
        return [f"test accuracy  {found.text()} of {counted}", *below, *shown]
    judged = tally.count - tally.ignored
    counted = samples if judged == len(tested.dataset) else f"{judged:,} positions in {samples}"
    return [f"test accuracy  {found.text()} of {counted}", *below, *_lines_by_class(tested)]


def _unit(name: str, tested: Assessment) -> str:
    """Return in what an error is counted that is not in the units of the table, as those of each target are."""
    is_scaled = not tested.objective.job.target_scale and any(column.std != 1.0 for column in tested.columns)
    return " deviations of the target" if name in ("mae", "rmse") and is_scaled else ""


def _lines_by_class(tested: Assessment) -> list[str]:
    """Return the figures of each class, and which classes are confused."""
    confusion = tested.confusion
    matrix = matrix_lines(confusion, tested.class_names)
    return [*class_lines(class_figures(confusion), tested.class_names), *(["", *matrix] if matrix else [])]


def r2_of(tested: Assessment) -> float:
    """Return R² over all targets, as a run's own evaluation has it if its loss is the mean squared error."""
    found = score(tested).r2
    if found is not None:
        return found
    targets = tested.targets.astype(np.float64)
    total = float(np.square(targets - targets.mean(axis=0)).sum())
    return 1.0 - float(np.square(tested.outputs - targets).sum()) / total if total else NOTHING_EXPLAINED
