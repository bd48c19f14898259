"""The scaling bench trains for real, in turns with independent processes and the baseline."""

import signal
from pathlib import Path

import msgspec
import pytest

from lockstep.bench.bench import heading, line
from lockstep.bench.scaling import COSTS, ScalingRow, kept_busy, short_number
from lockstep.bench.timed_run import StepProcessorTime
from lockstep.cli.main import run
from lockstep.common.runtime.environment import cores
from tests.lockstep.bench.baselines import write_peer
from tests.lockstep.bench.scaling_rows import scaling_row

TINY = ["bench", "scaling", "--model", "linear", "--batch", "32", "--steps", "8", "--rounds", "1"]

PNG = b"\x89PNG\r\n\x1a\n"


def rows_of(path: Path) -> list[ScalingRow]:
    return msgspec.json.decode(path.read_bytes(), type=list[ScalingRow])


def test_weak_scaling_next_to_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python, calls = write_peer(tmp_path)
    json_file, plot_file = tmp_path / "rows.json", tmp_path / "rows.png"
    assert run([*TINY, "--peer-python", str(python), "--to", str(json_file), "--plot", str(plot_file)]) == 0
    one, two = rows_of(json_file)
    assert [(row.workers, row.global_batch, row.micro_batches) for row in (one, two)] == [(1, 32, 1), (2, 64, 2)]
    threads = f" --threads {cores()}" if cores() > 1 else ""
    assert calls.read_text().splitlines() == [
        call
        for workers in (1, 2)
        for call in (
            f"ddp linear 32 {workers}",
            f"step linear {32 * workers}{threads}",
            f"step linear {32 * workers} --compile{threads}",
        )
    ]
    for row in (one, two):
        assert (row.model, row.scaling, row.parameters, row.steps) == ("linear", "weak", 7850, 8)
        assert row.images_per_s == pytest.approx(row.global_batch / row.ms_per_step * 1e3)
        assert row.of_ceiling == pytest.approx(row.images_per_s / row.ceiling_images_per_s)
        assert row.split.compute_s > 0
        assert row.split.update_s > 0
        assert row.peer is not None
        assert row.peer.images_per_s == pytest.approx(row.global_batch / 0.005)
        assert row.peer.ratio == pytest.approx(row.images_per_s / row.peer.images_per_s)
        assert row.all_threads is not None
        assert row.compiled is not None
        assert row.all_threads.ratio == row.compiled.ratio == row.peer.ratio
        assert row.ms_spread == (row.ms_per_step, row.ms_per_step)
    assert one.of_one_worker == 1.0
    assert two.of_one_worker == pytest.approx(two.images_per_s / 2 / one.images_per_s)
    assert plot_file.read_bytes().startswith(PNG)
    # Too short to read processor time twice.
    assert (two.teams, two.sleep_s, two.processors) == (1, 0.0, None)
    head, *lines = capsys.readouterr().out.splitlines()
    assert (head, len(lines)) == (heading(ScalingRow), 10)
    assert " ".join(lines[3].split()) == "model batch over teams ms server ms leader ms process ms kB"
    # The sums of the first step cross a socket.
    *unknown, kilobytes = lines[5].split()[-4:]
    assert unknown == ["-", "-", "-"]
    assert float(kilobytes) > 0
    assert " ".join(lines[7].split()) == "model batch over cuts images/s all threads layout /all /comp"
    assert lines[9].split()[7] == "contiguous"


@pytest.mark.slow
def test_strong_scaling_shows_one_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file = tmp_path / "rows.json"
    flags = ["--strong", "--micro-batches-per-worker", "2", "--transport", "tcp", "--to", str(json_file)]
    assert run([*TINY, *flags]) == 0
    rows = rows_of(json_file)
    assert [(row.workers, row.transport) for row in rows] == [(1, "tcp"), (2, "tcp")]
    assert [row.carrier for row in rows] == [row.transport for row in rows]
    assert {(row.global_batch, row.micro_batches) for row in rows} == {(32, 4)}
    assert len({row.weights_sha256 for row in rows}) == 1
    assert capsys.readouterr().out.count(rows[0].weights_sha256) == 2


