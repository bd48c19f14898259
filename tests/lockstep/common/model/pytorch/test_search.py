"""What a search for state records, place by place, without a run: each kind of value is compared by what can change."""

import importlib.util
import itertools
import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import GeneratorType
from typing import Any

import numpy as np
import pytest

from lockstep.common.numerics.random import shared_generators

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
state: Any = pytest.importorskip("lockstep.common.model.pytorch.state")

SHARED = dict(shared_generators()).keys()


def module_with(**values: Any) -> Any:
    module = torch.nn.Linear(2, 2)
    for name, value in values.items():
        object.__setattr__(module, name, value)
    return module


#: What PyTorch itself keeps in a layer.
PLAIN = set(state.StateSearch.of(module_with()).found)


def found_in(**values: Any) -> dict[str, object]:
    """Return what is found in a layer with these attributes, besides what is in each."""
    found: dict[str, object] = state.StateSearch.of(module_with(**values)).found
    return {place: each for place, each in found.items() if place not in PLAIN and not place.startswith("Kept.")}


class Kept:
    """Has a dictionary."""


class Slotted:
    """Has two slots."""

    __slots__ = ("empty", "filled")


class Child(Slotted):
    """Has a dictionary besides the slots of its parent."""


def having(made: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(made, name, value)
    return made


def numbers() -> Any:
    count = 5
    while True:
        yield count
        count += 1


def begun() -> Any:
    made = numbers()
    next(made)
    return made


VALUES: dict[str, tuple[Any, dict[str, object]]] = {
    "numbers": ([1, 2.5, None, True, "a"], {
        "it": 5, "it[0]": "1", "it[1]": "2.5", "it[2]": "None", "it[3]": "True", "it[4]": "'a'",
    }),
    "not a number": (float("nan"), {"it": "nan"}),
    "dictionary": ({"a": 1, 2: (3,), (4,): 5}, {
        "it": 3, "it['a']": "1", "it[2]": 1, "it[2][0]": "3", "it[…]": "5",
    }),
    "queue": (deque([6]), {"it": 1, "it[0]": "6"}),
    "set": ({3, 1, (2,)}, {"it": (3, ["1", "3"])}),
    "frozen set": (frozenset("b"), {"it": (1, ["'b'"])}),
    "bytes": (bytearray(b"ab"), {"it": b"ab"}),
    "array": (np.array([[1, 2]], np.int16), {"it": ((1, 2), b"\x01\x00\x02\x00")}),
    "array of objects": (np.array([None, "a"], object), {"it": ((2,), "[None, 'a']")}),
    "number of NumPy": (np.float32(1.0), {"it": b"\x00\x00\x80?"}),
    "count": (itertools.count(3), {"it": "count(3)"}),
    "iterator": (iter([1, 2, 3]), {"it": 3}),
    "context variable": (ContextVar("it", default=(2,)), {"it": 1, "it[0]": "2"}),
    "context variable without a value": (ContextVar("it"), {}),
    "object": (having(Kept(), a=1, b=[2]), {"it.a": "1", "it.b": 1, "it.b[0]": "2"}),
    "slots": (having(Slotted(), filled=7), {"it.filled": "7"}),
    "slots and a dictionary": (having(Child(), filled=7, more=8), {"it.filled": "7", "it.more": "8"}),
    "partial": (partial(max, 4, key=None), {
        "it": 1, "it[1 before]": 1, "it[0]": "4", "it['key']": "None",
    }),
    "generator": (numbers(), {}),
    "generator that has begun": (begun(), {"count": "5"}),
}  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES)
def test_a_value_is_recorded_by_what_can_change(value: Any, expected: dict[str, object]) -> None:
    found = found_in(it=value)
    if isinstance(value, GeneratorType):
        # Where it is, in the steps of the interpreter.
        assert isinstance(found.pop("it"), int)
    assert found == expected


def test_a_generator_is_recorded_by_where_it_is() -> None:
    made = numbers()
    places = []
    for _ in range(2):
        places.append(found_in(it=made)["it"])
        next(made)
    assert places[0] != places[1]
    made.close()
    assert found_in(it=made) == {"it": None}


def test_a_tensor_is_recorded_with_its_shape_and_type() -> None:
    found = found_in(it=torch.ones((1, 2), dtype=torch.int16))
    assert found == {"it": ((1, 2), "torch.int16", b"\x01\x00\x01\x00")}


@pytest.mark.parametrize(
    ("made", "draw"),
    [
        (np.random.default_rng(1), lambda made: made.random()),
        (np.random.RandomState(1), lambda made: made.rand()),
        (torch.Generator(), lambda made: torch.rand(1, generator=made)),
    ],
    ids=["NumPy", "NumPy, of the old kind", "PyTorch"],
)
def test_a_generator_of_numbers_is_recorded_before_and_after_a_draw(made: Any, draw: Callable[[Any], object]) -> None:
    before = found_in(it=made)
    assert before.keys() == {"it"}
    assert found_in(it=made) == before
    draw(made)
    assert found_in(it=made) != before


