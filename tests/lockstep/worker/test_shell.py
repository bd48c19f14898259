"""The worker's shell: it answers what it is asked, refuses what is not the server's, and brings its errors home."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.errors import DataError, Diagnosis, RemoteProtocolError, SharingError
from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally, pack_losses, pack_sums, result_digest
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import (
    ComputeFailed,
    Diverged,
    Dropped,
    Finished,
    Join,
    Lease,
    Leave,
    Message,
    MultiStepLease,
    Ping,
    Ready,
    Result,
    Samples,
    ServerMessage,
    Spare,
    SumsFrame,
    Weights,
    Welcome,
    Withdrawal,
    WorkerMessage,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.statemachine.client import ClientConfig
from lockstep.common.statemachine.machine import TimePassed
from lockstep.common.transport.in_memory import MemoryClient, MemoryNetwork, MemoryServer
from lockstep.common.transport.port import Frames, PeerGone
from lockstep.ps.setup import open_run
from lockstep.worker import state as machine
from lockstep.worker.compute import Compute
from lockstep.worker.connections import LOOK_S, MOST_EARLY
from lockstep.worker.session import LeaseRun, StepsRun, WorkerSession
from lockstep.worker.setup import Loader, gather
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import WorkerState
from lockstep.worker.team.leader import Found
from lockstep.worker.team.progress import OrderOutcome
from tests.lockstep.common.statemachine.clients import JOIN
from tests.lockstep.statuses import status
from tests.lockstep.worker.states import worker_at
from tests.simulation.small import digits, job_of, load_digits, other_digits, wide_net


class Bench:
    """A worker, and by hand the server's end of its connection."""

    def __init__(self, job: Job, load: Loader = load_digits) -> None:
        self.network, self.clock = MemoryNetwork(1), ManualClock()
        self.port: MemoryServer = self.network.server()
        self.opening = open_run("bench", job, digits(), RunOptions())
        self.said: list[str] = []
        state = WorkerState(ClientConfig(address="memory://", join=JOIN, silence_s=600.0))
        self.runner = worker_at(self.network.client(), state, self.clock, load, self.said.append)
        self.peer = b""

    @property
    def session(self) -> WorkerSession:
        """The worker's part in the run."""
        assert self.runner.session is not None
        return self.runner.session

    def welcome(self) -> Welcome:
        return self.opening.info.welcome(0)

    def begin(self) -> None:
        self.runner.begin()
        assert isinstance(self.heard()[0], Join)

    def enter(self, welcome: Welcome | None = None) -> list[Message]:
        """Let the worker join, welcome it, and return what it says then."""
        self.begin()
        return self.send(welcome or self.welcome())

    def send(self, message: ServerMessage, *arrays: Vector) -> list[Message]:
        """Send the worker a message, let it act, and return what it says."""
        self.port.send(self.peer, encode(message, arrays))
        while self.runner.ended is None and self.runner.step():
            pass
        return self.heard()

    def heard(self) -> list[Message]:
        messages = []
        while (received := self.port.receive(None)) is not None:
            self.peer = received[0]
            messages.append(decode(received[1], WorkerMessage)[0])
        return messages

    def end(self) -> tuple[int, str]:
        assert self.runner.ended is not None
        return self.runner.ended.code, self.runner.ended.reason


def test_it_prepares_and_computes_what_is_leased() -> None:
    bench = Bench(job_of())
    assert bench.enter() == [Ready(rank=0, part=bench.opening.info.part)]
    assert bench.send(Weights(step=0, start=0), bench.opening.shard.weights) == []
    (result,) = bench.send(Lease(work="train", step=0, lo=0, hi=2))
    assert isinstance(result, Result)
    assert (result.lo, result.hi, result.start, result.count) == (0, 2, 0, 8)
    (result,) = bench.send(Lease(work="evaluate", step=0, lo=0, hi=1))
    assert isinstance(result, Result)
    assert (result.work, result.count) == ("evaluate", 30)
    bench.send(Finished(reason=""))
    assert bench.end() == (0, "")


