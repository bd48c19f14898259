"""The figures of a run: the records that the page is sent, and one table of metrics for its tiles and for Prometheus.

Names and units follow the conventions of Prometheus. docs/how-to/watch.md lists them, and the reference is made from
the table.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from lockstep.common.protocol.messages import EpochRecord
from lockstep.results.watch.processes import ProcessUse, WorkerView
from lockstep.results.watch.run_files import RunEvent, StepLeases


class RunState(StrEnum):
    """The state of a run, as far as its folder shows it."""

    #: The folder is missing, or holds no job.
    MISSING = "missing"
    #: Claimed, and nothing is written yet; or its server waits for workers.
    WAITING = "waiting"
    RUNNING = "running"
    #: It has steps and no end, and nothing was written for a while.
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    #: A person ended it: it can be resumed.
    INTERRUPTED = "interrupted"


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a run, and its speed."""

    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    accuracy: float | None = None
    r2: float | None = None
    lr: float | None = None
    #: Means over the last `recent_steps`, which do not jump from step to step.
    recent_loss: float | None = None
    recent_accuracy: float | None = None
    recent_r2: float | None = None
    recent_steps: int = 0
    samples_per_s: float = 0.0
    #: Seconds until the end at this speed, None if that is unknown.
    left_s: float | None = None


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """A figure at the top of the page: `value`, or `value` of `whole`, in a unit that the page knows."""

    name: str
    value: float | str | None
    unit: str
    whole: int = 0


