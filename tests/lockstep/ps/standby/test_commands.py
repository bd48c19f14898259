"""Who may say who leads a run: whoever has the key of a standby, or of the server, or anybody if there are no keys."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from lockstep.common.errors import FailureKind
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Leave, Message, StandbyAddress, Term
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import (
    CommandOutcome,
    Drain,
    LeaderNotice,
    MirrorRequest,
    Promote,
    RunFiles,
)
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.statemachine.client import Exit
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.statemachine.machine import Interrupted
from lockstep.common.transport.in_memory import MemoryClient, MemoryNetwork
from lockstep.common.transport.port import wait_for_nothing
from lockstep.launch.client import StatusClient
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.run_folder import CHECKPOINTS
from lockstep.ps.standby.mirror import Mirror
from lockstep.ps.standby.shell import StandbyShell
from lockstep.ps.standby.state import StandbyState, TakeOver
from lockstep.ps.standby.terms import read_terms
from tests.simulation.cluster import Simulation
from tests.simulation.small import job_of

REQUEST = MirrorRequest(protocol=PROTOCOL_VERSION, host="h", address="memory://b")

HELD = RunFiles(
    term=Term(run="r", number=1, server="s"),
    run="r",
    step=3,
    steps=9,
    checkpoint=3,
    files=[],
    electors=[0],
    standbys=(),
    options=RunOptions(),
)

REFUSED = "this takes the key of the server, or of a standby"


def ask(client: MemoryClient, key: str, message: Message) -> None:
    client.key = key
    client.send(encode(message))


def outcomes(client: MemoryClient) -> Sequence[CommandOutcome]:
    """Return what was answered."""
    found: list[CommandOutcome] = []
    while (frames := client.receive(0.0)) is not None:
        message, _ = decode(frames, CommandOutcome)
        assert isinstance(message, CommandOutcome)
        found.append(message)
    return found


def standby_state(mirror: Mirror) -> StandbyState:
    """Return a standby at another address than its server's."""
    search = LeaderSearch((StandbyAddress(address="memory://"),), "memory://b")
    return StandbyState(search, MirrorRequest(protocol=PROTOCOL_VERSION, host="h", address="memory://b"), mirror)


@pytest.mark.parametrize(
    ("key", "text"),
    [("worker-1", REFUSED), ("standby-1", "it has not mirrored the run yet: try again"), ("", "it has not mirrored")],
)
def test_a_worker_promotes_nobody(tmp_path: Path, key: str, text: str) -> None:
    network = MemoryNetwork(1)
    port, upstream, client = network.server("memory://b"), network.client(), network.client("memory://b")
    shell = StandbyShell(
        standby_state(Mirror(tmp_path)),
        port,
        upstream,
        lambda address, public="": network.client(address),
        SystemClock(),
        print,
        wait_for_nothing,
    )
    ask(client, key, Promote())
    shell.step()
    (outcome,) = outcomes(client)
    assert not outcome.is_accepted
    assert text in outcome.text


def test_who_asks_a_standby_how_it_is_may_let_it_lead(tmp_path: Path) -> None:
    """As `train` does if nobody else asks for that: it hears the answer among the statuses."""
    network = MemoryNetwork(1)
    port = network.server("memory://b")
    shell = StandbyShell(
        standby_state(Mirror(tmp_path, held=HELD)),
        port,
        network.client(),
        lambda address, public="": network.client(address),
        SystemClock(),
        print,
        wait_for_nothing,
    )
    client = StatusClient(network.client("memory://b"))
    client.ask(0.0)
    shell.step()
    status = client.ask(0.0)
    assert status is not None
    assert status.is_standby
    client.promote()
    shell.step()
    assert isinstance(shell.ended, TakeOver)
    assert client.ask(0.0) is None


@pytest.mark.parametrize("key", ["worker-1", "standby-1", ""])
def test_only_a_standby_ends_a_server_by_a_higher_term(key: str) -> None:
    simulation = Simulation(job_of())
    server, client = simulation.server, simulation.network.client()
    own = server.coordinator.info.term
    term = Term(run=own.run, number=own.number + 1, server="other")
    ask(client, key, LeaderNotice(term=term, address="memory://other"))
    simulation.run(until=lambda: not any(one.up.messages for one in simulation.network.clients))
    kind = None if server.ended is None else server.ended.kind
    assert kind is (None if key == "worker-1" else FailureKind.SUPERSEDED)


