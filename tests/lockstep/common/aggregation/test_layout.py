"""The flat vector: names and offsets in PyTorch's order, views, and a digest that tells models apart."""

import hashlib

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.aggregation.layout import (
    Binding,
    LayoutEntry,
    ParameterLayout,
    gather,
    layout_of,
    weights_digest,
)
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.errors import ModelError
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.nn.module import Module


def net() -> Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.25), nn.ReLU(), nn.Linear(3, 2)).initialize(1)


def test_parameters_come_first_in_pytorchs_order_and_statistics_behind_them() -> None:
    layout = layout_of(net())
    assert [(entry.name, entry.shape, entry.offset) for entry in layout.parameters] == [
        ("0.weight", (3, 4), 0),
        ("0.bias", (3,), 12),
        ("1.weight", (3,), 15),
        ("1.bias", (3,), 18),
        ("3.weight", (2, 3), 21),
        ("3.bias", (2,), 27),
    ]
    assert [(entry.name, entry.shape, entry.offset) for entry in layout.statistics] == [
        ("1.running_mean", (3,), 29),
        ("1.running_var", (3,), 32),
    ]
    assert (layout.parameter_size, layout.size) == (29, 35)


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)),
    ],
    ids=["no statistics", "other shapes", "other names"],
)
def test_the_digest_tells_models_apart(other: Module) -> None:
    assert layout_of(other).digest() != layout_of(net()).digest()


def test_the_digest_is_that_of_the_shapes_and_not_of_the_values() -> None:
    assert layout_of(net().initialize(2)).digest() == layout_of(net()).digest()


def test_what_was_gathered_is_read_back_by_name() -> None:
    model = net()
    layout = layout_of(model)
    state = layout.read(gather(model, layout))
    assert list(state) == [entry.name for entry in (*layout.parameters, *layout.statistics)]
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(state[name], array)


def test_read_gives_views_and_gather_a_copy() -> None:
    model = net()
    layout = layout_of(model)
    vector = gather(model, layout)
    before = model.state_dict()["0.bias"].copy()
    layout.read(vector)["0.bias"][:] = 7.0
    assert vector[12:15].tolist() == [7.0] * 3
    np.testing.assert_array_equal(model.state_dict()["0.bias"], before)


