"""A model whose vectors take more messages than usually may wait for a peer: ports make room once it is known."""

import pytest

from tests.system.alone import train_alone
from tests.system.processes import GONE_S, Place

#: 30 million values, in 115 frames.
MODEL = """
from lockstep import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 38_000), nn.ReLU(), nn.Linear(38_000, 10))
"""

FLAGS = ("--data", "tiny.npz", "--global-batch", "8", "--micro-batches", "2", "--steps", "6", "--momentum", "0.9")


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2])
def test_a_large_model_is_trained_over_sockets(place: Place, servers: int) -> None:
    (place.folder / "model.py").write_text(MODEL)
    flags = ("--model", "model.py:build", *FLAGS)
    train_alone(place.folder, *flags)
    over = ("--transport", "tcp", "--servers", str(servers), "--workers", "2")
    code, out, error = place.start("train", *flags, *over, "--run-dir", "run").end()
    assert (code, error) == (0, ""), (out, error)
    # The team and the shards, each once: one that counts as slow is evicted, and joins again.
    assert (place.folder / "run" / "server.log").read_text().count(" joined\n") == servers
    assert place.digest() == place.digest("calm")
    assert place.is_empty(GONE_S)
