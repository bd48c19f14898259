"""Run all checks on a target, causes before what follows from them, and collect the findings."""

from collections.abc import Iterator
from dataclasses import dataclass

from lockstep.checking.checkup.checks.activations import check_activations, check_norms
from lockstep.checking.checkup.checks.backward_order import check_walk
from lockstep.checking.checkup.checks.data import check_balance, check_classes, check_samples
from lockstep.checking.checkup.checks.first_steps import check_first_loss, check_rate, check_workers, first_steps
from lockstep.checking.checkup.checks.gradients import check_gradients
from lockstep.checking.checkup.checks.initial_values import check_initial_values
from lockstep.checking.checkup.checks.magnitudes import signals_of
from lockstep.checking.checkup.finding import Finding, findings_lines, wrapped
from lockstep.checking.checkup.target import ExaminationTarget
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.runtime.clock import Clock
from lockstep.ps.setup import dry_run, two_samples


@dataclass(frozen=True)
class Examination:
    """The subject of an examination, and the findings."""

    subject: str
    findings: list[Finding]
    seconds: float

    @property
    def is_healthy(self) -> bool:
        return not self.findings

    @property
    def kinds(self) -> list[str]:
        """The kinds of the findings, in order."""
        return [finding.kind for finding in self.findings]

    def lines(self) -> list[str]:
        """Return the report, one finding below the other."""
        count = "1 finding" if len(self.findings) == 1 else f"{len(self.findings) or 'no'} findings"
        lines = wrapped("", f"{self.subject}: {count} in {self.seconds:.1f} s")
        return lines + findings_lines(self.findings)

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def outputs_of(target: ExaminationTarget) -> int:
    """Return the number of outputs per sample or token. Raises ModelError if the outputs have another shape.

    For classes, the number is checked later; for a regression, it has to equal the number of targets.
    """
    train, objective = target.data.train, target.objective
    shape = dry_run(AutogradModel(target.probe()), two_samples(target.data, 0))
    if objective.is_regression or shape[:-1] != (2, *train.labels.shape[1:]):
        objective.check_fit(train, shape)
    return shape[-1]


def examined(target: ExaminationTarget, clock: Clock, cores: int) -> Iterator[Finding]:
    """Yield the findings; checks that make no sense after earlier findings are skipped."""
    target.objective.check_labels(target.data.train, target.data.class_names)
    outputs = outputs_of(target)
    unfit: list[Finding] = []
    if not target.objective.is_regression:
        train, test = (target.objective.targets(part.labels) for part in (target.data.train, target.data.test))
        unfit = check_classes(train, test, outputs)
        yield from unfit
        yield from check_balance(train, test)
    yield from check_samples(target)
    yield from check_initial_values(target.model)
    wrong = check_walk(target.walk) or check_gradients(target)
    yield from wrong
    if unfit:
        return
    signals = signals_of(target, with_backward=not wrong)
    yield from check_activations(signals)
    yield from check_norms(signals)
    yield from check_first_loss(signals)
    if wrong or signals.nonfinite:
        return
    steps = first_steps(target, clock)
    yield from check_rate(target, steps, clock)
    yield from check_workers(target, steps, cores)