def test_a_scalar_has_a_place_too() -> None:
    class Scaled(Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(np.float32(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    layout = layout_of(Scaled())
    assert [(entry.shape, entry.size) for entry in layout.parameters] == [((), 1)]
    assert layout.read(gather(Scaled(), layout))["scale"].shape == ()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"0.bias": np.zeros(4, np.float32)}, r"'0.bias' is \(4,\), not \(3,\)"),
        ({"9.bias": np.zeros(4, np.float32)}, "'9.bias' is in only one of them"),
        # As many values, in another shape.
        ({"0.weight": np.zeros((4, 3), np.float32)}, r"'0.weight' is \(4, 3\), not \(3, 4\)"),
        ({"1.running_mean": np.zeros(1, np.float32)}, r"'1.running_mean' is \(1,\), not \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, np.ndarray], text: str) -> None:
    layout = layout_of(net())
    vector = np.zeros(layout.size, np.float32)
    with pytest.raises(ModelError, match=text):
        layout.write(vector, {**net().state_dict(), **change})


def test_a_bound_model_computes_with_one_vector_and_writes_into_the_other() -> None:
    model = net()
    layout = layout_of(model)
    weights, sums = gather(model, layout), np.full(layout.size, np.nan, np.float32)
    Binding(model, layout, [weights], [sums])
    x = Tensor(np.eye(4, dtype=np.float32))
    F.cross_entropy(model(x), np.array([0, 1, 0, 1]), reduction="sum").backward()
    assert np.isfinite(sums).all()
    parameters = dict(model.named_parameters())
    for entry in layout.parameters:
        assert np.shares_memory(parameters[entry.name].data, weights)
        grad = parameters[entry.name].grad
        assert grad is not None
        assert np.shares_memory(grad, sums)
    # Statistics are handed over as sums over the samples, and not applied here (rule R8).
    assert weights[29:].tolist() == [0.0] * 3 + [1.0] * 3
    hidden = (np.eye(4, dtype=np.float32) @ parameters["0.weight"].data.T + parameters["0.bias"].data).mean(axis=0)
    np.testing.assert_allclose(sums[29:32], 4 * hidden, rtol=1e-5)
    weights[:] = 0.0
    assert not model(x).detach().numpy().any()


def test_a_bound_model_turns_from_one_vector_to_another() -> None:
    model = net()
    layout = layout_of(model)
    weights, sums = [gather(model, layout), np.zeros(layout.size, np.float32)], list(np.zeros((2, layout.size), "f4"))
    binding = Binding(model, layout, weights, sums)
    x = Tensor(np.eye(4, dtype=np.float32))

    def backward_at(slot: int, place: int) -> tuple[bool, bool]:
        """Return whether there was anything in the outputs, and whether they told the vectors of sums apart."""
        binding.read_from(slot)
        binding.write_to(place)
        for vector in sums:
            vector.fill(np.nan)
        outputs = model(x)
        F.cross_entropy(outputs, np.array([0, 1, 0, 1]), reduction="sum").backward()
        return bool(outputs.detach().numpy().any()), bool(
            np.isfinite(sums[place]).all() and np.isnan(sums[1 - place]).all()
        )

    assert [backward_at(*at) for at in ((0, 0), (1, 1), (1, 0), (0, 1))] == [
        (True, True),
        (False, True),
        (False, True),
        (True, True),
    ]
    assert weights[1][:29].tolist() == [0.0] * 29


def test_pytorchs_counters_are_no_part_of_the_weights() -> None:
    layout = layout_of(net())
    vector = np.zeros(layout.size, np.float32)
    layout.write(vector, {**net().state_dict(), "1.num_batches_tracked": np.array(7)})
    assert vector.tobytes() == gather(net(), layout).tobytes()
    with pytest.raises(ModelError, match=r"'9\.num_batches_tracked' is in only one of them"):
        layout.write(vector, {**net().state_dict(), "9.num_batches_tracked": np.array(7)})


def test_a_bound_model_has_its_statistics_in_the_vector_at_hand() -> None:
    model = net()
    layout = layout_of(model)
    weights = [gather(model, layout), gather(model, layout)]
    binding = Binding(model, layout, weights, [np.zeros(layout.size, np.float32)])
    weights[1][29:32] = 5.0
    x = Tensor(np.ones((4, 4), np.float32))
    model.eval()
    before = model(x).detach().numpy().copy()
    binding.read_from(1)
    assert model(x).detach().numpy().tolist() != before.tolist()
    assert dict(model.named_buffers())["1.running_mean"].value.tolist() == [5.0] * 3


def test_momenta_stand_where_their_statistics_do() -> None:
    # Each in the memory of the one before: a value that is not written is the other's.
    for first, second in ((0.25, 0.5), (0.5, 0.25), (0.25, 0.5)):
        model = nn.Sequential(
            nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=first), nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=second)
        )
        momenta = AutogradModel(model).momenta()
        assert momenta.tolist() == [first] * 6 + [second] * 4
        assert momenta.dtype == np.float32
        del momenta


@pytest.mark.parametrize(
    "other",
    [nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))],
    ids=["fewer parameters", "no statistics"],
)
def test_a_model_is_bound_by_its_own_layout_only(other: Module) -> None:
    layout = layout_of(other)
    vectors = [np.zeros(layout.size, np.float32)]
    with pytest.raises(ValueError, match="is shorter than"):
        Binding(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), layout, vectors, vectors)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^the model has no parameters: expected at least one layer that can learn$"):
        layout_of(nn.Sequential(nn.ReLU()))


