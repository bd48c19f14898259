"""Check that the samples have a size that suits training: a mean near 0 and a deviation of about 1."""

import numpy as np

from lockstep.checking.checkup.checks.magnitudes import SAMPLES
from lockstep.checking.checkup.finding import Finding
from lockstep.checking.checkup.target import ExaminationTarget
from lockstep.common.autograd.primitives.primitive import Array

#: Deviations and means that need no normalisation; bytes divided by 255 are well within.
LEAST_DEVIATION, MOST_DEVIATION, MOST_MEAN = 0.02, 10.0, 10.0

#: The largest deviation of one feature, as a multiple of the median deviation.
MOST_OF_A_FEATURE = 100.0


def check_samples(target: ExaminationTarget) -> list[Finding]:
    """Return whether the samples that the model receives are not normalised."""
    images, _ = target.batch(0, SAMPLES)
    if target.data.train.is_tokens:
        return []
    mean, deviation = float(np.mean(images, dtype=np.float64)), float(np.std(images, dtype=np.float64))
    if deviation == 0:
        return [_constant(mean)]
    if not LEAST_DEVIATION <= deviation <= MOST_DEVIATION or abs(mean) > MOST_MEAN:
        return [_not_normalised(mean, deviation, target.job.normalize)]
    return _uneven(images) if images.ndim == 2 else []


def _constant(value: float) -> Finding:
    return Finding(
        kind="data",
        what="all samples are the same",
        evidence=f"each value is {value:.4g}",
        cause="the data was not read, or was lost in a conversion, as when small numbers are cast to integers",
        change="inspect the arrays before they are passed or saved",
    )


def _not_normalised(mean: float, deviation: float, is_normalised: bool) -> Finding:
    return Finding(
        kind="data",
        what="the data is not normalised",
        evidence=f"the values that the model receives have mean {mean:.4g} and deviation {deviation:.4g}",
        cause="normalize = false passes them unchanged: gradients grow with them, and no rate suits all layers"
        if not is_normalised
        else "these samples are far from the rest of the training set",
        change="set normalize = true, or subtract the mean and divide by the deviation",
    )


def _uneven(features: Array) -> list[Finding]:
    deviations = np.std(features, axis=0, dtype=np.float64)
    varying = deviations[deviations > 0]
    if not varying.size:
        return []
    median, largest = float(np.median(varying)), int(deviations.argmax())
    if deviations[largest] <= MOST_OF_A_FEATURE * median:
        return []
    return [
        Finding(
            kind="data",
            what="the features have very different sizes",
            evidence=f"feature {largest} has deviation {deviations[largest]:.3g}, the median feature {median:.3g}",
            cause="normalize uses one mean and one deviation for all features, so the largest drowns the others",
            change="standardize each feature (mean 0, deviation 1) before the arrays are passed or saved",
        )
    ]