@dataclass
class WatchedClient:
    """A connection that records how long each look may wait, and on which sending takes so many seconds."""

    client: MemoryClient
    clock: ManualClock
    send_s: float = 0.0
    waited: list[float | None] = field(default_factory=list)

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        self.waited.append(timeout_s)
        return self.client.receive(timeout_s)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self.clock.advance(self.send_s)
        self.client.send(frames, timeout_s)

    def diagnosis(self) -> Diagnosis | None:
        return self.client.diagnosis()

    def close(self, linger_s: float = 0.0) -> None:
        self.client.close(linger_s)


def test_what_is_sent_on_the_way_is_no_computing() -> None:
    bench = Bench(job_of(model=wide_net()))
    bench.runner.servers.first = WatchedClient(bench.network.client(), bench.clock, send_s=1.0)
    bench.enter()
    vector = bench.opening.shard.weights
    for frame in Slice(0, vector.size).frames():
        bench.send(Weights(step=0, start=frame.start), frame.of(vector))
    before = bench.clock.now()
    first, second, result, *_ = bench.send(Lease(work="train", step=0, lo=0, hi=1))
    assert isinstance(first, SumsFrame)
    assert isinstance(second, SumsFrame)
    # Behind the result, it asks whether the server is there, because that takes a second here too.
    assert bench.clock.now() >= before + 3
    assert isinstance(result, Result)
    assert result.compute_s == 0.0


def test_another_dataset_is_refused() -> None:
    bench = Bench(job_of(), load=lambda name: other_digits())
    (leave,) = bench.enter()
    assert isinstance(leave, Leave)
    assert "the dataset 'digits' is not the server's (SHA-256" in leave.reason
    assert "copy the server's data to this machine" in leave.reason
    assert bench.end() == (2, leave.reason)


def test_a_dataset_that_cannot_be_read_is_told() -> None:
    def fail(name: str) -> TrainTest:
        raise DataError(f"cannot read {name!r}")

    bench = Bench(job_of(), load=fail)
    assert bench.enter() == [Leave(reason="cannot read 'digits'")]
    assert bench.end()[0] == 2


def model_file(path: Path, text: str = "") -> str:
    path.write_text(
        "from lockstep.common import nn\n\n\n"
        "def build():\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n\n\n{text}"
    )
    return f"{path}:build"


def test_another_source_of_the_model_is_refused(tmp_path: Path) -> None:
    bench = Bench(job_of(model=model_file(tmp_path / "net.py")))
    model_file(tmp_path / "net.py", "CHANGED = True\n")
    (leave,) = bench.enter()
    assert isinstance(leave, Leave)
    assert "is not the server's ('net.py': SHA-256" in leave.reason
    assert leave.reason.endswith("copy the server's files to this machine: net.py")


