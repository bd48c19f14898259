import pytest

from lockstep.common.runtime.interrupts import held_back, interrupt


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
