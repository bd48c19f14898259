"""The cost of the wire's types, a row for each."""

from pathlib import Path

import msgspec
import pytest

from lockstep.bench.bench import heading, line
from lockstep.bench.exchange import QuantizationRow
from lockstep.bench.timed_run import least_s
from lockstep.cli.main import run
from lockstep.common.runtime.clock import ManualClock


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