@pytest.mark.parametrize(
    "value", [logging.getLogger("a test"), weakref.WeakSet([Kept]), threading.Lock()], ids=["logger", "set", "lock"]
)
def test_what_comes_and_goes_is_not_looked_into(value: Any) -> None:
    assert found_in(it=value) == {}


def closing_over(value: Any) -> Callable[[], Any]:
    def read(x: Any = "default", *, y: Any = "keyword") -> Any:
        return value

    read.own = "attribute"  # type: ignore[attr-defined]
    return read


def test_closures_of_one_function_are_recorded_next_to_each_other() -> None:
    found = found_in(one=closing_over(3), two=closing_over([4]), three=closing_over(torch.zeros(1)))
    assert found["read, value"] == "3"
    assert found["read, value[1 before]"] == 1
    assert found["read, value[0]"] == "4"
    assert found["read, value[2 before]"] == ((1,), "torch.float32", bytes(4))
    assert list(state.StateSearch.of(module_with(it=closing_over(torch.zeros(1)))).tensors) == ["read, value"]


def unfilled() -> Callable[[], Any]:
    later: int

    def read() -> Any:
        return later

    if read is None:
        later = 1
    return read


def test_of_a_function_all_that_it_has_is_recorded() -> None:
    assert found_in(it=closing_over(3)) == {
        "read, value": "3",
        "read, a default": 1,
        "read, a default[0]": "'default'",
        "read, a default[1 before]": 1,
        "read, a default['y']": "'keyword'",
        "read.own": "'attribute'",
    }
    assert found_in(it=lambda x=4: x) == {
        "it, a default": 1,
        "it, a default[0]": "4",
        "it, a default[1 before]": "None",
    }
    assert set(found_in(it=unfilled()).values()) == {"None"}


class Owner:
    """Has methods of each kind, which close over what is looked for."""

    shared = "of the class"

    def __call__(self, x: Any = "called") -> Any:
        return x

    def method(self) -> int:
        return 1

    @staticmethod
    def static(x: Any = "static") -> Any:
        return x

    @classmethod
    def of_class(cls, x: Any = "of a class") -> Any:
        return x

    @property
    def made(self, x: Any = "made") -> Any:
        return x


def test_of_a_class_all_that_it_has_is_recorded() -> None:
    found = found_in(it=Owner())
    assert found["Owner.shared"] == "'of the class'"
    values = set(found.values())
    assert {"'static'", "'of a class'", "'made'", "'called'"} <= values
    assert found_in(it=Owner().method).keys() >= {"Owner.shared"}
    assert found_in(it=Owner) == found
    assert found_in(it=[Owner(), Owner()]).keys() == found.keys() | {"it"}


COUNTED = [0]


def uses_global() -> Any:
    def inner() -> Any:
        return COUNTED

    return inner


def test_a_global_variable_is_recorded_if_a_function_of_ones_own_names_it() -> None:
    assert found_in(it=uses_global)["COUNTED"] == 1
    assert found_in(it=uses_global)["COUNTED[0]"] == "0"
    assert "itertools" not in found_in(it=uses_global)


def test_what_is_held_twice_is_recorded_once() -> None:
    held = [1]
    assert found_in(it=[held, held]) == {"it": 2, "it[0]": 1, "it[0][0]": "1"}
    held.append(held)  # type: ignore[arg-type]
    assert found_in(it=held) == {"it": 2, "it[0]": "1"}


def test_parameters_and_buffers_are_no_state_and_their_attributes_are() -> None:
    module = torch.nn.BatchNorm1d(2)
    module.weight.note = "own"
    module.running_mean.note = "buffer"
    module.listed = [module.weight, module.running_mean]
    found = state.StateSearch.of(torch.nn.Sequential(module)).found
    assert found["0.weight.note"] == "'own'"
    assert found["0.listed"] == 2
    assert not [place for place, value in found.items() if isinstance(value, tuple) and "torch.float32" in value]
    assert state.StateSearch.of(torch.nn.Sequential(module)).tensors == {}


def test_modes_and_shared_generators() -> None:
    module = torch.nn.Linear(2, 2)
    before = state.StateSearch.of(module).found
    assert before.keys() >= SHARED
    assert state.StateSearch.of(module.eval()).found == before


def test_a_module_in_a_list_is_recorded_with_its_tensors() -> None:
    inner = torch.nn.BatchNorm1d(1)
    found = found_in(it=[inner])
    assert found["it[0].weight"] == ((1,), "torch.float32", b"\x00\x00\x80?")
    assert found["it[0].num_batches_tracked"] == ((), "torch.int64", bytes(8))
    assert "it[0].training" not in found


