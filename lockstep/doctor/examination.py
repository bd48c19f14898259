"""All checks over one patient, in the order in which mistakes cause one another, and what they found."""

from collections.abc import Iterator
from dataclasses import dataclass

from common.runtime.clock import Clock
from lockstep.doctor.checks.activations import check_activations
from lockstep.doctor.checks.first_loss import check_first_loss
from lockstep.doctor.checks.first_steps import check_rate, first_steps
from lockstep.doctor.checks.gradients import check_gradients
from lockstep.doctor.checks.initial_values import check_initial_values
from lockstep.doctor.checks.labels import check_balance, check_classes
from lockstep.doctor.checks.norms import check_norms
from lockstep.doctor.checks.samples import check_samples
from lockstep.doctor.checks.signals import signals_of
from lockstep.doctor.checks.walk import check_walk
from lockstep.doctor.checks.workers import check_workers
from lockstep.doctor.finding import Finding
from lockstep.doctor.report import findings_lines, wrapped
from lockstep.doctor.target import ExaminationTarget
from ps.setup import dry_run, two_samples


@dataclass(frozen=True)
class Examination:
    """What was examined, and what was found."""

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
        """Return the report, a finding below the other."""
        many = "1 finding" if len(self.findings) == 1 else f"{len(self.findings) or 'no'} findings"
        lines = wrapped("", f"{self.subject}: {many} in {self.seconds:.1f} s")
        return lines + findings_lines(self.findings)

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def outputs_of(patient: ExaminationTarget) -> int:
    """Return the number of the model's outputs for a sample, or a token; `ModelError` where they are of another form.

    Of classes their number is left to be looked at; that of a regression's targets has to fit.
    """
    train, objective = patient.data.train, patient.objective
    shape = dry_run(patient.probe(), two_samples(patient.data, 0))
    if objective.is_regression or shape[:-1] != (2, *train.labels.shape[1:]):
        objective.check_fit(train, shape)
    return shape[-1]


def examined(patient: ExaminationTarget, clock: Clock, cores: int) -> Iterator[Finding]:
    """Yield the findings, causes before what follows from them; what the findings leave without sense is left out."""
    patient.objective.check_labels(patient.data.train)
    outputs = outputs_of(patient)
    unfit: list[Finding] = []
    if not patient.objective.is_regression:
        train, test = (patient.objective.targets(part.labels) for part in (patient.data.train, patient.data.test))
        unfit = check_classes(train, test, outputs)
        yield from unfit
        yield from check_balance(train, test)
    yield from check_samples(patient)
    yield from check_initial_values(patient.model)
    wrong = check_walk(patient.walk) or check_gradients(patient)
    yield from wrong
    if unfit:
        return
    signals = signals_of(patient, walks_back=not wrong)
    yield from check_activations(signals)
    yield from check_norms(signals)
    yield from check_first_loss(signals)
    if wrong or signals.nonfinite:
        return
    steps = first_steps(patient, clock)
    yield from check_rate(patient, steps, clock)
    yield from check_workers(patient, steps, cores)
