import os
import signal

import pytest

from common.interrupts import held_back


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def interrupting() -> object:
    before = signal.signal(signal.SIGTERM, raise_interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


def end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupt_waits_for_the_end_of_the_context() -> None:
    done = []

    def work() -> None:
        with held_back():
            end_this_process()
            done.append("all of it")
        done.append("nothing after it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM}


def test_contexts_nest() -> None:
    done = []

    def work() -> None:
        with held_back():
            with held_back():
                end_this_process()
            done.append("still held")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["still held"]


def test_exceptions_pass_and_signals_are_let_through_again() -> None:
    with pytest.raises(ValueError, match="ours"), held_back():
        raise ValueError("ours")
    with pytest.raises(KeyboardInterrupt):
        end_this_process()
