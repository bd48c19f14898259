"""What a run leaves on disk: metrics, ledger, weights, result and receipt. Knows no socket."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FileFormatError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import decode, read_regular
from lockstep.common.files.safetensors import write
from lockstep.common.protocol.messages import EpochRecord
from lockstep.common.runtime.notice import warning
from lockstep.ps.records.ledger import Line, read_lines
from lockstep.ps.records.line_file import LineFile
from lockstep.ps.records.metrics import METRICS, MOST_LINES_BYTES, Record, encode_record
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.room import DiskRoom
from lockstep.ps.run.progress import RunTotals
from lockstep.ps.run.timing import Split
from lockstep.ps.run.traffic import NOTHING, Moved

LEDGER = "ledger.jsonl"
RECEIPT = "receipt.json"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
#: The moving average of the weights, if the job has one.
AVERAGE_WEIGHTS = "weights-ema.safetensors"
#: The weights after the last epoch, while callbacks may ask for them.
EPOCH_WEIGHTS = "epoch.safetensors"
RESULT = "result.json"

#: Bytes of a result or a receipt: an epoch takes a quarter of a KiB.
MOST_BYTES = 2**26


class RunResult(RunTotals, frozen=True, kw_only=True):  # type: ignore[misc]  # msgspec allows it
    """What `result.json` says about a finished run."""

    #: The name of the run.
    run: str
    #: The job's model.
    model: str
    #: The job's data.
    dataset: str
    #: The job's seed.
    seed: int
    #: The number of workers that took part: of processes.
    workers: int
    #: The number of servers.
    servers: int
    #: What carried the vectors, as `shm` or `shm+tcp`.
    transport: str
    #: The number of epochs that were made.
    epochs: int
    #: The job's global batch.
    global_batch: int
    #: The job's micro-batches per step.
    micro_batches: int
    #: Seconds from the server's start to the end of the run.
    wall_s: float
    #: Training samples per second of `train_s`.
    images_per_s: float
    #: The mean training loss of the epoch whose weights these are.
    train_loss: float
    #: The loss on the test set after that epoch.
    test_loss: float
    #: The accuracy on the test set after that epoch; None in a regression.
    test_accuracy: float | None
    #: The digest of the final weights.
    weights_sha256: str
    #: The digest of the job's values.
    job_sha256: str
    #: The digest of the data.
    dataset_sha256: str
    #: What computed it: versions, BLAS kernel, processor features.
    numerics: dict[str, Any]
    #: One record per epoch.
    history: list[EpochRecord]
    #: R² on the test set, in a regression.
    test_r2: float | None = None
    #: The other metrics on the test set by name.
    test_metrics: dict[str, float] = msgspec.field(default_factory=dict)
    #: Number of values that are trained; 0 in the folder of an older version.
    parameters: int = 0
    #: Where the time of an average step went; None if no step was followed by another in its epoch.
    split: Split | None = None
    #: Why vectors did not go through shared memory although they might have; empty if they did.
    obstacle: str = ""
    #: After which epoch the weights are; 0 in the folder of an older version.
    weights_epoch: int = 0
    #: Why there are fewer epochs than the job has; empty if there are not.
    stopped: str = ""
    #: The type of sums on the wire.
    wire: str = "float32"
    #: The type of weights on the wire.
    wire_weights: str = "float32"
    #: The bytes that crossed sockets in an average step.
    moved: Moved = NOTHING
    #: The local steps of each micro-batch.
    local_steps: int = 1
    #: The teams in which the workers were; 0 in the folder of an older version.
    teams: int = 0


def read_result(folder: Path) -> RunResult:
    """Return the result in a finished run's folder; `FileFormatError` if it is damaged or missing."""
    path = folder / RESULT
    try:
        return decode(_read(path, MOST_BYTES, "a finished run"), RunResult)
    except msgspec.MsgspecError as error:
        raise FileFormatError(f"{str(path)!r} is not the result of a run: {error}") from error


def read_receipt(path: Path) -> Receipt:
    """Return a receipt, from its file or a run's folder; `FileFormatError` if it is damaged or missing."""
    file = path / RECEIPT if path.is_dir() else path
    try:
        return decode(_read(file, MOST_BYTES, "the receipt of a run"), Receipt)
    except msgspec.MsgspecError as error:
        raise FileFormatError(f"{file}: is not a receipt of a run: {error}") from error


def read_ledger(folder: Path) -> list[Line]:
    """Return the entries in a run's folder; `FileFormatError` if its ledger is damaged or missing."""
    path = folder / LEDGER
    return read_lines(_read(path, MOST_LINES_BYTES, "the folder of a run"), str(path))


def _read(path: Path, most_bytes: int, expected: str) -> bytes:
    try:
        return read_regular(path, most_bytes)
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}: expected {expected}") from error


@dataclass
class RunFolder:
    """An existing folder that a run is recorded in; `say` reports what cannot be written for now."""

    path: Path
    say: Callable[[str], None] = lambda text: None
    metrics: LineFile = field(init=False)
    ledger: LineFile = field(init=False)
    room: DiskRoom = field(init=False)

    def __post_init__(self) -> None:
        self.room = DiskRoom(self.path)
        self.metrics = LineFile(self.path / METRICS, self.say, room=self.room)
        self.ledger = LineFile(self.path / LEDGER, self.say, room=self.room)

    def add_record(self, record: Record) -> None:
        """Append one line to `metrics.jsonl`; buffered until `flush`."""
        self.metrics.append(encode_record(record))

    def flush(self) -> None:
        """Write what was recorded."""
        self.metrics.flush()
        self.ledger.flush()

    def demand_written(self) -> None:
        """Write what was recorded; raise OSError if the disk has no room for it."""
        self.flush()
        if self.room.is_lacking:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Flush and close; recording again would reopen the files."""
        self.metrics.close()
        self.ledger.close()

    def keep_weights(self, layout: ParameterLayout, vector: Vector, metadata: dict[str, str]) -> None:
        """Write the weights as safetensors, whole or not at all."""
        write(self.path / WEIGHTS, layout.read(vector), metadata)

    def keep_average(self, layout: ParameterLayout, vector: Vector, metadata: dict[str, str]) -> None:
        """Write the moving average of the weights, whole or not at all."""
        write(self.path / AVERAGE_WEIGHTS, layout.read(vector), metadata)

    def keep_epoch(self, layout: ParameterLayout, vector: Vector, epoch: int, steps: int) -> None:
        """Write the weights after an epoch for callbacks; if that fails, the run does not."""
        try:
            write(self.path / EPOCH_WEIGHTS, layout.read(vector), {"epoch": str(epoch), "step": str(steps)})
        except OSError as error:
            self.say(warning(f"cannot write {str(self.path / EPOCH_WEIGHTS)!r}: {error.strerror}: the run continues"))

    def keep(self, name: str, value: RunResult | Receipt) -> None:
        """Write `result.json` or `receipt.json`, whole or not at all."""
        text = msgspec.json.format(msgspec.json.encode(value), indent=2)
        write_atomically(self.path / name, [text, b"\n"])
