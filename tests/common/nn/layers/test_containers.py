import numpy as np
import pytest

from common import nn
from common.autograd.tensor import Tensor
from common.nn.module import Module


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