def test_other_processes_are_busy_until_all_is_measured() -> None:
    with kept_busy(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_a_row_tells_how_many_other_processes_were_busy(tmp_path: Path) -> None:
    json_file = tmp_path / "rows.json"
    assert run([*TINY, "--workers", "1", "--busy", "1", "--to", str(json_file)]) == 0
    assert [row.busy for row in rows_of(json_file)] == [1]


@pytest.mark.slow
def test_a_model_that_sleeps_is_trained_by_teams(tmp_path: Path) -> None:
    json_file = tmp_path / "rows.json"
    flags = ["--sleep", "20ms", "--values", "20000", "--workers", "1,4", "--teams", "1,2", "--transport", "tcp"]
    assert run(["bench", "scaling", *flags, "--steps", "60", "--rounds", "1", "--to", str(json_file)]) == 0
    rows = rows_of(json_file)
    assert [(row.workers, row.teams) for row in rows] == [(1, 1), (4, 1), (4, 2)]
    assert {(row.model, row.parameters, row.sleep_s, row.batch) for row in rows} == {("sleep", 20_000, 0.02, 32)}
    assert [row.global_batch for row in rows] == [32, 128, 128]
    for row in rows:
        assert row.ms_per_step > 20
        assert row.ceiling_images_per_s < 32 * row.workers / 0.020
        # A vector up and down for each team, with some bytes around them.
        assert row.socket_bytes >= 8 * 20_000 * row.teams * 0.9
    assert rows[1].socket_bytes < 1.5 * 8 * 20_000
    assert rows[1].weights_sha256 == rows[2].weights_sha256
    if Path("/proc/self/stat").exists():
        assert [row.processors is not None and row.processors.process_ms is not None for row in rows] == [
            False,
            True,
            True,
        ]
        assert all(row.processors is not None and row.processors.leader_ms is not None for row in rows)


def test_hosts_sleep_and_the_server_does_not(tmp_path: Path) -> None:
    json_file = tmp_path / "rows.json"
    flags = ["--sleep", "10ms", "--values", "5000", "--batch", "1", "--workers", "2", "--teams", "16"]
    # Long enough for the processor time to be read twice.
    more = ["--transport", "tcp", "--steps", "70", "--rounds", "1", "--to", str(json_file)]
    assert run(["bench", "scaling", *flags, *more]) == 0
    (row,) = rows_of(json_file)
    assert (row.parameters, row.workers, row.teams, row.servers, row.steps) == (5000, 2, 2, 1, 70)
    assert row.ms_per_step > 10.0
    assert row.processors is not None
    assert 0.0 < row.processors.server_ms < row.ms_per_step
    assert row.processors.process_ms is None
    # A vector of sums and one of weights for each, unless one computes both halves.
    assert 4 * 5000 <= row.socket_bytes <= 2 * 8 * 5000 * 1.1


def test_the_baseline_has_four_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.py"
    own.write_text("from lockstep import nn\n\n\ndef build():\n    return nn.Linear(784, 10)\n")
    assert run([*TINY, "--models", f"{own}:build", "--peer-python", "nowhere"]) == 2
    assert "the PyTorch baseline has no model" in capsys.readouterr().err


def test_a_row_is_a_line_below_its_heading() -> None:
    figures = line(scaling_row(workers=2, exchange_s=0.010, images_per_s=51_200.0, of_one_worker=0.9))
    assert " ".join(figures.split()) == "mlp 64 2+1 auto 100.000 51,200 90% 80% - 83% 10% 6% 0%"
    assert len(figures) == len(heading(ScalingRow))


def test_what_a_step_costs_is_a_second_table() -> None:
    times = StepProcessorTime(server_ms=0.81, leader_ms=2.5, process_ms=None)
    row = scaling_row(workers=16, exchange_s=0.0, teams=2, model="sleep", parameters=62_000, processors=times)
    row = msgspec.structs.replace(row, socket_bytes=992_340.0, ms_per_step=1000.5)
    titles, figures = (
        " ".join(words) for words in zip(*((each.heading(), each.cell(row, "")) for each in COSTS), strict=False)
    )
    assert " ".join(figures.split()) == "62k 64 16+1 auto 2 1000.500 0.810 2.500 - 992.3"
    assert len(figures) == len(titles) <= 80


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (62_000, "62k"), (535_818, "536k"), (999_700, "1M"), (25_000_000, "25M")]
)
def test_sizes_have_three_digits(number: int, text: str) -> None:
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("model", "text"),
    [("lenet", "lenet"), ("nets/my.py:resnet18", "resnet18"), ("nets/my.py:build", "my"), ("sleep", "1M")],
)
def test_a_model_has_a_name_that_fits_a_column(model: str, text: str) -> None:
    assert scaling_row(workers=1, exchange_s=0.0, model=model).short_name() == text
