"""The places of workers: each death is told once, and somebody follows."""

from io import BytesIO
from pathlib import Path

import pytest

from common.runtime.clock import ManualClock
from lockstep.launch.child import Child
from lockstep.launch.process_log import ProcessLog
from lockstep.launch.restarts import FIRST_S
from lockstep.launch.worker_supervisor import WorkerSupervisor


class Ended:
    """A process that has ended, whose pipes nobody has closed yet."""

    def __init__(self, code: int) -> None:
        self.returncode = code
        self.stdin, self.stdout = BytesIO(), BytesIO()

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        return self.returncode


def posts_of(codes: list[list[int]], most: int) -> tuple[WorkerSupervisor, ManualClock]:
    """Return places at which processes end at once, by these exit codes in turn."""
    clock, left = ManualClock(), [list(row) for row in codes]

    def start(number: int) -> Child:
        return Child("a worker", Ended(left[number].pop(0)), ProcessLog(Path()))  # type: ignore[arg-type]

    posts = WorkerSupervisor(start, [], clock, most)
    posts.fill(len(codes))
    return posts, clock


def test_each_death_is_told_once_and_the_next_one_comes_in_its_time() -> None:
    posts, clock = posts_of([[-9, -9, 0], [0]], most=2)
    assert posts.dead() == [0]
    assert posts.dead() == []
    first = posts.workers[0]
    posts.follow()
    assert posts.workers[0] is first
    clock.advance(FIRST_S)
    posts.follow()
    assert posts.workers[0] is not first
    assert posts.dead() == [0]
    clock.advance(2 * FIRST_S)
    posts.follow()
    assert posts.dead() == []
    assert posts.workers[0].code == 0


def test_what_the_dead_one_holds_is_free_before_the_next_one_starts() -> None:
    posts, clock = posts_of([[-9, 0], [0]], most=1)
    first, second = (worker.process.stdin for worker in posts.workers if isinstance(worker, Child))
    assert posts.dead() == [0]
    clock.advance(FIRST_S)
    posts.follow()
    assert first is not None
    assert first.closed
    assert second is not None
    assert not second.closed


def test_a_place_is_given_up_after_so_many_deaths() -> None:
    posts, clock = posts_of([[-9, -9], [-9, 0]], most=1)
    assert posts.dead() == [0, 1]
    assert not posts.are_given_up()
    clock.advance(FIRST_S)
    posts.follow()
    assert posts.dead() == [0]
    assert posts.is_given_up(0)
    assert not posts.is_given_up(1)
    assert not posts.are_given_up()


@pytest.mark.parametrize(("code", "most"), [(2, 5), (-9, 0), (1, 0)])
def test_a_run_all_of_whose_places_are_given_up_is_hopeless(code: int, most: int) -> None:
    posts, clock = posts_of([[code], [code]], most)
    assert posts.dead() == [0, 1]
    assert posts.are_given_up()
    clock.advance(1000.0)
    posts.follow()
    assert posts.dead() == []