def test_hooks_are_recorded_with_their_place() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    module.register_forward_hook(closing_over("whole"))
    module[0].register_forward_pre_hook(partial(max, "inner"))
    module[0].weight.register_hook(partial(max, "gradient"))
    found = state.StateSearch.of(module).found
    assert found["read, value"] == "'whole'"
    assert found["a hook of 0[0]"] == "'inner'"
    assert [place.partition("[")[0] for place, value in found.items() if value == "'gradient'"] == [
        "a hook of 0.weight"
    ]
    named = torch.nn.Linear(2, 2)
    named.register_forward_hook(partial(max, "alone"))
    assert state.StateSearch.of(named).found["a hook of the model[0]"] == "'alone'"


# Memory

BASE = torch.arange(12.0)


def spans(**slices: tuple[int, int]) -> dict[str, Any]:
    return {name: BASE[start:stop] for name, (start, stop) in slices.items()}


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (spans(a=(0, 4), b=(4, 8)), []),
        (spans(a=(0, 5), b=(4, 8)), [("a", "b")]),
        (spans(b=(0, 5), a=(4, 8)), [("b", "a")]),
        (spans(a=(0, 9), b=(1, 2), c=(3, 4)), [("a", "b"), ("a", "c")]),
        (spans(a=(0, 3), b=(1, 6), c=(5, 7)), [("a", "b"), ("b", "c")]),
        (spans(a=(0, 6), b=(1, 6), c=(5, 7)), [("a", "b"), ("a", "c")]),
        (spans(a=(0, 0), b=(0, 2)), []),
        ({"a": BASE.reshape(3, 4)[:, 0], "b": BASE[7:8]}, [("a", "b")]),
        ({"a": BASE.reshape(3, 4)[:, 0], "b": BASE[9:10]}, []),
        ({"a": BASE.reshape(3, 4)[:, 0], "b": BASE[8:9]}, [("a", "b")]),
        ({"a": BASE[:4].to_sparse(), "b": BASE[:4]}, []),
        ({"a": torch.zeros(3, device="meta"), "b": BASE[:4]}, []),
        ({"a": torch.arange(4).view(torch.uint8), "b": torch.arange(4)}, []),
    ],
)
def test_tensors_that_share_memory_are_found(tensors: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert list(state.overlaps(tensors)) == expected


def test_views_are_those_of_what_is_given() -> None:
    module = torch.nn.Linear(2, 2)
    own = {"weight": module.weight.data, "bias": module.bias.data}
    assert list(state.views_of(module, own)) == []
    module.kept = [module.bias.detach()]
    module.other = torch.ones(3)
    module.again = module.other[1:]
    assert list(state.views_of(module, own)) == [("kept[0]", "bias")]
    module.row = module.weight.detach()[1]
    assert sorted(state.views_of(module, own)) == [("kept[0]", "bias"), ("row", "weight")]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([[1, 2], [3, 4]], dtype=torch.int8), b"\x01\x02\x03\x04"),
        (torch.tensor([[1, 2], [3, 4]], dtype=torch.int8).T, b"\x01\x03\x02\x04"),
        (torch.tensor([True, False]), b"\x01\x00"),
        (torch.ones(1, dtype=torch.bfloat16), b"\x80?"),
        (torch.zeros(0), b""),
        (torch.ones(1, requires_grad=True), b"\x00\x00\x80?"),
        (torch.tensor([1 + 2j]).conj(), np.array([1 - 2j], np.complex64).tobytes()),
        (torch.tensor([1 + 2j, 3 + 4j]).conj().imag, np.array([-2, -4], np.float32).tobytes()),
        (torch.ones(1, 4)[:, 0], b"\x00\x00\x80?"),  # one element, with a stride of 4
        (torch.arange(4, dtype=torch.int8)[2:], b"\x02\x03"),
        (torch.tensor([0, 2], dtype=torch.int8).to_sparse(), np.int64(1).tobytes() + b"\x02"),
    ],
)
def test_bytes_are_those_of_the_values(tensor: Any, expected: bytes) -> None:
    assert state.bytes_of(tensor) == expected


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_bytes_of_rows_are_those_of_the_whole() -> None:
    assert state.bytes_of(torch.tensor([[0, 2]], dtype=torch.int8).to_sparse_csr()) == b"\x00\x02"


@pytest.mark.parametrize(
    ("place", "is_own"),
    [("home/me/net.py", True), ("other/lib/python3.11/site-packages/net.py", False), ("dist-packages/net.py", False)],
)
def test_classes_of_packages_are_not_looked_into_wherever_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, *, is_own: bool
) -> None:
    source = tmp_path / place
    source.parent.mkdir(parents=True)
    source.write_text("class Counter:\n    tally = [0]\n")
    spec = importlib.util.spec_from_file_location(f"net_{len(place)}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    counter = module.Counter()
    assert any("tally" in each for each in found_in(counter=counter)) == is_own
