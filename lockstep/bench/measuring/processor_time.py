"""How much processor time the processes of a run take for a step, from what the system shows of them. Linux only."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise
from pathlib import Path

import msgspec

from lockstep.bench.measuring.peers import WARM_UP
from lockstep.common.protocol.messages import Status

#: Where the system shows its processes.
PROC = Path("/proc")

#: Part of a run after which it runs evenly, and steps over which a difference says something.
EVEN, FEWEST_STEPS = 0.25, 8


class TeamRole(Enum):
    """What a process does in a run. Commands that only start others and wait for them do not count."""

    SERVER = auto()
    LEADER = auto()
    PROCESS = auto()


class StepProcessorTime(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of processor time per step."""

    server_ms: float
    #: Of an average leader, and of an average other process of a team; None if there is none.
    leader_ms: float | None
    process_ms: float | None


@dataclass(frozen=True)
class ProcessorSeconds:
    """Seconds of processor time that processes took since they began, when the run had made some steps."""

    step: int
    seconds: Mapping[tuple[TeamRole, int], float]


@dataclass
class ProcessorClock:
    """Reads the processor time of a run's processes with each status; keeps the first that counts, and the last."""

    proc: Path = PROC
    first: ProcessorSeconds | None = None
    last: ProcessorSeconds | None = None

    def on_status(self, status: Status, server: int, workers: Sequence[int]) -> None:
        """Read, unless the run has just begun or is over; of the processes that workers have started as well."""
        if not max(WARM_UP, EVEN * status.steps) <= status.step < status.steps:
            return
        reading = ProcessorSeconds(status.step, dict(self._read(server, workers)))
        self.first, self.last = self.first or reading, reading

    def _read(self, server: int, workers: Sequence[int]) -> Iterator[tuple[tuple[TeamRole, int], float]]:
        started = (pid for worker in workers for pid in (worker, *children_of(self.proc, worker)))
        roles = ((role_of(words_of(self.proc, pid)), pid) for pid in started)
        for role, pid in ((TeamRole.SERVER, server), *roles):
            if role is not None and (seconds := seconds_of(self.proc, pid)) is not None:
                yield (role, pid), seconds


def words_of(proc: Path, pid: int) -> list[str]:
    """Return the command of a process, empty if it is gone."""
    with suppress(OSError):
        return (proc / str(pid) / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    return []


def children_of(proc: Path, pid: int) -> list[int]:
    """Return the numbers of the processes that a process has started."""
    found = list[int]()
    with suppress(OSError):
        for task in (proc / str(pid) / "task").iterdir():
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def seconds_of(proc: Path, pid: int) -> float | None:
    """Return the processor time of a process, by itself and by the system for it; None if it is gone."""
    try:
        _, _, rest = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
        user, system = rest.split()[11:13]  # the 14th and 15th field of proc(5)
    except (OSError, ValueError):
        return None
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def role_of(words: Sequence[str]) -> TeamRole | None:
    """Return what a process does by the command that started it; None if it computes nothing."""
    if "worker" not in words:
        return None
    number, processes = _value(words, "--process"), _value(words, "--workers")
    if number is None:
        return TeamRole.LEADER if processes in (None, "1") else None
    return TeamRole.LEADER if number == "0" else TeamRole.PROCESS


def _value(words: Sequence[str], flag: str) -> str | None:
    """Return what follows a flag."""
    return next((value for word, value in pairwise(words) if word == flag), None)


def per_step(clocks: Iterable[ProcessorClock]) -> StepProcessorTime | None:
    """Return the processor time of an average step over several runs; None if it was not read twice in any."""
    steps, taken = 0, defaultdict[TeamRole, float](float)
    for clock in clocks:
        if clock.first is None or clock.last is None or clock.last.step - clock.first.step < FEWEST_STEPS:
            continue
        steps += clock.last.step - clock.first.step
        for role, seconds in _taken(clock.first, clock.last).items():
            taken[role] += seconds
    if not steps or TeamRole.SERVER not in taken:
        return None
    mean = {role: 1e3 * seconds / steps for role, seconds in taken.items()}
    return StepProcessorTime(
        server_ms=mean[TeamRole.SERVER], leader_ms=mean.get(TeamRole.LEADER), process_ms=mean.get(TeamRole.PROCESS)
    )


def _taken(first: ProcessorSeconds, last: ProcessorSeconds) -> dict[TeamRole, float]:
    """Return what an average process of each role took between two readings, of those that were there in both."""
    differences = defaultdict[TeamRole, list[float]](list)
    for (role, pid), seconds in last.seconds.items():
        if (role, pid) in first.seconds:
            differences[role].append(seconds - first.seconds[role, pid])
    return {role: sum(values) / len(values) for role, values in differences.items()}