def test_a_file_that_is_not_the_servers_is_not_run(tmp_path: Path) -> None:
    bench = Bench(job_of(model=model_file(tmp_path / "net.py")))
    model_file(tmp_path / "net.py", f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (leave,) = bench.enter()
    assert isinstance(leave, Leave)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_changes_after_it_was_looked_at_is_not_run(tmp_path: Path) -> None:
    bench = Bench(job_of(model=model_file(tmp_path / "net.py")))
    welcome = bench.welcome()

    def load_slowly(name: str) -> TrainTest:
        model_file(tmp_path / "net.py", f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
        return load_digits(name)

    gather(welcome, load_slowly)
    assert not (tmp_path / "ran").exists()
    assert "open(" in (tmp_path / "net.py").read_text()


def test_a_model_file_that_is_not_here_is_told(tmp_path: Path) -> None:
    bench = Bench(job_of(model=model_file(tmp_path / "net.py")))
    (tmp_path / "net.py").unlink()
    (leave,) = bench.enter()
    assert isinstance(leave, Leave)
    assert "cannot be read" in leave.reason


def test_another_layout_is_refused() -> None:
    bench = Bench(job_of())
    (leave,) = bench.enter(msgspec.structs.replace(bench.welcome(), layout="0" * 64))
    assert isinstance(leave, Leave)
    assert "model 'linear' has other parameters here than at the server" in leave.reason


@pytest.mark.parametrize("size", [0, 3, 7849, 7851])
def test_weights_of_a_wrong_length_are_a_breach_of_the_protocol(size: int) -> None:
    bench = Bench(job_of())
    bench.enter()
    if size == 0:
        bench.port.send(bench.peer, [b"\xc1"])
        bench.runner.step()
        (leave,) = bench.heard()
    else:
        (leave,) = bench.send(Weights(step=0, start=0), np.zeros(size, np.float32))
    assert isinstance(leave, Leave)
    code, reason = bench.end()
    assert code == 1
    assert reason.startswith("the server broke the protocol: ")
    assert size == 0 or f"weights of {size} values from 0 on: expected 7850" in reason


RAISING = """
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)

    def forward(self, x):
        if self.training:
            raise ValueError("odd caf\\udce9")
        return self.inner(x.flatten(1))


def build():
    return Odd()
"""


def test_an_exception_comes_home_with_its_traceback_and_the_worker_goes_on(tmp_path: Path) -> None:
    bench = Bench(job_of(model=model_file(tmp_path / "net.py", RAISING)))
    bench.enter()
    bench.send(Weights(step=0, start=0), bench.opening.shard.weights)
    (failed,) = bench.send(Lease(work="train", step=0, lo=1, hi=2, number=7))
    assert isinstance(failed, ComputeFailed)
    assert failed.number == 7
    assert "Traceback (most recent call last)" in failed.traceback
    assert "odd caf\\udce9" in failed.traceback
    assert isinstance(bench.send(Lease(work="evaluate", step=0, lo=0, hi=1))[0], Result)


def test_nobody_reads_while_there_is_no_server() -> None:
    network, clock = MemoryNetwork(1), ManualClock()
    said: list[str] = []
    state = WorkerState(ClientConfig(address="memory://", join=JOIN, silence_s=600.0))
    runner = worker_at(network.client(), state, clock, load_digits, said.append)
    runner.begin()
    for _ in range(100):
        clock.advance(5.0)
        runner.step()
    assert runner.ended is None
    assert 10 <= len(said) <= 20
    assert all(text.startswith("waiting for a server at memory://") for text in said)


def test_run_ends_with_the_run_and_closes_its_connection() -> None:
    bench = Bench(job_of())
    bench.begin()
    bench.port.send(bench.peer, encode(Finished(reason="")))
    assert bench.runner.run().code == 0
    bench.heard()
    with pytest.raises(PeerGone):
        bench.port.send(bench.peer, encode(Finished(reason="")))


class Interrupting:
    """A connection on which Ctrl-C comes while the worker waits."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        raise KeyboardInterrupt

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self.sent.append(decode(frames, WorkerMessage)[0])

    def diagnosis(self) -> None:
        return None

    def close(self, linger_s: float = 0.0) -> None:
        self.sent.append(Leave(reason="closed"))


def test_an_interrupt_is_told_to_the_server() -> None:
    port = Interrupting()
    state = WorkerState(ClientConfig(address="memory://", join=JOIN, silence_s=600.0))
    ended = worker_at(port, state, ManualClock(), load_digits, print).run()
    assert ended.code == 130
    assert port.sent == [JOIN, Leave(reason="interrupted"), Leave(reason="closed")]


# A lease is withdrawn while it is computed


class Busy(Bench):
    """A worker that computes a step of sixteen micro-batches, each of which takes some time."""

    def __init__(self, each_s: float = 2 * LOOK_S) -> None:
        super().__init__(job_of(micro_batches=16))
        self.runner.servers.first = self.watched = WatchedClient(self.network.client(), self.clock)
        self.each_s = each_s
        #: What the server sends after so many micro-batches of the lease at hand: messages, or a frame as it is.
        self.coming: dict[int, list[ServerMessage | bytes]] = {}
        #: How many micro-batches were computed before each that followed another, and the looks in between.
        self.computed, self.looks = 0, list[int]()
        self.enter()
        self.send(Weights(step=0, start=0), self.opening.shard.weights)
        compute = self.session.setup.compute
        self.look = compute.is_wanted
        compute.is_wanted = self.is_wanted

    def is_wanted(self) -> bool:
        self.computed += 1
        self.clock.advance(self.each_s)
        for message in self.coming.pop(self.computed, []):
            self.port.send(self.peer, [message] if isinstance(message, bytes) else encode(message))
        before = len(self.watched.waited)
        wanted = self.look()
        self.looks.append(len(self.watched.waited) - before)
        return wanted

    def lease(self, number: int = 1, lo: int = 0, hi: int = 16) -> list[Message]:
        """Lease micro-batches to the worker, let it act until it waits, and return what it says besides sums."""
        self.computed = 0
        self.looks.clear()
        return [one for one in self.send(leased(number, lo, hi)) if not isinstance(one, SumsFrame)]


def leased(number: int, lo: int = 0, hi: int = 16) -> Lease:
    return Lease(work="train", step=0, lo=lo, hi=hi, number=number)


def withdrawal(number: int = 1) -> Withdrawal:
    return Withdrawal(number=number)


def dropped(number: int = 1, computed: int = 0) -> Dropped:
    return Dropped(number=number, computed=computed)


def test_a_lease_that_is_withdrawn_is_stopped_at_the_next_micro_batch_and_answered_with_what_was_computed() -> None:
    bench = Busy()
    bench.coming = {5: [withdrawal()]}
    assert bench.lease() == [dropped(computed=5)]
    # It goes on with the next as if nothing had been.
    (result,) = bench.lease(2)
    (expected,) = Busy().lease(2)
    assert isinstance(result, Result)
    assert isinstance(expected, Result)
    assert (result.losses, result.loss_sum) == (expected.losses, expected.loss_sum)
    assert result.compute_s == pytest.approx(expected.compute_s)


def test_what_is_withdrawn_is_known_by_its_number() -> None:
    bench = Busy()
    bench.coming = {2: [withdrawal(7)]}
    result, answer = bench.lease()
    assert isinstance(result, Result)
    assert answer == dropped(7)


def test_a_withdrawal_that_comes_after_the_last_micro_batch_was_begun_is_answered_after_the_result() -> None:
    bench = Busy(each_s=LOOK_S / 100)
    bench.coming = {15: [withdrawal()]}
    result, answer = bench.lease()
    assert isinstance(result, Result)
    assert answer == dropped()


def test_an_evaluation_is_not_stopped_by_the_withdrawal_of_training() -> None:
    bench = Busy()
    bench.port.send(bench.peer, encode(withdrawal(0)))
    answer, result = bench.send(Lease(work="evaluate", step=0, lo=0, hi=1))
    assert answer == dropped(0)
    assert isinstance(result, Result)


@pytest.mark.parametrize(
    ("each_s", "looks"),
    [
        (LOOK_S / 4, [0, 0, 0, 1] * 3 + [0, 0, 0]),
        (LOOK_S / 2, [0, 1] * 7 + [0]),
        (LOOK_S, [1] * 15),
        (3 * LOOK_S, [1] * 15),
        (0.0, [0] * 15),
    ],
)
def test_it_looks_once_in_so_many_seconds_of_computing(each_s: float, looks: list[int]) -> None:
    bench = Busy(each_s)
    for number in (1, 2):
        bench.lease(number)
        assert bench.looks == looks


def test_messages_that_are_read_on_the_way_are_handled_afterwards_in_their_order() -> None:
    bench = Busy()
    # The second lease is withdrawn after it was given, and the third is not.
    bench.coming = {3: [leased(2, 0, 2), leased(3, 2, 4), withdrawal(2)], 4: [Spare(reason="enough")], 6: [Ping()]}
    first, answer, third = bench.lease()
    assert isinstance(first, Result)
    assert isinstance(third, Result)
    assert (first.number, answer, third.number) == (1, dropped(2), 3)
    assert bench.said[1:] == ["enough"]


def test_what_was_read_before_the_withdrawal_is_handled_before_it_and_what_came_after_it_later() -> None:
    bench = Busy()
    bench.coming = {3: [leased(2, 0, 2), withdrawal(1), withdrawal(2), leased(3, 2, 4)]}
    first, second, third = bench.lease()
    assert (first, second) == (dropped(1, computed=3), dropped(2))
    assert isinstance(third, Result)
    assert third.number == 3


def test_the_end_of_the_run_may_be_read_on_the_way() -> None:
    bench = Busy()
    bench.coming = {3: [Finished(reason="")]}
    (result,) = bench.lease()
    assert isinstance(result, Result)
    assert bench.end() == (0, "")


def test_nonsense_that_is_read_on_the_way_is_a_breach_of_the_protocol_once_the_lease_is_done() -> None:
    bench = Busy()
    bench.coming = {3: [b"\xc1"]}
    result, leave = bench.lease()
    assert isinstance(result, Result)
    assert isinstance(leave, Leave)
    assert bench.end()[0] == 1


def test_no_more_than_so_many_messages_are_read_on_the_way_and_the_others_wait() -> None:
    bench = Busy()
    many = [withdrawal(100 + number) for number in range(MOST_EARLY)]
    bench.coming = {1: [*many[:-1]], 2: [many[-1], withdrawal(1)]}
    result, *answers = bench.lease()
    # The last one was there in time, and was not seen.
    assert isinstance(result, Result)
    assert answers == [*(dropped(each.number) for each in many), dropped(1)]
    # Of those that are read at one look, the last is read as well as the first.
    assert bench.looks[:3] == [MOST_EARLY, 1, 0]


def test_with_messages_read_on_the_way_there_is_something_to_do_at_once() -> None:
    bench = Busy()
    bench.coming = {3: [Spare(reason="enough")]}
    bench.port.send(bench.peer, encode(leased(1)))
    assert bench.runner.step()
    assert bench.runner.step()
    # It has computed, and has nothing else at hand.
    assert not bench.runner.state.has_work()
    deadline = bench.runner.deadline()
    assert deadline is not None
    assert deadline <= bench.clock.now()
    assert bench.runner.step()
    assert bench.said[1:] == ["enough"]
    deadline = bench.runner.deadline()
    assert deadline is not None
    assert deadline > bench.clock.now()


def test_a_lease_tells_that_the_server_has_seen_the_last_of_several_steps() -> None:
    """Dropped, it would be missed for seconds: the server sends no other."""
    steps = StepsRun(1, cast(Any, None), print)
    assert [steps.is_ended_by(message) for message in (leased(1), Ping(), None)] == [True, False, False]
    assert not lease_run(leased(2)).is_ended_by(leased(1))


def lease_run(lease: Lease, leader: Any = None) -> LeaseRun:
    """Return a lease that a team computes, whose sums are two frames of four values."""
    wire = SimpleNamespace(pack=lambda part, start: part + np.float32(start))
    compute = SimpleNamespace(sums=(np.full(8, 1.0, np.float32),), frames=list(Slice(0, 8).cut(4)), wire=wire)
    sent: list[Frames] = []
    session: Any = SimpleNamespace(
        setup=SimpleNamespace(compute=compute),
        leader=leader,
        context=SimpleNamespace(clock=ManualClock()),
        servers=SimpleNamespace(
            send=lambda frames, timeout_s, start: sent.append(frames), sent=sent, is_for_first=lambda start: not start
        ),
    )
    return LeaseRun(session, lease)


@pytest.mark.parametrize("work", ["train", "audit", "evaluate"])
@pytest.mark.parametrize("is_digested", [True, False])
def test_a_result_of_a_team_has_the_digest_of_its_sums_which_are_sent_but_for_those_of_an_audit(
    work: Any, is_digested: bool
) -> None:
    found, outs = Found(tally=Tally(1.5, 2), losses=[0.5, 1.0], compute_s=0.1), list[Any]()

    def find(order: object, out: Vector | None) -> Found:
        outs.append((order, out))
        return found

    run, order = lease_run(Lease(work=work, step=0, lo=0, hi=2, is_digested=is_digested)), cast(Any, object())
    (sums,) = run.session.setup.compute.sums
    digest = run._team_result(cast(Any, SimpleNamespace(found=find)), order).digest
    assert digest == (result_digest(sums, found.losses, found.tally) if is_digested and work != "evaluate" else "")
    assert [(given, out is sums) for given, out in outs] == [(order, work != "evaluate")]
    sent = [decode(each, WorkerMessage) for each in cast(Any, run.session.servers).sent]
    frames = [(message.start, words.tolist()) for message, (words,) in sent if isinstance(message, SumsFrame)]
    # The result carries what the server that decides gets last.
    assert frames == ([(4, [5.0] * 4)] if work == "train" else [])
    assert (run.last and (run.last[0], run.last[1].tolist())) == ((0, [1.0] * 4) if work == "train" else None)


# What a result carries


@pytest.mark.parametrize("is_digested", [False, True])
def test_a_result_carries_all_that_was_found(is_digested: bool) -> None:
    bench, job = Bench(job_of(metrics=["f1"])), job_of(metrics=["f1"])
    bench.enter()
    bench.send(Weights(step=0, start=0), bench.opening.shard.weights)
    (result,) = bench.send(Lease(work="train", step=0, lo=0, hi=2, number=3, is_digested=is_digested))
    alone = open_run("alone", job, digits(), RunOptions())
    compute = Compute(job, alone.model, alone.data, alone.shard.slots)
    sums, tally = compute.train(0, Node(0, 2))
    digest = result_digest(sums, compute.losses, tally) if is_digested else ""
    assert result == Result(
        work="train",
        step=0,
        lo=0,
        hi=2,
        loss_sum=tally.loss_sum,
        count=tally.count,
        ignored=tally.ignored,
        weight=tally.weight,
        metrics=pack_sums(tally.metrics),
        compute_s=0.0,
        number=3,
        start=0,
        losses=pack_losses(compute.losses),
        digest=digest,
    )
    assert len(compute.losses) == 2


def test_what_diverges_is_told_with_its_place() -> None:
    bench = Bench(job_of())
    bench.enter()
    bench.send(Weights(step=0, start=0), np.full(bench.opening.layout.size, np.nan, np.float32))
    (diverged,) = bench.send(Lease(work="train", step=0, lo=2, hi=3))
    assert diverged == Diverged(number=0, micro_batch=2, layer="1 (Linear)", quantity="loss")


def test_the_status_that_a_worker_may_hear_changes_nothing() -> None:
    bench = Bench(job_of())
    bench.enter()
    assert bench.send(status()) == []
    assert bench.runner.ended is None


def test_it_waits_until_something_is_due_and_not_at_all_with_work_at_hand() -> None:
    bench = Bench(job_of())
    bench.enter()
    bench.send(Weights(step=0, start=0), bench.opening.shard.weights)
    waiting = bench.runner.servers.first = WatchedClient(bench.network.client(), bench.clock)
    due = bench.runner.state.deadline()
    assert due is not None
    bench.clock.advance((due - bench.clock.now()) / 2)
    assert not bench.runner.step()
    assert waiting.waited == [due - bench.clock.now(), 0.0]
    bench.clock.advance(due)
    assert bench.runner.step()
    assert waiting.waited[2:] == [0.0]
    waiting.waited.clear()
    bench.runner.dispatch(Lease(work="evaluate", step=0, lo=0, hi=1))
    assert bench.runner.step()
    assert waiting.waited == [0.0]


# What a team makes of an order


def session_of(**values: Any) -> Any:
    """Return what these decisions look at of a session."""
    around = {
        "servers": SimpleNamespace(begin_looking=lambda now: None),
        "context": SimpleNamespace(clock=ManualClock(), say=print),
        "_follow": lambda lease: lease,
    }
    return SimpleNamespace(**{"leader": None, "shares": True, **around, **values})


STEPS = MultiStepLease(number=1, incarnation=JOIN.incarnation, first=2, last=4, reads=0)


def test_several_steps_are_taken_on_by_the_process_that_they_were_leased_to() -> None:
    check = WorkerSession.check_steps
    with_team = session_of(leader=object())
    assert check(with_team, STEPS, JOIN.incarnation) == [STEPS]
    # It has joined again since, or has no team any more.
    assert check(with_team, STEPS, "now") == []
    assert check(session_of(), STEPS, JOIN.incarnation) == []
    for steps, shares in ((msgspec.structs.replace(STEPS, last=2), True), (STEPS, False)):
        text = f"a lease of steps 2 to {steps.last}: not one for this worker"
        with pytest.raises(RemoteProtocolError, match=text):
            check(session_of(leader=object(), shares=shares), steps, JOIN.incarnation)


def test_while_a_team_makes_steps_the_server_is_asked_in_time_because_it_may_be_another_by_now() -> None:
    shell: Any = SimpleNamespace(state=SimpleNamespace(client=SimpleNamespace(deadline=lambda: 5.0)))
    assert [WorkerShell._misses_server(shell, now) for now in (5.0, 4.9)] == [True, False]


def test_how_an_order_of_a_lease_has_ended() -> None:
    lease, order = leased(1), object()
    leader: Any = SimpleNamespace(computed=lambda: 3)
    run: Any = SimpleNamespace(
        _team_result=lambda *given: given, compute_alone=lambda: "alone", stopped=lambda: "stopped"
    )
    ends: Any = {outcome: LeaseRun.ended(run, leader, cast(Any, order), outcome) for outcome in OrderOutcome}
    assert ends == {
        OrderOutcome.DONE: (leader, order),
        OrderOutcome.STOPPED: "stopped",
        OrderOutcome.FAILED: "alone",
    }
    assert lease_run(lease, leader).stopped() == machine.LeaseStopped(lease=lease, computed=3)
    assert lease_run(lease).stopped() == machine.LeaseStopped(lease=lease, computed=0)


def test_how_an_order_of_several_steps_has_ended() -> None:
    said: list[str] = []
    leader: Any = SimpleNamespace(member=SimpleNamespace(error="RuntimeError: two\nlines"))
    run, order = StepsRun(7, leader, said.append), cast(Any, None)
    ends = {outcome: run.ended(leader, order, outcome) for outcome in OrderOutcome}
    assert ends == dict.fromkeys(OrderOutcome, Dropped(number=7))
    leader.member.error = ""
    run.ended(leader, order, OrderOutcome.FAILED)
    assert said == [
        "the team leaves steps to the server: RuntimeError: two\\nlines",
        "the team leaves steps to the server: another process of the team says why",
    ]
    assert run.stopped() == Dropped(number=7)


def test_samples_that_were_not_requested_or_that_cannot_be_stored() -> None:
    samples, words = Samples(part="train", places=b""), np.zeros(1, np.float32)
    with pytest.raises(RemoteProtocolError, match="samples that were not requested"):
        WorkerSession.store(session_of(loaded=SimpleNamespace(store=None)), samples, words)
    stored: list[Any] = []

    def full(*given: Any) -> None:
        raise DataError("no room")

    store = SimpleNamespace(put=lambda *given: stored.append(given))
    session = session_of(loaded=SimpleNamespace(store=store))
    assert WorkerSession.store(session, samples, words) is samples
    assert stored == [(samples, words)]
    store.put = full
    assert WorkerSession.store(session, samples, words) == machine.SamplesNotStored(reason="no room")


def test_before_the_welcome_work_is_a_breach_of_the_protocol() -> None:
    bench = Bench(job_of())
    bench.begin()
    bench.send(leased(1))
    assert bench.end() == (1, "the server broke the protocol: work before the welcome")


@dataclass
class TeamAtWork:
    """The session of a worker whose team works on an order."""

    is_stale: bool = False
    lets_messages_in: bool = False
    is_busy: bool = True
    stops: int = 0
    advanced: list[float] = field(default_factory=list)

    @property
    def work(self) -> Any:
        return SimpleNamespace(lets_messages_in=self.lets_messages_in)

    def is_withdrawn(self) -> bool:
        return self.is_stale

    def stop(self) -> list[Any]:
        self.stops += 1
        return ["stopped"]

    def advance(self, now: float) -> list[Any]:
        self.advanced.append(now)
        return ["ended"]


def worked(team: TeamAtWork, early: list[Any], *, is_busy: bool = True, misses: bool = False) -> tuple[Any, Any]:
    """Let a shell work in second 1; return the events, and the messages that it has handled."""
    handled: list[Any] = []
    shell: Any = SimpleNamespace(
        state=SimpleNamespace(is_busy=lambda: is_busy),
        servers=SimpleNamespace(early=deque(early)),
        on_server_message=handled.append,
        _misses_server=lambda now: misses,
    )
    return WorkerShell._work(shell, cast(Any, team), 1.0), handled


def test_a_team_at_work_does_what_is_due_while_messages_wait() -> None:
    team = TeamAtWork()
    assert worked(team, [b"1"], misses=True) == (["ended"], [])
    assert (team.advanced, team.stops) == ([1.0], 0)


def test_an_order_is_given_up_that_is_not_wanted_any_more() -> None:
    for team, is_busy, events in ((TeamAtWork(), False, []), (TeamAtWork(is_stale=True), True, ["stopped"])):
        assert worked(team, [], is_busy=is_busy) == (events, [])
        assert (team.stops, team.advanced) == (1, [])


def test_between_several_steps_messages_are_handled_and_a_silent_server_is_left() -> None:
    team = TeamAtWork(lets_messages_in=True)
    assert worked(team, [b"1", b"2"], misses=True) == ([], [b"1"])
    assert worked(team, [], misses=True) == ([TimePassed()], [])
    assert worked(team, []) == (["ended"], [])


def test_as_long_as_its_team_is_busy_a_worker_does_nothing_else() -> None:
    bench, team = Bench(job_of()), TeamAtWork()
    bench.begin()
    bench.port.send(bench.peer, encode(Ping()))
    bench.runner.session = cast(Any, team)
    assert bench.runner.step()
    assert (team.stops, bench.heard()) == (1, [])


@pytest.mark.parametrize(
    ("meeting", "due_s", "waited"),
    [(None, 1.5, [0.5]), (None, None, []), (None, 1.0, []), (object(), 9.0, [])],
)
def test_a_team_of_one_waits_for_the_server_until_something_is_due(
    meeting: object, due_s: float | None, waited: list[float]
) -> None:
    listened: list[float] = []
    leader: Any = SimpleNamespace(
        meeting=meeting,
        order=object(),
        member=SimpleNamespace(due=lambda: due_s),
        # With others, it sleeps until one of them rings.
        advance=lambda now: OrderOutcome.DONE if now == 1.0 else None,
    )
    work = SimpleNamespace(ended=lambda *given: given)
    session = session_of(leader=leader, work=work, servers=SimpleNamespace(listen=listened.append))
    found: Any = [] if waited else [(leader, leader.order, OrderOutcome.DONE)]
    assert (WorkerSession.advance(session, 1.0), listened) == (found, waited)
    assert waited or WorkerSession.advance(session, 2.0) == []


def test_several_steps_are_begun_and_stopped_by_the_team() -> None:
    begun: list[object] = []
    leader = SimpleNamespace(begin_steps=begun.append, stop=lambda: begun.append("stopped"))
    session = session_of(leader=leader, work=None)
    assert WorkerSession.begin_steps(session, STEPS) == []
    ended = [Dropped(number=STEPS.number)]
    assert WorkerSession.stop(session) == ended
    assert begun == [STEPS, "stopped"]

    def gone(lease: object) -> None:
        raise SharingError("the memory is gone")

    leader.begin_steps = gone
    assert WorkerSession.begin_steps(session, STEPS) == ended
