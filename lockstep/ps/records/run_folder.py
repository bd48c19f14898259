"""The files of a run's folder: metrics, ledger, convictions, weights, result and receipt. Knows no socket.

A full disk costs no line: lines wait in memory, and the run makes no step until there is room. A run that went on would
keep its lines in memory, without a checkpoint, and lose them all at its end."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.files.atomic import Sync, write_atomically
from lockstep.common.files.reading import decode, open_regular, read_regular
from lockstep.common.files.safetensors import write
from lockstep.common.protocol.messages import EpochRecord
from lockstep.common.runtime.notice import warning
from lockstep.ps.records.ledger import (
    Line,
    ResultInDoubt,
    StepDone,
    UnusedCause,
    UnusedWork,
    WorkerConvicted,
    read_lines,
    with_workers,
)
from lockstep.ps.records.metrics import METRICS, MOST_LINES_BYTES, Record, encode_record
from lockstep.ps.records.receipt import Receipt, Statement, SubjectFile, statement_in, statement_of
from lockstep.ps.run.progress import NOTHING, Moved, RunTotals, Split

#: Errors of a write that only room can end: no space, and more than the user's quota.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

#: Seconds between two looks whether there is room again.
LOOK_S = 1.0

KIB = 2**10


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write next to `path`."""
    return shutil.disk_usage(path).free


@dataclass
class DiskRoom:
    """The room on the disk of a run's folder: full from a write that failed until one that succeeded."""

    path: Path
    #: An argument so that a full disk can be tried.
    free: Callable[[Path], int] = free_bytes
    #: Bytes of what could not be written, 0 if nothing failed.
    needed: int = 0

    @property
    def is_lacking(self) -> bool:
        return self.needed > 0

    def refuse(self, error: OSError, needed: int) -> bool:
        """Record that so many bytes could not be written; return False if that has another cause than a full disk."""
        if error.errno not in NO_ROOM:
            return False
        self.needed = max(self.needed, needed, 1)
        return True

    def try_again(self, write: Callable[[], object]) -> bool:
        """Call `write` if there seems to be room for it; return whether that is so, and it was not refused again."""
        needed = self.needed
        if self.free(self.path) < needed:
            return False
        self.needed = 0
        write()
        return not self.is_lacking

    @property
    def text(self) -> str:
        """The missing room and its folder, for a person."""
        return (
            f"the run pauses: the disk of {str(self.path)!r} is full: it needs {-(-self.needed // KIB):,} KiB, and "
            f"{self.free(self.path) // KIB:,} KiB are free; make room, and it continues by itself"
        )


#: Lines that wait for the next write.
BUFFER_LINES = 500

#: The function that writes, as `os.write`: an argument so that a full disk can be tried.
Write = Callable[[int, bytes], int]


@dataclass
class LineFile:
    """Appends to a file, which is made at the first write; `say` reports when that fails, and when it works again."""

    path: Path
    say: Callable[[str], None] = lambda text: None
    write: Write = os.write
    #: Makes written lines outlive a loss of power: an argument so that a disk that fails in this can be tried.
    fsync: Sync = os.fsync
    #: Learns that the disk is full; None if no run waits for room.
    room: DiskRoom | None = None
    _waiting: list[bytes] = field(default_factory=list)
    _written_bytes: int = 0
    _descriptor: int = -1
    _is_failing: bool = False

    def open(self) -> None:
        """Open for this process alone, until it closes or ends; `UsageError` if another one has the file."""
        if self._descriptor >= 0:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                f"run folder {str(self.path.parent)!r} is in use by a run that is not over: wait for its end, or "
                "interrupt it"
            ) from error
        self._descriptor, self._written_bytes = descriptor, os.fstat(descriptor).st_size

    def append(self, line: bytes) -> None:
        """Add a line, which comes without its end; it is written when enough have come, or by `flush`."""
        self._waiting.append(line + b"\n")
        if len(self._waiting) >= BUFFER_LINES and not self._is_failing:
            self.flush()

    def size(self) -> int:
        """Return the bytes of the file, with what waits to be written."""
        return self._written_bytes + sum(map(len, self._waiting))

    def flush(self) -> None:
        """Write the lines that wait, if any do; if that fails, the rest waits for the next call."""
        if not self._waiting:
            return  # a file without a line is not made
        try:
            self.open()
            self._catch_up()
            while self._waiting:
                self.write(self._descriptor, b"".join(self._waiting))
                self._catch_up()
        except OSError as error:
            is_full = self.room is not None and self.room.refuse(error, sum(map(len, self._waiting)))
            if not is_full and not self._is_failing:
                why = f"cannot write to {str(self.path)!r}: {error.strerror}"
                self.say(warning(f"{why}: the run continues, and its lines wait in memory"))
            self._is_failing = self._is_failing or not is_full
            return
        if self._is_failing:
            self.say(f"{str(self.path)!r} can be written to again")
        self._is_failing = False

    def _catch_up(self) -> None:
        """Forget the lines that are written, by the file's length: an interrupt may have come before we could."""
        size = os.fstat(self._descriptor).st_size
        taken = size - self._written_bytes
        if taken:
            rest = b"".join(self._waiting)[taken:]
            self._waiting, self._written_bytes = [rest] if rest else [], size

    def is_written(self) -> bool:
        """Tell whether nothing waits."""
        return not self._waiting

    def sync(self) -> None:
        """Make flushed lines outlive a loss of power. Raises OSError."""
        if self._descriptor >= 0:
            self.fsync(self._descriptor)

    def cut(self, size: int) -> bytes:
        """Cut off what follows the first `size` bytes, and return it; nothing may wait to be written."""
        self.open()
        behind = self.path.read_bytes()[size:]
        self._written_bytes = min(size, self._written_bytes)
        os.truncate(self.path, self._written_bytes)
        return behind

    def close(self) -> None:
        """Flush and close; appending again would reopen the file."""
        self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


