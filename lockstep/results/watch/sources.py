"""The watched runs: the folder of one run, a folder of many, or the server at an address."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
from msgspec.structs import replace

from lockstep.common.errors import UsageError
from lockstep.common.files.reading import known_lines, open_regular
from lockstep.common.files.sanitize import cut, one_line
from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import EpochRecord, Status
from lockstep.common.runtime.clock import file_time
from lockstep.ps.records.metrics import METRICS, MOST_LINES_BYTES, Record
from lockstep.ps.records.run_folder import JOB, RunResult, read_result
from lockstep.results.plots.curves import RunCurves
from lockstep.results.watch.figures import RunState, tested_epoch
from lockstep.results.watch.run_files import NOWHERE, WatchedFiles, try_read, written_at
from lockstep.results.watch.run_view import STOPPED_S, RunView
from lockstep.runs.job_file import named, value_text
from lockstep.runs.run_dir import (
    has_begun,
    recorded_job,
)

#: The name of the only run, where one is watched.
ONLY = "run"

#: Most runs of a folder that are shown: the newest ones.
MOST_RUNS = 1000

#: Most values in which runs differ that are shown, and characters of one.
MOST_DIFFERING, MOST_VALUE = 8, 60

#: Seconds between two looks at a run's files, and after which a run that no browser shows is forgotten, and read again
#: when it is opened.
LOOK_S, FORGET_S = 0.15, 600.0

#: Most parts of a run's files that are read before a browser is answered: a long run is shown as it is read.
MOST_PARTS = 4

#: Bytes of the end of a run's metrics in which its last figures are looked for.
TAIL_BYTES = 2**14


class RunBrief(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the list of runs."""

    id: str
    name: str
    model: str = ""
    state: RunState = RunState.WAITING
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    #: The epoch whose weights it has, or else the last one; None before the first.
    tested: EpochRecord | None = None
    wall_s: float | None = None
    weights_sha256: str = ""
    #: When the run last wrote something, in seconds since 1970.
    written: float = 0.0
    #: The values of its job by name, as texts; in a list, those in which its runs differ.
    values: dict[str, str] = {}


