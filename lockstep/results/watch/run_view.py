"""A run as the page shows it: what its folder and its server say by now. Reads files and changes nothing."""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from lockstep.common.errors import LockstepError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.losses import has_accuracy
from lockstep.common.protocol.messages import Status, WorkerStatus
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import file_time
from lockstep.ps.records.ledger import Line, WorkerIn
from lockstep.ps.records.metrics import METRICS, Record
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.run_folder import LEDGER, RECEIPT, RESULT, RunResult, read_receipt, read_result
from lockstep.results.reports.display import speed_of
from lockstep.results.reports.plots.curves import parts_of
from lockstep.results.watch.figures import Figures, RunState, Snapshot, tiles_of
from lockstep.results.watch.processes import ProcessUse, ProcessWatch, WorkerView
from lockstep.results.watch.run_files import RECENT_STEPS, LedgerFigures, LineFollower, MetricsFigures, StepLeases
from lockstep.runs.job_file import named, shown_values
from lockstep.runs.run_dir import JOB, has_begun, recorded

T = TypeVar("T")

#: Steps of the timeline that the page draws.
DRAWN_STEPS = 8

#: Events that are sent to the page.
SENT_EVENTS = 200


#: Seconds without a new line after which a run without a server that answers counts as stopped.
STOPPED_S = 30.0


