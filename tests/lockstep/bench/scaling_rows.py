"""Rows of the bench of scaling, by hand: 80 ms of computing per step, or hosts that sleep for 20 ms."""

from typing import Any

import msgspec

from lockstep.bench.scaling import ScalingRow
from lockstep.bench.timed_run import StepProcessorTime
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


def hosts_row(hosts: int, server_ms: float, ms_per_step: float = 30.0, **values: Any) -> ScalingRow:
    """Return a row of hosts that work 2 ms per step, of which the update takes the server 0.5 ms."""
    made: dict[str, Any] = {
        "model": "sleep",
        "sleep_s": 0.02,
        "teams": hosts,
        "transport": "tcp",
        "carrier": "tcp",
        "micro_batches": hosts,
        "parameters": 535_818,
        "ms_per_step": ms_per_step,
        "ms_spread": (29.0, 33.0),
        "images_per_s": hosts / ms_per_step * 1e3,
        "processors": StepProcessorTime(server_ms=server_ms, leader_ms=2.0, process_ms=None),
        "socket_bytes": 8.0 * 535_818 * hosts,
        "split": Split(steps=150, compute_s=0.022, exchange_s=0.005, update_s=0.0005, waiting_s=0.0),
    }
    return scaling_row(hosts, 0.005, batch=1, **made | values)
