"""Modules as users write them: the digest of one process in one, two and three workers, and the values of a loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import Run, fit
from lockstep.common.errors import ModelError

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
own_nets = pytest.importorskip("tests.zoo.own_nets")

SEED, EPOCHS, LR, MOMENTUM = 5, 4, 0.05, 0.9

#: One that no run takes, since what a compiler makes of it has other bits.
COMPILED = "compiled"
TRAINED = [name for name in own_nets.OWN_NETS if name != COMPILED]


def samples_of(name: str) -> tuple[Any, Any]:
    net, rng = own_nets.OWN_NETS[name], np.random.default_rng(3)
    return net.inputs(rng), net.targets(rng)


def trained(name: str, folder: Path, workers: int) -> Run:
    """Train with all samples as one batch, in three micro-batches."""
    net, data = own_nets.OWN_NETS[name], samples_of(name)
    return fit(
        net.build,
        (data, data),
        loss=net.loss,
        run_dir=folder / str(workers),
        workers=workers,
        seed=SEED,
        epochs=EPOCHS,
        lr=LR,
        momentum=MOMENTUM,
        global_batch=own_nets.SAMPLES,
        micro_batches=3,
        normalize=False,
        verbose=False,
    )


def tensors_of(samples: Any) -> Any:
    if isinstance(samples, dict):
        return {key: torch.from_numpy(array) for key, array in samples.items()}
    return torch.from_numpy(samples)


def trained_plainly(name: str) -> dict[str, Any]:
    """Train by a loop of PyTorch alone; return the state dict."""
    net = own_nets.OWN_NETS[name]
    inputs, targets = map(tensors_of, samples_of(name))
    torch.manual_seed(SEED)
    module = net.build().train()
    optimizer = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], LR, MOMENTUM)
    for _ in range(EPOCHS):
        outputs = module(**inputs) if isinstance(inputs, dict) else module(inputs)
        if callable(net.loss):
            total, count = net.loss(outputs, targets)
        else:
            rows = outputs.reshape(-1, outputs.shape[-1])
            total, count = torch.nn.functional.cross_entropy(rows, targets.reshape(-1), reduction="sum"), len(rows)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    found: dict[str, Any] = module.state_dict()
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_and_a_plain_loop_give_the_same_values(name: str, tmp_path: Path) -> None:
    found, expected = trained(name, tmp_path, 0).model.state_dict(), trained_plainly(name)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        np.testing.assert_allclose(found[key].numpy(), tensor.numpy(), rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_part_that_is_compiled_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the module 'fast' is an OptimizedModule: expected the plain mod") as raised:
        trained(COMPILED, tmp_path, 0)
    assert "\n" not in str(raised.value)


def test_inputs_that_a_model_cannot_take_are_named_with_their_shapes(tmp_path: Path) -> None:
    x = {"left": np.ones((12, 7), np.float32), "right": np.ones((12, 10), np.float32)}
    data = x, np.zeros(12, np.int64)
    with pytest.raises(
        ModelError, match=r"of 'left', float32 of shape \(7,\), 'right', float32 of shape \(10,\): it r"
    ):
        fit(
            own_nets.Siamese,
            (data, data),
            loss=own_nets.contrastive,
            run_dir=tmp_path / "run",
            global_batch=12,
            workers=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_any_number_of_workers_gives_the_same_digest(name: str, tmp_path: Path) -> None:
    assert len({trained(name, tmp_path, workers).weights_sha256 for workers in range(4)}) == 1
