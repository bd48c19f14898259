"""Rows of the benches of scaling and of hosts, by hand: 80 ms of computing per step, and 20 ms of sleep."""

from typing import Any

import msgspec

from lockstep.bench.exchange import HostsRow
from lockstep.bench.scaling import ScalingRow
from lockstep.ps.run.progress import Split


def scaling_row(workers: int, exchange_s: float, batch: int = 64, **values: Any) -> ScalingRow:
    """Return a row of weak scaling, or as `values` say."""
    made = ScalingRow(
        model="mlp",
        scaling="weak",
        batch=batch,
        workers=workers,
        servers=1,
        transport="auto",
        carrier="shm",
        global_batch=batch * workers,
        micro_batches=4 * workers,
        parameters=1_000_000,
        cores=2,
        steps=300,
        ms_per_step=100.0,
        images_per_s=batch * workers / 0.1,
        split=Split(steps=150, compute_s=0.080, exchange_s=exchange_s, update_s=0.006, waiting_s=0.0),
        of_one_worker=None,
        ceiling_images_per_s=1000.0 * workers,
        of_ceiling=0.8,
        weights_sha256="ab",
        peer=None,
    )
    return msgspec.structs.replace(made, **values)


def hosts_row(hosts: int, server_ms: float, **values: Any) -> HostsRow:
    """Return a row of hosts that work 2 ms per step, of which the update takes the server 0.5 ms."""
    made = HostsRow(
        parameters=535_818,
        hosts=hosts,
        servers=1,
        sleep_s=0.02,
        cores=2,
        steps=300,
        ms_per_step=30.0,
        ms_spread=(29.0, 33.0),
        server_ms=server_ms,
        worker_ms=2.0,
        socket_bytes=8.0 * 535_818 * hosts,
        split=Split(steps=150, compute_s=0.022, exchange_s=0.005, update_s=0.0005, waiting_s=0.0),
    )
    return msgspec.structs.replace(made, **values)
