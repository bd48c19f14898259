"""The use of this machine by the processes of a run: processor and memory, as the system counts them.

The numbers of processes come from a run's files or its server, so any number may be named: only processes of ours that
run this program are looked at.
"""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import psutil

#: Seconds between two looks: the share of the processor is a mean over this time.
USE_S = 2.0

#: The commands of a run's processes.
KINDS = ("server", "shard", "worker")


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one process."""

    name: str
    #: Its number among all workers that the run ever had, by which it has its colour; None if it is not a worker.
    number: int | None
    pid: int
    #: Part of one core since the look before, from 0 to about the number of its threads; None at the first look.
    cpu: float | None
    #: Bytes in memory, with those that it shares with others.
    memory_bytes: int


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, or a team: what the server says of it if that answers, and what the ledger has of it."""

    rank: int
    host: str
    #: The process that it is known by: its own, or that of its team's leader.
    pid: int
    #: Of how many processes it is a team.
    processes: int = 1
    #: The number of the first of these among all that the run ever had: what a worker's colour follows from.
    first: int
    state: str
    #: Whether it is no longer in the run, and why, as far as the ledger has it.
    is_gone: bool
    reason: str
    #: Part of the last steps' micro-batches that were accepted from it, from 0 to 1.
    share: float
    #: Samples per second that its processes compute together, None if the server does not answer.
    samples_per_s: float | None = None
    accepted: int = 0
    unused: int = 0


@dataclass
class ProcessWatch:
    """Looks at the processes of one run, again and again."""

    #: The number of the user whose processes are looked at: by default the user of this process.
    user: int = field(default_factory=lambda: int(psutil.Process().uids().real))
    _known: dict[int, psutil.Process] = field(default_factory=dict)
    _looked: float = float("-inf")
    _found: list[ProcessUse] = field(default_factory=list)

    def look(self, workers: Iterable[WorkerView], now: float) -> list[ProcessUse]:
        """Return the use of those that are not gone, and of their servers; the last answer if that is new enough."""
        if now >= self._looked + USE_S:
            self._looked = now
            before, self._known = self._known, {}
            found = [use for worker in workers if not worker.is_gone for use in self._of(worker, before)]
            # Servers first, then the workers.
            self._found = sorted(found, key=lambda use: (use.number is not None, use.number or 0))
        return self._found

    def _of(self, leader: WorkerView, before: dict[int, psutil.Process]) -> Iterator[ProcessUse]:
        if leader.host != socket.gethostname():
            return
        for process, name, number in _family(leader, self.user):
            if process.pid in self._known:
                continue
            # Its share of the processor is counted from the look before, by the same object.
            earlier = before.get(process.pid, process)
            self._known[process.pid] = known = earlier if earlier == process else process
            try:
                cpu, memory = known.cpu_percent() / 100, process.memory_info().rss
            except psutil.Error:
                continue
            is_new = known is process
            yield ProcessUse(
                name=name, number=number, pid=process.pid, cpu=None if is_new else cpu, memory_bytes=memory
            )


def _family(leader: WorkerView, user: int) -> Iterator[tuple[psutil.Process, str, int | None]]:
    """Yield the processes of a leader's team and their servers, which have its parent, with names and numbers."""
    try:
        first = psutil.Process(leader.pid)
        own, parent = _words(first, user), first.parent()
        others = parent.children() if own and parent is not None else []
    except psutil.Error:
        return
    team = _value(own, "--team")
    if own:
        yield first, f"worker {leader.rank}{'' if team is None else '.0'}", leader.first
    for process in others:
        words = [] if process == first else _words(process, user)
        if words[:1] == ["worker"]:
            if team is not None and team == _value(words, "--team"):
                index = int(_value(words, "--process") or 0)
                yield process, f"worker {leader.rank}.{index}", leader.first + index
        elif own[1:2] and own[1] in words:
            yield process, words[0], None


def _words(process: psutil.Process, user: int) -> list[str]:
    """Return what a process of a user was started with, from our command on; empty if it is not one of ours."""
    try:
        words: list[str] = process.cmdline()
        if process.uids().real != user:
            return []
    except psutil.Error:
        return []
    for place, word in enumerate(words[:-1]):
        if word.rpartition("/")[2] == "lockstep" and words[place + 1] in KINDS:
            return words[place + 1 :]
    return []


def _value(words: list[str], flag: str) -> str | None:
    place = words.index(flag) + 1 if flag in words else len(words)
    return words[place] if place < len(words) else None
