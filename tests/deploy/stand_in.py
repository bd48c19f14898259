"""A machine on which the command lines of deploy/ run as they stand; launchers are stood in for by what they set."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.runtime.clock import SystemClock
from tests.lockstep.tiny_data import write_tiny
from tests.system.processes import PATIENCE_S

#: Seconds between two looks at what a process has printed.
LOOK_S = 0.1


@dataclass
class Machine:
    """A folder with a small dataset, and the processes that were started there."""

    folder: Path
    exits: ExitStack = field(default_factory=ExitStack)
    _logs: dict[int, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        write_tiny(self.folder)

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """Return an environment in which our command is found before any other program of that name."""
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": path, **more}

    def start(self, words: list[str], environ: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start a program; what it prints goes to a file of its own, and it is killed at the test's end."""
        log = (self.folder / f"log-{len(list(self.folder.glob('log-*')))}").open("wb")
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.environment(environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        self._logs[process.pid] = Path(log.name)
        self.exits.callback(_end, process)
        return process

    def said(self, process: "subprocess.Popen[bytes]") -> str:
        """Return what a process has printed so far."""
        return self._logs[process.pid].read_text(errors="replace")

    def until_said(self, process: "subprocess.Popen[bytes]", text: str) -> None:
        """Wait until a process has printed a text; AssertionError, with all that it has printed, if it does not."""
        until = SystemClock().now() + PATIENCE_S
        while text not in self.said(process):
            is_late = SystemClock().now() >= until or process.poll() is not None
            assert not is_late or text in self.said(process), f"no {text!r} in: {self.said(process)}"
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)

    def run(self, words: list[str]) -> None:
        """Run a program to its end, which is to be a good one."""
        subprocess.run(words, cwd=self.folder, env=self.environment({}), check=True, timeout=PATIENCE_S)

    def free_port(self) -> str:
        """Return a port that was free a moment ago."""
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            return str(bound.getsockname()[1])


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