#: The resolved job. While a folder is only claimed, the file is empty, and the process that begins a run there has it
#: locked: without that lock, the claim is of a process that was killed, and counts for nothing.
JOB = "job.toml"
LEDGER = "ledger.jsonl"
RECEIPT = "receipt.json"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
#: The moving average of the weights, if the job has one.
AVERAGE_WEIGHTS = "weights-ema.safetensors"
#: The weights after the last epoch, while callbacks may ask for them.
EPOCH_WEIGHTS = "epoch.safetensors"
RESULT = "result.json"

#: The files that a finished run's receipt is about, besides its result and the model's own files.
SUBJECTS = (JOB, WEIGHTS, AVERAGE_WEIGHTS, LEDGER, METRICS)

#: The copy of the model's files.
MODEL = "model"

#: Bytes of any file.
MOST_FILE_BYTES = 2**62

#: Bytes of a result or a receipt: an epoch takes a quarter of a KiB.
MOST_BYTES = 2**26


class RunResult(RunTotals, frozen=True, kw_only=True):  # type: ignore[misc]  # msgspec allows it
    """The content of `result.json`, of a finished run."""

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
    #: The transport of the vectors, as `shm` or `shm+tcp`.
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
    #: The numerics that computed it: versions, BLAS kernel, processor features.
    numerics: dict[str, Any]
    #: One record per epoch.
    history: list[EpochRecord]
    #: R² on the test set, in a regression.
    test_r2: float | None = None
    #: The other metrics on the test set by name.
    test_metrics: dict[str, float] = msgspec.field(default_factory=dict)
    #: Number of values that are trained.
    parameters: int = 0
    #: The time of an average step, in parts; None if no step was followed by another in its epoch.
    split: Split | None = None
    #: Why vectors did not go through shared memory although they might have; empty if they did.
    obstacle: str = ""
    #: Which teams took the cores of their machine from one another; empty if there were enough for all.
    crowding: str = ""
    #: After which epoch the weights are.
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
    #: The teams in which the workers were.
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
    return read_statement(path).predicate


