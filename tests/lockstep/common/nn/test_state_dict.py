import numpy as np
import pytest
from numpy.typing import ArrayLike

from lockstep.common.nn import module as state


def own() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {
        "0.weight": np.zeros((2, 3), np.float32),
        "0.bias": np.zeros(2, np.float32),
        "1.running_mean": np.zeros(2, np.float32),
    }


def test_all_arrays_are_copied() -> None:
    target = own()
    weight = target["0.weight"]
    given: dict[str, ArrayLike] = {
        "0.weight": np.ones((2, 3)),
        "0.bias": [1, 2],
        "1.running_mean": np.full(2, 3, np.float32),
    }
    assert state.load(target, given, strict=True, owner="Net") == ([], [])
    assert weight.sum() == 6
    assert target["0.bias"].tolist() == [1, 2]


def test_every_wrong_key_is_named_in_one_line() -> None:
    target = own()
    given = {"0.weight": np.ones((3, 2)), "0.bias": np.ones(2), "extra": np.ones(1)}
    with pytest.raises(RuntimeError) as caught:
        state.load(target, given, strict=True, owner="Net")
    assert str(caught.value) == (
        "the state dict does not fit Net: missing keys: '1.running_mean'; unexpected keys: 'extra'; "
        "'0.weight' has shape (3, 2), expected (2, 3); strict=False loads the keys that agree"
    )
    assert not target["0.bias"].any(), "nothing is copied unless all fits"


def test_without_strict_only_shapes_must_agree() -> None:
    target = own()
    result = state.load(target, {"0.bias": np.ones(2), "extra": np.ones(1)}, strict=False, owner="Net")
    assert result.missing_keys == ["0.weight", "1.running_mean"]
    assert result.unexpected_keys == ["extra"]
    assert target["0.bias"].all()
    with pytest.raises(RuntimeError, match=r"'0.bias' has shape \(3,\), expected \(2,\)$"):
        state.load(target, {"0.bias": np.ones(3)}, strict=False, owner="Net")


def test_pytorchs_batch_counter_is_passed_over() -> None:
    given: dict[str, ArrayLike] = {**own(), "1.num_batches_tracked": np.int64(4)}
    assert state.load(own(), given, strict=True, owner="Net").unexpected_keys == []
    with pytest.raises(RuntimeError, match=r"unexpected keys: '0.num_batches_tracked'"):
        state.load(own(), {**given, "0.num_batches_tracked": np.int64(4)}, strict=True, owner="Net")


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(TypeError):
        state.load({"bias": np.zeros(1, np.float32)}, {"bias": ["a"]}, strict=True, owner="Net")
