"""A table says what may follow; what it does not know is a bug of ours, and is reported as one."""

from enum import Enum

import pytest

from lockstep.common.errors import ProtocolError
from lockstep.common.protocol.messages import Ping
from lockstep.common.statemachine.machine import (
    IGNORED,
    ILLEGAL,
    Machine,
    Received,
    backoff_s,
    carry_out,
    kind_of,
    leads,
    stays,
    table_of,
)


class Door(Enum):
    OPEN = "open"
    SHUT = "shut"
    LOCKED = "locked"


class Pushed: ...


class Unlocked: ...


TABLE = table_of(
    Door, {Pushed: {Door.OPEN: {Door.SHUT}, Door.SHUT: {Door.OPEN}, Door.LOCKED: IGNORED}, Unlocked: stays(Door.SHUT)}
)


class DoorMachine(Machine[object, str]):
    """A door that locks itself if it is pushed while it is open."""

    transitions = TABLE

    def __init__(self, phase: Door) -> None:
        self.phase = phase

    def handle(self, event: object, now: float) -> list[str]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        return None

    def react(self, event: object, now: float) -> list[str]:
        self.phase = {Door.OPEN: Door.LOCKED, Door.SHUT: Door.OPEN}.get(self.phase, self.phase)
        return ["squeak"]


def test_phases_that_a_row_does_not_name_have_the_default() -> None:
    assert set(TABLE) == {(phase, event) for phase in Door for event in (Pushed, Unlocked)}
    assert TABLE[Door.OPEN, Unlocked] is ILLEGAL
    table = table_of(Door, {Pushed: leads({Door.SHUT}, Door.OPEN, Door.SHUT)}, otherwise=IGNORED)
    assert [table[phase, Pushed] for phase in Door] == [{Door.SHUT}, {Door.SHUT}, IGNORED]


def test_a_message_is_known_by_its_own_class() -> None:
    assert kind_of(Received(peer=b"", message=Ping())) is Ping
    assert kind_of(Pushed()) is Pushed


def test_what_is_ignored_changes_nothing() -> None:
    assert DoorMachine(Door.LOCKED).handle(Pushed(), 0.0) == []


def test_an_illegal_event_is_a_bug_of_ours() -> None:
    with pytest.raises(ProtocolError, match="Unlocked while open: not a transition of the table"):
        DoorMachine(Door.OPEN).handle(Unlocked(), 0.0)


def test_a_phase_that_the_table_does_not_have_for_an_event_is_a_bug_of_ours() -> None:
    assert DoorMachine(Door.SHUT).handle(Pushed(), 0.0) == ["squeak"]
    with pytest.raises(ProtocolError, match="Pushed led to locked: not a transition of the table"):
        DoorMachine(Door.OPEN).handle(Pushed(), 0.0)


def test_what_effects_lead_to_is_handled_after_what_had_happened() -> None:
    machine, performed = DoorMachine(Door.LOCKED), list[str]()
    machine.phase = Door.SHUT

    def perform(effect: str) -> list[object]:
        performed.append(f"{effect} {machine.phase.value}")
        machine.phase = Door.SHUT
        return [Pushed()] if len(performed) < 3 else []

    carry_out(machine, [Pushed()], perform, lambda: 0.0)
    assert performed == ["squeak open"] * 3


def delays(seed: str, tries: int = 40) -> list[float]:
    return [backoff_s(count, first_s=1.0, most_s=30.0, seed=seed) for count in range(1, tries + 1)]


def test_each_is_between_a_half_and_the_whole_of_a_doubling_time() -> None:
    for count, delay in enumerate(delays("a")):
        full = min(30.0, 2.0**count)
        assert full / 2 <= delay <= full


def test_the_same_seed_gives_the_same_delays_and_another_others() -> None:
    assert delays("a") == delays("a")
    assert not set(delays("a")) & set(delays("b"))


def test_those_who_wait_are_spread_over_the_time() -> None:
    tenths = [int(20 * (1.0 - backoff_s(1, first_s=1.0, most_s=1.0, seed=str(one)))) for one in range(1000)]
    assert all(tenths.count(tenth) == pytest.approx(100, abs=40) for tenth in range(10))


def test_any_number_of_tries_will_do() -> None:
    assert 15.0 <= backoff_s(10**9, first_s=1.0, most_s=30.0, seed="a") <= 30.0
