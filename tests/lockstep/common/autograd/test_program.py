"""A program gives each of several batches the bits that the engine gives it alone, and sums as the tree adds them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lockstep.common import nn
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.capture import capture
from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.autograd.program import Program, proven, run
from lockstep.common.autograd.tape import UntapeableError
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module
from lockstep.common.numerics.leaves import CallKind, LeafFunction, matrix_product
from tests.lockstep.common.autograd.cases import CASES, Case
from tests.lockstep.common.autograd.layer_cases import LAYER_CASES
from tests.lockstep.common.autograd.stacks import computed, one_by_one, program_of

RNG = np.random.default_rng(11)


def batches(count: int, samples: int, *shape: int, classes: int = 10) -> list[tuple[Array, Array]]:
    return [
        (RNG.standard_normal((samples, *shape)).astype(np.float32), RNG.integers(0, classes, samples))
        for _ in range(count)
    ]


class Loss:
    """The loss of a model, and its outputs."""

    def __init__(self, model: Module, smoothing: float = 0.0) -> None:
        self.model = model.initialize(1)
        self.smoothing = smoothing

    def __call__(self, images: Array, labels: Array) -> tuple[Tensor, Tensor]:
        logits = self.model(Tensor(images))
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="sum"), logits

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.model.parameters())


def check(function: Any, made: Program | None, stack: Sequence[Sequence[Array]], tensors: Sequence[Tensor]) -> None:
    assert made is not None
    outputs, sums = computed(made, stack, tensors)
    expected, gradients = one_by_one(function, stack, tensors)
    assert outputs == expected
    for one, other in zip(sums, gradients, strict=True):
        assert one.tobytes() == other.tobytes()
    if len(stack) > 1:
        return
    first = [RNG.standard_normal(each.shape).astype(each.dtype) for each in sums]
    added = [each.copy() for each in first]
    weights = [tensor.data for tensor in tensors]
    run([*made.forward(weights), *made.backward(weights, added, adds=True)], lambda finishes: None)
    for one, other, each in zip(added, gradients, first, strict=True):
        assert one.tobytes() in ((each + other).tobytes(), each.tobytes() if not other.any() else b"")


@pytest.mark.parametrize(("name", "count", "samples"), [(m, c, n) for m in MODELS for c, n in ((1, 5), (2, 1), (4, 3))])
def test_a_program_of_a_model_has_the_bits_of_the_engine_for_other_batches_and_weights(
    name: str, count: int, samples: int
) -> None:
    loss = Loss(MODELS[name](), 0.1)
    made = program_of(loss, batches(count, samples, 1, 28, 28), loss.tensors)
    if made is None:  # the stack would not stay in cache
        assert (name, count) == ("cnn", 4)
        return
    for parameter in loss.tensors:
        parameter.data = parameter.data + np.float32(0.01)  # another array
    check(loss, made, batches(count, samples, 1, 28, 28), loss.tensors)


@pytest.mark.parametrize(
    "of_weights",
    [Tensor.exp, Tensor.relu, Tensor.sum, lambda weights: weights.mean(axis=1, keepdims=True)],
    ids=["function", "rectifier", "sum", "mean"],
)
def test_what_is_computed_of_weights_alone_is_the_same_for_all_batches(of_weights: Any) -> None:
    weights = Tensor(RNG.standard_normal((3, 4)).astype(np.float32), requires_grad=True)

    def loss(x: Array) -> tuple[Tensor]:
        return ((Tensor(x) * of_weights(weights)).sum(),)

    stack = [(RNG.standard_normal((3, 4)).astype(np.float32),) for _ in range(4)]
    check(loss, program_of(loss, stack, [weights]), stack, [weights])


LAYERS: list[tuple[str, Any]] = [
    ("relu", nn.ReLU),
    ("tanh", nn.Tanh),
    ("gelu", nn.GELU),
    ("softmax", nn.Softmax),
    ("leaky", nn.LeakyReLU),
    ("softplus", nn.Softplus),
    ("sigmoid", nn.Sigmoid),
]


@st.composite
def nets(draw: st.DrawFn) -> tuple[Module, tuple[int, ...]]:
    """A net of random layers, and the shape of its samples."""
    layers: list[Module] = []
    shape: tuple[int, ...]
    if draw(st.booleans()):
        channels, side = draw(st.integers(1, 3)), draw(st.integers(6, 9))
        shape, kernel = (channels, side, side), draw(st.integers(1, 3))
        maps, padding = draw(st.integers(1, 9)), draw(st.integers(0, 1))
        layers += [nn.Conv2d(channels, maps, kernel, padding=padding, bias=draw(st.booleans())), nn.ReLU()]
        side += 2 * padding - kernel + 1
        pooling = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d, None]))
        if pooling is not None:
            layers.append(pooling(2))
            side //= 2
        layers.append(nn.Flatten())
        width = maps * side * side
    else:
        width = draw(st.integers(1, 90))
        shape = (width,)
    for _ in range(draw(st.integers(0, 3))):
        wider = draw(st.integers(1, 140))
        layers.append(nn.Linear(width, wider, bias=draw(st.booleans())))
        layers.append(draw(st.sampled_from(LAYERS))[1]())
        if draw(st.booleans()):
            layers.append(nn.LayerNorm(wider))
        width = wider
    return nn.Sequential(*layers, nn.Linear(width, 10)), shape


@settings(derandomize=True, deadline=None, max_examples=60)
@given(net=nets(), count=st.integers(1, 7), samples=st.integers(1, 33), smoothing=st.sampled_from([0.0, 0.2]))
def test_random_nets_have_the_bits_of_the_engine(
    net: tuple[Module, tuple[int, ...]], count: int, samples: int, smoothing: float
) -> None:
    model, shape = net
    loss = Loss(model, smoothing)
    made = program_of(loss, batches(count, samples, *shape), loss.tensors)
    check(loss, made, batches(count, samples, *shape), loss.tensors)


def test_attention_over_tokens_is_computed_at_once_but_for_the_table() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, norm_first=True, is_causal=True)
    model = nn.Sequential(nn.Embedding(9, 8), nn.PositionalEmbedding(6, 8), layer, nn.Linear(8, 9)).initialize(1)

    def loss(tokens: Array, targets: Array) -> tuple[Tensor, Tensor]:
        logits = model(Tensor(tokens))
        return F.cross_entropy(logits.reshape(-1, 9), targets, reduction="sum"), logits

    def stack() -> list[tuple[Array, Array]]:
        return [(RNG.integers(0, 9, (5, 6), dtype=np.int32), RNG.integers(0, 9, 30)) for _ in range(3)]

    tensors = list(model.parameters())
    check(loss, program_of(loss, stack(), tensors), stack(), tensors)


def test_a_regression_is_computed_at_once() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).initialize(1)

    def loss(x: Array, y: Array) -> tuple[Tensor, Tensor]:
        prediction = model(Tensor(x))
        return F.mse_loss(prediction, y, reduction="sum"), prediction

    def stack() -> list[tuple[Array, ...]]:
        return [tuple(RNG.standard_normal((7, size)).astype(np.float32) for size in (5, 2)) for _ in range(4)]

    tensors = list(model.parameters())
    check(loss, program_of(loss, stack(), tensors), stack(), tensors)


def test_a_tensor_that_is_used_twice_gets_the_sum_of_both_uses() -> None:
    shared = nn.Linear(6, 6)
    loss = Loss(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 10)))
    check(loss, program_of(loss, batches(4, 3, 6), loss.tensors), batches(4, 3, 6), loss.tensors)


@pytest.mark.parametrize("case", CASES + LAYER_CASES, ids=lambda case: case.primitive.name)
@settings(derandomize=True, deadline=None, max_examples=4)
@given(data=st.data())
def test_every_primitive_can_be_a_part_of_a_program(case: Case, data: st.DataObject) -> None:
    arguments, options = data.draw(case.calls)
    if "rng" in options or any(isinstance(each, np.ndarray) and not each.size for each in arguments):
        return  # what draws is never captured; without elements there is no memory
    if case.primitive.name == "where":
        arguments[0] = np.broadcast_to(arguments[0], np.broadcast_shapes(*map(np.shape, arguments))).copy()
    places = [at for at, each in enumerate(arguments) if isinstance(each, np.ndarray) and each.dtype.kind == "f"]
    leaves = [Tensor(np.array(arguments[at], order="C"), requires_grad=True) for at in places]

    def function(*inputs: Array) -> tuple[Tensor, ...]:
        given = list(arguments)
        for at, value, leaf in zip(places, inputs, leaves, strict=False):
            given[at] = leaf * Tensor(value)
        for at, value in zip(others, inputs[len(places) :], strict=True):
            given[at] = Tensor(value)
        return (apply(case.primitive, *given, **options).sum(),)

    others = [at for at, each in enumerate(arguments) if isinstance(each, np.ndarray) and at not in places]
    stack = [
        [*(RNG.uniform(0.9, 1.0, arguments[at].shape) for at in places), *(arguments[at] for at in others)]
        for _ in range(3)
    ]
    try:
        assert program_of(function, stack, leaves) is not None
    except UntapeableError:  # what has no elements, or hangs on a number alone, is left to be computed one by one
        sizes = [apply(case.primitive, *arguments, **options).ndim, *(np.ndim(each) for each in arguments)]
        assert 0 in sizes or 0 in apply(case.primitive, *arguments, **options).shape


def test_blocks_of_a_gradient_are_added_while_they_are_in_cache_so_memory_does_not_grow_with_their_number() -> None:
    loss = Loss(MODELS["mlp"]())
    gradient = sum(parameter.data.nbytes for parameter in loss.tensors)
    made = program_of(loss, batches(4, 16, 1, 28, 28), loss.tensors)
    assert made is not None
    activations = 4 * 16 * 4 * (784 + 3 * 512 + 3 * 256)
    # Two addends of the largest gradient, where a whole product was summed; of a block of it, where it is made so.
    assert made.nbytes < activations + 2 * 4 * 784 * 512
    assert made.nbytes < 4 * gradient / 2


# What must be found


def planted(kind: CallKind, function: Any, name: str, samples: int, width: int) -> Program | None:
    """Return the program of a tape of a linear layer and a softmax in which the calls of `name` are others."""
    loss = Loss(nn.Sequential(nn.Linear(width, 10), nn.Softmax()))
    stack = batches(4, samples, width)
    captured = capture(loss, stack[0], loss.tensors)
    captured.calls[:] = [
        (replace(call, function=function, kind=kind) if _name_of(call.function) == name else call, is_backward)
        for call, is_backward in captured.calls
    ]
    return proven(loss, captured, loss.tensors, stack)


def _name_of(function: Any) -> str:
    return function.name if isinstance(function, LeafFunction) else getattr(function, "__name__", "")


def shorter_chains(left: Array, right: Array, *rest: Array) -> None:
    """Multiply as the contract does, but with chains of two terms."""
    *biases, out = rest
    products = [left[..., k : k + 2] @ right[..., k : k + 2, :] for k in range(0, left.shape[-1], 2)]
    out[...] = sum(products[1:], products[0]) + sum(bias[:, None] for bias in biases)


def test_a_product_with_other_chains_is_found() -> None:
    assert planted(CallKind.PRODUCT, shorter_chains, "product", 16, 150) is None


def wide_maximum(array: Array, axis: Any, dtype: Any, out: Array, keepdims: bool) -> None:
    out[...] = array.max()


def test_a_statistic_over_the_whole_stack_is_found() -> None:
    assert planted(CallKind.ELEMENTWISE, wide_maximum, "reduce", 8, 20) is None
    assert planted(CallKind.PRODUCT, matrix_product, "product", 8, 20) is not None


def _doubled_in_place(x: Array) -> Array:
    result = np.empty_like(x)
    np.asarray(result)[...] = x * 2  # an assignment that no tape sees
    return result


def test_a_primitive_that_promises_in_vain_to_be_taped_is_found() -> None:
    careless = Primitive("careless", _doubled_in_place, (lambda g, _, x: g * 2,), reads=((),))
    honest = Primitive("honest", _doubled_in_place, (lambda g, _, x: g * 2,), reads=((),), is_opaque=True)
    weight = Tensor(RNG.standard_normal((4, 4)).astype(np.float32), requires_grad=True)
    stack = [(RNG.standard_normal((3, 4)).astype(np.float32),) for _ in range(2)]
    for primitive, is_found in ((careless, True), (honest, False)):

        def function(x: Array, primitive: Primitive = primitive) -> tuple[Tensor]:
            return (apply(primitive, Tensor(x) @ weight).sum(),)

        assert (program_of(function, stack, [weight]) is None) is is_found


def _zeros(x: Array) -> Array:
    result = np.empty_like(x)
    np.asarray(result)[...] = 0  # which new memory most often is
    return result


def test_what_no_tape_sees_is_found_whatever_was_in_memory_before() -> None:
    """All numbers times zero are zero: only one that was put there on purpose is found."""
    careless = Primitive("careless", _zeros, (lambda g, _, x: g * 0,), reads=((),))
    weight = Tensor(RNG.standard_normal((4, 4)).astype(np.float32), requires_grad=True)
    stack = [(RNG.standard_normal((3, 4)).astype(np.float32),) for _ in range(2)]

    def function(x: Array) -> tuple[Tensor]:
        product = Tensor(x) @ weight
        return ((apply(careless, product) * 0.0 + product).sum(),)

    assert program_of(function, stack, [weight]) is None


def test_what_was_computed_out_of_sight_raises_when_it_is_used() -> None:
    hidden = Primitive("hidden", lambda x: np.where(x > 0, x, 0) * 2, (lambda g, r, x: g * 2,), reads=((RESULT,),))
    weight = Tensor(RNG.standard_normal((4, 4)).astype(np.float32), requires_grad=True)
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    with pytest.raises(UntapeableError):
        capture(lambda x: ((apply(hidden, Tensor(x) @ weight) * 2.0).sum(),), [x], [weight])


def test_an_output_that_is_not_computed_is_left_to_be_computed_one_by_one() -> None:
    weight = Tensor(RNG.standard_normal((4, 4)).astype(np.float32), requires_grad=True)
    x = RNG.standard_normal((3, 4)).astype(np.float32)

    def function(x: Array) -> tuple[Tensor, Tensor]:
        given = Tensor(x)
        return (given @ weight).sum(), given

    with pytest.raises(UntapeableError, match="not computed"):
        capture(function, [x], [weight])


def test_between_segments_the_gradients_that_are_final_are_named_once_each() -> None:
    loss = Loss(MODELS["mlp"]())
    made = program_of(loss, batches(2, 3, 1, 28, 28), loss.tensors)
    assert made is not None
    weights = [tensor.data for tensor in loss.tensors]
    segments = [*made.forward(weights), *made.backward(weights, [np.empty_like(each) for each in weights])]
    assert len(segments) == made.length
    assert [number for segment in segments for number in segment[1]] == [4, 5, 2, 3, 0, 1]
