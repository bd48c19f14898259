"""The exchange bench moves real gradients that are only filled, next to the baseline's all-reduce; formats of sums."""

from pathlib import Path

import msgspec
import pytest

from lockstep.bench.bench import heading, line
from lockstep.bench.exchange import ExchangeRow, QuantizationRow
from lockstep.bench.timed_run import least_s
from lockstep.cli.main import run
from lockstep.common.runtime.clock import ManualClock
from tests.lockstep.bench.baselines import write_peer

TINY = ["bench", "exchange", "--steps", "8", "--rounds", "1"]


def test_exchanges_are_timed_next_to_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python, calls = write_peer(tmp_path)
    json_file, plot_file = tmp_path / "rows.json", tmp_path / "rows.png"
    flags = ["--params", "1000", "--peer-python", str(python), "--to", str(json_file), "--plot", str(plot_file)]
    assert run([*TINY, *flags]) == 0
    (row,) = msgspec.json.decode(json_file.read_bytes(), type=list[ExchangeRow])
    assert (row.parameters, row.workers, row.servers, row.steps) == (1000, 2, 1, 8)
    assert row.gb_per_s == pytest.approx(2 * 8 * 1000 / row.ms_per_exchange / 1e6)
    assert row.split.update_s > 0
    assert calls.read_text() == "allreduce 1000 2\n"
    assert row.peer is not None
    assert (row.peer.version, row.peer.ms_per_step) == ("9.9", 5.0)
    assert row.peer.ratio == pytest.approx(5.0 / row.ms_per_exchange)
    assert plot_file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    head, figures = capsys.readouterr().out.splitlines()
    assert (head, figures) == (heading(ExchangeRow), line(row))
    assert len(head) == len(figures) <= 80


def test_the_bytes_of_each_type_are_counted(tmp_path: Path) -> None:
    json_file = tmp_path / "rows.json"
    flags = ["--params", "61706", "--transport", "ipc", "--wire", "float32,int8", "--to", str(json_file)]
    assert run([*TINY, *flags]) == 0
    exact, short = msgspec.json.decode(json_file.read_bytes(), type=list[ExchangeRow])
    assert [row.wire for row in (exact, short)] == ["float32", "int8"]
    # On a busy machine one worker may compute both gradients of a step, and send their sum; or both the same one.
    vector = 4 * 61_706
    assert vector <= exact.sums_bytes <= 4.04 * vector
    assert vector / 4 <= short.sums_bytes <= 4.04 * vector * 0.27
    assert vector * 0.9 <= min(short.weights_bytes, exact.weights_bytes)
    assert max(short.weights_bytes, exact.weights_bytes) <= 2.1 * vector


class Reading(ManualClock):
    """A clock that moves by ever less with each second time that it is read: the last turn is the least."""

    step: float = 1.0

    def now(self) -> float:
        self.step *= 0.5
        self.advance(self.step)
        return super().now()


def test_the_least_turn_counts() -> None:
    few, many = (least_s(list, repeats, Reading()) for repeats in (1, 4))
    assert many < few / 10


def test_rows_for_all_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file = tmp_path / "rows.json"
    assert run(["bench", "wire", "--values", "4096", "--repeats", "2", "--to", str(json_file)]) == 0
    rows = msgspec.json.decode(json_file.read_bytes(), type=list[QuantizationRow])
    assert [(row.wire, row.bytes_a_value) for row in rows] == [
        ("float32", 4.0),
        ("float16", 2.0),
        ("bfloat16", 2.0),
        ("int8", 1.03125),
    ]
    assert capsys.readouterr().out.splitlines() == [heading(QuantizationRow), *map(line, rows)]
    assert {len(heading(QuantizationRow))} == {len(line(row)) for row in rows}
