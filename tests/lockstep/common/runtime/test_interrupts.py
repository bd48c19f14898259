import pytest

from lockstep.common.runtime.interrupts import Terminated, held_back, interrupt


def test_an_interrupt_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_an_interrupt_waits_for_the_end_of_the_context() -> None:
    done = []

    def work() -> None:
        with held_back():
            interrupt()
            done.append("all of it")
        done.append("nothing after it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_one_by_the_system_is_told_from_one_by_a_person_at_the_end_too() -> None:
    with pytest.raises(Terminated), held_back():
        interrupt(is_terminated=True)
    with pytest.raises(KeyboardInterrupt) as raised, held_back():
        interrupt()
    assert not isinstance(raised.value, Terminated)


def test_contexts_nest() -> None:
    done = []

    def work() -> None:
        with held_back():
            with held_back():
                interrupt()
            done.append("still held")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["still held"]


def test_exceptions_pass_and_interrupts_are_let_through_again() -> None:
    with pytest.raises(ValueError, match="ours"), held_back():
        raise ValueError("ours")
    with pytest.raises(KeyboardInterrupt):
        interrupt()
