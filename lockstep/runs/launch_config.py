"""How a job is carried out: nothing here changes the result."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common.runtime.environment import cores

Transport = Literal["auto", "shm", "ipc", "tcp"]


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Processes and transport of a run on this machine. Each field's description is its help text."""

    workers: Annotated[
        int, Meta(ge=0, le=1024, description="worker processes; 0 trains in this process alone  [one per core]")
    ] = 1
    min_workers: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=4096,
                description="ready workers to begin with; others may come later  [train: all, server: 1]",
            ),
        ]
        | None
    ) = None
    servers: Annotated[
        int, Meta(ge=1, le=64, description="server processes that share the weights, each with a slice  [1]")
    ] = 1
    transport: Annotated[
        Transport,
        Meta(
            description="what carries vectors: auto is shm for workers that see the server's memory, or else sockets; "
            "shm refuses others; ipc and tcp are sockets only"
        ),
    ] = "auto"
    max_restarts: Annotated[
        int,
        Meta(ge=0, le=10000, description="times in a row that a process which died is started again, with back-off"),
    ] = 3
    audit: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="share of the micro-batches that another worker computes again, to compare bits: 1% or 0.01",
        ),
    ] = 0.0
    ship_data: Annotated[
        bool, Meta(description="send workers that lack the data, or have other data, the samples of their leases")
    ] = False
    checkpoint_keep: Annotated[
        int,
        Meta(ge=0, le=1000, description="newest checkpoints that are kept, besides the best epoch's; 0: none at all"),
    ] = 2
    checkpoint_every_steps: (
        Annotated[int, Meta(ge=1, description="steps between checkpoints, besides those of epochs  [not by steps]")]
        | None
    ) = None
    checkpoint_every_seconds: Annotated[
        float, Meta(ge=0.1, le=1e9, description="seconds between checkpoints within an epoch")
    ] = 60.0


def default_launch() -> Launch:
    """Return what is used if nothing is said: one worker per core."""
    return Launch(workers=cores())
