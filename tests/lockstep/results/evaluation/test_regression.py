import numpy as np
import pytest

from lockstep.results.evaluation.regression import figures_lines, figures_of


def test_each_target_has_figures_of_its_own() -> None:
    targets = np.array([[0, 7], [2, 7], [4, 7], [6, 7]], np.float32)
    outputs = targets + np.array([[1, 0], [-1, 0], [3, 0], [1, 2]], np.float32)
    first, second = figures_of(outputs, targets)
    assert (first.mse, first.mae) == (3.0, 1.5)
    assert first.r2 == pytest.approx(1 - 3 / 5)
    assert (second.mse, second.mae, second.r2) == (1.0, 0.5, None)
    head, *lines = figures_lines([first, second])
    assert [line.split() for line in lines] == [["0", "3", "1.7321", "1.5", "0.4000"], ["1", "1", "1", "0.5", "-"]]
    assert len({len(line) for line in (head, *lines)}) == 1
