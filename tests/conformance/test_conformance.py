"""A part of PyTorch's own samples is equal, or refused for a documented reason: scripts/conformance runs all."""

import pytest

from tests.conformance.reasons import REASONS, reason_for

pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
pytest.importorskip("expecttest", reason="the samples of PyTorch's tests need expecttest")

# Imports within the tests: the samples of PyTorch's tests take seconds to import, in each process that collects tests.

#: Samples of each function and layer.
QUICK = 3

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", ["functions", "layers"])
def test_samples_are_equal_or_refused_for_a_documented_reason(kind: str) -> None:
    from tests.conformance.modules import module_results
    from tests.conformance.operations import results, share_of_equal

    found = list(results(most=QUICK) if kind == "functions" else module_results(most=QUICK))
    assert not [each for each in found if each.outcome.is_fault]
    equal, count = share_of_equal(found)
    assert equal > 0.55 * count


def test_exported_graphs_are_equal_or_refused_for_a_documented_reason() -> None:
    pytest.importorskip("onnx", reason="graphs are written by the package onnx")
    pytest.importorskip("onnxruntime", reason="graphs are compared with onnxruntime")
    from tests.conformance.graphs import graph_results
    from tests.conformance.operations import share_of_equal

    found = list(graph_results(most=QUICK))
    assert not [each for each in found if each.outcome.is_fault]
    assert len({each.name for each in found}) > 50
    equal, count = share_of_equal(found)
    assert equal > 0.9 * count


def test_a_sample_that_pytorch_refuses_counts_as_none() -> None:
    from tests.conformance.operations import Outcome, Result, share_of_equal

    found = [Result("add", each) for each in (Outcome.EQUAL, Outcome.NO_SAMPLE, Outcome.NO_SAMPLE, Outcome.REFUSED)]
    assert share_of_equal(found) == (1, 2)
    assert not any(each.outcome.is_fault for each in found)


def test_a_refusal_without_a_reason_is_found() -> None:
    assert reason_for(("add", [], {}, RuntimeError("planted"))) is None
    assert reason_for(("add", [], {"alpha": 2}, TypeError("planted"))) in REASONS
