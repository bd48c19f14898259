"""The options with which a run is carried out: none of them changes its result."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from lockstep.common.errors import JobError
from lockstep.common.job.job import SHARE
from lockstep.common.runtime.environment import cores
from lockstep.common.transport.transports import DESCRIPTION, Transport

#: Most servers of a run.
SERVERS_LIMIT = 64


class RunOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a run. Each field's description is its help text.

    A job file and flags give them; the server, its recorder and its checkpoints use them; the welcome carries them to
    workers and shards. All of these share this record, so that a new option needs a field here, its name among the
    flags of a command, and the code that uses it.
    """

    workers: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            description="worker processes; 0: train in this process alone  [one per core; train: 0 if that is quicker]",
        ),
    ] = 1
    min_workers: (
        Annotated[
            int, Meta(ge=1, le=4096, description="workers to wait for; others may join later  [train: all, server: 1]")
        ]
        | None
    ) = None
    servers: Annotated[
        int, Meta(ge=1, le=SERVERS_LIMIT, description="server processes, each with a slice of the weights")
    ] = 1
    transport: Annotated[Transport, Meta(description=DESCRIPTION)] = "auto"
    max_restarts: Annotated[
        int, Meta(ge=0, le=10000, description="restarts of a process that dies again and again")
    ] = 3
    audit: Annotated[
        float,
        SHARE,
        Meta(
            ge=0.0,
            le=1.0,
            description="share of micro-batches that a second worker recomputes to compare the bits, as 1% or 0.01; "
            "train: each worker is then a team of one process",
        ),
    ] = 0.0
    audit_ends: Annotated[
        bool, Meta(description="end the run if the audit finds a worker that computes wrongly, instead of evicting it")
    ] = False
    ship_data: Annotated[bool, Meta(description="send samples to workers that do not have the data")] = False
    with_examples: Annotated[
        bool, Meta(description="keep a hundred samples of the validation set, or the test set, in the run's folder")
    ] = False
    checkpoint_keep: Annotated[
        int,
        Meta(ge=0, le=1000, description="newest checkpoints to keep, besides that of the best epoch; 0: write none"),
    ] = 2
    checkpoint_every_steps: (
        Annotated[int, Meta(ge=1, description="steps between checkpoints, besides one per epoch  [never]")] | None
    ) = None
    checkpoint_every_seconds: Annotated[
        float, Meta(ge=0.1, le=1e9, description="seconds between checkpoints within an epoch")
    ] = 60.0
    lease_timeout: Annotated[
        float, Meta(ge=0.1, le=1e9, description="seconds after which a micro-batch is given to another worker")
    ] = 60.0
    allow_mixed_numerics: Annotated[bool, Meta(description="admit workers on machines whose bits may differ")] = False
    pause: Annotated[bool, Meta(description="started by `fit`: wait for its callbacks between two epochs")] = False

    def least_workers(self) -> int:
        """Return how many workers the server waits for before it begins."""
        return self.min_workers or 1


#: Options of a server that its flags alone give: neither a job file nor the record of the run has them, so each server
#: that resumes the run is given them again.
OF_A_SERVER = ("lease_timeout", "allow_mixed_numerics", "pause")

#: The other options.
KEPT_OPTIONS = tuple(name for name in RunOptions.__struct_fields__ if name not in OF_A_SERVER)


def kept(options: RunOptions) -> dict[str, Any]:
    """Return the options that a job file may have, by name."""
    values: dict[str, Any] = msgspec.to_builtins(options)
    return {name: values[name] for name in KEPT_OPTIONS}


def check_options(options: RunOptions) -> RunOptions:
    """Return the options; `JobError` if two of them contradict each other."""
    if options.audit and options.allow_mixed_numerics:
        raise JobError(
            f"audit = {options.audit:g} with --allow-mixed-numerics: remove one; a worker whose numerics differ would "
            "be evicted although it computes as it should"
        )
    return options


def default_options() -> RunOptions:
    """Return the options that are used by default: one worker per core."""
    return RunOptions(workers=cores())
