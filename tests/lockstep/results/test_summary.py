"""The end of a run: its figures, and advice where the times give reason for some."""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.run.progress import Moved, Split
from lockstep.results.summary import advice, epochs_table, show_advice, show_summary, summary_lines
from tests.lockstep.statuses import result

TOO_SMALL = (
    "training took 10.0 s; for the same bits, a single process would take about 9.0 s: workers are not worth it (use "
    "--workers 0)"
)
TOO_MANY = "8 micro-batches keep at most 8 workers busy; a larger --micro-batches allows more, but changes the bits"
NARROW = (
    "each micro-batch had 4 samples, too few for fast products: --micro-batches 2 makes it 16, but changes the bits"
)

ADVICE = {
    "workers paid": (result(), []),
    "alone": (result(workers=0, compute_s=1.0), []),
    "too small a model": (result(compute_s=8.5, update_s=0.5), [TOO_SMALL]),
    "one worker": (result(workers=1, compute_s=8.5, update_s=0.5), [TOO_SMALL]),
    "too short to tell": (result(train_s=0.4, compute_s=0.1, update_s=0.0), []),
    "as many workers as micro-batches": (result(workers=8), []),
    "more workers than micro-batches": (result(workers=9), [TOO_MANY]),
    "narrow micro-batches": (result(workers=2, global_batch=32), [NARROW]),
    "narrow ones that keep all workers busy": (result(workers=3, global_batch=32), []),
    "no shared memory": (
        result(obstacle="/dev/shm is full"),
        ["gradients and weights went through sockets: /dev/shm is full"],
    ),
    "shared cores": (
        result(obstacle="no", crowding="4 processes wait", compute_s=8.5, update_s=0.5),
        ["gradients and weights went through sockets: no", "4 processes wait"],
    ),
    "both": (result(workers=9, compute_s=8.5, update_s=0.5), [TOO_MANY, TOO_SMALL]),
}


@pytest.mark.parametrize(("of", "notes"), ADVICE.values(), ids=ADVICE)
def test_advice(of: RunResult, notes: list[str]) -> None:
    assert advice(of) == notes


def part_of(workers: int, exchange_s: float) -> RunResult:
    """Return a run whose worker computes 80 ms a step, divided by the workers."""
    split = Split(steps=9, compute_s=0.08 / workers, exchange_s=exchange_s, update_s=0.0, waiting_s=0.0)
    return result(workers=workers, split=split)


TOOK = "training took 10.0 s; for the same bits, "
NOT_WORTH_IT = "workers are not worth it (use --workers 0)"

ONE_MORE = {
    # 80 ms and no exchange to speak of: half of it.
    "pays": (part_of(1, 0.0), None, "2 workers would take about 5.0 s: 2 workers are worth it"),
    # 40 ms and 20 ms: 3 of 8 micro-batches and 30 ms.
    "exchange eats it": (part_of(2, 0.020), None, "3 workers would take about 10.0 s: not worth it"),
    "no core is left": (part_of(2, 0.0), 2, "3 workers on 2 cores would take about 10.0 s: not worth it"),
    "cores are left": (part_of(2, 0.0), 3, "3 workers would take about 7.5 s: 3 workers are worth it"),
    # 4 micro-batches of 10 ms and 12 ms: 3 micro-batches and 18 ms.
    "too little": (part_of(2, 0.012), None, "3 workers would take about 9.2 s: not worth it"),
    "no micro-batch is left": (part_of(8, 0.0), None, "9 workers would take about 10.0 s: not worth it"),
}


@pytest.mark.parametrize(("of", "cores", "note"), ONE_MORE.values(), ids=ONE_MORE)
def test_what_one_more_worker_would_bring(of: RunResult, cores: int | None, note: str) -> None:
    assert advice(of, cores)[-1] == TOOK + note


#: Runs of one worker, which took 10 s: those that a single process needs, the exchange of a step next to 80 ms of
#: computing, and the note. Two workers exchange as much again.
ALONE = {
    "two are a little faster than none": (
        (9.0, 0.020),
        f"a single process would take about 9.0 s, and 2 workers would take about 8.0 s: {NOT_WORTH_IT}",
    ),
    "two are nearly twice as fast as one, and as slow as none": (
        (5.1, 0.0),
        f"a single process would take about 5.1 s, and 2 workers would take about 5.0 s: {NOT_WORTH_IT}",
    ),
    "none is faster than two": (
        (4.0, 0.0),
        f"a single process would take about 4.0 s, and 2 workers would take about 5.0 s: {NOT_WORTH_IT}",
    ),
    "two are much faster than none, which is faster than one": (
        (9.0, 0.0),
        "a single process would take about 9.0 s, and 2 workers would take about 5.0 s: 2 workers are worth it",
    ),
}


