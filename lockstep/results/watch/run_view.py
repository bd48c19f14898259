"""A run as the page shows it: what its folder and its server say by now. Reads files and changes nothing."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import msgspec
from msgspec.structs import replace

from lockstep.common.files.sanitize import one_line
from lockstep.common.job.losses import has_accuracy
from lockstep.common.protocol.messages import Status, WorkerStatus
from lockstep.common.runtime.clock import file_time
from lockstep.ps.records.ledger import WorkerIn
from lockstep.results.display import speed_of
from lockstep.results.plots.curves import parts_of
from lockstep.results.watch.figures import Figures, RunState, Snapshot, tiles_of
from lockstep.results.watch.processes import ProcessUse, ProcessWatch, WorkerView
from lockstep.results.watch.run_files import NOWHERE, RECENT_STEPS, StepLeases, WatchedFiles, written_at
from lockstep.runs.job_file import named, shown_values, value_text

#: Steps of the timeline that the page draws.
DRAWN_STEPS = 8

#: Events that are sent to the page.
SENT_EVENTS = 200


#: Seconds without a new line after which a run without a server that answers counts as stopped.
STOPPED_S = 30.0


@dataclass
class RunView:
    """One run: its files, and `status`, which is what its server last answered."""

    files: WatchedFiles
    status: Status | None = None
    #: Seconds since 1970, as the times of files are.
    file_time: Callable[[], float] = file_time
    #: Held while files are read, in another thread than the one that answers.
    lock: RLock = field(default_factory=RLock)
    #: Whether all files have been read to their ends once.
    is_whole: bool = False
    #: When its files were looked at last, for a browser, by the clock of `refresh`.
    seen: float = float("-inf")
    _was_stopped: bool = False
    _watch: ProcessWatch = field(default_factory=ProcessWatch)
    _processes: list[ProcessUse] = field(default_factory=list)

    def refresh(self, now: float, status: Status | None = None) -> bool:
        """Read a part of the new lines at `now` seconds; return whether there is more to read at once."""
        with self.lock:
            self.files.read_small()
            has_more = self.files.read_lines()
            if status is not None and status != self.status and not self.files.has_folder:
                self.files.metrics.add_status(status)
            self.status = status
            self.is_whole = self.is_whole or not has_more
            self._was_stopped = status is None and self.file_time() >= written_at(self.files.folder) + STOPPED_S
            is_running = self.state is RunState.RUNNING
            self._processes = self._watch.look(self.workers(), now) if is_running else []
            return has_more

    # What there is to show

    @property
    def state(self) -> RunState:
        """The state of the run."""
        if self.files.result is not None:
            return RunState.FINISHED
        if self.status is not None and not self.status.failure:
            return RunState.RUNNING if self.status.step else RunState.WAITING
        if self.files.metrics.failure or (self.status is not None and self.status.failure):
            return RunState.INTERRUPTED if self.files.metrics.is_interrupted else RunState.FAILED
        if not self.files.has_folder:
            return RunState.MISSING
        if self._was_stopped:
            return RunState.STOPPED
        return RunState.RUNNING if self.files.metrics.steps.count else RunState.WAITING

    def figures(self) -> Figures:
        """Return where the run is."""
        files, status, steps = self.files, self.status, self.files.metrics.steps
        last = steps.last()
        total = files.receipt.total_steps if files.receipt is not None else 0 if status is None else status.steps
        # A job that says how many steps it has may end in any epoch.
        epochs = files.job.epochs if files.job is not None and files.job.steps is None else 0
        epochs = epochs if status is None else status.epochs
        if not last:
            return Figures(steps=total, epochs=epochs)
        # The figures that a server reports are means already.
        recent = RECENT_STEPS if files.has_folder else 1
        is_waiting = status is not None and bool(status.waiting)
        step, speed, left_s = int(last["step"]) + 1, 0.0 if is_waiting else steps.throughput(recent), None
        if status is not None and status.eta_s and not is_waiting:
            left_s = _finite(status.eta_s)
        elif total > step and speed > 0 and files.job is not None:
            left_s = (total - step) * files.job.global_batch / speed
        return Figures(
            step=step,
            steps=total,
            epoch=int(last["epoch"]),
            epochs=epochs,
            loss=_finite(last["loss"]),
            accuracy=_finite(last["accuracy"]),
            r2=_finite(last["r2"]),
            lr=_finite(last["lr"]),
            recent_loss=_finite(steps.mean("loss", recent)),
            recent_accuracy=_finite(steps.mean("accuracy", recent)),
            recent_r2=_finite(steps.mean("r2", recent)),
            recent_steps=min(recent, steps.count),
            samples_per_s=speed,
            left_s=left_s if self.state in (RunState.WAITING, RunState.RUNNING) else None,
        )

    def workers(self) -> list[WorkerView]:
        """Return the workers that the run has or had since it was begun or resumed, by rank."""
        recent = self._recent_shares()
        total = recent.total() or 1
        known = {} if self.status is None else {worker.rank: worker for worker in self.status.workers}
        seen = self.files.ledger.workers
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
        is_gone = known is None and (self.status is not None or rank in self.files.ledger.gone)
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
            reason=one_line(self.files.ledger.gone.get(rank, ""), 200) if is_gone else "",
            share=share,
            samples_per_s=speed,
            accepted=self.files.ledger.accepted[rank],
            unused=self.files.ledger.unused[rank],
        )

    def _recent_shares(self) -> Counter[int]:
        """Return the micro-batches of the last steps by rank."""
        counts = Counter[int]()
        for leases in self.files.ledger.timeline:
            for share in leases.used:
                counts[share.rank] += share.hi - share.lo
        return counts

    def timeline(self) -> list[StepLeases]:
        """Return the shares of the last steps that the metrics have too."""
        steps = self.files.metrics.steps
        first = int(steps["step"][0]) if steps.count else 0
        drawn = list[StepLeases]()
        for leases in list(self.files.ledger.timeline)[-DRAWN_STEPS:]:
            place = leases.step - first
            if 0 <= place < steps.count and int(steps["step"][place]) == leases.step:
                round_s = float(steps["round_s"][place])
                drawn.append(replace(leases, round_s=round_s, update_s=steps.update_before(place)))
        return drawn

    def encoded_snapshot(self) -> bytes:
        """Return the snapshot as JSON."""
        with self.lock:
            return msgspec.json.encode(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Return all that changes, but for the curves."""
        files, status, result, ledger = self.files, self.status, self.files.result, self.files.ledger
        steps, ends = files.metrics.steps["step"], files.metrics.ends
        failure = files.metrics.failure or (status.failure if status is not None else "")
        digest = result.weights_sha256 if result is not None else ""
        snapshot = Snapshot(
            name=one_line(status.run if status is not None and not files.has_folder else files.folder.name, 100),
            folder="" if files.folder == NOWHERE else str(files.folder),
            state=self.state,
            phase=one_line(status.waiting or status.phase, 100) if status is not None else "",
            model=one_line(self._model(), 100),
            figures=self.figures(),
            workers=self.workers(),
            is_alone=ledger.is_alone and status is None,
            processes=self._processes,
            timeline=self.timeline(),
            events=list(ledger.events)[-SENT_EVENTS:],
            epochs=files.metrics.epochs,
            epoch_ends=[ends[epoch.epoch] - 1 if epoch.epoch in ends else None for epoch in files.metrics.epochs],
            failure=one_line(failure, 2000),
            weights_sha256=digest,
            first_step=int(steps[0]) if len(steps) else None,
            last_step=int(steps[-1]) if len(steps) else None,
            copied=ledger.copied,
            reassigned=ledger.reassigned,
            restarts=ledger.restarts,
            audited=ledger.audited,
            refused=None if status is None else status.refused + status.broken,
            slices=[] if status is None else [one_line(shard.host, 100) for shard in status.shards],
            is_answered=status is not None,
            is_whole=self.is_whole,
        )
        return replace(snapshot, tiles=tiles_of(snapshot))

    def totals(self) -> dict[str, float | dict[str, float]]:
        """Return sums over the run's steps, for metrics that only Prometheus has; empty if its steps are not known.

        A server reports where its run is, and not what each step took.
        """
        if self.status is not None and not self.files.has_folder:
            return {}
        steps = self.files.metrics.steps
        return {
            "samples": float(steps["samples"].sum()),
            "wire_bytes": {vector: float(steps[f"{vector}_bytes"].sum()) for vector in ("sums", "weights")},
            "step_seconds": {part: float(values.sum()) for part, values in parts_of(steps).items()},
        }

    def _model(self) -> str:
        if self.files.job is not None:
            return str(named(self.files.job.model_name()))
        return self.status.model if self.status is not None else ""

    def facts(self) -> dict[str, Any]:
        """Return what changes seldom: the values of the run's job, and what its receipt and its result say of it."""
        job, launch = self.files.job, self.files.launch
        shown = {} if job is None or launch is None else shown_values(job, launch)
        return {
            "has_begun": job is not None,
            "is_classification": job is not None and has_accuracy(job.loss),
            "job": [{"group": group, "values": values} for group, values in shown.items()],
            "receipt": {name: value_text(value) for name, value in self._digests().items()},
        }

    def _digests(self) -> dict[str, Any]:
        """Return what the receipt and the result say of the run's bits, and of its end."""
        found, receipt, result = dict[str, Any](), self.files.receipt, self.files.result
        if receipt is not None:
            names = ("job_sha256", "dataset_sha256", "layout_sha256", "model_source_sha256", "code")
            found |= {name: getattr(receipt, name) for name in names} | receipt.numerics
        if result is not None:
            of_end = ("weights_sha256", "transport", "obstacle", "stopped")
            found |= {name: getattr(result, name) for name in of_end} | {"seconds": round(result.wall_s, 1)}
        return found


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
