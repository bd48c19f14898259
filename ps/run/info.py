"""What is known of a run from its start to its end."""

from dataclasses import dataclass

from common.data.manifest import Manifest
from common.files.sanitize import one_line
from common.job.job import Job
from common.job.score import Guess
from common.protocol.messages import NAME_LIMIT, Welcome
from common.protocol.numerics import Fingerprint
from ps.run.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The facts of one run."""

    run: str
    job: Job
    plan: Plan
    training_samples: int
    layout: str
    dataset: str
    source: str
    fingerprint: Fingerprint
    #: Classes, or numbers, of one sample: they are what tallies count.
    targets: int = 1
    #: What a regression's R² is measured by; None where there are classes.
    guess: Guess | None = None
    #: Ready workers to begin with.
    min_workers: int = 1
    #: Seconds after which a piece is given to another worker.
    lease_timeout_s: float = 60.0
    #: Admit workers whose numerics differ, and with them other bits.
    allows_mixed_numerics: bool = False
    #: The folder of memory that workers on this machine may share, empty where there is none.
    memory: str = ""
    #: Turn away workers, and other servers, that do not share it.
    needs_memory: bool = False
    #: Before each epoch but the first, wait for the word to go on: callbacks have a say.
    pauses: bool = False
    #: Servers that share the weights.
    servers: int = 1
    #: Where the others are reached, in the order of their slices: known once they are there.
    shards: tuple[str, ...] = ()
    #: The share of micro-batches that another worker computes again.
    audit: float = 0.0
    #: Of the data, where its samples are sent to workers that do not have it.
    manifest: Manifest | None = None

    def welcome(self, rank: int) -> Welcome:
        """Return what a worker is told when it gets its place."""
        return Welcome(
            rank=rank,
            run=one_line(self.run, NAME_LIMIT),
            job=self.job,
            layout=self.layout,
            dataset=self.dataset,
            source=self.source,
            memory=self.memory,
            shards=list(self.shards),
            manifest=self.manifest,
        )