@pytest.mark.parametrize(("seconds", "note"), ALONE.values(), ids=ALONE)
def test_one_note_compares_one_worker_with_none_and_with_two(seconds: tuple[float, float], note: str) -> None:
    single_s, exchange_s = seconds
    of = msgspec.structs.replace(part_of(1, exchange_s), train_s=10.0, compute_s=single_s, update_s=0.0)
    assert advice(of) == [TOOK + note]


def learning(
    accuracies: list[float], test_losses: list[float], losses: Iterable[float] = itertools.repeat(0.5), **values: Any
) -> RunResult:
    """Return a run with epochs of these accuracies and losses of the test set, and losses of training."""
    (epoch,) = result().history
    epochs = enumerate(zip(accuracies, test_losses, losses, strict=False), 1)
    history = [
        msgspec.structs.replace(epoch, epoch=n, accuracy=n / 4, test_accuracy=accuracy, test_loss=held_out, loss=loss)
        for n, (accuracy, held_out, loss) in epochs
    ]
    return result(**{"workers": 0, "history": history, "epochs": len(history), "weights_epoch": len(history), **values})


STILL_FALLS = (
    "the test loss still falls (0.9 in epoch 3, 0.8 in epoch 4): 8 epochs, or twice as many steps, would train longer"
)

#: That of a run whose test loss was lowest in its second epoch.
HAS_RISEN = (
    "the test loss was lowest in epoch 2 (0.7; 0.8 at the end): --set validation_split=0.1 --set keep_best=true would "
    "end with the weights of the best epoch"
)

#: That of a run whose training loss has risen as well.
HAS_LEFT = HAS_RISEN.replace(": --set val", ": that of training has risen too, so try a lower --lr; --set val")

LEARNING = {
    "it still learns": (learning([0.3, 0.5, 0.6, 0.7], [1.2, 1.0, 0.9, 0.8]), [STILL_FALLS]),
    "it gains little": (learning([0.3, 0.5, 0.695, 0.7], [1.2, 1.0, 0.9, 0.8]), []),
    "it learns by heart": (learning([0.3, 0.7, 0.6, 0.7], [1.2, 0.7, 0.9, 0.8]), [HAS_RISEN]),
    "its rate is too high": (learning([0.3, 0.7, 0.6, 0.7], [1.2, 0.7, 0.9, 0.8], (2.0, 1.0, 1.1, 1.2)), [HAS_LEFT]),
    "its training is noisy": (learning([0.3, 0.7, 0.6, 0.7], [1.2, 0.7, 0.9, 0.8], (2.0, 1.0, 1.1, 1.05)), [HAS_RISEN]),
    "it is surer than right": (learning([0.3, 0.5, 0.6, 0.7], [1.2, 0.7, 0.9, 0.8]), []),
    "it has risen a little": (learning([0.3, 0.7, 0.6, 0.7], [1.2, 0.75, 0.9, 0.8]), []),
    "it has the best weights": (learning([0.3, 0.7, 0.6, 0.7], [1.2, 0.7, 0.9, 0.8], weights_epoch=2), []),
    "it was ended": (learning([0.3, 0.5, 0.6, 0.7], [1.2, 1.0, 0.9, 0.8], stopped="by patience"), []),
    "one epoch": (learning([0.3], [1.2]), []),
}


@pytest.mark.parametrize(("of", "notes"), LEARNING.values(), ids=LEARNING)
def test_a_run_that_ended_while_it_learned_is_told(of: RunResult, notes: list[str]) -> None:
    assert advice(of) == notes


def test_nothing_is_predicted_of_a_run_that_was_too_short() -> None:
    assert advice(msgspec.structs.replace(part_of(1, 0.0), train_s=0.4)) == []


def test_the_metrics_of_the_test_set_are_columns_of_the_epochs() -> None:
    (epoch,) = result().history
    first = msgspec.structs.replace(epoch, metrics={"f1": 0.9, "test_f1": 0.5, "val_f1": 0.8})
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(epochs_table([first, msgspec.structs.replace(epoch, epoch=2)]))
    assert [line.rstrip() for line in console.export_text().splitlines()] == [
        "epoch  train loss  train accuracy  test loss  test accuracy  test f1  seconds",
        "    1      0.5000          87.50%     0.2500         93.75%   0.5000     12.3",
        "    2      0.5000          87.50%     0.2500         93.75%              12.3",
    ]


