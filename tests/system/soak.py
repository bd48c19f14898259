"""Random runs of real processes on hosts of their own, with random faults: `scripts/soak --minutes N --seed S`.

Each host is a network namespace with a cable to a switch (`hosts.py`), and has one process: the server, a shard, a
worker, or a `train` with processes of its own. A process that ends with an error is started again by the very same
command, as an engine does. Each run has to end with the digest of one process, all of whose processes report the same
end, and leaves nothing. A seed decides the run and its faults, but not how the system schedules the processes: a seed
that fails may pass when it is run again. For clocks, lost packets and full disks, `scripts/simulate` has virtual time.
"""

import argparse
import contextlib
import io
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from lockstep.cli.main import run
from lockstep.common.transport.shared_memory.folder import shared_root, sweep
from lockstep.launch.lifetime import interrupt_on_signals
from tests.lockstep.tiny_data import write_tiny
from tests.system.alone import digest_alone
from tests.system.hosts import Hosts, hosts
from tests.system.jobs import UNHURRIED
from tests.system.processes import Place, Process, digest_in, is_gone

#: The values of all jobs, and what each job adds.
MODEL = "unhurried.py:delicate_without_pauses"
COMMON = ("--model", MODEL, "--data", "tiny.npz", "--global-batch", "32", "--micro-batches", "4")
JOBS = {
    "plain": ("--momentum", "0.9", "--steps", "600"),
    "local steps": ("--momentum", "0.9", "--set", "local_steps=4", "--steps", "200"),
    "int8": ("--momentum", "0.9", "--set", "wire=int8", "--steps", "600"),
    "adam, clipped": ("--optimizer", "adam", "--lr", "0.002", "--set", "clip_norm=0.5", "--steps", "600"),
    "early stopping": ("--momentum", "0.9", "--set", "patience=30", "--epochs", "60"),
}

#: Options of all runs, and the seconds that a worker or a shard waits for a server.
OPTIONS = ("--transport", "tcp", "--set", "checkpoint_every_steps=10", "--min-workers", "1", "--run-dir", "run")
TIMEOUT = ("--timeout", "15")

#: The processes of a run, by shape, and the faults of one.
SHAPES = (("server", "worker", "worker"), ("server", "shard", "shard", "worker", "worker"), ("train",))
KINDS = ("kill", "kill", "terminate", "stop", "cut", "cut up", "cut down", "kill part", "stop part")

#: Most faults of a run; seconds within which each begins; least and most seconds that it lasts.
MOST_FAULTS, WITHIN_S, LEAST_S, MOST_S = 3, 8.0, 0.3, 12.0

#: Seconds until a process that has ended is started again, and most starts: one that is refused as often is refused
#: for good. Seconds after the last fault or start in which a run ends, and between two looks.
AGAIN_S, MOST_STARTS, MOVES_S, LOOK_S = 0.5, 40, 60.0, 0.05

#: The ends by a signal, and the reports of processes that did not hear how the run has ended.
SIGNALLED = (0, 130, -signal.SIGKILL, -signal.SIGTERM)
UNHEARD = ("no server answered", "is it gone?", "evicted")


class Fault(msgspec.Struct, frozen=True):
    """What happens, to which host, when, and for how many seconds."""

    kind: str
    host: int
    at: float
    seconds: float


