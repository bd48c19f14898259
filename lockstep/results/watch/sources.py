"""What is watched: the folder of one run, a folder of many, or the server at an address."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.files.reading import open_regular
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import Status
from lockstep.ps.records.metrics import METRICS, MOST_LINES_BYTES, EpochLine, FailureRecord, Record, StepRecord
from lockstep.ps.records.run_folder import RESULT, read_result
from lockstep.results.watch.line_follower import known_records
from lockstep.results.watch.run_view import RunView
from lockstep.runs.run_dir import JOB

#: The name of the only run, where one is watched.
ONLY = "run"

#: Most runs of a folder that are shown: the newest ones.
MOST_RUNS = 1000

#: The folder of a run of which only the server is known: it cannot exist.
NOWHERE = Path(os.devnull, "run")

#: Seconds after which a run that nobody looks at is forgotten, and read again when it is opened.
FORGET_S = 600.0

#: Bytes of the end of a run's metrics in which its last figures are looked for.
TAIL_BYTES = 2**14


class RunBrief(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the list of runs."""

    id: str
    name: str
    model: str = ""
    state: str = "unfinished"
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    test_accuracy: float | None = None
    test_r2: float | None = None
    wall_s: float | None = None
    weights_sha256: str = ""
    #: When the run last wrote something, in seconds since 1970.
    written: float = 0.0


@dataclass
class WatchedRuns:
    """All runs that are watched."""

    #: A run's folder, or one of runs; None where a server is asked.
    folder: Path | None
    #: Whether it is a folder of runs.
    is_many: bool = False
    #: What the server of the only run has last answered.
    status: Status | None = None
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

    def decide(self) -> None:
        """Find out whether the folder holds many runs: one that was empty may hold some by now."""
        if self.folder is not None and not self.is_many and not (self.folder / JOB).exists():
            self.is_many = bool(self._names())

    def view(self, name: str, now: float) -> RunView | None:
        """Return a run that somebody looks at, None if there is none of this name."""
        with self._lock:
            if name not in self._views:
                folder = self._folder_of(name)
                if folder is None:
                    return None
                self._views[name] = RunView(folder)
            self._views[name].seen = now
            return self._views[name]

    def _folder_of(self, name: str) -> Path | None:
        if not self.is_many:
            return (self.folder or NOWHERE) if name == ONLY else None
        assert self.folder is not None
        # A name comes from the address line of a browser: it must be one of those that the folder has.
        return self.folder / name if name in self._names() else None

    def _names(self) -> list[str]:
        assert self.folder is not None
        try:
            return [entry.name for entry in os.scandir(self.folder) if os.path.exists(os.path.join(entry.path, JOB))]
        except OSError:
            return []

    def open_views(self, now: float) -> list[RunView]:
        """Return the runs that somebody has looked at lately; the others are forgotten."""
        with self._lock:
            self._views = {name: view for name, view in self._views.items() if now <= view.seen + FORGET_S}
            return list(self._views.values())

    def refresh(self, view: RunView, now: float) -> bool:
        """Read a part of what is new of a run; return whether there is more to read at once."""
        return view.refresh(now, None if self.is_many else self.status)

    def briefs(self) -> list[RunBrief]:
        """Return the list of runs, the newest first."""
        if not self.is_many:
            return []
        assert self.folder is not None
        found = [(_written(self.folder / name), name) for name in self._names()]
        found.sort(reverse=True)
        return [self._brief(name, written) for written, name in found[:MOST_RUNS]]

    def _brief(self, name: str, written: float) -> RunBrief:
        assert self.folder is not None
        known = self._briefs.get(name)
        if known is None or known[0] != written:
            known = self._briefs[name] = written, brief_of(self.folder / name, written)
        return known[1]


def _written(folder: Path) -> float:
    """Return when a run last wrote something."""
    times = [0.0]
    for name in (METRICS, RESULT, JOB):
        try:
            times.append(os.stat(folder / name).st_mtime)
        except OSError:
            continue
    return max(times)


def brief_of(folder: Path, written: float) -> RunBrief:
    """Return the figures of a run: those of its result, or the last ones that it has written."""
    try:
        result = read_result(folder)
    except (FileFormatError, OSError):
        return _brief_of_tail(folder, written)
    return RunBrief(
        id=folder.name,
        name=one_line(folder.name, 100),
        model=one_line(result.model, 100),
        state="finished",
        epoch=len(result.history),
        epochs=result.epochs,
        loss=result.train_loss,
        test_accuracy=result.test_accuracy,
        test_r2=result.test_r2,
        wall_s=result.wall_s,
        weights_sha256=result.weights_sha256,
        written=written,
    )


def _brief_of_tail(folder: Path, written: float) -> RunBrief:
    figures: dict[str, Any] = {}
    for line in _last_lines(folder / METRICS):
        match line:
            case StepRecord():
                figures.update(epoch=line.epoch, loss=line.loss, state="unfinished")
            case EpochLine():
                figures.update(epoch=line.epoch, test_accuracy=line.test_accuracy, test_r2=line.test_r2)
            case FailureRecord():
                figures.update(state="failed")
    return RunBrief(id=folder.name, name=one_line(folder.name, 100), written=written, **figures)


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
    return list(known_records(data[start : data.rfind(b"\n") + 1], msgspec.json.Decoder(Record)))