class RunList(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a folder."""

    #: The newest first, at most `MOST_RUNS`.
    runs: list[RunBrief]
    #: How many there are.
    total: int
    #: The values of a job in which those that are listed differ.
    differing: list[str]


@dataclass
class WatchedRuns:
    """All runs that are watched."""

    #: The folder of a run, or of runs; `NOWHERE` if a server is asked.
    folder: Path = NOWHERE
    #: Whether it is a folder of runs.
    is_many: bool = False
    #: The folders of several runs that were named one by one, by their names; `folder` is of no use then.
    chosen: dict[str, Path] = field(default_factory=dict)
    #: The last answer of the server of the only run.
    status: Status | None = None
    #: Seconds since 1970, as the times of files are.
    file_time: Callable[[], float] = file_time
    _views: dict[str, RunView] = field(default_factory=dict)
    #: The list's lines of runs that have not changed.
    _briefs: dict[str, tuple[float, RunBrief]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def at(cls, path: Path) -> "WatchedRuns":
        """Return what a folder holds: one run, or many; `UsageError` if it cannot be either.

        A folder that is empty, or not there yet, is one whose run has not begun.
        """
        if path.exists() and not path.is_dir():
            raise UsageError(f"{str(path)!r} is not a folder: expected the folder of a run, or one of runs, as runs/")
        if not path.exists() and not path.absolute().parent.is_dir():
            raise UsageError(
                f"{str(path)!r} is not there: expected the folder of a run, or one of runs, as `lockstep watch runs`"
            )
        source = cls(path)
        source.decide()
        if not source.is_many and path.is_dir() and not (path / JOB).exists() and any(path.iterdir()):
            raise UsageError(
                f"{str(path)!r} holds no run: expected a run's folder, with its {JOB}, or a folder of such folders"
            )
        return source

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "WatchedRuns":
        """Return the runs in several folders, or what one folder holds; `UsageError` as `at`, or for equal names."""
        if len(paths) == 1:
            return cls.at(paths[0])
        if absent := [path for path in paths if not (path / JOB).exists()]:
            raise UsageError(f"{str(absent[0])!r} holds no run: expected run folders, or one folder of runs")
        chosen = {path.absolute().name: path for path in paths}
        if len(chosen) < len(paths):
            raise UsageError(f"{len(paths)} runs with {len(chosen)} names: expected folders with different names")
        return cls(is_many=True, chosen=chosen)

    def decide(self) -> None:
        """Find out whether the folder holds many runs: one that was empty may hold some by now."""
        if not self.is_many and not (self.folder / JOB).exists():
            self.is_many = bool(self._inside())

    def take(self, status: Status, now: float) -> None:
        """Take the last answer of the server of the only run: if that has no folder, nothing else keeps its steps."""
        self.status = status
        self.view(ONLY, now)

    def view(self, name: str, now: float) -> RunView | None:
        """Return a run that a browser shows, with all that is new in its files; None if no run has this name."""
        with self._lock:
            if name not in self._views:
                # A name comes from the address line of a browser: it must be one of those that there are.
                folder = (self._places() if self.is_many else {ONLY: self.folder}).get(name)
                if folder is None:
                    return None
                self._views[name] = RunView(WatchedFiles(folder), file_time=self.file_time)
            view = self._views[name]
            if is_due := now >= view.seen + LOOK_S:
                view.seen = now
            self._views = {known: each for known, each in self._views.items() if now <= each.seen + FORGET_S}
        status, parts = None if self.is_many else self.status, MOST_PARTS if is_due else 0
        while parts and view.refresh(now, status):
            parts -= 1
        return view

    def _places(self) -> dict[str, Path]:
        """Return the folders of many runs by their names."""
        return self.chosen or self._inside()

    def _inside(self) -> dict[str, Path]:
        try:
            with os.scandir(self.folder) as entries:
                return {one.name: Path(one.path) for one in entries if os.path.exists(os.path.join(one.path, JOB))}
        except OSError:
            return {}

    def listing(self) -> RunList:
        """Return the list of runs, the newest first."""
        if not self.is_many:
            return RunList(runs=[], total=0, differing=[])
        found = sorted(((written_at(place), name, place) for name, place in self._places().items()), reverse=True)
        briefs = [self._brief(name, place, written) for written, name, place in found[:MOST_RUNS]]
        differing = _differing(briefs)
        shown = [
            replace(one, values={name: one.values[name] for name in differing if name in one.values}) for one in briefs
        ]
        return RunList(runs=shown, total=len(found), differing=differing)

    def _brief(self, name: str, place: Path, written: float) -> RunBrief:
        known = self._briefs.get(name)
        if known is None or known[0] != written:
            known = self._briefs[name] = written, brief_of(place, written)
        brief = known[1]
        is_old = self.file_time() >= written + STOPPED_S
        return replace(brief, state=RunState.STOPPED) if brief.state is RunState.RUNNING and is_old else brief


def _differing(briefs: Sequence[RunBrief]) -> list[str]:
    """Return the values of a job in which runs differ, in the job's order, but for those that have columns."""
    seen: dict[str, set[str]] = {name: set() for name in Job.__struct_fields__ if name not in ("model", "epochs")}
    for brief in briefs:
        for name, value in brief.values.items():
            if name in seen:
                seen[name].add(value)
    return [name for name, values in seen.items() if len(values) > 1][:MOST_DIFFERING]


def brief_of(folder: Path, written: float) -> RunBrief:
    """Return the figures of a run: those of its result, or the last ones that it has written."""
    job = try_read(lambda folder: recorded_job(folder) if has_begun(folder) else None, folder)
    result = try_read(read_result, folder)
    figures = _last_figures(folder / METRICS) if result is None else _figures_of(result)
    if result is None and job is not None:
        figures |= {"model": job.model_name(), "epochs": job.epochs if job.steps is None else 0}
    values = {} if job is None else msgspec.to_builtins(job)
    return RunBrief(
        id=folder.absolute().name,
        name=one_line(folder.name, 100),
        model=one_line(named(figures.pop("model", "")), 100),
        written=written,
        values={name: cut(value_text(named(value)), MOST_VALUE) for name, value in values.items()},
        **figures,
    )


def _figures_of(result: RunResult) -> dict[str, Any]:
    """Return the figures of a finished run."""
    return {
        **{name: getattr(result, name) for name in ("model", "epochs", "wall_s", "weights_sha256")},
        "tested": tested_epoch(result.history, result.weights_sha256),
        "state": RunState.FINISHED,
        "epoch": len(result.history),
        "loss": result.train_loss,
    }


def _last_figures(metrics: Path) -> dict[str, Any]:
    """Return the figures at the end of a file that is perhaps still written."""
    found, figures = RunCurves(), dict[str, Any]()
    found.add(_last_lines(metrics))
    if last := found.steps.last():
        figures |= {"epoch": int(last["epoch"]), "loss": last["loss"], "state": RunState.RUNNING}
    if found.epochs:
        figures |= {"tested": found.epochs[-1], "wall_s": found.epochs[-1].wall_s}
    if found.failure:
        figures["state"] = RunState.INTERRUPTED if found.is_interrupted else RunState.FAILED
    return figures


def _last_lines(path: Path) -> list[Record]:
    try:
        with open_regular(path, MOST_LINES_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except OSError:
        return []
    # Neither the end of a line at the beginning nor the beginning of one at the end.
    start = data.find(b"\n") + 1 if size > TAIL_BYTES else 0
    return list(known_lines(data[start : data.rfind(b"\n") + 1], Record))