def tested_epoch(epochs: Sequence[EpochRecord], weights_sha256: str) -> EpochRecord | None:
    """Return the epoch of the weights with a digest: with keep_best, or after an early stop, not the last one."""
    last = epochs[-1] if epochs else None
    return next((one for one in reversed(epochs) if one.weights_sha256 == weights_sha256), last)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that changes while a run goes on, but for its curves."""

    name: str
    #: Empty if only its server is known.
    folder: str
    state: RunState
    phase: str
    model: str
    figures: Figures
    #: The figures at the top of the page.
    tiles: list[Tile] = []
    workers: list[WorkerView]
    #: Whether it has none because one process computes everything.
    is_alone: bool
    #: The use of this machine by the processes on it, empty if the run does not go on.
    processes: list[ProcessUse]
    timeline: list[StepLeases]
    events: list[RunEvent]
    epochs: list[EpochRecord]
    #: For each of these the last of its steps, None if that is unknown.
    epoch_ends: list[int | None]
    failure: str
    weights_sha256: str
    #: First and last step that there is a figure of; None before the first.
    first_step: int | None
    last_step: int | None
    copied: int
    reassigned: int
    restarts: int
    audited: int
    #: Connections that the server rejected, None if it does not answer.
    refused: int | None
    #: The hosts of the other servers, in the order of their slices of the weights, while the server answers.
    slices: list[str] = []
    #: Whether the server answers.
    is_answered: bool
    #: Whether the files have been read to their ends.
    is_whole: bool

    @property
    def last(self) -> EpochRecord | None:
        """The last epoch."""
        return self.epochs[-1] if self.epochs else None

    @property
    def tested(self) -> EpochRecord | None:
        """The epoch of the weights whose digest is shown."""
        return tested_epoch(self.epochs, self.weights_sha256)

    def after(self) -> str:
        """Return after which epoch the weights are, empty if that is the last one."""
        return "" if self.tested is None or self.tested is self.last else f" after epoch {self.tested.epoch}"

    def recently(self) -> str:
        """Return over how many steps means are taken."""
        return f", last {self.figures.recent_steps} steps" if self.figures.recent_steps > 1 else ""


#: A number, or one for each value of a label; None if the run has none.
Value = float | str | Mapping[str, float] | None


class RunMetric(msgspec.Struct, frozen=True):
    """A figure: its name and text for Prometheus, where its value comes from, and its tile on the page."""

    #: Without `lockstep_`; empty if only the page has it.
    name: str
    text: str
    #: Its place in a snapshot, or a function of one; empty if it is one of the totals of the run's steps.
    of: str | Callable[[Snapshot], Value] = ""
    #: The name of the label by which it has several values; empty if it has one.
    label: str = ""
    kind: Literal["gauge", "counter"] = "gauge"
    #: Its title on the page; empty if it has no tile. If it has several values, each has a tile with its own name.
    tile: str = ""
    unit: Literal["count", "number", "rate", "percent", "speed", "duration", "text"] = "count"
    #: The place of the figure that it is a part of.
    whole: str = ""
    #: Whether a run has the tile.
    shows: Callable[[Snapshot], object] = lambda snapshot: True

    def value(self, snapshot: Snapshot) -> Value:
        """Return its value."""
        return read(snapshot, self.of) if isinstance(self.of, str) else self.of(snapshot)

    def family(self, value: float | Mapping[str, float]) -> Metric:
        """Return the metric as the library writes it."""
        kind = GaugeMetricFamily if self.kind == "gauge" else CounterMetricFamily
        if not isinstance(value, Mapping):
            return kind(f"lockstep_{self.name}", self.text, value)
        family = kind(f"lockstep_{self.name}", self.text, labels=[self.label])
        for each, number in value.items():
            family.add_metric([each], number)
        return family

    def tiles(self, snapshot: Snapshot) -> Iterator[Tile]:
        """Yield its tiles."""
        if self.tile and self.shows(snapshot):
            value, whole = self.value(snapshot), read(snapshot, self.whole) if self.whole else 0
            for name, each in (value if isinstance(value, Mapping) else {self.tile: value}).items():
                title = name.format(recent=snapshot.recently(), after=snapshot.after())
                yield Tile(name=title, value=each, unit=self.unit, whole=whole)


def read(snapshot: Snapshot, path: str) -> Any:
    """Return the value in a place of a snapshot, None if a part of the path is missing."""
    value: Any = snapshot
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _counts(processes: Callable[[WorkerView], int]) -> Callable[[Snapshot], Value]:
    """Return a count of the workers in each state, None if the server does not answer."""

    def count(snapshot: Snapshot) -> Value:
        counts = Counter[str]()
        for worker in snapshot.workers:
            counts[worker.state] += processes(worker)
        return dict(sorted(counts.items())) if snapshot.is_answered else None

    return count


def _test_metrics(snapshot: Snapshot) -> Value:
    named = {} if snapshot.tested is None else snapshot.tested.of_set("test_")
    return {f"test {name}{{after}}": value for name, value in named.items()}


def _is_regression(snapshot: Snapshot) -> bool:
    return snapshot.figures.r2 is not None


def _is_classification(snapshot: Snapshot) -> bool:
    return not _is_regression(snapshot)


def _is_running(snapshot: Snapshot) -> bool:
    return snapshot.state is RunState.RUNNING


#: All figures, in the order in which they are written and shown.
METRICS = (
    RunMetric(
        "run_state",
        "1 for the state that the run is in.",
        lambda snapshot: {one.value: float(one is snapshot.state) for one in RunState},
        "state",
    ),
    RunMetric("steps_done", "Training steps that are complete.", "figures.step", tile="step", whole="figures.steps"),
    RunMetric("steps_planned", "Training steps of the whole run.", "figures.steps"),
    RunMetric("epoch", "The current epoch, from 1.", "figures.epoch", tile="epoch", whole="figures.epochs"),
    RunMetric("train_loss", "Mean loss over the samples of the last step.", "figures.loss"),
    RunMetric("train_accuracy_ratio", "Accuracy over the samples of the last step, 0 to 1.", "figures.accuracy"),
    RunMetric("train_r2", "R² over the samples of the last step.", "figures.r2"),
    RunMetric("", "", "figures.recent_loss", tile="loss{recent}", unit="number"),
    RunMetric("", "", "figures.recent_accuracy", tile="accuracy{recent}", unit="percent", shows=_is_classification),
    RunMetric("", "", "figures.recent_r2", tile="R²{recent}", unit="number", shows=_is_regression),
    RunMetric(
        "",
        "",
        "tested.test_accuracy",
        tile="test accuracy{after}",
        unit="percent",
        shows=lambda snapshot: snapshot.epochs and _is_classification(snapshot),
    ),
    RunMetric(
        "",
        "",
        "tested.test_r2",
        tile="test R²{after}",
        unit="number",
        shows=lambda snapshot: snapshot.epochs and _is_regression(snapshot),
    ),
    RunMetric("", "", _test_metrics, tile="test metrics", unit="number"),
    RunMetric("learning_rate", "Learning rate of the last step.", "figures.lr", tile="learning rate", unit="rate"),
    RunMetric("", "", "figures.samples_per_s", tile="speed", unit="speed"),
    RunMetric(
        "remaining_seconds",
        "Expected seconds until the end of the run.",
        "figures.left_s",
        tile="time left",
        unit="duration",
        shows=_is_running,
    ),
    RunMetric(
        "",
        "",
        "last.wall_s",
        tile="time",
        unit="duration",
        shows=lambda snapshot: snapshot.epochs and not _is_running(snapshot),
    ),
    RunMetric(
        "leases_copied",
        "Leases whose results were not used, because another worker was faster.",
        "copied",
        kind="counter",
        tile="second copies",
        shows=lambda snapshot: snapshot.copied,
    ),
    RunMetric(
        "restarts",
        "Times that the run was resumed.",
        "restarts",
        kind="counter",
        tile="restarts",
        shows=lambda snapshot: snapshot.restarts,
    ),
    RunMetric(
        "leases_reassigned",
        "Leases that went to another worker, because the first one was late or gone.",
        "reassigned",
        kind="counter",
    ),
    RunMetric("audits", "Micro-batches that a second worker computed.", "audited", kind="counter"),
    RunMetric("refused_connections", "Connections that the server has rejected.", "refused", kind="counter"),
    RunMetric("test_loss", "Loss on the test set after the last epoch.", "last.test_loss"),
    RunMetric("test_accuracy_ratio", "Accuracy on the test set after the last epoch, 0 to 1.", "last.test_accuracy"),
    RunMetric("test_r2", "R² on the test set after the last epoch.", "last.test_r2"),
    RunMetric("validation_loss", "Loss on the validation set after the last epoch.", "last.val_loss"),
    RunMetric(
        "validation_accuracy_ratio", "Accuracy on the validation set after the last epoch, 0 to 1.", "last.val_accuracy"
    ),
    RunMetric("validation_r2", "R² on the validation set after the last epoch.", "last.val_r2"),
    RunMetric(
        "metric",
        "Other metrics of the job after the last epoch: f1 of training samples, test_f1, val_f1.",
        "last.metrics",
        "name",
    ),
    RunMetric("samples", "Training samples whose gradients were used.", kind="counter"),
    RunMetric("wire_bytes", "Bytes that crossed sockets.", label="vector", kind="counter"),
    RunMetric("step_seconds", "Seconds of training steps, by what they were spent on.", label="part", kind="counter"),
    RunMetric(
        "workers", "Worker processes by state, as the server reports it.", _counts(lambda one: one.processes), "state"
    ),
    RunMetric(
        "teams", "Teams of worker processes by state, as the server reports it.", _counts(lambda one: 1), "state"
    ),
    RunMetric(
        "worker_share_ratio",
        "Part of the last steps that a team computed, 0 to 1.",
        lambda snapshot: {str(worker.rank): worker.share for worker in snapshot.workers},
        "rank",
    ),
    RunMetric(
        "",
        "",
        lambda snapshot: ", ".join(snapshot.slices),
        tile="slices of the weights also on",
        unit="text",
        shows=lambda snapshot: snapshot.slices,
    ),
    RunMetric("", "", lambda snapshot: "…", tile="reading", unit="text", shows=lambda snapshot: not snapshot.is_whole),
    RunMetric(
        "",
        "",
        "weights_sha256",
        tile="weights, SHA-256",
        unit="text",
        shows=lambda snapshot: snapshot.weights_sha256,
    ),
)

#: The metric whose labels name the run: always 1.
RUN_TEXT, RUN_LABELS = "The run and its model: always 1.", ("run", "model")


def tiles_of(snapshot: Snapshot) -> list[Tile]:
    """Return the figures at the top of the page."""
    return [tile for metric in METRICS for tile in metric.tiles(snapshot)]


class RunCollector(Collector):
    """Collects the metrics of one run."""

    def __init__(self, snapshot: Snapshot, totals: Mapping[str, Value]) -> None:
        self._snapshot, self._totals = snapshot, totals

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics that the run has a value of."""
        named = (self._snapshot.name, self._snapshot.model)
        yield InfoMetricFamily("lockstep_run", RUN_TEXT, dict(zip(RUN_LABELS, named, strict=True)))
        for metric in METRICS:
            value = metric.value(self._snapshot) if metric.of else self._totals.get(metric.name)
            if metric.name and value is not None and value != {} and not isinstance(value, str):
                yield metric.family(value)


def exposition(snapshot: Snapshot, totals: Mapping[str, Value]) -> bytes:
    """Return the text that Prometheus reads."""
    return generate_latest(RunCollector(snapshot, totals))
