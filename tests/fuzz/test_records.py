"""What is read back from a run's folder, damaged or made up: it is read, or refused by a typed error."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from numpy.typing import NDArray

from lockstep.checking.recorded_run import read_run
from lockstep.checking.verify import check_coverage
from lockstep.common.data.sampler import Sampler
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.records.ledger import (
    EpochDone,
    LedgerShare,
    OmittedEntries,
    RunBegun,
    StepDone,
    UnusedWork,
    WeightsAt,
    WorkerIn,
    read_lines,
    with_workers,
)
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.receipt import Receipt, ReceiptLink
from lockstep.ps.records.run_folder import JOB, LEDGER, RECEIPT, RESULT, read_result
from lockstep.ps.run.plan import plan_of
from lockstep.results.plots.curves import read_curves, read_timeline
from lockstep.runs.job_file import to_toml
from tests.fuzz.bar import amounts, examine
from tests.fuzz.mutation import damaged, tokens_of
from tests.fuzz.tape import Tape

DIGEST = "0123456789abcdef" * 4
SMALL = Job(model="linear", data="digits", epochs=2, global_batch=16, micro_batches=4)
PLAN = plan_of(SMALL, 40, 30)

LEDGER_LINES = [
    msgspec.json.encode(line)
    for line in (
        RunBegun(step=0, weights_sha256=DIGEST),
        WorkerIn(rank=0, host="host", pid=7),
        StepDone(step=0, shares=[LedgerShare(0, 2, 0), LedgerShare(2, 4, 1)], losses=bytes(16), checksum=2**64 - 1),
        UnusedWork(work="train", step=1, lo=0, hi=2, rank=0, why="it left: interrupted"),
        OmittedEntries(work="train", step=1, count=3),
        StepDone(step=1, shares=[LedgerShare(0, 4, 0)], losses=bytes(16), checksum=1),
        WeightsAt(step=2, weights_sha256=DIGEST),
        EpochDone(epoch=1, step=2, weights_sha256=DIGEST, link=DIGEST),
    )
]
WHOLE_LEDGER = b"".join(line + b"\n" for line in LEDGER_LINES)

#: What a JSON value may be replaced by.
ODD_JSON = (
    "-1",
    "1e999",
    "9" * 25,
    "9" * 5000,
    "0.5",
    "true",
    "null",
    '""',
    '"\\u0000"',
    "[]",
    "{}",
    '"' + "A" * 99 + '"',
)


def odd_json(tape: Tape, text: bytes) -> bytes:
    """Return JSON in which one or two tokens are others, or which is damaged anyhow."""
    if tape.happens(3):
        return damaged(tape, text)
    tokens = tokens_of(text.decode())
    for _ in range(1 + tape.below(2)):
        at = tape.below(len(tokens))
        tokens[at] = tape.choose((*ODD_JSON, "[" * 3000, '{"a":' * 3000)) if tokens[at].isalnum() else tokens[at]
    return "".join(tokens).encode()


def odd_ledger(tape: Tape) -> bytes:
    lines = [tape.choose(LEDGER_LINES) for _ in range(1 + tape.below(6))]
    at = tape.below(len(lines))
    lines[at] = odd_json(tape, lines[at])
    return b"".join(line + b"\n" for line in lines)


def read_ledger_at(path: Path) -> Sequence[NDArray[Any]]:
    """Read a ledger, and do with it what the commands do."""
    lines = read_lines(path.read_bytes(), "ledger.jsonl")
    check_coverage(lines, PLAN, Sampler(40, 16, 4, seed=0))
    list(with_workers(lines))
    return [line.loss_sums() for line in lines if isinstance(line, StepDone)]


RUN_RECEIPT = msgspec.json.encode(
    Receipt(
        run="r",
        job_sha256=DIGEST,
        dataset_sha256=DIGEST,
        layout_sha256=DIGEST,
        model_source_sha256="",
        code=DIGEST,
        numerics=msgspec.to_builtins(fingerprint()),
        total_steps=6,
        chain=[ReceiptLink(epoch=0, step=0, weights_sha256=DIGEST, link=DIGEST)],
    )
)
METRICS_LINES = (
    b'{"kind":"step","epoch":1,"step":0,"loss":2.3,"accuracy":0.1,"lr":0.05,"samples":16,"round_s":0.1}\n'
    b'{"kind":"step","epoch":1,"step":1,"loss":2.2,"accuracy":0.1,"lr":0.05,"samples":16,"round_s":0.1}\n'
    b'{"kind":"epoch","epoch":1,"loss":2.2,"test_loss":2.1,"test_accuracy":0.5,"wall_s":1.5,"weights_sha256":"00"}\n'
)


@pytest.fixture
def run(folder: Path) -> Path:
    (folder / JOB).write_text(to_toml(SMALL, RunOptions()))
    (folder / RECEIPT).write_bytes(RUN_RECEIPT)
    (folder / LEDGER).write_bytes(WHOLE_LEDGER)
    (folder / METRICS).write_bytes(METRICS_LINES)
    return folder


def result_json() -> bytes:
    """Return a result as a run leaves one, with nothing left out."""
    fields: dict[str, Any] = dict.fromkeys(
        ("seed", "workers", "servers", "epochs", "steps", "global_batch", "micro_batches", "parameters"), 3
    )
    fields |= dict.fromkeys(("run", "model", "dataset", "transport", "obstacle"), "a")
    fields |= dict.fromkeys(("weights_sha256", "job_sha256", "dataset_sha256"), DIGEST)
    fields |= dict.fromkeys(("wall_s", "train_s", "images_per_s", "compute_s", "update_s"), 1.5)
    fields |= dict.fromkeys(("train_loss", "test_loss", "test_accuracy"), 0.5)
    return json.dumps(fields | {"numerics": {"numpy": "2"}, "history": []}).encode()


#: What a folder holds, and what reads it.
FILES: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    RECEIPT: (RUN_RECEIPT, read_run),
    LEDGER: (WHOLE_LEDGER, read_timeline),
    METRICS: (METRICS_LINES, read_curves),
    RESULT: (result_json(), read_result),
}


@amounts("run folders")
def test_run_folders(cases: int, run: Path) -> None:
    def make(tape: Tape) -> tuple[str, bytes]:
        name = tape.choose(tuple(FILES))
        return name, odd_json(tape, FILES[name][0])

    def check(case: tuple[str, bytes]) -> None:
        name, contents = case
        (run / name).write_bytes(contents)
        with contextlib.suppress(UsageError):
            FILES[name][1](run)
        (run / name).write_bytes(FILES[name][0])

    examine(cases, make, check)


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_read(name: str, run: Path) -> None:
    (run / name).write_bytes(FILES[name][0])
    FILES[name][1](run)


DEEP = b'{"a":' * 50_000
LEDGER_BOMBS = {
    "a share of very many": b'{"kind":"step","step":0,"shares":[[0,4611686018427387903,0]],"losses":"","mark":0}\n',
    "a share that ends before it begins": b'{"kind":"step","step":0,"shares":[[3,1,0]],"losses":"","mark":0}\n',
    "losses of three bytes": b'{"kind":"step","step":0,"shares":[[0,4,0]],"losses":"AAAA","mark":0}\n',
    "a step of very many digits": b'{"kind":"step","step":' + b"9" * 10_000 + b',"shares":[],"losses":"","mark":0}\n',
    "objects in objects": DEEP + b"\n",
    "a great number of lines": b"\n" * 10_000,
}


@pytest.mark.parametrize("name", FILES)
def test_nesting_without_an_end_is_refused(name: str, run: Path) -> None:
    (run / name).write_bytes(b'{"kind":' + DEEP + b"\n")
    with pytest.raises(UsageError):
        FILES[name][1](run)