@dataclass
class RunView:
    """One run, in a folder; `status` is what its server last answered."""

    folder: Path
    status: Status | None = None
    #: Seconds since 1970, as the times of files are.
    file_time: Callable[[], float] = file_time
    job: Job | None = None
    launch: RunOptions | None = None
    result: RunResult | None = None
    receipt: Receipt | None = None
    metrics: MetricsFigures = field(default_factory=MetricsFigures)
    ledger: LedgerFigures = field(default_factory=LedgerFigures)
    #: Held while files are read, in another thread than the one that answers.
    lock: RLock = field(default_factory=RLock)
    #: Counts changes.
    version: int = 0
    #: Whether all files have been read to their ends once.
    is_whole: bool = False
    #: Whether there is a folder with the run's job.
    has_folder: bool = False
    #: The times of the last look at it, and of the last line that the run wrote, by the clock of `refresh`.
    seen: float = 0.0
    _written: float = 0.0
    _metrics_file: LineFollower = field(init=False)
    _ledger_file: LineFollower = field(init=False)
    #: Of each small file, what tells whether it is the one that was read.
    _stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _was_stopped: bool = False
    _watch: ProcessWatch = field(default_factory=ProcessWatch)
    _processes: list[ProcessUse] = field(default_factory=list)
    #: The snapshot that was encoded last, with its version.
    _encoded: tuple[int, bytes] = (-1, b"")

    def __post_init__(self) -> None:
        self._metrics_file = LineFollower(self.folder / METRICS)
        self._ledger_file = LineFollower(self.folder / LEDGER, most_bytes=2**22)

    def refresh(self, now: float, status: Status | None = None) -> bool:
        """Read a part of the new lines at `now` seconds; return whether there is more to read at once."""
        with self.lock:
            has_folder = (self.folder / JOB).is_file()
            changed = has_folder != self.has_folder or status != self.status
            self.has_folder, self.status = has_folder, status
            changed |= self._read_small()
            has_lines, has_more = self._read_lines()
            if status is not None and changed and not has_folder:
                self.metrics.add_status(status)
            if has_lines or not self._written:
                self._written = now - self._age()
            before = self.is_whole, self._was_stopped, self._processes
            self.is_whole = self.is_whole or not has_more
            self._was_stopped = status is None and now >= self._written + STOPPED_S
            is_running = self.state is RunState.RUNNING
            self._processes = self._watch.look(self.workers(), now) if is_running else []
            if changed or has_lines or before != (self.is_whole, self._was_stopped, self._processes):
                self.version += 1
            return has_more

    def _age(self) -> float:
        """Return how many seconds ago the run last wrote something."""
        written = written_at(self.folder)
        return max(0.0, self.file_time() - written) if written else 0.0

    def _read_lines(self) -> tuple[bool, bool]:
        """Read a part of the new lines; return whether there are any, and whether there is more."""
        lines, records = self._metrics_file.read_records(Record)
        self.metrics = MetricsFigures() if lines.is_restarted else self.metrics
        self.metrics.add(records)
        more, entries = self._ledger_file.read_records(Line)
        self.ledger = LedgerFigures() if more.is_restarted else self.ledger
        self.ledger.add(entries)
        return lines.is_news or more.is_news, lines.has_more or more.has_more

    def _read_small(self) -> bool:
        """Read the job, the receipt and the result if they are new; return whether any is."""
        new = [name for name in (JOB, RECEIPT, RESULT) if self._is_new(name)]
        if JOB in new:
            begun = _read(lambda folder: recorded(folder) if has_begun(folder) else None, self.folder)
            self.job, self.launch = begun or (None, None)
        if RECEIPT in new:
            self.receipt = _read(read_receipt, self.folder)
        if RESULT in new:
            self.result = _read(read_result, self.folder)
        return bool(new)

    def _is_new(self, name: str) -> bool:
        before, self._stamps[name] = self._stamps.get(name, ()), ()
        with suppress(OSError):
            found = os.stat(self.folder / name)
            self._stamps[name] = found.st_ino, found.st_mtime_ns, found.st_size
        return self._stamps[name] != before

    # What there is to show

    @property
    def state(self) -> RunState:
        """The state of the run."""
        if self.result is not None:
            return RunState.FINISHED
        if self.status is not None and not self.status.failure:
            return RunState.RUNNING if self.status.step else RunState.WAITING
        if self.metrics.failure or (self.status is not None and self.status.failure):
            return RunState.INTERRUPTED if self.metrics.is_interrupted else RunState.FAILED
        if not self.has_folder:
            return RunState.MISSING
        if self._was_stopped:
            return RunState.STOPPED
        return RunState.RUNNING if self.metrics.steps.count else RunState.WAITING

    def figures(self) -> Figures:
        """Return where the run is."""
        status, last = self.status, self.metrics.steps.last()
        total = self.receipt.total_steps if self.receipt is not None else 0
        # A job that says how many steps it has may end in any epoch.
        epochs = self.job.epochs if self.job is not None and self.job.steps is None else 0
        if status is not None and not (last and self.has_folder):
            return self._figures_of(status)
        if not last:
            return Figures(steps=total, epochs=epochs)
        speed = self.metrics.steps.throughput(RECENT_STEPS)
        step = int(last["step"]) + 1
        left_s = None
        if status is not None and status.eta_s:
            left_s = _finite(status.eta_s)
        elif total > step and speed > 0 and self.job is not None:
            left_s = (total - step) * self.job.global_batch / speed
        return Figures(
            step=step,
            steps=total,
            epoch=int(last["epoch"]),
            epochs=status.epochs if status is not None else epochs,
            loss=_finite(last["loss"]),
            accuracy=_finite(last["accuracy"]),
            r2=_finite(last["r2"]),
            lr=_finite(last["lr"]),
            recent_loss=_finite(self.metrics.steps.mean("loss", RECENT_STEPS)),
            recent_accuracy=_finite(self.metrics.steps.mean("accuracy", RECENT_STEPS)),
            recent_r2=_finite(self.metrics.steps.mean("r2", RECENT_STEPS)),
            recent_steps=min(RECENT_STEPS, self.metrics.steps.count),
            samples_per_s=speed,
            left_s=left_s if self.state in (RunState.WAITING, RunState.RUNNING) else None,
        )

    @staticmethod
    def _figures_of(status: Status) -> Figures:
        return Figures(
            step=status.step,
            steps=status.steps,
            epoch=status.epoch,
            epochs=status.epochs,
            loss=_finite(status.loss),
            accuracy=status.accuracy,
            r2=status.r2,
            recent_loss=_finite(status.loss),
            recent_accuracy=status.accuracy,
            recent_r2=status.r2,
            samples_per_s=status.images_per_s,
            left_s=_finite(status.eta_s) or None,
        )

    def workers(self) -> list[WorkerView]:
        """Return the workers that the run has or had since it was begun or resumed, by rank."""
        recent = self._recent_shares()
        total = recent.total() or 1
        known = {} if self.status is None else {worker.rank: worker for worker in self.status.workers}
        seen = self.ledger.workers
        views, first = list[WorkerView](), 0
        for rank in sorted({*known, *seen}):
            views.append(self._worker(rank, known.get(rank), seen.get(rank), recent[rank] / total, first))
            first += views[-1].processes
        return views

    def _worker(
        self, rank: int, known: WorkerStatus | None, seen: WorkerIn | None, share: float, first: int
    ) -> WorkerView:
        place = known or seen
        host, pid, processes = (place.host, place.pid, place.processes) if place is not None else ("", 0, 1)
        speed = None if known is None else speed_of(known)
        # The server knows its workers; without it, the ledger does.
        is_gone = known is None and (self.status is not None or rank in self.ledger.gone)
        state = "computed in the last steps" if share else "no recent work"
        if known is not None or is_gone:
            state = known.state if known is not None else "gone"
        return WorkerView(
            rank=rank,
            host=one_line(host, 100),
            pid=pid,
            processes=processes,
            first=first,
            state=one_line(state, 100),
            is_gone=is_gone,
            reason=one_line(self.ledger.gone.get(rank, ""), 200) if is_gone else "",
            share=share,
            samples_per_s=speed,
            accepted=self.ledger.accepted[rank],
            unused=self.ledger.unused[rank],
        )

    def _recent_shares(self) -> Counter[int]:
        """Return the micro-batches of the last steps by rank."""
        counts = Counter[int]()
        for leases in self.ledger.timeline:
            for share in leases.used:
                counts[share.rank] += share.hi - share.lo
        return counts

    def timeline(self) -> list[StepLeases]:
        """Return the shares of the last steps that the metrics have too."""
        steps = self.metrics.steps
        first = int(steps["step"][0]) if steps.count else 0
        drawn = list[StepLeases]()
        for leases in list(self.ledger.timeline)[-DRAWN_STEPS:]:
            place = leases.step - first
            if 0 <= place < steps.count and int(steps["step"][place]) == leases.step:
                is_follower = place > 0 and steps["epoch"][place - 1] == steps["epoch"][place]
                update_s = float(steps["update_s"][place - 1]) if is_follower else 0.0
                round_s = float(steps["round_s"][place])
                drawn.append(replace(leases, round_s=round_s, update_s=update_s))
        return drawn

    def encoded_snapshot(self) -> bytes:
        """Return the snapshot as JSON, made once for all requests."""
        with self.lock:
            if self._encoded[0] != self.version:
                self._encoded = self.version, msgspec.json.encode(self.snapshot())
            return self._encoded[1]

    def snapshot(self) -> Snapshot:
        """Return all that changes, but for the curves."""
        steps = self.metrics.steps["step"]
        status, result, ledger = self.status, self.result, self.ledger
        failure = self.metrics.failure or (status.failure if status is not None else "")
        digest = result.weights_sha256 if result is not None else ""
        snapshot = Snapshot(
            name=one_line(status.run if status is not None and not self.has_folder else self.folder.name, 100),
            state=self.state,
            phase=one_line(status.phase, 100) if status is not None else "",
            model=one_line(self._model(), 100),
            figures=self.figures(),
            workers=self.workers(),
            is_alone=ledger.is_alone and status is None,
            processes=self._processes,
            timeline=self.timeline(),
            events=list(ledger.events)[-SENT_EVENTS:],
            epochs=self.metrics.epochs,
            epoch_ends=[self._end_of(epoch.epoch) for epoch in self.metrics.epochs],
            failure=one_line(failure, 2000),
            weights_sha256=digest,
            first_step=int(steps[0]) if len(steps) else None,
            last_step=int(steps[-1]) if len(steps) else None,
            copied=ledger.copied,
            reassigned=ledger.reassigned,
            restarts=ledger.restarts,
            audited=ledger.audited,
            refused=None if status is None else status.refused + status.broken,
            is_answered=status is not None,
            unread=self._metrics_file.unread + self._ledger_file.unread,
            is_whole=self.is_whole,
        )
        return replace(snapshot, tiles=tiles_of(snapshot))

    def totals(self) -> dict[str, float | dict[str, float]]:
        """Return sums over the run's steps, for metrics that only Prometheus has; empty if its steps are not known.

        A server reports where its run is, and not what each step took.
        """
        if self.status is not None and not self.has_folder:
            return {}
        steps = self.metrics.steps
        return {
            "samples": float(steps["samples"].sum()),
            "wire_bytes": {vector: float(steps[f"{vector}_bytes"].sum()) for vector in ("sums", "weights")},
            "step_seconds": {part: float(values.sum()) for part, values in parts_of(steps.__getitem__).items()},
        }

    def _end_of(self, epoch: int) -> int | None:
        if epoch in self.ledger.epoch_ends:
            return self.ledger.epoch_ends[epoch]
        # Of a server alone, nothing says where an epoch ended: after the last of its steps that was seen.
        seen = self.metrics.steps["step"][self.metrics.steps["epoch"] == epoch]
        return int(seen[-1]) if len(seen) else None

    def _model(self) -> str:
        if self.job is not None:
            return str(named(self.job.model_name()))
        return self.status.model if self.status is not None else ""

    def facts(self) -> dict[str, Any]:
        """Return what changes seldom: the values of the run's job, and what its receipt and its result say of it."""
        job, launch = self.job, self.launch
        shown = {} if job is None or launch is None else shown_values(job, launch)
        return {
            "folder": str(self.folder) if self.has_folder else None,
            "has_begun": job is not None,
            "is_classification": job is not None and has_accuracy(job.loss),
            "job": [{"group": group, "values": values} for group, values in shown.items()],
            "receipt": {**_of_receipt(self.receipt), **_of_result(self.result)},
        }


def written_at(folder: Path) -> float:
    """Return when a run last wrote something, in seconds since 1970; 0 if it has not."""
    times = [0.0]
    for name in (METRICS, RESULT, JOB):
        with suppress(OSError):
            times.append(os.stat(folder / name).st_mtime)
    return max(times)


def _of_receipt(receipt: Receipt | None) -> dict[str, Any]:
    if receipt is None:
        return {}
    names = ("job_sha256", "dataset_sha256", "layout_sha256", "model_source_sha256", "code")
    return {**{name: getattr(receipt, name) for name in names}, **receipt.numerics}


def _of_result(result: RunResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    names = ("weights_sha256", "transport", "obstacle", "stopped")
    return {**{name: getattr(result, name) for name in names}, "seconds": round(result.wall_s, 1)}


def _read(read: Callable[[Path], T], folder: Path) -> T | None:
    """Return what there is in a folder: it may be missing, or of another version."""
    with suppress(OSError, LockstepError):
        return read(folder)
    return None


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
