"""What is known of a run from its start to its end, and does not change."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lockstep.common.data.manifest import Manifest
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import Metrics
from lockstep.common.job.score import Guess
from lockstep.common.model.files import ModelFile
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import DEFAULT_TAKEOVER_S, NAME_LIMIT, NO_TERM, StandbyAddress, Term, Welcome
from lockstep.ps.run.plan import Plan


@dataclass(frozen=True, kw_only=True)
class AdmissionPolicy:
    """Which workers, and which servers, a run admits, and how it treats them."""

    #: Ready workers to begin with.
    min_workers: int = 1
    #: Seconds after which any lease expires.
    lease_timeout_s: float = 60.0
    #: Admit workers whose numerics differ, and with them other bits.
    allows_mixed_numerics: bool = False
    #: Servers that share the weights.
    servers: int = 1
    #: Before each epoch but the first, wait for what callbacks decide.
    pauses: bool = False
    #: The share of micro-batches that a second worker computes again.
    audit: float = 0.0
    #: Whether a worker that computes wrongly ends the run, which otherwise goes on without it.
    audit_ends: bool = False
    #: Whether workers sign their results.
    signed: bool = False
    #: Whether workers that lack the data are sent the samples of their leases.
    ships_data: bool = False
    #: Seconds of the server's silence after which workers go to a standby.
    takeover_s: float = DEFAULT_TAKEOVER_S
    #: The server's machine: workers on it are gone with it. Empty if nobody knows.
    machine: str = ""


@dataclass(frozen=True, kw_only=True)
class RunInfo(AdmissionPolicy):
    """The constants of one run, with whom it admits."""

    run: str
    job: Job
    plan: Plan
    training_samples: int
    layout: str
    dataset: str
    #: The digest of the model's own files, and these with theirs; both empty for a model of the library.
    source: str
    model_files: Sequence[ModelFile] = ()
    fingerprint: Fingerprint
    #: Labels, or numbers, of one sample: they are what tallies count.
    targets: int = 1
    #: Where the run keeps a copy of the model's files, empty if workers are not told.
    model_folder: str = ""
    #: Sums of metrics in each tally.
    metric_sums: int = 0
    #: What R² is measured by; None without it.
    guess: Guess | None = None
    #: What names the run in signatures, empty if results are not signed.
    signed_run: str = ""
    #: The folder of memory that workers on this machine may share, empty if there is none.
    memory: str = ""
    #: Refuse workers, and other servers, that do not share it.
    needs_memory: bool = False
    #: Of the data, if its samples are sent to workers that do not have it.
    manifest: Manifest | None = None
    #: Of the training set, if workers need not compute them.
    moments: tuple[float, float] | None = None
    #: Values of the vectors that are sent.
    size: int = 0
    #: In which the server leads the run.
    term: Term = NO_TERM

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted besides the loss."""
        return Metrics.of(self.job.loss, self.job.metrics or ())

    def welcome(
        self,
        rank: int,
        *,
        shards: Sequence[str] = (),
        offers_memory: bool = True,
        standbys: tuple[StandbyAddress, ...] = (),
    ) -> Welcome:
        """Return the welcome of a worker; `shards` are the addresses of other servers, in the order of their slices."""
        return Welcome(
            rank=rank,
            run=one_line(self.run, NAME_LIMIT),
            job=self.job,
            layout=self.layout,
            dataset=self.dataset,
            source=self.source,
            model_files=list(self.model_files),
            model_folder=self.model_folder,
            memory=self.memory if offers_memory else "",
            shards=list(shards),
            manifest=self.manifest,
            engine="" if self.allows_mixed_numerics else one_line(self.fingerprint.engine, NAME_LIMIT),
            evidence="" if self.allows_mixed_numerics else self.fingerprint.evidence,
            moments=self.moments,
            size=self.size,
            metric_sums=self.metric_sums,
            signed_run=self.signed_run,
            term=self.term,
            standbys=standbys,
            takeover_s=self.takeover_s,
        )
