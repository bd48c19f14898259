"""The zoo: well-known nets, and the layers of PyTorch, train as `outcomes.json` has it, from which a page is made."""

from typing import Any

import pytest

from docs.generators.pytorch_models import pytorch_layers, pytorch_nets
from tests.system.processes import Place
from tests.zoo.outcomes import outcome_of_layer, recorded

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
layers = pytest.importorskip("tests.zoo.layers")
nets = pytest.importorskip("tests.zoo.nets")
runs = pytest.importorskip("tests.zoo.runs", reason="needs safetensors: .venv/bin/pip install -e '.[dev]'")


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("layer", layers.LAYERS)
def test_a_layer_is_trained_or_refused_as_it_was(layer: str) -> None:
    found = outcome_of_layer(layer)
    assert found == recorded()["layers"][layer]
    assert "\n" not in found


def test_what_is_recorded_is_the_zoo_and_nothing_else() -> None:
    known = recorded()
    assert list(known["layers"]) == sorted(layers.LAYERS)
    ours = {name for name in known["nets"] if not name.startswith("test_")}
    assert ours == {*nets.TORCHVISION, *nets.TRANSFORMERS}
    assert len(known["nets"]) - len(ours) >= 18
    for net, found in known["nets"].items():
        assert list(found) == sorted(runs.PROCESSORS), net
        for outcome in found.values():
            assert (outcome["runs"], outcome["digests"], outcome["plain loop"]) == (len(runs.WAYS), 1, True), net


def test_the_tables_have_each_net_and_each_layer_once() -> None:
    table = pytorch_nets()
    assert [name for name in recorded()["nets"] if table.count(f"`{name}`") != 1] == []
    table = pytorch_layers()
    assert [name for name in recorded()["layers"] if table.count(f"`{name}`") != 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("processor", runs.PROCESSORS)
@pytest.mark.parametrize("group", runs.GROUPS)
def test_nets_have_one_digest_and_equal_a_plain_loop(place: Place, group: str, processor: str) -> None:
    for library in ("timm", "torchvision", "transformers"):
        pytest.importorskip(library, reason="needs the zoo: .venv/bin/pip install -e '.[zoo]'")
    found = runs.outcomes_of_nets(place, group, processor)
    assert found == {net: recorded()["nets"][net][processor] for net in found}
    assert {outcome["digests"] for outcome in found.values()} == {1}
