"""A server that is lost and started again by the very same command resumes its run; workers wait for it meanwhile."""

import random
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lockstep.common.runtime.clock import SystemClock
from tests.system.hosts import seconds_pass
from tests.system.processes import GONE_S, Place, Process
from tests.system.test_faults import LOOK_S, OFTEN, calm, job, kill, steps_done

#: Steps between checkpoints: `OFTEN` has them.
EVERY = 10

#: Seconds within which workers go on after a restart.
AGAIN_S = 10.0


@dataclass
class Served:
    """A server that is started by one command, again and again."""

    place: Place
    flags: tuple[str, ...]
    address: str = field(init=False)
    process: Process = field(init=False)

    def __post_init__(self) -> None:
        self.address = self.place.address()
        self.start()
        self.process.line_with("lockstep worker ")

    def start(self) -> None:
        where = ("--run-dir", "run", "--bind", self.address)
        self.process = self.place.start("server", *self.flags, *OFTEN, *where, "--no-picture")

    def makes(self, steps: int) -> int:
        """Wait until so many steps are recorded; return how many are."""
        while (done := steps_done(self.place)) < steps:
            assert not self.process.ends_within(LOOK_S)
        return done


def lost(place: Place, served: Served, kills: int, steps: int, seed: int) -> None:
    """Kill the server so often, at moments between which it makes steps, and start it again each time."""
    draw, clock = random.Random(seed), SystemClock()
    for number in range(kills):
        served.makes(number * steps // (kills + 2))
        seconds_pass([served.process.popen], draw.random() / 4)
        done = steps_done(place)
        kill(served.process.popen.pid)
        served.start()
        resumed = served.process.line_with(" resumes after step " if done > EVERY else " from ")
        began = clock.now()
        if done > EVERY:
            step = int(resumed.split("resumes after step ")[1].split()[0])
            assert done - step <= EVERY, f"step {step} after {done}"
        served.process.line_with(" joined")
        assert clock.now() - began < AGAIN_S


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_server_that_is_killed_at_any_moment_goes_on_to_the_same_bits(place: Place, kills: int) -> None:
    flags, expected = job(200 + 100 * kills), calm(200 + 100 * kills)
    served = Served(place, flags)
    workers = [place.start("worker", served.address, "--workers", "1", "--apart") for _ in range(2)]
    served.makes(2 * EVERY)
    lost(place, served, kills, 200 + 100 * kills, seed=kills)
    for process in (served.process, *workers):
        code, out, error = process.end()
        assert code == 0, (out, error)
    assert place.digest() == expected
    assert place.is_empty(GONE_S)


def test_a_server_that_is_stopped_and_started_again_by_the_same_command_goes_on(place: Place) -> None:
    served, expected = Served(place, job(150)), calm(150)
    worker = place.start("worker", served.address, "--workers", "1")
    done = served.makes(EVERY)
    served.process.send(signal.SIGTERM)
    assert served.process.end(GONE_S)[0] == 130
    served.start()
    # Of the last step that it has made.
    assert int(served.process.line_with("resumes after step ").split("resumes after step ")[1].split()[0]) >= done
    assert served.process.end()[0] == 0
    assert worker.end()[0] == 0
    assert place.digest() == expected


def test_a_finished_run_that_is_started_again_says_so_and_dismisses_workers(place: Place) -> None:
    served = Served(place, job(20))
    assert place.start("worker", served.address, "--workers", "1").end()[0] == 0
    assert served.process.end()[0] == 0
    late = place.start("worker", served.address, "--workers", "1")
    served.start()
    code, out, _ = served.process.end()
    assert code == 0
    assert "is already finished" in out
    assert late.end()[0] == 0


def test_a_server_that_was_lost_before_its_first_checkpoint_begins_again_in_its_folder(place: Place) -> None:
    served, expected = Served(place, job(30)), calm(30)
    served.process.line_with("waiting for workers")
    kill(served.process.popen.pid)
    served.start()
    worker = place.start("worker", served.address, "--workers", "1")
    assert served.process.end()[0] == 0
    assert worker.end()[0] == 0
    assert place.digest() == expected


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_job_and_a_second_server_are_refused_and_change_nothing(place: Place) -> None:
    served = Served(place, job(10**6))
    served.process.line_with("waiting for workers")
    second = place.start("server", *job(10**6), "--run-dir", "run", "--bind", place.address())
    code, _, error = second.end()
    assert (code, error.count("\n")) == (2, 1), error
    assert "is in use by a run that is not over" in error
    kill(served.process.popen.pid)
    before = contents(place.folder / "run")
    for flags, told in ((job(7), "steps = 1000000 in the run, 7 here"), ((*job(10**6), "--lr", "0.2"), "lr = ")):
        code, _, error = place.start("server", *flags, "--run-dir", "run", "--bind", place.address()).end()
        assert (code, error.count("\n")) == (2, 1), error
        assert "is a run of another job" in error
        assert told in error
    assert contents(place.folder / "run") == before
