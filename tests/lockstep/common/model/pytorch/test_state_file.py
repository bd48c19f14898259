"""What `torch.save` wrote is read as a state dict, whatever is around it; what is none is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from lockstep.common.errors import FileFormatError

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
state_file: Any = pytest.importorskip("lockstep.common.model.pytorch.state_file")

STATE = {"a.weight": torch.arange(4.0).reshape(2, 2).T, "b": torch.tensor([7])}


def read(path: Path, saved: object) -> dict[str, Any]:
    torch.save(saved, path / "w.pt")
    found: dict[str, Any] = state_file.read_state(path / "w.pt")
    return found


AROUND: dict[str, Any] = {
    "nothing": STATE,
    **{name: {name: STATE, "epoch": 3} for name in ("state_dict", "model_state_dict", "model", "module")},
    "two of them": {"model": {"module": STATE}, "optimizer": {"lr": 0.1}},
    "a tensor next to it": {"state_dict": STATE, "best_loss": torch.tensor(0.5)},
    "numbers next to tensors": {**STATE, "epoch": 3},
    **{
        prefix: {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
        for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.")
    },
}


@pytest.mark.parametrize("saved", AROUND.values(), ids=AROUND)
def test_a_state_dict_is_found(tmp_path: Path, saved: object) -> None:
    found = read(tmp_path, saved)
    assert list(found) == ["a.weight", "b"]
    assert found["a.weight"].tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert (found["b"].tolist(), found["b"].dtype.kind) == ([7], "i")


def test_a_prefix_that_not_all_have_is_a_part_of_their_names(tmp_path: Path) -> None:
    saved = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(read(tmp_path, saved)) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *(("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")),
        *(("int8", "int8"), ("bool", "bool")),
    ],
)
def test_floats_are_as_wide_as_numpy_has_them(tmp_path: Path, dtype: str, expected: str) -> None:
    found = read(tmp_path, {"a": torch.ones(2, dtype=getattr(torch, dtype), requires_grad=dtype == "float32")})
    assert (found["a"].dtype, found["a"].tolist()) == (expected, [1, 1])


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        (
            {"a": torch.ones(2).to_sparse()},
            "w.pt: 'a' is torch.float32 of layout torch.sparse_coo: expected a dense ar",
        ),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "w.pt: 'a' is torch.complex64 of layout torch.strided: expected"),
        ({"epoch": 3}, "w.pt: holds a dict without a state dict: expected what torch.save(model.state_dict(), path)"),
        ([STATE], "w.pt: holds a list without a state dict: expected what torch.save(model.state_dict(), path) writes"),
        ({"model": {"epoch": 3}}, "w.pt: holds a dict without a state dict"),
        (torch.nn.Linear(1, 1), "w.pt: cannot be read by torch.load(weights_only=True) ("),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, saved: object, text: str) -> None:
    with pytest.raises(FileFormatError) as raised:
        read(tmp_path, saved)
    assert text in str(raised.value)
    assert "None" not in str(raised.value)
    assert "\n" not in str(raised.value)
