"""Lockstep as estimators of scikit-learn: for pipelines, cross-validation and searches. Needs the extra `sklearn`.

from lockstep.sklearn import LockstepClassifier, LockstepRegressor
"""

from lockstep.runs.own_command import install_command, is_installed

if not is_installed("scikit-learn"):
    raise ModuleNotFoundError(
        f"lockstep.sklearn needs scikit-learn, which is not installed: {install_command('sklearn')}", name="sklearn"
    )

from lockstep.sklearn.estimators import LockstepClassifier, LockstepRegressor

__all__ = ["LockstepClassifier", "LockstepRegressor"]