class Plan(msgspec.Struct, frozen=True):
    """A run and its faults."""

    seed: int
    job: str
    #: By host, the command of its process.
    roles: tuple[str, ...]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, seed: int) -> Self:
        """Return the plan of a seed."""
        draw = random.Random(seed)
        job, roles = draw.choice(list(JOBS)), draw.choice(SHAPES)
        found = [
            Fault(
                kind=draw.choice(KINDS if "train" in roles else KINDS[:-2]),
                host=draw.randrange(len(roles)),
                at=WITHIN_S * draw.random(),
                seconds=LEAST_S * (MOST_S / LEAST_S) ** draw.random(),
            )
            for _ in range(draw.randint(1, MOST_FAULTS))
        ]
        return cls(seed, job, roles, tuple(sorted(found, key=lambda fault: fault.at)))

    def text(self) -> str:
        """Return the plan as a line."""
        faults = ", ".join(f"{one.kind} {self.roles[one.host]} {one.host} @{one.at:.1f}s" for one in self.faults)
        return f"seed {self.seed}: {self.job}, {', '.join(self.roles)}; {faults}"

    def command(self, number: int, net: Hosts) -> list[str]:
        """Return the command of a host, the same at each start."""
        own, first = (f"tcp://{net.address(host)}:5555" for host in (number, 0))
        bound, job = ("--bind", own, "--insecure"), (*COMMON, *JOBS[self.job], *OPTIONS)
        match role := self.roles[number]:
            case "train":
                return [role, *job, "--workers", "2", "--servers", str(1 + self.seed % 2)]
            case "server":
                return [role, *job, "--servers", str(1 + self.roles.count("shard")), *bound]
            case "shard":
                return [role, first, *bound, *TIMEOUT]
            case _:
                return [role, first, "--workers", "1", *TIMEOUT]


@dataclass
class Host:
    """The process of a host, when the next one starts, and the exit codes and the output of all."""

    process: Process
    due: float = math.inf
    is_over: bool = False
    codes: list[int] = field(default_factory=list)
    output: str = ""


@dataclass
class SoakRun:
    """A run of a plan, with a host for each process."""

    plan: Plan
    place: Place
    net: Hosts
    hosts: list[Host] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    #: When a fault last ended, or a process was started.
    disturbed: float = 0.0
    #: The ends of the faults that last, with their times.
    endings: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def start(self, number: int) -> Process:
        self.disturbed = max(self.disturbed, time.monotonic() - self.began)
        return self.place.start(*self.plan.command(number, self.net), within=self.net.within(number))

    def run(self) -> str:
        """Run to the end, with all faults; return the outcome."""
        self.hosts = [Host(self.start(number)) for number in range(len(self.plan.roles))]
        pending, now = list(self.plan.faults), 0.0
        while pending or self.endings or not all(host.is_over for host in self.hosts):
            now = time.monotonic() - self.began
            while pending and pending[0].at <= now:
                self._inject(pending.pop(0), now)
            for ending in [one for one in self.endings if one[0] <= now]:
                self.endings.remove(ending)
                self.disturbed = now
                ending[1]()
            for number, host in enumerate(self.hosts):
                self._look(number, host, now)
            if not (pending or self.endings) and now > self.disturbed + MOVES_S:
                break
            time.sleep(LOOK_S)
        self._judge()
        codes = ", ".join(
            f"{role} {'>'.join(map(str, host.codes)) or '-'}"
            for role, host in zip(self.plan.roles, self.hosts, strict=True)
        )
        verdict = "WRONG: " + "; ".join(self.wrong) if self.wrong else "the digest of one process"
        return f"{verdict}; exit codes: {codes}; {now:.0f} s"

    def _has_result(self) -> bool:
        return (self.place.folder / "run" / "result.json").exists()

    def _look(self, number: int, host: Host, now: float) -> None:
        """Record that a process has ended, and start it again if it has failed, while there is no result."""
        if host.is_over:
            return
        if now >= host.due:
            host.due, host.is_over = math.inf, self._has_result()
            if not host.is_over:
                host.process = self.start(number)
        elif host.due == math.inf and host.process.popen.poll() is not None:
            code, out, error = host.process.end()
            host.codes.append(code)
            host.output += f"{out}{error}exit code {code} at {now:.1f} s\n"
            if "Traceback" in error or error.count("error: ") > 1:
                self.wrong.append(f"{self.plan.roles[number]} {number} ended with more than a line")
            is_last = not code or len(host.codes) == MOST_STARTS
            host.is_over, host.due = is_last, math.inf if is_last else now + AGAIN_S

    def _inject(self, fault: Fault, now: float) -> None:
        host, process, end = fault.host, self.hosts[fault.host].process, None
        own = {one.popen.pid for one in self.place.started}
        parts = [pid for pid in sorted(self.place.pids("-P -m lockstep")) if pid not in own]
        pid = parts[self.plan.seed % len(parts)] if "part" in fault.kind and parts else process.popen.pid
        match fault.kind.split()[0]:
            case "kill":
                send(signal.SIGKILL, pid)
            case "terminate":
                send(signal.SIGTERM, pid)
            case "stop":
                send(signal.SIGSTOP, pid)
                end = partial(send, signal.SIGCONT, pid)
            case _ if fault.kind == "cut":
                self.net.pull(host)
                end = partial(self.net.put_back, host)
            case _:
                others = [one for one in range(self.net.count) if one != host]
                ways = [(host, one) if fault.kind == "cut up" else (one, host) for one in others]
                for way in ways:
                    self.net.drop(*way)
                end = partial(self._let_through, ways)
        self.disturbed = now
        if end is not None:
            self.endings.append((now + fault.seconds, end))

    def _let_through(self, ways: list[tuple[int, int]]) -> None:
        for way in ways:
            self.net.let_through(*way)

    def _judge(self) -> None:
        """Record what is wrong with the result, and with the ends of the processes."""
        folder = self.place.folder / "run"
        with contextlib.redirect_stdout(io.StringIO()):
            expected, is_whole = digest_alone(*COMMON, *JOBS[self.plan.job]), run(["ledger", str(folder)]) == 0
        if not self._has_result():
            self.wrong.append("there is no result: it hangs, or is refused again and again")
        elif digest_in(folder) != expected:
            self.wrong.append("another digest than one process")
        elif not is_whole:
            self.wrong.append("the ledger is not whole")
        for number, host in enumerate(self.hosts):
            name = f"{self.plan.roles[number]} {number}"
            if host.process.popen.poll() is None:
                self.wrong.append(f"{name} has not ended")
            elif host.codes and host.codes[-1] not in SIGNALLED:
                *_, last, _ = host.output.splitlines()
                if not any(text in last for text in UNHEARD):
                    self.wrong.append(f"{name} reports: {last}")
        known = {host.process.popen.pid for host in self.hosts}
        if not all(is_gone(pid, 1.0) for pid in self.place.pids() if pid not in known):
            self.wrong.append("a process is left")


