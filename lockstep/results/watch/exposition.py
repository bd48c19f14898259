"""A run's figures for Prometheus. Names and units follow its conventions; docs/how-to/watch.md lists them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from lockstep.results.reports.plots.curves import parts_of
from lockstep.results.watch.run_view import RunState, RunView

#: Metrics by name: their text, and the field of `Figures`, of the snapshot or of the last epoch that has their value.
OF_FIGURES = (
    ("steps_done", "Training steps that are complete.", "step"),
    ("steps_planned", "Training steps of the whole run.", "steps"),
    ("epoch", "The epoch at hand, from 1.", "epoch"),
    ("train_loss", "Mean loss over the samples of the last step.", "loss"),
    ("train_accuracy_ratio", "Accuracy over the samples of the last step, 0 to 1.", "accuracy"),
    ("train_r2", "R² over the samples of the last step.", "r2"),
    ("learning_rate", "Learning rate of the last step.", "lr"),
    ("remaining_seconds", "Expected seconds until the end of the run.", "left_s"),
)
OF_SNAPSHOT = (
    ("restarts", "Times that the run was resumed.", "restarts"),
    ("leases_copied", "Leases whose results were not used, since another worker was faster.", "copied"),
    ("leases_reassigned", "Leases that went to another worker, since theirs was late or gone.", "reassigned"),
    ("audits", "Micro-batches that a second worker computed.", "audited"),
    ("refused_connections", "Connections that the server has rejected.", "refused"),
)
OF_EPOCH = (
    ("test_loss", "Loss on the test set after the last epoch.", "test_loss"),
    ("test_accuracy_ratio", "Accuracy on the test set after the last epoch, 0 to 1.", "test_accuracy"),
    ("test_r2", "R² on the test set after the last epoch.", "test_r2"),
    ("validation_loss", "Loss on the validation set after the last epoch.", "val_loss"),
    ("validation_accuracy_ratio", "Accuracy on the validation set after the last epoch, 0 to 1.", "val_accuracy"),
    ("validation_r2", "R² on the validation set after the last epoch.", "val_r2"),
)

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


@dataclass(eq=False)
class RunCollector(Collector):
    """Collects the metrics of one run."""

    view: RunView

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics that the run has a value of."""
        with self.view.lock:
            for part in (_of_run, _of_steps, _of_workers):
                yield from part(self.view)


def exposition(view: RunView) -> bytes:
    """Return the text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(view))
    return generate_latest(registry)


def _of_run(view: RunView) -> Iterator[Metric]:
    snapshot = view.snapshot()
    named = {"run": snapshot.name, "model": snapshot.model}
    yield InfoMetricFamily("lockstep_run", "The run, its model and its job.", named)
    states = {one.value: float(one is snapshot.state) for one in RunState}
    yield _labelled(GaugeMetricFamily, "run_state", "1 for the state that the run is in.", "state", states)
    yield from _each(GaugeMetricFamily, OF_FIGURES, snapshot.figures)
    yield from _each(CounterMetricFamily, OF_SNAPSHOT, snapshot)
    if view.metrics.epochs:
        last = view.metrics.epochs[-1]
        yield from _each(GaugeMetricFamily, OF_EPOCH, last)
        if last.metrics:
            text = "Other metrics of the job after the last epoch: f1 of training samples, test_f1, val_f1."
            yield _labelled(GaugeMetricFamily, "metric", text, "name", last.metrics)


def _of_steps(view: RunView) -> Iterator[Metric]:
    if view.status is not None and not view.has_folder:
        return  # a server says where its run is, and not what each step took
    steps = view.metrics.steps
    samples = float(steps["samples"].sum())
    yield CounterMetricFamily("lockstep_samples", "Training samples whose gradients were used.", samples)
    crossed = {vector: float(steps[f"{vector}_bytes"].sum()) for vector in ("sums", "weights")}
    yield _labelled(CounterMetricFamily, "wire_bytes", "Bytes that crossed sockets.", "vector", crossed)
    seconds = {part: float(values.sum()) for part, values in parts_of(steps.__getitem__).items()}
    text = "Seconds of training steps, by what they were spent on."
    yield _labelled(CounterMetricFamily, "step_seconds", text, "part", seconds)


def _of_workers(view: RunView) -> Iterator[Metric]:
    workers = view.workers()
    if view.status is not None:
        teams, processes = Counter[str](), Counter[str]()
        for worker in workers:
            teams[worker.state] += 1
            processes[worker.state] += worker.processes
        text = "Worker processes by state, as the server reports it."
        yield _labelled(GaugeMetricFamily, "workers", text, "state", dict(sorted(processes.items())))
        text = "Teams of worker processes by state, as the server reports it."
        yield _labelled(GaugeMetricFamily, "teams", text, "state", dict(sorted(teams.items())))
    text = "Part of the last steps that a team computed, 0 to 1."
    shares = {str(worker.rank): worker.share for worker in workers}
    yield _labelled(GaugeMetricFamily, "worker_share_ratio", text, "rank", shares)


def _each(kind: type[Family], table: Sequence[tuple[str, str, str]], of: object) -> Iterator[Metric]:
    """Yield the metrics of a table, each a field of `of`, but for those that it has no value of."""
    values = ((name, text, getattr(of, field)) for name, text, field in table)
    return (kind(f"lockstep_{name}", text, value) for name, text, value in values if value is not None)


def _labelled(kind: type[Family], name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a metric with a value for each value of its label."""
    family = kind(f"lockstep_{name}", text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family
