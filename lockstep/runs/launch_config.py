"""How a job is carried out: nothing here changes the result."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lockstep.common.runtime.environment import cores
from lockstep.common.transport.transports import DESCRIPTION, Transport


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Processes and transport of a run on this machine. Each field's description is its help text."""

    workers: Annotated[
        int, Meta(ge=0, le=1024, description="worker processes; 0: train in this process alone  [one per core]")
    ] = 1
    min_workers: (
        Annotated[
            int, Meta(ge=1, le=4096, description="workers to wait for; others may join later  [train: all, server: 1]")
        ]
        | None
    ) = None
    servers: Annotated[int, Meta(ge=1, le=64, description="server processes, each with a slice of the weights")] = 1
    transport: Annotated[Transport, Meta(description=DESCRIPTION)] = "auto"
    max_restarts: Annotated[
        int, Meta(ge=0, le=10000, description="restarts of a process that dies again and again")
    ] = 3
    audit: Annotated[
        float,
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
    standby: Annotated[
        bool, Meta(description="also run a standby, which mirrors the run and leads it if the server dies")
    ] = False
    takeover_seconds: Annotated[
        float, Meta(ge=0.1, le=3600.0, description="silence of the server after which its workers go to a standby")
    ] = 5.0
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


def default_launch() -> Launch:
    """Return the launch that is used by default: one worker per core."""
    return Launch(workers=cores())