def test_a_worker_drains_nothing() -> None:
    simulation = Simulation(job_of())
    client = simulation.network.client()
    ask(client, "worker-1", Drain())
    simulation.run(until=lambda: not any(one.up.messages for one in simulation.network.clients))
    assert [outcome.text for outcome in outcomes(client)] == [REFUSED]
    assert simulation.server.ended is None


def until_heard(simulation: Simulation) -> None:
    simulation.run(until=lambda: not any(one.up.messages for one in simulation.network.clients))


def mirror(simulation: Simulation, address: str, *, step: int, is_whole: bool) -> MemoryClient:
    """Let a standby ask for the files of a run; return its connection."""
    client = simulation.network.client()
    request = MirrorRequest(protocol=PROTOCOL_VERSION, host="h", address=address, step=step, is_whole=is_whole)
    ask(client, "standby-1", request)
    until_heard(simulation)
    return client


def drained(simulation: Simulation) -> CommandOutcome:
    """Ask the server to hand its run over; return what it answers."""
    client = simulation.network.client()
    ask(client, "standby-1", Drain())
    until_heard(simulation)
    (outcome,) = outcomes(client)
    return outcome


def test_a_run_is_handed_over_to_the_standby_that_has_all_of_it() -> None:
    simulation = Simulation(job_of())
    mirror(simulation, "memory://b", step=9, is_whole=False)
    mirror(simulation, "memory://c", step=2, is_whole=True)
    outcome = drained(simulation)
    assert outcome == CommandOutcome(is_accepted=True, text="the run goes on at memory://c, after the current step")
    assert simulation.server.succession.successor == StandbyAddress(address="memory://c")


@pytest.mark.parametrize(
    ("is_mirrored", "text"),
    [
        (False, "with `lockstep server --standby-of memory:// --bind ADDRESS --run-dir DIR`, and with --keys or --key"),
        (True, "the standby at memory://b has nothing of the run yet: try again in a moment"),
    ],
)
def test_a_run_that_nobody_has_all_of_is_not_handed_over(is_mirrored: bool, text: str) -> None:
    simulation = Simulation(job_of())
    if is_mirrored:
        mirror(simulation, "memory://b", step=0, is_whole=False)
    outcome = drained(simulation)
    assert (outcome.is_accepted, simulation.server.succession.successor) == (False, None)
    assert text in outcome.text


def test_a_standby_that_has_left_is_handed_nothing() -> None:
    simulation = Simulation(job_of())
    mirror(simulation, "memory://b", step=2, is_whole=True)
    mirror(simulation, "memory://c", step=9, is_whole=True).close()
    simulation.run(until=lambda: len(simulation.server.succession.registry.members) < 2)
    assert any(line.startswith("standby memory://c left: ") for line in simulation.said)
    assert drained(simulation).text == "the run goes on at memory://b, after the current step"


@pytest.mark.parametrize(
    ("servers", "phase", "steps"),
    [(1, RunPhase.TRAINING, 2), (2, RunPhase.TRAINING, 2), (2, RunPhase.UPDATING, 3)],
)
def test_a_run_is_handed_over_with_all_of_its_steps(tmp_path: Path, servers: int, phase: RunPhase, steps: int) -> None:
    """Also if no checkpoint is due: the slices of all servers are gathered with the last update before it."""
    simulation = Simulation(job_of(), folder=tmp_path, options=RunOptions(servers=servers))
    simulation.add_worker()
    coordinator, client = simulation.server.coordinator, simulation.network.client()
    ask(client, "standby-1", msgspec.structs.replace(REQUEST, is_whole=True))
    simulation.run(until=lambda: coordinator.round.step == 1 and coordinator.phase is phase)
    ask(client, "standby-1", Drain())
    simulation.run()
    assert simulation.server.ended is not None
    assert simulation.server.ended.kind is FailureKind.HANDED_OVER
    assert coordinator.progress.steps == steps
    assert CheckpointFolder(tmp_path / CHECKPOINTS, print).steps()[-1] == coordinator.progress.steps


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_waits_for_shards_or_workers_is_drained_at_once(workers: int) -> None:
    """The step that would gather the slices of all servers may never come."""
    options = RunOptions(servers=2, min_workers=2)
    simulation = Simulation(job_of(), options=options)
    if workers:
        simulation.add_worker()
        simulation.run(until=lambda: len(simulation.server.coordinator.membership.ready()) == workers)
    else:
        simulation.shards[0].die()
    mirror(simulation, "memory://b", step=0, is_whole=True)
    assert drained(simulation).is_accepted
    served(simulation)
    assert simulation.server.ended is not None
    assert simulation.server.ended.kind is FailureKind.HANDED_OVER


