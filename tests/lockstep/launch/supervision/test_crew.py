"""The processes at their places: each end is seen once, and what is replaced is ended."""

from pathlib import Path

from lockstep.launch.supervision.child import ProcessLog, WatchedProcess
from lockstep.launch.supervision.crew import Crew
from lockstep.launch.supervision.supervisor import SERVER, STANDBY, ProcessPlace, Role
from lockstep.launch.supervision.worker_supervisor import ProcessEnd
from tests.lockstep.launch.processes import Pretended

WORKER = ProcessPlace(Role.WORKER)


class Hall:
    """Processes that end when a test says so."""

    def __init__(self) -> None:
        self.started: list[Pretended] = []
        self.crew = Crew(self._start)

    def _start(self, place: ProcessPlace) -> WatchedProcess:
        self.started.append(Pretended(place.role.value, ProcessLog(Path())))
        return self.started[-1]


def test_each_end_is_seen_once_and_that_of_the_server_first() -> None:
    hall = Hall()
    hall.crew.begin([SERVER, WORKER])
    assert not hall.crew.has_news()
    assert hall.crew.ends() == {}
    server, worker = hall.started
    worker.ended, server.ended = -9, 1
    server.fail("why")
    assert hall.crew.has_news()
    assert list(hall.crew.ends().items()) == [
        (SERVER, ProcessEnd(code=1, has_reported=True)),
        (WORKER, ProcessEnd(code=-9)),
    ]
    assert not hall.crew.runs(SERVER)
    assert not hall.crew.has_news()


def test_a_process_that_was_killed_on_purpose_is_excused() -> None:
    hall = Hall()
    hall.crew.begin([WORKER])
    hall.started[0].kill_on_purpose()
    assert hall.crew.ends()[WORKER].is_excused


def test_what_the_dead_one_holds_is_free_before_the_next_one_starts() -> None:
    hall = Hall()
    hall.crew.begin([WORKER])
    hall.started[0].ended = -9
    hall.crew.ends()
    hall.crew.begin([WORKER])
    assert [process.graces for process in hall.started] == [[0.0], []]
    assert hall.crew.at(Role.WORKER) == hall.started[1:]
    assert hall.crew.runs(WORKER)


def test_the_standby_takes_the_place_of_the_server() -> None:
    hall = Hall()
    hall.crew.begin([SERVER, STANDBY])
    server, standby = hall.started
    server.ended = -9
    hall.crew.ends()
    hall.crew.move(STANDBY, SERVER)
    assert (hall.crew.at(Role.SERVER), hall.crew.at(Role.STANDBY)) == ([standby], [])
    standby.ended = 0
    assert hall.crew.ends() == {SERVER: ProcessEnd(code=0)}
