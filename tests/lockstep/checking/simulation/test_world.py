"""Virtual time: who acts when, and what can happen to a process."""

import pytest

from lockstep.checking.simulation.world import TICK_S, Process, World
from tests.lockstep.checking.simulation.listeners import Listener, listener


def run(world: World) -> None:
    while world.turn():
        pass


def test_who_is_due_first_acts_first() -> None:
    world = World()
    shells = [listener(world, name, alarm) for name, alarm in (("late", 3.0), ("early", 1.0))]
    run(world)
    assert [round(shell.rang[0], 2) for shell in shells] == [3.0, 1.0]
    assert world.events == 2


def test_what_is_to_happen_happens_in_order() -> None:
    world, message = World(), list[str]()
    world.after(2.0, lambda: message.append("second"))
    world.after(1.0, lambda: message.append("first"))
    world.after(2.0, lambda: message.append("third"))
    run(world)
    assert message == ["first", "second", "third"]


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
    shell.moments, shell.process.kill_after = 10, 5
    shell.process.on_end = lambda process, is_killed: ended.append((process.name, is_killed))
    run(world)
    assert ended == [("one", True)]
    assert shell.process.lead_s == 0.0
    assert shell.process.busy_until == pytest.approx(1.0 + 5 * TICK_S)
    assert shell.is_closed


def test_one_that_is_done_ends() -> None:
    world = World()
    shell = listener(world, "one", 1.0)
    shell.process.interrupt()
    assert world.processes == []
    assert shell.is_closed
    assert shell.rang == []


def test_one_that_is_killed_as_it_starts_has_no_shell() -> None:
    world = World()
    process = Process("one", world, kill_after=1)

    def open_shell() -> Listener:
        process.tick()
        raise AssertionError("it lives on")

    process.start(open_shell)
    assert process.is_dead
    assert process.shell is None
    assert world.processes == []


def test_the_digest_tells_whether_the_same_happened() -> None:
    worlds = [World(), World(), World()]
    for world, text in zip(worlds, ("a", "a", "b"), strict=True):
        world.record("one", text)
    assert worlds[0].digest() == worlds[1].digest() != worlds[2].digest()