def send(number: signal.Signals, pid: int) -> None:
    """Send a signal to a process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def soak(seed: int) -> tuple[str, bool, str]:
    """Run the plan of a seed; return its line, whether all was right, and what the processes printed."""
    plan = Plan.of(seed)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="lt-") as temporary:
        place = Place(Path(folder), Path(temporary))
        write_tiny(place.folder)
        (place.folder / "unhurried.py").write_text(UNHURRIED)
        with hosts(len(plan.roles), "1gbit") as net:
            try:
                started = SoakRun(plan, place, net)
                outcome = started.run()
            finally:
                place.clear()
        sweep(shared_root())
        pids = {str(one.popen.pid) for one in place.started}
        left = [path for path in shared_root().glob("lockstep-*") if path.name.split("-")[2] in pids]
        outcome += "".join(f"; WRONG: {path} is left" for path in left)
        shown = [f"--- {role}\n{host.output}" for role, host in zip(plan.roles, started.hosts, strict=True)]
    return f"{plan.text()}: {outcome}", "WRONG" not in outcome, "\n".join(shown)


def main(arguments: list[str]) -> int:
    """Run seeds one after the other for some minutes, at least one; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Random runs with random faults.")
    parser.add_argument("--minutes", type=float, default=0.0, help="0 for one run")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args(arguments)
    interrupt_on_signals()  # so that no host is left
    until, seed, failed = time.monotonic() + 60.0 * options.minutes, options.seed, list[int]()
    while seed == options.seed or time.monotonic() < until:
        line, is_right, shown = soak(seed)
        print(line, flush=True)
        if not is_right:
            failed.append(seed)
            print(shown, file=sys.stderr, flush=True)
        seed += 1
    print(f"{seed - options.seed} runs, {len(failed)} wrong" + (f": seeds {failed}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
