"""Runs on several hosts with a network between them: the same bits, with keys, over IPv4 and IPv6, whatever it does."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lockstep.bench.predict import basis_of_result, predict
from lockstep.cli.main import run
from lockstep.ps.records.run_folder import RunResult, read_result
from tests.system.alone import digest_alone
from tests.system.hosts import Hosts, hosts, seconds_pass, speed, why_not
from tests.system.jobs import BRIEF
from tests.system.processes import Place, Process

OBSTACLE = why_not()

pytestmark = pytest.mark.skipif(bool(OBSTACLE), reason=f"network namespaces may not be made here: {OBSTACLE}")

#: Longest that a run may take over these networks.
DEADLINE_S = 180.0

#: Without it vectors would go through memory, which these hosts share though they are not to.
OVER_SOCKETS = ("--transport", "tcp")

#: One that a single worker does not come to the end of within a second.
LONG = (*BRIEF[:-2], "--epochs", "600")

#: One that a single worker does not come to the end of while the other's cable is out for long: who is not told of
#: the end waits for a server to come back.
LONGER = (*BRIEF[:-2], "--epochs", "5000")

#: A model of half a million values, whose vectors take several frames, and most of a step at 100 Mbit/s.
HEAVY = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "16", "--micro-batches", "2")

#: For a time of a step: ten in an epoch, since those after an evaluation are shorter, which has brought the weights.
TIMED = (*HEAVY, "--epochs", "2")


@dataclass
class Lab:
    """The first host has the server, the others a worker each."""

    place: Place
    net: Hosts
    #: Of the last run that was begun.
    folder: Path = field(init=False)

    def begin(self, *job: str, is_ipv6: bool = False) -> tuple[Process, list[Process]]:
        """Start a run."""
        return self._begin(f"tcp://{self.net.address(0, is_ipv6=is_ipv6)}:5555", job, self.net.within)

    def begin_here(self, *job: str) -> tuple[Process, list[Process]]:
        """Start the same on this machine alone, over loopback."""
        return self._begin("tcp://127.0.0.1:0", job, lambda number: ())

    def _begin(
        self, bind: str, job: tuple[str, ...], within: Callable[[int], tuple[str, ...]]
    ) -> tuple[Process, list[Process]]:
        folder = f"run-{len(self.place.started)}"
        needed = ("--min-workers", str(self.net.count - 1), "--run-dir", folder, "--keys", "keys")
        server = self.place.start("server", *job, *OVER_SOCKETS, *needed, "--bind", bind, within=within(0))
        self.folder = self.place.folder / folder
        address = server.line_with("lockstep worker ").split()[2]
        showing = ("--key", "keys/worker-1.key")
        workers = [
            self.place.start("worker", address, "--workers", "1", *showing, within=within(number))
            for number in range(1, self.net.count)
        ]
        return server, workers

    def result(self, server: Process, workers: list[Process]) -> RunResult:
        """Wait for the end, which is to be a good one for all."""
        code, out, error = server.end(DEADLINE_S)
        assert (code, error) == (0, ""), (out, error)
        ends = [worker.end(DEADLINE_S) for worker in workers]
        assert [code for code, _, _ in ends] == [0] * len(ends), ends
        return read_result(self.folder)


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    assert run(["keys", "create", "keys"]) == 0


@pytest.fixture
def lab(place: Place, request: pytest.FixtureRequest) -> Iterator[Lab]:
    with hosts(3, getattr(request, "param", "1gbit")) as net:
        yield Lab(place, net)
        place.clear()


@pytest.mark.parametrize(
    ("job", "is_ipv6"), [((*HEAVY, "--steps", "4"), False), (BRIEF, True)], ids=["IPv4, larger", "IPv6"]
)
def test_three_hosts_with_keys_come_to_the_bits_of_one_process(lab: Lab, job: tuple[str, ...], is_ipv6: bool) -> None:
    result = lab.result(*lab.begin(*job, is_ipv6=is_ipv6))
    assert result.weights_sha256 == digest_alone(*job)
    assert (result.workers, result.transport) == (2, "tcp")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "number", "seconds"),
    [(LONG, 1, 1.0), (LONGER, 0, 10.0), (LONGER, 1, 10.0)],
    ids=["a worker's, for a moment", "the server's", "a worker's"],
)
def test_a_cable_that_is_pulled_and_put_back_is_survived(
    lab: Lab, job: tuple[str, ...], number: int, seconds: float
) -> None:
    server, workers = lab.begin(*job)
    server.line_with("epoch 2/")
    lab.net.pull(number)
    seconds_pass([workers[0].popen], seconds)
    lab.net.put_back(number)
    assert lab.result(server, workers).weights_sha256 == digest_alone(*job)


@pytest.mark.slow
def test_a_host_that_drops_packets_is_told_by_doctor_and_worker(lab: Lab) -> None:
    address = f"tcp://{lab.net.address(0)}:5555"
    serving = ("--bind", address, "--keys", "keys", "--run-dir", "run", "--min-workers", "2")
    server = lab.place.start("server", *BRIEF, *serving, within=lab.net.within(0))
    server.line_with("lockstep worker ")
    lab.net.drop(0, 1)
    asked = (address, "--key", "keys/worker-1.key")
    worker = lab.place.start("worker", *asked, within=lab.net.within(1))
    code, out, _ = lab.place.start("doctor", "--connect", *asked, "--json", within=lab.net.within(1)).end(DEADLINE_S)
    assert code == 1
    assert ["allow inbound TCP" in finding["fix"] for finding in json.loads(out)["findings"]] == [True]
    worker.error_with("check the firewalls in between")
    # Only the one whose packets are dropped.
    assert lab.place.start("doctor", "--connect", *asked, within=lab.net.within(2)).end(DEADLINE_S)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lab", "wire", "wire_weights"),
    [
        ("100mbit", "float32", "float32"),
        ("100mbit", "float16", "float32"),
        ("100mbit", "bfloat16", "float32"),
        ("100mbit", "int8", "float32"),
        ("100mbit", "int8", "bfloat16"),
        ("1gbit", "float32", "float32"),
    ],
    indirect=["lab"],
)
def test_a_step_takes_what_the_cost_model_predicts_within_a_fifth(lab: Lab, wire: str, wire_weights: str) -> None:
    """Predicted by `bench predict --from` of the same run on this machine alone."""
    job = (*TIMED, "--set", f"wire={wire}", "--set", f"wire_weights={wire_weights}")
    here = lab.result(*lab.begin_here(*job))
    (row,) = predict(basis_of_result(here), [2], [1], [1], speed(lab.net.rate)).rows
    there = lab.result(*lab.begin(*job))
    assert there.weights_sha256 == here.weights_sha256
    took_ms = 1e3 * there.train_s / there.steps
    moved = f"{there.moved.sums / 1e3:.1f} kB of sums, {there.moved.weights / 1e3:.1f} kB of weights a step"
    print(f"{took_ms:.1f} ms, {row.ms_per_step:.1f} predicted: {took_ms / row.ms_per_step:.2f}; {moved}")
    assert took_ms == pytest.approx(row.ms_per_step, rel=0.2)