@pytest.mark.parametrize(("says_so", "remembered"), [(False, ["memory://b"]), (True, [])])
def test_a_standby_that_goes_without_a_word_may_lead_the_run(says_so: bool, remembered: list[str]) -> None:
    simulation = Simulation(job_of())
    client = simulation.network.client()
    ask(client, "standby-1", REQUEST)
    served(simulation)
    assert known(simulation) == ["memory://b"]
    if says_so:
        ask(client, "standby-1", Leave(reason="interrupted"))
        served(simulation)
    client.close()
    served(simulation)
    assert simulation.server.succession.registry.members == {}
    # A server that is started again asks those that it knows, and so does a worker whose server is gone.
    assert known(simulation) == remembered
    assert [standby.address for standby in simulation.server.coordinator.admission.standbys] == remembered
    # So does a server that resumes the run, before any of them is back.
    simulation.process.end(is_killed=True)
    again = Simulation(job_of(), folder=simulation.folder)
    assert [standby.address for standby in again.server.coordinator.admission.standbys] == remembered
    assert [standby.address for standby in again.server.group.shards.standbys] == remembered


def test_a_standby_gets_to_know_those_that_have_gone_without_a_word() -> None:
    simulation = Simulation(job_of())
    first, second = simulation.network.client(), simulation.network.client()
    ask(first, "standby-1", REQUEST)
    served(simulation)
    first.close()
    served(simulation)
    ask(second, "standby-2", msgspec.structs.replace(REQUEST, address="memory://c"))
    served(simulation)
    frames = second.receive(0.0)
    assert frames is not None
    offer, _ = decode(frames, RunFiles)
    assert isinstance(offer, RunFiles)
    # If the server is lost, one of them may lead the run, and the other one has to find it.
    assert {standby.address for standby in offer.standbys} == {"memory://b", "memory://c"}


def served(simulation: Simulation) -> None:
    """Let the server handle all that has come."""
    while simulation.server.step():
        pass


def known(simulation: Simulation) -> list[str]:
    assert simulation.folder is not None
    return [standby.address for standby in read_terms(simulation.folder).standbys]


def test_a_shard_that_comes_when_the_run_is_over_has_done_nothing_wrong() -> None:
    simulation = Simulation(job_of(steps=1), options=RunOptions(servers=2))
    simulation.add_worker()
    # The server waits for a standby that does not have all of the run.
    ask(simulation.network.client(), "standby-1", REQUEST)
    simulation.run()
    assert simulation.server.ended == Finish()
    late = simulation.add_shard()
    simulation.run_until_quiet()
    assert late.runner.ended == Exit(code=0, reason="")


def test_a_standby_that_ends_leaves_nothing_half_written(tmp_path: Path) -> None:
    network = MemoryNetwork(1)
    (tmp_path / ".mirror").mkdir()
    (tmp_path / ".mirror" / "coming").touch()
    shell = StandbyShell(
        standby_state(Mirror(tmp_path)),
        network.server("memory://b"),
        network.client(),
        lambda address, public="": network.client(address),
        SystemClock(),
        print,
        wait_for_nothing,
    )
    shell.dispatch([Interrupted()])
    shell.close()
    assert shell.ended == Exit(code=130, reason="interrupted", kind=FailureKind.INTERRUPTED)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
