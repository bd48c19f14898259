import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.layers.containers import cheapest_order
from lockstep.common.nn.module import Module
from lockstep.common.numerics.random import Purpose, generator


def test_sequential_applies_in_order() -> None:
    model = nn.Sequential(nn.Flatten(0), nn.LeakyReLU(0.5), nn.Sequential(nn.ReLU()))
    assert model(Tensor([[-2.0], [4.0]])).data.tolist() == [0, 4]


@pytest.mark.parametrize("kind", [lambda *parts: nn.Sequential(*parts), lambda *parts: nn.ModuleList(parts)])
def test_length_iteration_indexing_and_assignment(kind: type[nn.Sequential]) -> None:
    parts: list[Module] = [nn.ReLU(), nn.Tanh(), nn.Sigmoid()]
    container = kind(*parts)
    assert len(container) == 3
    assert list(container) == parts
    assert container[0] is parts[0]
    assert container[-1] is parts[-1]
    assert list(container[1:]) == parts[1:]
    container[-1] = parts[0]
    assert list(container) == [*parts[:2], parts[0]]
    assert len(container) == 3
    assert container.append(nn.GELU()) is container
    assert isinstance(container[3], nn.GELU)
    with pytest.raises(IndexError, match=r"index 4 is out of range: \w+ holds 4 modules"):
        container[4]


def test_the_same_module_in_two_places_is_applied_twice() -> None:
    halve = nn.LeakyReLU(0.5)
    model = nn.Sequential(halve, halve)
    assert len(model) == 2
    assert model(Tensor([-4.0])).data.tolist() == [-1]


def test_names_given_by_a_dict_are_kept_by_slices() -> None:
    model = nn.Sequential({"features": nn.Linear(2, 3), "active": nn.ReLU(), "head": nn.Linear(3, 1)})
    assert [name for name, _ in model.named_children()] == ["features", "active", "head"]
    assert list(model[1:].state_dict()) == ["head.weight", "head.bias"]
    assert model[1:][1] is model[2]


def test_parameters_in_a_list_are_the_owners() -> None:
    class Tower(Module):
        def __init__(self) -> None:
            super().__init__()
            self.floors = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for floor in self.floors:
                x = floor(x)
            return x

    tower = Tower()
    assert list(tower.state_dict()) == ["floors.0.weight", "floors.0.bias", "floors.1.weight", "floors.1.bias"]
    assert tower(Tensor(np.ones((3, 2)))).shape == (3, 2)
    assert tower.floors.extend([nn.Linear(2, 2)]) is tower.floors
    assert len(list(tower.parameters())) == 6


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (nn.ReLU, r"ReLU is a class: expected a module; write `ReLU\(\)`"),
        ([nn.ReLU()], r"a list is not a module: write `Sequential\(\*modules\)`"),
        (3, "3 is not a module"),
    ],
)
def test_what_is_no_module_is_refused(wrong: Module, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        nn.Sequential(wrong)
    with pytest.raises(TypeError, match=text):
        nn.ModuleList([wrong])
    with pytest.raises(TypeError, match=text):
        nn.Sequential(nn.ReLU())[0] = wrong


def names(*modules: nn.Module) -> list[str]:
    return [type(module).__name__ for module in cheapest_order(modules)]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([], []),
        ([nn.ReLU()], ["ReLU"]),
        ([nn.ReLU(), nn.MaxPool2d(2)], ["MaxPool2d", "ReLU"]),
        ([nn.ReLU(), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()], ["ReLU", "MaxPool1d", "ReLU", "Flatten"]),
        ([nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.ReLU()], ["MaxPool2d", "MaxPool2d", "ReLU", "ReLU"]),
        ([nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)], ["ReLU", "AvgPool2d", "MaxPool2d"]),
        ([nn.LeakyReLU(), nn.MaxPool2d(2)], ["LeakyReLU", "MaxPool2d"]),
    ],
)
def test_order(modules: list[nn.Module], expected: list[str]) -> None:
    assert names(*modules) == expected


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2)])
def test_values_and_gradients_are_those_of_the_order_as_written(pool: nn.MaxPool2d) -> None:
    rng = generator(0, Purpose.CANARY)
    # Few distinct values: windows with ties, with nothing positive, and with exact zeros.
    values = rng.integers(-2, 3, size=(3, 2, 8, 8)).astype(np.float32)
    plain, fused = Tensor(values, requires_grad=True), Tensor(values, requires_grad=True)
    expected, got = pool(nn.ReLU()(plain)), nn.Sequential(nn.ReLU(), pool)(fused)
    assert got.data.tobytes() == expected.data.tobytes()
    upstream = rng.standard_normal(expected.shape, dtype=np.float32)
    expected.backward(upstream)
    got.backward(upstream)
    assert plain.grad is not None
    assert fused.grad is not None
    np.testing.assert_array_equal(fused.grad, plain.grad)
