"""Processes: their last message is shown, they end with their parent, and at their places each end is seen once."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.runtime.environment import child_environment
from lockstep.common.runtime.interrupts import interrupt
from lockstep.launch.remote.agent import children_of
from lockstep.launch.supervision.channel import ReportReader
from lockstep.launch.supervision.child import TAIL_LINES, Child, Crew, ProcessLog, WatchedProcess, exit_message
from lockstep.launch.supervision.restarts import SERVER, USAGE, ProcessEnd, ProcessPlace, Role
from lockstep.launch.supervision.template import KILLED_S, ProcessTemplate
from tests.lockstep.launch.processes import Pretended

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: boom'

#: What a log holds -> its end, for a process that has reported no error.
TAILS = {
    "a traceback": (f"joined\n{TRACEBACK}\n", TRACEBACK),
    "lines": ("no error: all is well\n", "no error: all is well"),
    "nothing": ("", ""),
    "bytes that are no text": ("\udcff\n", "\N{REPLACEMENT CHARACTER}"),
    "many lines": ("\n".join(map(str, range(100))), "\n".join(map(str, range(100 - TAIL_LINES, 100)))),
}


#: A worker whose server never answers.
PATIENT = ["worker", "tcp://127.0.0.1:9", "--workers", "1", "--timeout", "999"]

#: Seconds for the end of a process that was asked to end.
GONE_S = 60.0


@pytest.fixture(scope="module")
def forking() -> Iterator[ProcessTemplate]:
    """Return a template that all tests of this file use."""
    with ProcessTemplate.of("worker") as template:
        if template is None:
            pytest.skip("this system cannot fork a template")
        yield template


@pytest.fixture(params=["started anew", "forked"])
def template(request: pytest.FixtureRequest) -> ProcessTemplate | None:
    """Return what children are forked from, None to start each anew."""
    forked: ProcessTemplate | None = request.getfixturevalue("forking") if request.param == "forked" else None
    return forked


def ended(folder: Path, arguments: list[str], template: ProcessTemplate | None) -> Child:
    """Return a child that has ended."""
    child = Child.start("a worker", arguments, folder / "child.log", template=template)
    child.end(GONE_S)
    return child


def shown(pid: int, name: str) -> list[str]:
    """Return words that the system shows of a process: its command, or its environment."""
    return Path(f"/proc/{pid}/{name}").read_text().rstrip("\0").split("\0")


def test_a_process_whose_end_only_the_template_has_seen_gets_no_signal(
    forking: ProcessTemplate, tmp_path: Path
) -> None:
    child = Child.start("a worker", PATIENT, tmp_path / "child.log", template=forking)
    os.kill(child.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        while True:  # until the template has asked for its exit code
            os.kill(child.pid, 0)
    child.send(signal.SIGCONT)
    child.end(GONE_S)
    assert child.code == -signal.SIGKILL


@pytest.mark.parametrize(("text", "tail"), TAILS.values(), ids=TAILS)
def test_the_end_of_a_log_is_its_traceback_or_its_last_lines(tmp_path: Path, text: str, tail: str) -> None:
    log = ProcessLog.at_end_of(tmp_path / "log")
    log.add(text.encode(errors="surrogateescape"))
    assert log.tail() == tail


def test_how_it_ended_well(tmp_path: Path, template: ProcessTemplate | None) -> None:
    good = ended(tmp_path, ["--version"], template)
    assert good.has_ended()
    assert good.how_it_ended() == "ended with exit code 0"


def test_the_error_that_a_process_reports_is_its_last_message(tmp_path: Path, template: ProcessTemplate | None) -> None:
    missing, reports = str(tmp_path / "key"), ["--supervised", str(tmp_path)]
    child = ended(tmp_path, ["worker", "tcp://127.0.0.1:9", "--key", missing, *reports], template)
    assert child.code == USAGE
    assert child.failure is not None
    assert exit_message(child) == f"a worker (pid {child.pid}) ended with exit code 2: {child.failure.text}"
    assert missing in child.failure.text
    assert child.log.tail().startswith("error: ")


def test_of_a_process_that_reports_nothing_the_end_of_its_log_is_shown(
    tmp_path: Path, template: ProcessTemplate | None
) -> None:
    child = ended(tmp_path, ["worker"], template)
    assert child.failure is None
    assert exit_message(child) == f"a worker (pid {child.pid}) ended with exit code 2: {child.log.tail()}"


def test_a_folder_of_the_same_name_where_we_stand_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    assert ended(tmp_path, ["--version"], None).code == 0


def connecting(folder: Path, template: ProcessTemplate | None) -> Child:
    """Return a worker that waits for its server."""
    child = Child.start("a worker", PATIENT, folder / "child.log", folder, template)
    while not child.log.tail():
        assert not child.has_ended()
    return child


def test_a_forked_process_is_shown_as_one_that_was_started_anew(tmp_path: Path, forking: ProcessTemplate) -> None:
    children = [connecting(tmp_path, template) for template in (None, forking)]
    anew, forked = (shown(child.pid, "cmdline") for child in children)
    assert anew == forked
    # The name of the test is that of an earlier one if the template began in that.
    environments = [{word for word in shown(child.pid, "environ") if "PYTEST" not in word} for child in children]
    assert environments[0] == environments[1]
    for name in ("cwd", "fd/2"):
        assert len({os.readlink(f"/proc/{child.pid}/{name}") for child in children}) == 1
    assert [os.getsid(child.pid) for child in children] == [child.pid for child in children]
    for child in children:
        child.end(0.0)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_it(tmp_path: Path, template: ProcessTemplate | None, number: signal.Signals, code: int) -> None:
    child = connecting(tmp_path, template)
    child.send(number)
    child.end(GONE_S)
    assert child.code == code


def test_it_ends_with_its_parent_although_others_are_forked_later(tmp_path: Path, forking: ProcessTemplate) -> None:
    words = [*PATIENT, "--supervised", str(tmp_path / "private")]
    first, second = (Child.start("a worker", words, tmp_path / "child.log", template=forking) for _ in range(2))
    first.cut_lifeline()
    assert first.wait(GONE_S)
    assert not second.has_ended()
    second.end(0.0)


def interrupted_start(folder: Path, template: ProcessTemplate | None) -> None:
    # Long before the template has imported anything.
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    Child.start("a worker", PATIENT, folder / "child.log", template=template)


def test_a_template_ends_with_its_owner() -> None:
    owner, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control:
        command = [sys.executable, "-P", "-m", "lockstep.cli.template", str(control.fileno()), " "]
        template = subprocess.Popen(command, pass_fds=[control.fileno()], env=dict(child_environment()))
    # As the system does for an owner that is killed.
    owner.close()
    assert template.wait(GONE_S) == 0


class Held(subprocess.Popen[bytes]):
    """A process that does not end when it is killed, as if a disk was gone; it records all waits."""

    def __init__(self) -> None:
        self.returncode, self.pid, self.waits = None, 1, list[float | None]()

    def wait(self, timeout: float | None = None) -> int:
        self.waits.append(timeout)
        raise subprocess.TimeoutExpired("held", timeout or 0.0)

    def kill(self) -> None:
        self.waits.append(-1.0)

    def __del__(self) -> None:
        pass  # there is no process to collect


def test_a_process_that_does_not_end_when_it_is_killed_is_left(tmp_path: Path) -> None:
    held, (reports, writing), (stdin, lifeline) = Held(), os.pipe(), os.pipe()
    child = Child("a worker", ProcessLog.at_end_of(tmp_path / "log"), held, ReportReader(reports), lifeline)
    child.end(2.0)
    assert held.waits == [2.0, -1.0, KILLED_S]
    assert child.how_it_ended() == "was killed by SIGKILL"
    for descriptor in (writing, stdin):
        os.close(descriptor)


def test_an_interrupt_while_a_process_is_forked_leaves_none_behind(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGALRM, lambda number, frame: interrupt())
    try:
        with ProcessTemplate.of("worker") as template:
            with pytest.raises(KeyboardInterrupt):
                interrupted_start(tmp_path, template)
            others = [pid for pid in children_of(os.getpid()) if "--timeout" in shown(pid, "cmdline")]
            assert others == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_process_has_the_data_that_its_template_has_read(tmp_path: Path) -> None:
    data, run = tmp_path / "tiny.npz", tmp_path / "run"
    x, y = np.arange(64, dtype=np.float32).reshape(16, 4) % 7, np.arange(16) % 3
    np.savez(data, x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    train = ["train", "--model", "dense", "--workers", "0", "--steps", "2", "--global-batch", "4"]
    with ProcessTemplate.of(data=str(data)) as template:
        if template is None:
            pytest.skip("this system cannot fork a template")
        # It is forked once the data has been read.
        first = Child.start("help", ["--version"], tmp_path / "first.log", template=template)
        first.end(GONE_S)
        data.unlink()
        words = [*train, "--data", str(data), "--run-dir", str(run)]
        child = Child.start("train", words, tmp_path / "child.log", template=template)
        child.end(GONE_S)
    assert (first.code, child.code) == (0, 0), (tmp_path / "child.log").read_text()
    assert (run / "weights.safetensors").is_file()


def test_without_its_template_a_process_goes_on_and_others_are_started_anew(tmp_path: Path) -> None:
    with ProcessTemplate.of() as template:
        first = connecting(tmp_path, template)
    second = connecting(tmp_path, template)
    assert not first.has_ended()
    for child in (first, second):
        child.send(signal.SIGTERM)
        child.end(GONE_S)
    # The end of the first can be seen, and not how it came.
    assert (first.code, second.code) == (-signal.SIGKILL, 130)


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
    hall.crew.begin(SERVER)
    hall.crew.begin(WORKER)
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
    hall.crew.begin(WORKER)
    hall.started[0].kill_on_purpose()
    assert hall.crew.ends()[WORKER].is_excused


def test_what_the_dead_one_holds_is_free_before_the_next_one_starts() -> None:
    hall = Hall()
    hall.crew.begin(WORKER)
    hall.started[0].ended = -9
    hall.crew.ends()
    hall.crew.begin(WORKER)
    assert [process.graces for process in hall.started] == [[0.0], []]
    assert hall.crew.at(Role.WORKER) == hall.started[1:]
    assert hall.crew.runs(WORKER)
