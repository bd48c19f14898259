"""A run's figures for Prometheus. Names and units follow its conventions; docs/how-to/watch.md lists them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from lockstep.results.reports.plots.curves import parts_of
from lockstep.results.watch.run_view import RunState, RunView


@dataclass(eq=False)
class RunCollector(Collector):
    """Collects the metrics of one run."""

    view: RunView

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics that the run has a value of."""
        with self.view.lock:
            for part in (_of_run, _of_epochs, _of_steps, _of_workers):
                yield from part(self.view)


def exposition(view: RunView) -> bytes:
    """Return the text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(view))
    return generate_latest(registry)


def _of_run(view: RunView) -> Iterator[Metric]:
    snapshot, figures = view.snapshot(), view.figures()
    yield InfoMetricFamily(
        "lockstep_run", "The run, its model and its job.", {"run": snapshot.name, "model": snapshot.model}
    )
    state = GaugeMetricFamily("lockstep_run_state", "1 for the state that the run is in.", labels=["state"])
    for one in RunState:
        state.add_metric([one.value], float(one is snapshot.state))
    yield state
    yield GaugeMetricFamily("lockstep_steps_done", "Training steps that are complete.", figures.step)
    yield GaugeMetricFamily("lockstep_steps_planned", "Training steps of the whole run.", figures.steps)
    yield GaugeMetricFamily("lockstep_epoch", "The epoch at hand, from 1.", figures.epoch)
    optional = (
        ("lockstep_train_loss", "Mean loss over the samples of the last step.", figures.loss),
        ("lockstep_train_accuracy_ratio", "Accuracy over the samples of the last step, 0 to 1.", figures.accuracy),
        ("lockstep_train_r2", "R² over the samples of the last step.", figures.r2),
        ("lockstep_learning_rate", "Learning rate of the last step.", figures.lr),
        ("lockstep_remaining_seconds", "Expected seconds until the end of the run.", figures.left_s),
    )
    yield from (GaugeMetricFamily(name, text, value) for name, text, value in optional if value is not None)
    yield CounterMetricFamily("lockstep_restarts", "Times that the run was resumed.", snapshot.restarts)
    yield CounterMetricFamily(
        "lockstep_leases_copied",
        "Leases whose results were not used, since another worker was faster.",
        snapshot.copied,
    )
    yield CounterMetricFamily(
        "lockstep_leases_reassigned",
        "Leases that went to another worker, since theirs was late or gone.",
        snapshot.reassigned,
    )
    yield CounterMetricFamily("lockstep_audits", "Micro-batches that a second worker computed.", snapshot.audited)
    if snapshot.refused is not None:
        yield CounterMetricFamily(
            "lockstep_refused_connections", "Connections that the server has rejected.", snapshot.refused
        )


def _of_epochs(view: RunView) -> Iterator[Metric]:
    if not view.metrics.epochs:
        return
    last = view.metrics.epochs[-1]
    optional = (
        ("lockstep_test_loss", "Loss on the test set after the last epoch.", last.test_loss),
        ("lockstep_test_accuracy_ratio", "Accuracy on the test set after the last epoch, 0 to 1.", last.test_accuracy),
        ("lockstep_test_r2", "R² on the test set after the last epoch.", last.test_r2),
        ("lockstep_validation_loss", "Loss on the validation set after the last epoch.", last.val_loss),
        (
            "lockstep_validation_accuracy_ratio",
            "Accuracy on the validation set after the last epoch, 0 to 1.",
            last.val_accuracy,
        ),
    )
    yield from (GaugeMetricFamily(name, text, value) for name, text, value in optional if value is not None)


def _of_steps(view: RunView) -> Iterator[Metric]:
    if view.status is not None and not view.has_folder:
        return  # a server says where its run is, and not what each step took
    steps = view.metrics.steps
    yield CounterMetricFamily("lockstep_samples", "Training samples whose gradients were used.", _sum(view, "samples"))
    wire = CounterMetricFamily("lockstep_wire_bytes", "Bytes that crossed sockets.", labels=["vector"])
    wire.add_metric(["sums"], _sum(view, "sums_bytes"))
    wire.add_metric(["weights"], _sum(view, "weights_bytes"))
    yield wire
    seconds = CounterMetricFamily(
        "lockstep_step_seconds", "Seconds of training steps, by what they were spent on.", labels=["part"]
    )
    for part, values in parts_of(steps.__getitem__).items():
        seconds.add_metric([part], float(values.sum()))
    yield seconds


def _sum(view: RunView, name: str) -> float:
    return float(view.metrics.steps[name].sum())


def _of_workers(view: RunView) -> Iterator[Metric]:
    workers = view.workers()
    if view.status is not None:
        states = GaugeMetricFamily("lockstep_workers", "Workers by state, as the server reports it.", labels=["state"])
        for state, count in sorted(Counter(worker.state for worker in workers).items()):
            states.add_metric([state], count)
        yield states
    shares = GaugeMetricFamily(
        "lockstep_worker_share_ratio", "Part of the last steps that a worker computed, 0 to 1.", labels=["rank"]
    )
    for worker in workers:
        shares.add_metric([str(worker.rank)], worker.share)
    yield shares
