"""Run folders written by hand, as a server leaves them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.ledger import LedgerEntry, LedgerShare, RunBegun, StepDone, UnusedWork, WorkerIn
from lockstep.ps.records.metrics import StepRecord
from lockstep.ps.records.run_folder import RunFolder


def write_steps(
    folder: Path,
    steps: Sequence[int],
    loss: float = 2.0,
    validation: tuple[float, float] | None = None,
    score: str = "accuracy",
) -> None:
    """Append the figures of steps of 4 to an epoch, each of half a second, and of each epoch that they end.

    An empty `score` leaves it out. `validation` are loss and score of a validation set, in a run that has one.
    """
    chosen_by = {} if validation is None else dict(zip(("val_loss", f"val_{score}"), validation, strict=True))
    scored: dict[str, Any] = {score: 0.5} if score else {}
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    for step in steps:
        run.add_record(
            StepRecord(
                epoch=step // 4 + 1,
                step=step,
                loss=loss / (step + 1),
                lr=0.1,
                samples=8,
                round_s=0.5,
                mean_s=0.2,
                slowest_s=0.3,
                update_s=0.1,
                **scored,
            )
        )
        if step % 4 == 3:
            test = {"test_loss": 0.25, "wall_s": 3.0, **{f"test_{name}": 0.75 for name in scored}}
            figures: dict[str, Any] = {"loss": 1.0, **scored, **test, **chosen_by}
            run.add_record(EpochRecord(epoch=step // 4 + 1, weights_sha256="00", **figures))
    run.close()


#: Two workers; the second leaves in step 1, and after a restart step 1 is made again by another.
LEDGER: list[LedgerEntry] = [
    RunBegun(step=0, weights_sha256="00"),
    WorkerIn(rank=0, host="here", pid=11),
    WorkerIn(rank=1, host="there", pid=22),
    StepDone(step=0, shares=[LedgerShare(0, 2, 0), LedgerShare(2, 4, 1)], losses=bytes(16), checksum=1),
    UnusedWork(work="train", step=1, lo=2, hi=4, rank=1, why="it left"),
    UnusedWork(work="evaluate", step=1, lo=0, hi=1, rank=1, why="it left"),
    StepDone(step=1, shares=[LedgerShare(0, 4, 0)], losses=bytes(16), checksum=2),
    RunBegun(step=1, weights_sha256="01", lost_steps=1),
    WorkerIn(rank=0, host="new", pid=33),
    StepDone(step=1, shares=[LedgerShare(0, 4, 0)], losses=bytes(16), checksum=2),
]


#: Steps with times, which last for half a second as those of `write_steps`: two workers, of whom the second comes too
#: late in the last step.
TIMED_LEDGER: list[LedgerEntry] = [
    RunBegun(step=0, weights_sha256="00"),
    WorkerIn(rank=0, host="here", pid=11),
    WorkerIn(rank=1, host="there", pid=22),
    *(
        StepDone(
            step=step,
            shares=[LedgerShare(0, 2, 0, 0.1, 0.4), LedgerShare(2, 3, 1, 0.1, 0.5)],
            losses=bytes(12),
            checksum=1,
        )
        for step in range(4)
    ),
    UnusedWork(work="train", step=4, lo=2, hi=3, rank=1, why="others had done it", began_s=0.12, ended_s=0.5),
    StepDone(
        step=4,
        shares=[LedgerShare(0, 2, 0, 0.1, 0.3), LedgerShare(2, 3, 0, 0.11, 0.5)],
        losses=bytes(12),
        checksum=1,
    ),
]


def write_ledger(folder: Path, entries: Sequence[LedgerEntry]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
