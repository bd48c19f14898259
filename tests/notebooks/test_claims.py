"""What the text of a lab claims about its outputs is what the stored outputs show."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.notebooks.folder import NOTEBOOKS, read, shown, source

LABS = {path.stem: read(path) for path in NOTEBOOKS}


def cell(lab: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in LABS[lab]["cells"] if each["id"] == name)
    return dict(found)


def output(lab: str, name: str) -> str:
    return "".join(shown(each) for each in cell(lab, name)["outputs"])


def test_float32_has_about_four_digits_at_best_and_one_at_the_step_for_float64() -> None:
    rows = [line.split()[-2:] for line in output("1_linear_by_hand", "float32").splitlines()[1:]]
    in_float64, in_float32 = zip(*((float(first), float(second)) for first, second in rows), strict=True)
    assert max(in_float64) > 9
    assert 3.5 < max(in_float32) < 4.5
    (at_ours,) = (line for line in output("1_linear_by_hand", "float32").splitlines() if "6e-06" in line)
    assert float(at_ours.split()[-1]) < 1.5


def test_ddp_gave_the_same_bits_for_the_same_number_of_processes_only() -> None:
    one, two, again = (line.rpartition(" ")[2] for line in output("4_data_parallel", "ddp").splitlines()[:3])
    assert one != two == again


def test_without_pytorch_the_comparison_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"importlib": SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))}
    exec(source(cell("4_data_parallel", "ddp")), names)
    expected = "PyTorch is not installed, so this comparison is skipped. To run it: pip install torch\n"
    assert capsys.readouterr().out == expected


def test_the_worker_that_was_killed_is_seen_to_come_back() -> None:
    text = output("4_data_parallel", "cell-30")
    assert "worker 0 was killed after step" in text
    assert "it came back as worker 1, which computes from step" in text
    assert "the same bits as in one process without a fault" in output("4_data_parallel", "cell-28")


def test_only_a_forget_gate_near_one_remembers_and_a_higher_temperature_misspells_more() -> None:
    sizes = [float(line.rpartition(" ")[2]) for line in output("5_sequences", "memory").splitlines() if "back" in line]
    assert max(sizes[:3]) < 1e-6 < 0.1 < sizes[3]
    shares = [
        int(line.split("%")[0].split()[-1]) for line in output("5_sequences", "sample").splitlines() if "%" in line
    ]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
