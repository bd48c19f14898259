"""Gradients that are not finite: who finds one ends the run, by name; who sends one is refused, and the run goes on."""

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import Diagnosis, FailureKind
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Result, SumsFrame, WorkerMessage
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import Hello
from lockstep.common.transport.port import ClientPort, Frames
from lockstep.ps.coordinator.effects import Finish
from lockstep.worker.shell import WorkerShell
from tests.simulation.cluster import Simulation
from tests.simulation.small import JOBS
from tests.simulation.test_promise import alone


@dataclass
class SpoilingClient:
    """A connection of a worker whose sums of the first step are not finite at one place."""

    client: ClientPort
    place: int

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        return self.client.receive(timeout_s)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        message, arrays = decode(frames, WorkerMessage | Hello)
        if isinstance(message, SumsFrame | Result) and message.step == 0:
            frames = encode(message, [self.spoilt(array) for array in arrays])
        self.client.send(frames)

    def spoilt(self, sums: Vector) -> Vector:
        """Return sums, or what they travel as, that hold no number."""
        words = sums.copy()
        words.view(np.uint32)[self.place] = 0xFFFFFFFF  # in float32, and in each type of the wire
        return words

    def diagnosis(self) -> Diagnosis | None:
        return self.client.diagnosis()

    def close(self, linger_s: float = 0.0) -> None:
        self.client.close(linger_s)


def spoil(runner: WorkerShell, place: int) -> None:
    """Let a worker send no numbers, to whatever server."""
    servers, dial = runner.servers, runner.servers.dial
    assert dial is not None
    servers.first = SpoilingClient(servers.first, place)

    def spoiling(address: str) -> SpoilingClient:
        return SpoilingClient(dial(address), place)

    servers.dial = spoiling


SPOILT = re.compile(
    r"worker [01] \(host host, pid 1\) left: .*a gradient that is not finite, of micro-batches [0-9-]+ of step 0\b"
)


def spoilt(
    name: str,
    place: int,
    *,
    wire: str = "float32",
    servers: int = 1,
) -> Simulation:
    """Run a job to its good end with one worker that is right, and one that sends no numbers at the first step.

    In that one nobody is known to be too slow: each gets something.
    """
    job = msgspec.structs.replace(JOBS[name], wire=wire)
    options = RunOptions(min_workers=2, servers=servers)
    simulation = Simulation(job, options=options)
    simulation.add_worker()
    spoil(simulation.add_worker().runner, place)
    digest = simulation.finish()
    if wire == "float32":
        assert digest == alone(name).result.weights_sha256
    return simulation


def told(simulation: Simulation) -> list[str]:
    return [text for text in simulation.said if SPOILT.search(text)]


@pytest.mark.parametrize(
    ("name", "wire"), [("linear", "float32"), ("mlp", "float16"), ("linear", "bfloat16"), ("mlp", "int8")]
)
def test_who_sends_no_numbers_is_refused_by_name_and_the_run_has_its_bits(name: str, wire: str) -> None:
    simulation = spoilt(name, 0, wire=wire)
    assert len(told(simulation)) == 1
    assert simulation.server.inbox.blocklist.broken.count == 1
    simulation.run_until_quiet()
    ended = simulation.workers[1].runner.ended
    assert ended is not None
    assert "a gradient that is not finite" in ended.reason


@pytest.mark.parametrize("place", [0, -1])
def test_so_it_is_by_any_of_several_servers(place: int) -> None:
    assert told(spoilt("mlp", place, servers=2))


#: A loss that is finite and a gradient that is not: the derivative of a root at 0.
ROOT = """
import numpy as np
from lockstep.common import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(784, 10)
        self.scale = nn.Parameter(np.zeros(10, np.float32))

    def forward(self, x):
        return self.hidden(x.flatten(1)) + (self.scale * self.scale) ** 0.5


def build():
    return Net()
"""


def test_a_gradient_that_a_worker_finds_not_finite_ends_the_run_with_worker_piece_and_parameter(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(ROOT)
    job = msgspec.structs.replace(JOBS["linear"], model=f"{tmp_path / 'net.py'}:build")
    simulation = Simulation(job, options=RunOptions(min_workers=2))
    simulation.add_worker()
    simulation.add_worker()
    with np.errstate(all="ignore"):
        simulation.run()
    assert isinstance(simulation.server.ended, Finish)
    assert simulation.server.ended.kind is FailureKind.DIVERGED
    assert re.match(
        r"the gradient of step 0, micro-batch \d, by worker [01] \(host host, pid [01]\), is not finite; "
        r"first seen in that of 'scale': lower the learning rate",
        simulation.server.ended.failure,
    )