def test_the_digest_of_weights_is_that_of_their_little_endian_bytes() -> None:
    vector = np.array([1.0, -2.5], np.float32)
    expected = hashlib.sha256(bytes.fromhex("0000803f000020c0")).hexdigest()
    assert weights_digest(vector) == expected
    assert weights_digest(np.array([1.0, 0.0, -2.5, 0.0], np.float32)[::2]) == expected
    assert weights_digest(vector.astype(">f4")) == expected
    assert weights_digest(np.empty(0, np.float32)) == hashlib.sha256(b"").hexdigest()


def test_a_parameter_that_is_frozen_has_no_place_in_the_vector_and_one_in_the_digest_and_the_state() -> None:
    model, before = net(), layout_of(net())
    frozen = list(model.parameters())[4]
    frozen.requires_grad = False
    layout = layout_of(model)
    assert (layout.parameter_size, layout.frozen_size) == (before.parameter_size - 6, 6)
    assert "3.weight" not in [entry.name for entry in layout.parameters]
    vector = gather(model, layout)
    state = layout.read(vector)
    assert set(state) == set(model.state_dict())
    assert np.shares_memory(state["3.weight"], frozen.data)
    assert not state["3.weight"].flags.writeable
    layout.write(vector, state)
    layout.write(vector, {name: array for name, array in state.items() if name != "3.weight"})
    digest = layout.digest()
    assert digest == layout_of(model).digest() != before.digest()
    frozen.data[0, 0] += 1
    assert layout_of(model).digest() != digest
    with pytest.raises(ModelError, match=r"'3\.weight' is frozen, and has other values there"):
        layout.write(vector, {**state, "3.weight": frozen.data + 1})


def test_a_position_has_the_name_of_its_array_and_a_digest_every_part_of_an_entry() -> None:
    first, second = LayoutEntry("a", (2, 3), 0), LayoutEntry("b", (2,), 6)
    layout = ParameterLayout((first,), (second,))
    assert [layout.name_at(position) for position in (0, 5, 6, 7)] == ["a", "a", "b", "b"]
    others = [
        ParameterLayout((first, second), ()),
        ParameterLayout((LayoutEntry("a", (3, 2), 0),), (second,)),
        ParameterLayout((first,), (LayoutEntry("b", (2,), 7),)),
    ]
    assert len({each.digest() for each in (layout, *others)}) == 4
    # The same in every process and version: receipts hold it.
    assert layout.digest() == hashlib.sha256(b"parameter a (2, 3) 0\nstatistic b (2,) 6").hexdigest()


def test_arrays_of_an_aligned_layout_begin_at_lines_and_zeros_are_between_them() -> None:
    layout = ParameterLayout.of({"a": (3, 4), "b": (), "c": (16,)}, {"d": (17,), "e": (2,)}, alignment=16)
    entries = (*layout.parameters, *layout.statistics)
    assert [entry.offset for entry in entries] == [0, 16, 32, 48, 80]
    assert (layout.parameter_size, layout.parameter_count, layout.size) == (48, 29, 96)
    assert layout.momenta([0.25, 0.5]).tolist() == [0.25] * 17 + [0.0] * 15 + [0.5] * 2 + [0.0] * 14
    assert [layout.name_at(position) for position in (0, 15, 16, 47, 48, 95)] == ["a", "a", "b", "c", "d", "e"]
    vector = layout.new_vector()
    assert not vector.any()
    assert all(entry.view(vector).ctypes.data % 64 == 0 for entry in entries)
    vector.fill(np.nan)
    for entry in entries:
        entry.view(vector)[...] = 1.0
    layout.clear_gaps(vector)
    assert vector.sum() == 29 + 19
    assert layout.digest() != ParameterLayout.of({"a": (3, 4), "b": (), "c": (16,)}, {"d": (17,), "e": (2,)}).digest()


def test_a_layout_of_our_own_models_has_no_gaps() -> None:
    layout = layout_of(net())
    assert layout.parameter_count + sum(entry.size for entry in layout.statistics) == layout.size
    vector = np.full(layout.size, 3.0, np.float32)
    layout.clear_gaps(vector)
    assert (vector == 3.0).all()
