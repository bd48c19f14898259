"""The facts about a run that hold from its start to its end."""

from collections.abc import Sequence
from functools import cached_property

from lockstep.common.files.sanitize import one_line
from lockstep.common.job.metrics import Guess, Metrics
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import NAME_LIMIT, RunFacts, Welcome
from lockstep.ps.run.description import DataDescription
from lockstep.ps.run.plan import Plan


class RunInfo(RunFacts, frozen=True, kw_only=True, dict=True):
    """The constants of one run."""

    plan: Plan
    training_samples: int
    fingerprint: Fingerprint
    #: The data without its samples.
    data: DataDescription | None = None
    #: Labels, or numbers, of one sample: they are what tallies count.
    targets: int = 1
    #: The guess that R² is measured by; None without R².
    guess: Guess | None = None
    #: Refuse workers that do not share the memory.
    needs_memory: bool = False

    @cached_property
    def metrics(self) -> Metrics:
        """The figures that are counted besides the loss."""
        return Metrics.of(self.job.loss, self.job.metrics or ())

    def welcome(self, rank: int, *, shards: Sequence[str] = ()) -> Welcome:
        """Return the welcome of a worker; `shards` are the addresses of other servers, in the order of their slices."""
        facts = {name: getattr(self, name) for name in RunFacts.__struct_fields__}
        facts["run"] = one_line(self.run, NAME_LIMIT)
        if not self.options.allow_mixed_numerics:
            facts["engine"] = one_line(self.fingerprint.engine, NAME_LIMIT)
            facts["evidence"] = self.fingerprint.evidence
        return Welcome(rank=rank, shards=list(shards), **facts)