def test_a_run_with_a_validation_set_shows_it_in_eighty_columns() -> None:
    (epoch,) = result().history
    console = Console(width=80, file=io.StringIO(), record=True)
    validated = msgspec.structs.replace(
        epoch, val_loss=0.375, val_accuracy=0.9, metrics={"val_f1": 0.8, "val_top5": 1.0, "test_f1": 0.5}
    )
    console.print(epochs_table([validated]))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines == [
        "       train    train    val      val    val    val   test     test",
        "epoch   loss accuracy   loss accuracy     f1   top5   loss accuracy seconds",
        "    1 0.5000   87.50% 0.3750   90.00% 0.8000 1.0000 0.2500   93.75%    12.3",
    ]


@pytest.mark.parametrize(
    ("workers", "teams", "who"),
    [
        (0, 0, "one process"),
        (1, 1, "1 worker over ipc"),
        (3, 1, "3 workers in 1 team over ipc"),
        (3, 0, "3 workers over ipc"),
    ],
)
def test_the_summary_in_a_terminal(workers: int, teams: int, who: str) -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, record=True)
    ended = result(workers=workers, teams=teams, compute_s=8.5, update_s=0.5)
    show_summary(console, ended, Path("runs/mine"))
    show_advice(console, ended)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[:10] == [
        "epoch  train loss  train accuracy  test loss  test accuracy  seconds",
        "    1      0.5000          87.50%     0.2500         93.75%     12.3",
        "",
        "test accuracy   93.75%",
        f"throughput      6,000 samples/s, {who}",
        "time            12.3 s in all, 10.0 s of it training",
        f"weights sha256  {'ab' * 32}",
        "numerics        native, NumPy 2.4.6 with openblas 0.3, kernel Zen",
        "run folder      runs/mine",
        *(["note: training took 10.0 s; for the same bits, a single process would take about"] if workers else []),
    ]
    assert max(map(len, lines)) <= 80


def test_the_table_of_many_epochs_has_some_and_the_one_of_the_weights() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    many = learning([0.5] * 90, [1.0] * 90, weights_epoch=43)
    show_summary(console, many, Path("runs/mine"))
    lines = console.export_text().splitlines()
    assert [int(line.split()[0]) for line in lines[1:21]] == [1, *range(5, 41, 5), 43, *range(45, 91, 5)]
    assert lines[21] == "20 of 90 epochs; metrics.jsonl in the run's folder has all"


def test_without_a_terminal_a_note_is_one_line() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    show_advice(console, result(compute_s=8.5, update_s=0.5))
    assert console.export_text().splitlines()[-1] == f"note: {TOO_SMALL}"


def test_weights_of_another_epoch_than_the_last_are_told() -> None:
    history = [EpochRecord(epoch=epoch, loss=1.0, accuracy=None, test_loss=epoch / 2, test_accuracy=None, wall_s=1.0,
                           weights_sha256="0" * 64) for epoch in (1, 2, 3)]  # fmt: skip
    of = {"history": history, "test_accuracy": None, "test_loss": 1.0}
    kept = summary_lines(result(**of, weights_epoch=2), None)
    assert "test loss       1.0000, with the weights after epoch 2" in kept
    assert "test loss       1.0000" in summary_lines(result(**of, weights_epoch=3), None)


def test_what_a_step_sends_is_reported_where_anything_was_sent() -> None:
    sent = result(wire="int8", moved=Moved(sums=63_870, weights=247_100))
    assert "sent per step   63.9 kB of sums (int8) and 247.1 kB of weights (float32)" in summary_lines(sent, None)
    assert not any("sent" in line for line in summary_lines(result(), None))


@pytest.mark.parametrize(("teams", "transport", "is_shown"), [(1, "shm", False), (2, "shm", True), (1, "ipc", True)])
def test_a_team_alone_in_the_servers_memory_has_no_line_about_its_first_sums(
    teams: int, transport: str, is_shown: bool
) -> None:
    sent = result(moved=Moved(sums=2_500, weights=0), workers=2, teams=teams, transport=transport)
    assert any(line.startswith("sent per step") for line in summary_lines(sent, None)) == is_shown


@pytest.mark.parametrize(
    ("audited", "unaudited", "message"),
    [
        (0, 0, None),
        (1200, 0, "1,200 micro-batches recomputed by another worker, with the same bits"),
        (
            3,
            2,
            "3 micro-batches recomputed by another worker, with the same bits; 2 not, as no other was ready",
        ),
        (0, 5, "none of the 5 chosen micro-batches: no other worker was ready to recompute them"),
    ],
)
def test_the_audit_is_reported_where_there_was_one(audited: int, unaudited: int, message: str | None) -> None:
    lines = summary_lines(msgspec.structs.replace(result(), audited=audited, unaudited=unaudited), None)
    found = [line for line in lines if line.startswith("audit ")]
    assert found == ([] if message is None else [f"audit           {message}"])