def read_statement(path: Path) -> Statement:
    """Return a receipt with the files that it is about; raises as `read_receipt`."""
    file = path / RECEIPT if path.is_dir() else path
    try:
        return statement_in(_read(file, MOST_BYTES, "the receipt of a run"))
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
        """Write the recorded lines."""
        self.metrics.flush()
        self.ledger.flush()

    def demand_written(self) -> None:
        """Write the recorded lines; raise OSError if the disk has no room for them, or if their file was deleted."""
        self.flush()
        if self.room.is_lacking:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        # In a folder that was deleted and made again, a result would have no job and no record.
        self.ledger.path.stat()

    def close(self) -> None:
        """Flush and close; recording again would reopen the files."""
        self.metrics.close()
        self.ledger.close()

    def keep_weights(
        self, layout: ParameterLayout, vector: Vector, metadata: dict[str, str], name: str = WEIGHTS
    ) -> None:
        """Write the weights, or their average under its name, as safetensors, whole or not at all."""
        write(self.path / name, layout.read(vector), metadata)

    def keep_epoch(self, layout: ParameterLayout, vector: Vector, epoch: int, steps: int) -> None:
        """Write the weights after an epoch for callbacks; if that fails, the run does not."""
        try:
            write(self.path / EPOCH_WEIGHTS, layout.read(vector), {"epoch": str(epoch), "step": str(steps)})
        except OSError as error:
            self.say(warning(f"cannot write {str(self.path / EPOCH_WEIGHTS)!r}: {error.strerror}: the run continues"))

    def keep_receipt(self, receipt: Receipt) -> None:
        """Write the receipt of a run that has not finished, whole or not at all."""
        self._keep(receipt, self._subjects(JOB))

    def keep_result(self, result: RunResult, receipt: Receipt) -> None:
        """Write the result, and the receipt about all files before it: with the result, the run has finished."""
        text = json_text(result)
        subjects = self._subjects(*SUBJECTS, *(f"{MODEL}/{file.place}" for file in receipt.model_files))
        self._keep(receipt, [*subjects, SubjectFile(RESULT, {"sha256": hashlib.sha256(text).hexdigest()})])
        write_atomically(self.path / RESULT, [text])

    def _subjects(self, *names: str) -> list[SubjectFile]:
        return [subject_in(self.path, name) for name in names if (self.path / name).exists()]

    def _keep(self, receipt: Receipt, subjects: list[SubjectFile]) -> None:
        write_atomically(self.path / RECEIPT, [json_text(statement_of(subjects, receipt))])


def json_text(record: RunResult | Statement) -> bytes:
    """Return the content of `result.json` or `receipt.json`."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def subject_in(folder: Path, name: str) -> SubjectFile:
    """Return the digest of a file in a folder. Raises OSError."""
    with open_regular(folder / name, MOST_FILE_BYTES) as file:
        return SubjectFile(name, {"sha256": hashlib.file_digest(file, "sha256").hexdigest()})


#: The workers that were evicted from a run for good: entries of its ledger, which is cut off when the run goes back.
CONVICTIONS = "convictions.jsonl"

#: Most results that are named one by one.
MOST_RESULTS = 1000


class Doubt(msgspec.Struct, frozen=True):
    """The accepted results of a worker that no audit has confirmed, in the order of steps."""

    results: Sequence[ResultInDoubt]
    #: Those of steps after the last one of which an audit found a result of it right, or it confirmed another one's.
    since: Sequence[ResultInDoubt]

    @property
    def first(self) -> int | None:
        """The step of the first of them: the weights before it do not depend on any. None if no result is in doubt."""
        return self.results[0].step if self.results else None


def doubt_of(lines: Sequence[Line], identities: Collection[str]) -> Doubt:
    """Return which accepted results of workers with these identities are in doubt, by a run's ledger."""
    # The entries of an audit come before that of its step.
    agreed = {
        (line.step, line.lo) for line in lines if isinstance(line, UnusedWork) and line.cause is UnusedCause.AUDITED
    }
    results, last_agreed = list[ResultInDoubt](), -1
    for line, workers in with_workers(lines):
        mine = {rank for rank, worker in workers.items() if worker.identity in identities}
        match line:
            case UnusedWork(cause=UnusedCause.AUDITED, rank=rank, step=step) if rank in mine:
                last_agreed = max(last_agreed, step)
            case StepDone():
                for share in (each for each in line.shares if each.rank in mine):
                    # One that is audited is a result by itself.
                    if (line.step, share.lo) in agreed and share.hi == share.lo + 1:
                        last_agreed = max(last_agreed, line.step)
                    else:
                        results.append(ResultInDoubt(line.step, share.lo, share.hi))
            case _:
                pass
    return Doubt(results, [result for result in results if result.step > last_agreed])


def read_convictions(folder: Path) -> list[WorkerConvicted]:
    """Return the workers that were evicted from a run for good; `FileFormatError` if the file is damaged."""
    path = folder / CONVICTIONS
    try:
        lines = read_lines(read_regular(path, MOST_LINES_BYTES), str(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror}: expected the evicted workers") from error
    return [line for line in lines if isinstance(line, WorkerConvicted)]


def keep_convictions(folder: Path, convicted: Sequence[WorkerConvicted]) -> None:
    """Write the workers that were evicted for good, whole or not at all. Raises OSError."""
    write_atomically(folder / CONVICTIONS, [msgspec.json.encode(one) + b"\n" for one in convicted])
