"""A run's figures for Prometheus, one declared table. Names and units follow its conventions.

docs/how-to/watch.md lists them, and the reference is made from the table.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from lockstep.results.reports.plots.curves import parts_of
from lockstep.results.watch.run_view import RunState, RunView, Snapshot

#: A number, or one for each value of a label; None if the run has none.
Value = float | Mapping[str, float] | None


class ExportedMetric(msgspec.Struct, frozen=True):
    """One metric: its name without `lockstep_`, what it is, and where its value comes from."""

    name: str
    text: str
    of: Callable[[RunView, Snapshot], Value]
    #: The name of the label by which it has several values; empty if it has one.
    label: str = ""
    kind: Literal["gauge", "counter"] = "gauge"

    def family(self, value: float | Mapping[str, float]) -> Metric:
        """Return the metric as the library writes it."""
        kind = GaugeMetricFamily if self.kind == "gauge" else CounterMetricFamily
        if not isinstance(value, Mapping):
            return kind(f"lockstep_{self.name}", self.text, value)
        family = kind(f"lockstep_{self.name}", self.text, labels=[self.label])
        for each, number in value.items():
            family.add_metric([each], number)
        return family


def _figure(field: str) -> Callable[[RunView, Snapshot], Value]:
    """Return what reads a figure of the snapshot, or one of its fields."""
    read = attrgetter(field)
    return lambda view, snapshot: read(snapshot)


def _last_epoch(field: str) -> Callable[[RunView, Snapshot], Value]:
    """Return what reads a figure of the last epoch."""
    read = attrgetter(field)
    return lambda view, snapshot: read(snapshot.epochs[-1]) if snapshot.epochs else None


def _states(view: RunView, snapshot: Snapshot) -> Value:
    return {one.value: float(one is snapshot.state) for one in RunState}


def _has_steps(view: RunView) -> bool:
    """Tell whether the run's steps are known: a server reports where its run is, and not what each step took."""
    return view.status is None or view.has_folder


def _samples(view: RunView, snapshot: Snapshot) -> Value:
    return float(view.metrics.steps["samples"].sum()) if _has_steps(view) else None


def _crossed(view: RunView, snapshot: Snapshot) -> Value:
    steps = view.metrics.steps
    crossed = {vector: float(steps[f"{vector}_bytes"].sum()) for vector in ("sums", "weights")}
    return crossed if _has_steps(view) else None


def _seconds(view: RunView, snapshot: Snapshot) -> Value:
    parts = parts_of(view.metrics.steps.__getitem__)
    return {part: float(values.sum()) for part, values in parts.items()} if _has_steps(view) else None


def _processes(view: RunView, snapshot: Snapshot) -> Value:
    counts = Counter[str]()
    for worker in snapshot.workers:
        counts[worker.state] += worker.processes
    return None if view.status is None else dict(sorted(counts.items()))


def _teams(view: RunView, snapshot: Snapshot) -> Value:
    counts = Counter(worker.state for worker in snapshot.workers)
    return None if view.status is None else dict(sorted(counts.items()))


def _shares(view: RunView, snapshot: Snapshot) -> Value:
    return {str(worker.rank): worker.share for worker in snapshot.workers}


#: All metrics, in the order in which they are written.
METRICS = (
    ExportedMetric("run_state", "1 for the state that the run is in.", _states, "state"),
    ExportedMetric("steps_done", "Training steps that are complete.", _figure("figures.step")),
    ExportedMetric("steps_planned", "Training steps of the whole run.", _figure("figures.steps")),
    ExportedMetric("epoch", "The current epoch, from 1.", _figure("figures.epoch")),
    ExportedMetric("train_loss", "Mean loss over the samples of the last step.", _figure("figures.loss")),
    ExportedMetric(
        "train_accuracy_ratio", "Accuracy over the samples of the last step, 0 to 1.", _figure("figures.accuracy")
    ),
    ExportedMetric("train_r2", "R² over the samples of the last step.", _figure("figures.r2")),
    ExportedMetric("learning_rate", "Learning rate of the last step.", _figure("figures.lr")),
    ExportedMetric("remaining_seconds", "Expected seconds until the end of the run.", _figure("figures.left_s")),
    ExportedMetric("restarts", "Times that the run was resumed.", _figure("restarts"), kind="counter"),
    ExportedMetric(
        "leases_copied",
        "Leases whose results were not used, because another worker was faster.",
        _figure("copied"),
        kind="counter",
    ),
    ExportedMetric(
        "leases_reassigned",
        "Leases that went to another worker, because the first one was late or gone.",
        _figure("reassigned"),
        kind="counter",
    ),
    ExportedMetric("audits", "Micro-batches that a second worker computed.", _figure("audited"), kind="counter"),
    ExportedMetric(
        "refused_connections", "Connections that the server has rejected.", _figure("refused"), kind="counter"
    ),
    ExportedMetric("test_loss", "Loss on the test set after the last epoch.", _last_epoch("test_loss")),
    ExportedMetric(
        "test_accuracy_ratio", "Accuracy on the test set after the last epoch, 0 to 1.", _last_epoch("test_accuracy")
    ),
    ExportedMetric("test_r2", "R² on the test set after the last epoch.", _last_epoch("test_r2")),
    ExportedMetric("validation_loss", "Loss on the validation set after the last epoch.", _last_epoch("val_loss")),
    ExportedMetric(
        "validation_accuracy_ratio",
        "Accuracy on the validation set after the last epoch, 0 to 1.",
        _last_epoch("val_accuracy"),
    ),
    ExportedMetric("validation_r2", "R² on the validation set after the last epoch.", _last_epoch("val_r2")),
    ExportedMetric(
        "metric",
        "Other metrics of the job after the last epoch: f1 of training samples, test_f1, val_f1.",
        _last_epoch("metrics"),
        "name",
    ),
    ExportedMetric("samples", "Training samples whose gradients were used.", _samples, kind="counter"),
    ExportedMetric("wire_bytes", "Bytes that crossed sockets.", _crossed, "vector", "counter"),
    ExportedMetric(
        "step_seconds", "Seconds of training steps, by what they were spent on.", _seconds, "part", "counter"
    ),
    ExportedMetric("workers", "Worker processes by state, as the server reports it.", _processes, "state"),
    ExportedMetric("teams", "Teams of worker processes by state, as the server reports it.", _teams, "state"),
    ExportedMetric("worker_share_ratio", "Part of the last steps that a team computed, 0 to 1.", _shares, "rank"),
)

#: The metric whose labels name the run: always 1.
RUN_TEXT, RUN_LABELS = "The run and its model: always 1.", ("run", "model")


@dataclass(eq=False)
class RunCollector(Collector):
    """Collects the metrics of one run."""

    view: RunView

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics that the run has a value of."""
        with self.view.lock:
            snapshot = self.view.snapshot()
            named = (snapshot.name, snapshot.model)
            yield InfoMetricFamily("lockstep_run", RUN_TEXT, dict(zip(RUN_LABELS, named, strict=True)))
            for metric in METRICS:
                if (value := metric.of(self.view, snapshot)) is not None and value != {}:
                    yield metric.family(value)


def exposition(view: RunView) -> bytes:
    """Return the text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(view))
    return generate_latest(registry)
