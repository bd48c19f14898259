"""The facts about a run that hold from its start to its end."""

from collections.abc import Sequence
from functools import cached_property

import msgspec

from lockstep.common.data.manifest import Manifest
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import Guess, Metrics
from lockstep.common.model.files import ModelFile
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import NAME_LIMIT, NO_TERM, StandbyAddress, Term, Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.run.description import DataDescription
from lockstep.ps.run.plan import Plan


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The constants of one run."""

    run: str
    job: Job
    options: RunOptions
    plan: Plan
    training_samples: int
    layout: str
    dataset: str
    #: The digest of the model's own files, and these with theirs; both empty for a model of the library.
    source: str
    model_files: Sequence[ModelFile] = ()
    fingerprint: Fingerprint
    #: The data without its samples.
    data: DataDescription | None = None
    #: Labels, or numbers, of one sample: they are what tallies count.
    targets: int = 1
    #: The folder with the run's copy of the model's files, empty if workers do not learn it.
    model_folder: str = ""
    #: Sums of metrics in each tally.
    metric_sums: int = 0
    #: The guess that R² is measured by; None without R².
    guess: Guess | None = None
    #: The run's name in signatures, empty if results are not signed.
    signed_run: str = ""
    #: The folder of memory that workers on this machine may share, empty without such a folder.
    memory: str = ""
    #: Refuse workers that do not share it.
    needs_memory: bool = False
    #: Of the data, if its samples are sent to workers that do not have it.
    manifest: Manifest | None = None
    #: Of the training set, if workers need not compute them.
    moments: tuple[float, float] | None = None
    #: Values of the vectors that are sent.
    size: int = 0
    #: In which the server leads the run.
    term: Term = NO_TERM
    #: The server's machine, whose workers are gone if it is. Empty if it is not known.
    machine: str = ""

    @cached_property
    def metrics(self) -> Metrics:
        """The figures that are counted besides the loss."""
        return Metrics.of(self.job.loss, self.job.metrics or ())

    def welcome(
        self,
        rank: int,
        *,
        shards: Sequence[str] = (),
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
            memory=self.memory,
            shards=list(shards),
            manifest=self.manifest,
            engine="" if self.options.allow_mixed_numerics else one_line(self.fingerprint.engine, NAME_LIMIT),
            evidence="" if self.options.allow_mixed_numerics else self.fingerprint.evidence,
            moments=self.moments,
            size=self.size,
            metric_sums=self.metric_sums,
            signed_run=self.signed_run,
            term=self.term,
            standbys=standbys,
            options=self.options,
        )
