"""Which gradients are wrong, and what is told of them: of single calls, and of models of a few units."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.checking.checkup.activations import ModuleCall
from lockstep.checking.checkup.gradients import check_gradients, known_mistake, mismatches_of
from lockstep.checking.checkup.target import ExaminationTarget
from lockstep.common import nn
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.job import Job
from tests.lockstep.checking.checkup.plants import Elementwise, LeavesTheGraph

Derivative = Callable[[Array, Array, Array], Array]


def target(model: nn.Module, **values: Any) -> ExaminationTarget:
    part = Dataset(np.random.default_rng(4).normal(size=(8, 3)).astype(np.float32), np.arange(8) % 2, 2)
    return ExaminationTarget(Job(global_batch=8, micro_batches=1), TrainTest("a", part, part), model, **values)


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), *layers, nn.Linear(3, 2)).initialize(1)


#: What is told of a forward whose gradient is 0.
LEFT = "the forward leaves the graph, by .detach(), .data, .numpy(), no_grad() or a NumPy function"


def scaled(factor: float) -> Elementwise:
    """Return the square, whose derivative is too large by a factor."""
    return Elementwise(np.square, lambda g, y, x: factor * 2 * g * x)


@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (1.0, ""),
        (1.0009, ""),
        (1.03, "its gradient is 1.03 times what it should be"),
        (-1.0, "its gradient has the wrong sign"),
        (-1.019, "its gradient has the wrong sign"),
        (-1.021, "its gradient is -1.02 times what it should be"),
        (4.0, "its gradient is 4 times too large, the number of samples: the division by it is missing"),
        (4.07, "its gradient is 4 times too large, the number of samples: the division by it is missing"),
        (3.9, "its gradient is 3.9 times what it should be"),
        (0.25, "its gradient is 4 times too small, the number of samples: it is divided by that once too often"),
        (0.254, "its gradient is 4 times too small, the number of samples: it is divided by that once too often"),
        (0.256, "its gradient is 0.256 times what it should be"),
        (2.0, "its gradient is 2 times what it should be"),
        (0.0, f"no gradient arrives at its input: {LEFT}"),
    ],
)
def test_a_derivative_that_is_wrong_by_a_factor(factor: float, cause: str) -> None:
    found = check_gradients(target(stack(scaled(factor))))
    assert [finding.cause for finding in found] == [cause] * bool(cause)
    assert [finding.what for finding in found] == ["the gradient of 1 (Elementwise) is wrong"] * bool(cause)
    assert ["correct the derivative of its primitive" in each.change for each in found] == [True] * bool(cause)


def test_both_slopes_are_shown() -> None:
    (finding,) = check_gradients(target(stack(scaled(2.0))))
    start, _, rest = finding.evidence.partition(" the output changes by ")
    numeric, _, exact = rest.partition(", and by its gradient it should be ")
    assert start == "along a random direction of its input"
    assert float(exact) == pytest.approx(2 * float(numeric), rel=1e-3)


KNOWN: dict[str, tuple[Callable[[Array], Array], Derivative, str | None]] = {
    "relu for tanh": (np.tanh, lambda g, y, x: g * (x > 0), "it computes tanh, and its derivative is that of relu"),
    "tanh for relu": (
        lambda x: np.maximum(x, 0),
        lambda g, y, x: g * (1 - np.tanh(x) ** 2),
        "it computes relu, and its derivative is that of tanh",
    ),
    "the identity for sigmoid": (
        lambda x: 1 / (1 + np.exp(-x)),
        lambda g, y, x: g,
        "it computes sigmoid, and its derivative is that of the identity",
    ),
    "sigmoid for the identity": (
        lambda x: 1.0 * x,
        lambda g, y, x: g * np.exp(-x) / (1 + np.exp(-x)) ** 2,
        "it computes the identity, and its derivative is that of sigmoid",
    ),
    "softplus for exp": (
        np.exp,
        lambda g, y, x: g / (1 + np.exp(-x)),
        "it computes exp, and its derivative is that of softplus",
    ),
    "exp for softplus": (
        lambda x: np.log1p(np.exp(x)),
        lambda g, y, x: g * np.exp(x),
        "it computes softplus, and its derivative is that of exp",
    ),
    "the square for another": (
        np.sin,
        lambda g, y, x: 2 * g * x,
        "it computes Elementwise, and its derivative is that of the square",
    ),
    "tanh of its input": (
        np.tanh,
        lambda g, y, x: g * (1 - x * x),
        "its derivative is 1 - x², of its input x, where tanh needs 1 - y², of its output y",
    ),
    "tanh of its output": (
        np.tanh,
        lambda g, y, x: g * (1 - np.tanh(y) ** 2),
        "its derivative is 1 - tanh(y)², of its output y, where tanh needs 1 - tanh(x)², of its input x",
    ),
    "sigmoid of its input": (
        lambda x: 1 / (1 + np.exp(-x)),
        lambda g, y, x: g * x * (1 - x),
        "its derivative is x (1 - x), of its input x, where sigmoid needs y (1 - y), of its output y",
    ),
    "nothing known": (np.sin, lambda g, y, x: g * np.sin(x), None),
}


@pytest.mark.parametrize(("forward", "derivative", "text"), KNOWN.values(), ids=KNOWN)
def test_derivatives_that_people_mix_up_are_known(
    forward: Callable[[Array], Array], derivative: Derivative, text: str | None
) -> None:
    (finding,) = check_gradients(target(stack(Elementwise(forward, derivative))))
    assert finding.cause == (text or "its derivative is not that of its forward")


def test_only_a_layer_of_one_input_and_without_parameters_is_compared_with_what_is_known() -> None:
    x = Tensor(np.ones((2, 2)), requires_grad=True)
    same = Elementwise(np.tanh, lambda g, y, x: g)
    assert known_mistake(ModuleCall("", same, (x,), {}, same(x))) is not None
    assert known_mistake(ModuleCall("", same, (), {}, same(x))) is None
    assert known_mistake(ModuleCall("", same, (x,), {}, Tensor(np.ones((2, 1))))) is None
    same.scale = nn.Parameter(np.ones(2))
    assert known_mistake(ModuleCall("", same, (x,), {}, same(x))) is None


class Sum(nn.Module):
    """Adds two inputs and a parameter, with derivatives that are too large by these factors."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.own = nn.Parameter(np.array([1.0, 2.0, 3.0], np.float32))
        self.primitive = Primitive(
            "own",
            lambda x, y, w: x * y + w * w,
            (
                lambda g, _, x, y, w: factors[0] * g * y,
                lambda g, _, x, y, w: factors[1] * g * x,
                lambda g, _, x, y, w: factors[2] * (2 * g * w).sum(axis=0),
            ),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return apply(self.primitive, x, y, self.own)


class Two(nn.Module):
    """Calls a layer with two inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.layer = nn.Linear(3, 3), nn.Linear(3, 3), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x), self.second(x))


@pytest.mark.parametrize(
    ("factors", "argument", "others"),
    [
        ((1.0, 1.0, 1.0), "", ""),
        ((2.0, 1.0, 1.0), "its input 0", ""),
        ((1.0, 2.0, 1.0), "its input 1", ""),
        ((1.0, 1.0, 2.0), "own", ""),
        ((1.0, 2.0, 2.0), "its input 1", "; also wrong: own"),
        ((2.0, 2.0, 2.0), "its input 0", "; also wrong: its input 1, own"),
    ],
)
def test_each_argument_is_checked(factors: tuple[float, ...], argument: str, others: str) -> None:
    found = check_gradients(target(Two(Sum(*factors)).initialize(1)))
    assert [finding.what for finding in found] == ["the gradient of layer (Sum) is wrong"] * bool(argument)
    for finding in found:
        assert finding.evidence.startswith(f"along a random direction of {argument} the output changes by ")
        assert finding.evidence.partition("; ")[2] == others.removeprefix("; ")
        assert finding.cause == "its gradient is 2 times what it should be"


def test_a_model_that_only_contains_a_wrong_layer_is_not_found_itself() -> None:
    class Block(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.inner = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 1.0

    found = check_gradients(target(stack(Block(scaled(2.0)), Block(nn.Tanh()), Block(scaled(3.0)))))
    assert [finding.what for finding in found] == [
        "the gradient of 1.inner (Elementwise) is wrong",
        "the gradient of 3.inner (Elementwise) is wrong",
    ]

    # A layer of the same start of its name is another one.
    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer_2, self.layer, self.last = scaled(2.0), Block(nn.Tanh()), nn.Linear(3, 2)
            self.layer.inner = scaled(1.0)
            self.other = scaled(3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.other(self.layer(self.layer_2(x))))

    found = check_gradients(target(Names().initialize(1)))
    assert [finding.what.split()[3] for finding in found] == ["layer_2", "other"]


def test_layers_after_a_container_are_checked() -> None:
    assert len(check_gradients(target(stack(nn.Sequential(nn.Tanh()), scaled(2.0))))) == 1


def test_a_forward_that_leaves_the_graph_without_a_primitive_is_to_be_corrected_itself() -> None:
    (finding,) = check_gradients(target(stack(LeavesTheGraph(3))))
    assert finding.change == "compute with functions of F and methods of Tensor only"


def test_a_forward_without_a_primitive_of_its_own_is_to_be_corrected_itself() -> None:
    class Halved(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.first(x), Tensor(self.second(x).data))

    (finding,) = check_gradients(target(Halved(Sum(1.0, 1.0, 1.0)).initialize(1)))
    assert finding.what == "the gradient of the model (Halved) is wrong"
    assert finding.change.startswith("correct its forward; its formula can be checked")


@pytest.mark.parametrize(
    ("change", "difference"),
    [(0.0, ""), (1e-9, "1e-09"), (-0.5, "0.5"), (np.nan, "")],
    ids=["no", "little", "much", "nan"],
)
def test_a_forward_that_is_another_the_second_time_is_random(change: float, difference: str) -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * 1.0 + change * (self.calls % 2)

    found = check_gradients(target(stack(Moving())))
    assert [finding.what for finding in found] == ["the forward of 1 (Moving) is random"] * bool(difference)
    assert [f"differ by up to {difference}" in each.evidence for each in found] == [True] * len(found)


def test_a_layer_that_is_used_twice_is_checked_once() -> None:
    layer = scaled(2.0)
    assert len(check_gradients(target(stack(layer, layer)))) == 1


def test_a_forward_of_the_models_own_is_checked_with_the_walk() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x) * Tensor(self.last(x).data)

    (finding,) = check_gradients(target(Own().initialize(1)))
    assert finding.what == "the gradient of the model (Own) is wrong"
    assert finding.cause == "its gradient is 0.5 times what it should be"
    assert finding.evidence.endswith("; also wrong: last.weight, last.bias")
    walked: list[Tensor] = []

    def walk(loss: Tensor) -> None:
        walked.append(loss)
        loss.backward()

    assert check_gradients(target(stack(nn.Tanh()), walk=walk)) == []
    assert len(walked) == 1


def test_what_a_backward_raises_is_the_evidence() -> None:
    def raising(g: Array, y: Array, x: Array) -> Array:
        raise ValueError("no\n  such axis")

    (finding,) = check_gradients(target(stack(Elementwise(np.tanh, raising))))
    assert finding.evidence == "backward raised ValueError: no such axis"
    assert finding.cause == "its derivative does not fit its forward"


@pytest.mark.parametrize(("factor", "is_found"), [(1.0, False), (1.0009, False), (1.0011, True)])
def test_a_layer_that_computes_in_float64_is_checked_finely(factor: float, is_found: bool) -> None:
    x, layer = Tensor(np.ones((1, 1)), requires_grad=True), scaled(factor)
    assert bool(list(mismatches_of(ModuleCall("", layer, (x,), {}, layer(x)), Tensor.backward))) is is_found


@pytest.mark.parametrize(("factor", "is_found"), [(1.0, False), (1.09, False), (1.13, True)])
def test_a_layer_that_computes_in_float32_is_checked_coarsely(factor: float, is_found: bool) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.primitive = Primitive(
                "own", lambda x: np.square(x.astype(np.float32)), (lambda g, y, x: factor * 2 * g * x.astype("f4"),)
            )

        def forward(self, x: Tensor) -> Tensor:
            return apply(self.primitive, x)

    x = Tensor(np.ones((1, 1)), requires_grad=True)
    layer = Narrow()
    assert bool(list(mismatches_of(ModuleCall("", layer, (x,), {}, layer(x)), Tensor.backward))) is is_found


def test_a_slope_that_is_nan_is_no_mismatch() -> None:
    layer = Elementwise(np.tanh, lambda g, y, x: g * np.nan)
    x = Tensor(np.ones((3, 4)), requires_grad=True)
    assert list(mismatches_of(ModuleCall("", layer, (x,), {}, layer(x)), Tensor.backward)) == []
    assert check_gradients(target(stack(layer))) == []


def test_arrays_of_zeros_are_varied_too() -> None:
    layer = Elementwise(np.sin, lambda g, y, x: 2 * g * np.cos(x))
    x = Tensor(np.zeros((3, 4)), requires_grad=True)
    ((argument, slopes),) = mismatches_of(ModuleCall("", layer, (x,), {}, layer(x)), Tensor.backward)
    assert argument == "its input"
    assert len(slopes) == 3
    assert all(slope.exact == pytest.approx(2 * slope.numeric, rel=1e-6) for slope in slopes)


def test_the_model_is_not_changed_and_noise_keeps_inputs_away_from_kinks() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).initialize(1)
    part = Dataset(np.zeros((8, 3), np.float32), np.arange(8) % 2, 2)
    job = Job(global_batch=8, micro_batches=1, normalize=False)
    assert check_gradients(ExaminationTarget(job, TrainTest("zeros", part, part), model)) == []
    assert all(parameter.grad is None and parameter.dtype == np.float32 for parameter in model.parameters())
