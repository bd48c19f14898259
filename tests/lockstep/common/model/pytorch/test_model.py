"""A module of PyTorch as a run's model: which arrays are its own, what is loaded and counted, and built again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common.errors import ModelError

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
model_room: Any = pytest.importorskip("lockstep.common.model.pytorch.model")
engine: Any = pytest.importorskip("lockstep.common.model.pytorch.engine")
runtime: Any = pytest.importorskip("lockstep.common.model.pytorch.runtime")
nn = torch.nn


class Frozen(torch.nn.Sequential):  # type: ignore[misc]
    """Stays in evaluation mode."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)


def module() -> Any:
    """Return a module with a tied parameter, a frozen one, two counters of which one rests, and buffers."""
    torch.manual_seed(1)
    made = nn.Module()
    made.first, made.tied = nn.Linear(2, 2), nn.Linear(2, 2)
    made.tied.weight = made.first.weight
    made.first.bias.requires_grad_(False)
    made.norm, made.rest = nn.BatchNorm1d(2), Frozen(nn.BatchNorm1d(2))
    made.register_buffer("scale", torch.full((1,), 0.5))
    made.register_buffer("passing", torch.ones(1), persistent=False)
    made.register_buffer("sparse", torch.eye(2).to_sparse())
    return made


def model_of(made: Any = None) -> Any:
    return model_room.TorchModel(module() if made is None else made)


def test_arrays_of_a_state_dict_are_found_under_any_name_that_a_tensor_has() -> None:
    model, ones = model_of(), np.ones(2, np.float32)
    for name in ("first.weight", "tied.weight"):
        assert list(model.own_arrays({name: ones})) == ["first.weight"]
    state = {
        "tied.weight": 2 * ones,
        "first.weight": ones,
        "first.bias": ones,
        "norm.running_mean": ones,
        "norm.num_batches_tracked": ones,
        "scale": ones,
        "unknown": ones,
    }
    own = model.own_arrays(state)
    assert sorted(own) == ["first.bias", "first.weight", "norm.running_mean", "scale", "unknown"]
    assert own["first.weight"] is state["first.weight"]
    assert "sparse" not in model.own_arrays({"sparse": ones})


def test_a_model_is_loaded_with_the_weights_and_the_steps_that_were_counted() -> None:
    model = model_of()
    vector = model.layout.new_vector()
    for entry in (*model.layout.parameters, *model.layout.statistics):
        entry.view(vector)[...] = 3.0
    model.load(vector, 7)
    state = {name: array.reshape(-1).tolist() for name, array in model.state_dict().items()}
    assert state["first.weight"] == state["tied.weight"] == [3.0] * 4
    assert state["norm.running_var"] == state["rest.0.running_var"] == [3.0, 3.0]
    assert state["first.bias"] != [3.0, 3.0]
    assert (state["norm.num_batches_tracked"], state["rest.0.num_batches_tracked"]) == ([7], [0])
    assert "sparse" not in state
    assert "passing" not in state
    assert not model.module.training
    vector[:] = 4.0  # of the run, not the model's
    assert model.state_dict()["first.weight"].reshape(-1).tolist() == [3.0] * 4


def test_what_is_adopted_is_what_the_layout_has() -> None:
    model = model_of()
    digest = model.layout.digest()
    model.adopt({"first.bias": np.array([5.0, 6.0]), "scale": np.array([7.0], np.float32)})
    assert {each.name: each.array.tolist() for each in model.layout.frozen} == {
        "first.bias": [5.0, 6.0],
        "scale": [7.0],
    }
    assert model.layout.digest() != digest
    assert model.module.first.bias.tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda made: None, ""),
        (lambda made: made.first.weight.data[0, 0].add_(1), "first.weight"),
        (lambda made: made.norm.running_var[1].add_(1), "norm.running_var"),
        (lambda made: made.scale.fill_(2), "scale"),
        (lambda made: made.passing.fill_(2), "passing"),
        (lambda made: made.register_buffer("more", torch.ones(1), persistent=False), "more"),
    ],
)
def test_a_model_that_is_built_again_is_the_same(change: Callable[[Any], object], name: str) -> None:
    for place in range(2):
        pair = module(), module()
        change(pair[place])
        if not name:
            model_room.check_equal(*map(model_of, pair))
            continue
        with pytest.raises(ModelError, match=f"another one when it is built again: '{name}' differs; expected"):
            model_room.check_equal(*map(model_of, pair))


def test_momenta_are_those_of_the_layers() -> None:
    made = module()
    made.norm.momentum, made.rest[0].momentum = 0.25, 0.75
    model = model_of(made)
    found = {each.name: each.momentum for each in model.structure.statistics}
    assert found == {
        "norm.running_mean": 0.25,
        "norm.running_var": 0.25,
        "rest.0.running_mean": 0.75,
        "rest.0.running_var": 0.75,
    }
    assert sorted(set(model.momenta().tolist())) == [0.0, 0.25, 0.75]


class Several(torch.nn.Module):  # type: ignore[misc]
    """Returns two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return self.inner(x), x


@pytest.mark.parametrize(("made", "which"), [(Several, "the first of 2"), (lambda: nn.Linear(2, 2), "")])
def test_which_of_several_outputs_is_taken(made: Callable[[], Any], which: str) -> None:
    model = model_of(made())
    assert model.outputs(np.ones((3, 2), np.float32)).shape == (3, 2)
    assert model.taken == which


def test_a_tensor_at_a_line_of_the_cache_is_not_copied() -> None:
    aligned = torch.zeros(64)
    assert runtime.placed(aligned) is aligned
    aside = aligned[1:]
    assert runtime.placed(aside).data_ptr() % 64 == 0
    assert runtime.placed(aside).tolist() == aside.tolist()
    sparse = torch.eye(2).to_sparse()
    assert runtime.placed(sparse) is sparse


ODD = torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize(
    ("output", "is_finite"),
    [
        *((torch.ones(2), True), (ODD, False), ((torch.ones(2), 3), True), ((torch.ones(2), [ODD]), False)),
        *(({"a": torch.ones(2)}, True), ({"a": (ODD,)}, False), (float("nan"), True), ([], True)),
    ],
)
def test_outputs_are_finite_if_all_tensors_are(output: object, is_finite: bool) -> None:
    assert engine.is_finite(output) is is_finite


def test_a_counter_of_instance_norm_stays_at_0_as_in_pytorch() -> None:
    model = model_room.TorchModel(nn.Sequential(nn.InstanceNorm1d(1, track_running_stats=True), nn.Linear(784, 10)))
    model.load(model.first_weights(3), steps=7)
    assert int(model.module.state_dict()["0.num_batches_tracked"]) == 0


def test_outputs_in_evaluation_may_have_a_gradient_of_their_own() -> None:
    class Forces(torch.nn.Sequential):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            with torch.enable_grad():
                return super().forward(x)

    model = model_room.TorchModel(Forces(nn.Linear(3, 2)))
    assert model.outputs(np.zeros((4, 3), np.float32)).shape == (4, 2)
