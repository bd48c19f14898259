"""The check that nothing is left open finds what a block leaves, and not what another thread opens meanwhile."""

import os
import threading

import pytest

from tests.leftovers import LINUX_ONLY, nothing_left_open


class Opened:
    """A descriptor that is closed by the garbage collector alone, because the object refers to itself."""

    def __init__(self) -> None:
        self.own, self.descriptor = self, os.eventfd(0)

    def __del__(self) -> None:
        os.close(self.descriptor)


@LINUX_ONLY
def test_a_descriptor_that_waits_for_the_garbage_collector_is_found() -> None:
    with pytest.raises(AssertionError, match="eventfd"), nothing_left_open(ending_s=0.1):
        Opened()


@LINUX_ONLY
def test_a_descriptor_of_another_thread_that_closes_it_does_not_count() -> None:
    is_open, may_end = threading.Event(), threading.Event()

    def open_for_a_moment() -> None:
        descriptor = os.eventfd(0)
        is_open.set()
        may_end.wait(60.0)
        os.close(descriptor)

    other = threading.Thread(target=open_for_a_moment)
    with nothing_left_open():
        other.start()
        is_open.wait(60.0)
        threading.Timer(0.1, may_end.set).start()
    other.join()
