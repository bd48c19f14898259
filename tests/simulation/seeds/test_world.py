"""Virtual time: who acts when, and what can happen to a process."""

from dataclasses import dataclass

import pytest

from tests.simulation.seeds.listeners import Listener, listener
from tests.simulation.simulator.strand import Strand
from tests.simulation.simulator.world import TICK_S, Process, Ticks, World


def run(world: World) -> None:
    while world.turn():
        pass


def test_who_is_due_first_acts_first() -> None:
    world = World()
    shells = [listener(world, name, alarm) for name, alarm in (("late", 3.0), ("early", 1.0))]
    run(world)
    assert [round(shell.rang[0], 2) for shell in shells] == [3.0, 1.0]
    assert world.events == 2


def test_one_that_is_stopped_acts_when_it_goes_on() -> None:
    world = World()
    shell = listener(world, "one", 1.0)
    shell.process.stop()
    world.at(5.0, shell.process.resume)
    run(world)
    assert shell.rang[0] == pytest.approx(5.0, abs=0.01)


def test_a_clock_that_jumps_makes_what_is_due_come_sooner() -> None:
    world = World()
    shell = listener(world, "one", 10.0)
    shell.process.jump_clock(8.0)
    run(world)
    assert world.now == pytest.approx(2.0, abs=0.01)
    assert shell.rang[0] == pytest.approx(10.0, abs=0.01)


def test_acting_takes_time() -> None:
    world = World()
    shell = listener(world, "one", 1.0)
    shell.moments = 10
    run(world)
    assert shell.process.busy_until == pytest.approx(1.0 + 11 * TICK_S)


def test_one_may_be_killed_at_any_moment_of_what_it_does() -> None:
    world, ended = World(), list[tuple[str, bool]]()
    shell = listener(world, "one", 1.0)
    shell.moments, shell.process.ticks.kill_after = 10, 5
    shell.process.on_end = lambda process, is_killed: ended.append((process.name, is_killed))
    run(world)
    assert ended == [("one", True)]
    assert shell.process.lead_s == 0.0
    assert shell.process.busy_until == pytest.approx(1.0 + 5 * TICK_S)
    assert shell.is_closed


def test_one_that_is_killed_as_it_starts_has_no_shell() -> None:
    world = World()
    process = Process("one", world, ticks=Ticks(kill_after=1))

    def open_shell() -> Listener:
        process.tick()
        raise AssertionError("it lives on")

    process.start(open_shell)
    assert process.is_dead
    assert process.shell is None
    assert world.processes == []


def on_strand(world: World, name: str, alarm: float, moments: int) -> Listener:
    """Start a process that listens, on a strand of its own, and takes so many moments when it wakes."""
    shell = listener(world, name, alarm)
    shell.process.strand, shell.moments = Strand(), moments
    return shell


def test_others_act_while_one_is_ahead_of_the_world_in_the_middle_of_what_it_does() -> None:
    world, order = World(), list[str]()
    long = on_strand(world, "long", 1.0, moments=100)
    short = on_strand(world, "short", 1.0 + 50 * TICK_S, moments=0)
    long.process.on_act = lambda process: order.append("long begins")
    short.process.on_act = lambda process: order.append("short acts")
    while world.turn():
        if long.process.busy_until >= 1.0 + 100 * TICK_S and "long ends" not in order:
            order.append("long ends")
    assert order == ["long begins", "short acts", "long ends"]


def test_one_stands_still_in_the_middle_of_what_it_does() -> None:
    world = World()
    shell = on_strand(world, "one", 1.0, moments=10)
    shell.process.ticks.pause_after, shell.process.ticks.pause_s = 5, 3.0
    run(world)
    assert shell.process.busy_until == pytest.approx(4.0 + 11 * TICK_S)


def test_one_that_stands_still_can_be_killed_there_and_lets_go_of_everything() -> None:
    world = World()
    shell = on_strand(world, "one", 1.0, moments=10)
    shell.process.ticks.pause_after, shell.process.ticks.pause_s = 5, 3.0
    world.at(2.0, lambda: shell.process.end(is_killed=True))
    run(world)
    assert (world.now, shell.is_closed, world.processes) == (2.0, True, [])
    assert shell.process.strand is not None
    assert not shell.process.strand.is_suspended


@dataclass
class Sleeper(Listener):
    """Sleeps for some seconds when its alarm rings, and notes when it wakes up."""

    def step(self) -> bool:
        self.alarm = None
        self.process.sleep(3.0)
        self.rang.append(self.process.time())
        return True


@pytest.mark.parametrize(("rings_at", "wakes_at"), [(2.0, 2.0), (9.0, 4.0)])
def test_one_that_sleeps_wakes_up_when_somebody_rings_or_by_itself(rings_at: float, wakes_at: float) -> None:
    world = World()
    process = Process("one", world, strand=Strand())
    shell = Sleeper(process, alarm=1.0)
    process.start(lambda: shell)
    world.at(rings_at, lambda: process.ring(world.now))
    run(world)
    assert shell.rang == [pytest.approx(wakes_at, abs=0.01)]
