"""Random runs of real processes on hosts of their own, with random faults: `scripts/soak --minutes N --seed S`.

Each host is a network namespace with a cable to a switch: see `hosts.py`. A process that ends with an error is started
again with its command, as a cluster manager does. Each run has to end with the digest of one process, all of whose
processes report the same end, and leaves nothing. A seed decides the run and its faults, but not how the system
schedules the processes: a seed that fails may pass when it is run again.

What this cannot show: all hosts have the disk, the clock and the memory of one machine, so that a wrong clock, a lost
machine or a shortage of memory on one of them is not tried, and the kernel neither delays nor reorders packets. For
these, `lockstep simulate` has virtual time.
"""

import argparse
import contextlib
import io
import math
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Self

import msgspec

from lockstep.cli.main import run
from lockstep.common.transport.shared_memory.folder import shared_root, sweep
from lockstep.launch.lifetime import interrupt_on_signals
from lockstep.runs.run_dir import has_begun
from tests.lockstep.tiny_data import write_tiny
from tests.system.alone import train_alone
from tests.system.hosts import Hosts, hosts
from tests.system.processes import Place, Process, digest_in, is_gone
from tests.system.test_faults import MODEL

#: The values of all jobs, and what each job adds.
COMMON = ("--model", "model.py:build", "--data", "tiny.npz", "--global-batch", "32", "--micro-batches", "4")
JOBS = {
    "plain": ("--momentum", "0.9", "--steps", "300"),
    "local steps": ("--momentum", "0.9", "--local-steps", "4", "--steps", "100"),
    "int8": ("--momentum", "0.9", "--wire", "int8", "--steps", "300"),
    "adam, clipped": ("--optimizer", "adam", "--lr", "0.002", "--clip-norm", "0.5", "--steps", "300"),
    "early stopping": ("--momentum", "0.9", "--patience", "30", "--epochs", "60"),
}

#: Options of all runs. Two workers are enough for a vote in which both have to agree.
OPTIONS = ("--transport", "tcp", "--takeover-seconds", "1", "--checkpoint-every-steps", "10", "--min-workers", "1")
WORKERS = 2

#: Kinds of faults: those of any process, and one of the first server only.
KINDS, DELETE = ("kill", "kill", "terminate", "stop", "cut", "cut up", "cut down", "flap"), "delete folder"

#: Most faults of a run, the share with a deleted folder, and the seconds within which each fault begins.
MOST_FAULTS, DELETING, WITHIN_S = 3, 0.15, 8.0

#: Least and most seconds of a fault that lasts, and until a process that has ended is started again.
LEAST_S, MOST_S, AGAIN_S = 0.3, 12.0, 0.5

#: Seconds between two changes of a cable that flaps.
FLAP_S = 0.25

#: The speeds of all cables of a run: the slower one doubles the time of a step.
RATES = ("1gbit", "1gbit", "300mbit")

#: Seconds after the last fault, or the last start of a process, in which a run ends or makes steps.
MOVES_S = 60.0

#: Seconds that a worker or a shard waits for a server, as one does that was started when the run was just over.
TIMEOUT_S = 15.0

#: Seconds between two looks at the processes.
LOOK_S = 0.05

#: The ends by a signal, and the reports of processes that did not hear how the run has ended.
SIGNALLED = (130, -signal.SIGKILL, -signal.SIGTERM)
UNHEARD = ("no server answered", "is it gone?", "another server leads", "goes on at", "evicted")


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
    #: By host, the part of its process.
    roles: tuple[str, ...]
    faults: tuple[Fault, ...]
    rate: str

    @classmethod
    def of(cls, seed: int) -> Self:
        """Return the plan of a seed."""
        draw = random.Random(seed)
        job, shards, standbys = draw.choice(list(JOBS)), draw.choice((0, 0, 2)), int(draw.random() < 0.6)
        roles = ("server", *["standby"] * standbys, *["shard"] * shards, *["worker"] * WORKERS)
        deleted = [(DELETE, 0)] * (draw.random() < DELETING)
        chosen = [(draw.choice(KINDS), draw.randrange(len(roles))) for _ in range(draw.randint(1, MOST_FAULTS))]
        faults = [
            Fault(kind, host, WITHIN_S * draw.random(), LEAST_S * (MOST_S / LEAST_S) ** draw.random())
            for kind, host in (*chosen, *deleted)
        ]
        return cls(seed, job, roles, tuple(sorted(faults, key=lambda fault: fault.at)), draw.choice(RATES))

    @property
    def has_standby(self) -> bool:
        return "standby" in self.roles

    def text(self) -> str:
        """Return the plan as a line."""
        servers = 1 + self.roles.count("shard")
        shape = f"{self.job}, {servers} {'servers' if servers > 1 else 'server'}{', standby' * self.has_standby}"
        shape += f", {self.rate}"
        faults = ", ".join(f"{one.kind} {self.roles[one.host]} {one.host} @{one.at:.1f}s" for one in self.faults)
        return f"seed {self.seed}: {shape}; {faults}"


@cache
def digest_of(job: str) -> str:
    """Return the digest of the weights that a job comes to in one process."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        (Path(folder) / "model.py").write_text(MODEL)
        return digest_in(train_alone(Path(folder), *COMMON, *JOBS[job]))


@dataclass
class Host:
    """The process of a host."""

    process: Process
    #: When the next one starts: never while one runs, or after one that has ended well.
    due: float = math.inf
    is_over: bool = False
    #: The exit codes of its processes, and their output for a person.
    codes: list[int] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


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

    def now(self) -> float:
        return time.monotonic() - self.began

    def command(self, number: int) -> list[str]:
        """Return the command of a host, the same at each start; only a server without standbys is told to resume."""
        own, first, second = (f"tcp://{self.net.address(host)}:5555" for host in (number, 0, 1))
        addresses = f"{first},{second}" if self.plan.has_standby else first
        bound = ["--bind", own, "--insecure"]
        match self.plan.roles[number]:
            case "server" if not self.plan.has_standby and has_begun(self.place.folder / "run"):
                return ["server", "--resume", "run", "--min-workers", "1", *bound]
            case "server":
                servers = str(1 + self.plan.roles.count("shard"))
                others = ["--standbys", second] if self.plan.has_standby else []
                values = [*COMMON, *JOBS[self.plan.job], *OPTIONS, "--servers", servers]
                return ["server", *values, *bound, "--run-dir", "run", *others]
            case "standby":
                return ["server", "--standby-of", first, *bound, "--run-dir", "mirror"]
            case "shard":
                return ["shard", addresses, *bound, "--timeout", str(TIMEOUT_S)]
            case _:
                return ["worker", addresses, "--workers", "1", "--timeout", str(TIMEOUT_S)]

    def start(self, number: int) -> Process:
        self.disturbed = max(self.disturbed, self.now())
        return self.place.start(*self.command(number), within=self.net.within(number))

    def results(self) -> list[Path]:
        """Return the folders that hold a result."""
        return [run for name in ("run", "mirror") if ((run := self.place.folder / name) / "result.json").exists()]

    def run(self) -> str:
        """Run to the end, with all faults; return the outcome."""
        self.hosts = [Host(self.start(number)) for number in range(len(self.plan.roles))]
        pending = list(self.plan.faults)
        while pending or self.endings or not self._is_over():
            now = self.now()
            while pending and pending[0].at <= now:
                self._inject(pending.pop(0), now)
            for ending in [one for one in self.endings if one[0] <= now]:
                self.endings.remove(ending)
                self.disturbed = max(self.disturbed, now)
                ending[1]()
            self._look(now)
            if not (pending or self.endings) and now > self.disturbed + MOVES_S:
                break
            time.sleep(LOOK_S)
        return self._outcome()

    def _is_over(self) -> bool:
        """Tell whether no process runs or starts, but those that wait for good."""
        is_late = self.now() > self.disturbed + TIMEOUT_S
        return all(host.is_over or (is_late and self._waits(number)) for number, host in enumerate(self.hosts))

    def _waits(self, number: int) -> bool:
        """Tell whether a server was cut off until the run was over at the other one: it waits for workers, or a run."""
        own = {"server": "run", "standby": "mirror"}.get(self.plan.roles[number])
        return own is not None and bool(results := self.results()) and results[0].name != own

    def _look(self, now: float) -> None:
        """Record the processes that have ended, and start those again that have failed, while there is no result."""
        has_result = bool(self.results())
        for number, host in enumerate(self.hosts):
            if host.is_over:
                continue
            if now >= host.due:
                host.due, host.is_over = math.inf, has_result
                if not has_result:
                    host.process = self.start(number)
            elif host.due == math.inf and host.process.popen.poll() is not None:
                code, out, error = host.process.end()
                host.codes.append(code)
                host.output.append(f"{out}{error}exit code {code} at {now:.1f} s\n")
                self._check_end(number, code, error)
                host.is_over, host.due = not code, math.inf if not code else now + AGAIN_S

    def _check_end(self, number: int, code: int, error: str) -> None:
        """Record what is wrong with an end by itself: a result that is not there, or more than one line."""
        name = f"{self.plan.roles[number]} {number}"
        if not code and not self.results():
            self.wrong.append(f"{name} ended well, and there is no result")
        if "Traceback" in error or error.count("error: ") > 1:
            self.wrong.append(f"{name} ended with more than a line: {error.splitlines()[-1]}")

    def _inject(self, fault: Fault, now: float) -> None:
        self.disturbed = max(self.disturbed, now)
        host, others = fault.host, [one for one in range(self.net.count) if one != fault.host]
        process, end = self.hosts[host].process, None
        match fault.kind:
            case "kill":
                process.send(signal.SIGKILL)
            case "terminate":
                process.send(signal.SIGTERM)
            case "stop":
                process.send(signal.SIGSTOP)
                end = partial(process.send, signal.SIGCONT)
            case "cut":
                self.net.pull(host)
                end = partial(self.net.put_back, host)
            case "flap":
                for change in range(1, int(fault.seconds / FLAP_S)):
                    act = self.net.put_back if change % 2 else self.net.pull
                    self.endings.append((now + change * FLAP_S, partial(act, host)))
                self.net.pull(host)
                end = partial(self.net.put_back, host)
            case "cut up" | "cut down":
                ways = [(host, one) if fault.kind == "cut up" else (one, host) for one in others]
                for way in ways:
                    self.net.drop(*way)
                end = partial(self._let_through, ways)
            case _ if not self.results():  # afterwards there is nothing to save the run from
                shutil.rmtree(self.place.folder / "run", ignore_errors=True)
        if end is not None:
            self.endings.append((now + fault.seconds, end))

    def _let_through(self, ways: list[tuple[int, int]]) -> None:
        for way in ways:
            self.net.let_through(*way)

    def _outcome(self) -> str:
        results = self.results()
        if not results:
            self.wrong.append("it hangs: there is no result")
        for folder in results:
            if digest_in(folder) != digest_of(self.plan.job):
                self.wrong.append(f"{folder.name} has another digest than one process")
            with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(self.place.folder):
                is_whole = run(["ledger", str(folder)]) == 0
            if not is_whole:
                self.wrong.append(f"the ledger of {folder.name} is not whole")
        self._check_processes()
        codes = ", ".join(
            f"{role} {'>'.join(map(str, host.codes)) or '-'}"
            for role, host in zip(self.plan.roles, self.hosts, strict=True)
        )
        verdict = "WRONG: " + "; ".join(self.wrong) if self.wrong else "the digest of one process"
        return f"{verdict}; exit codes: {codes}; {self.now():.0f} s"

    def _check_processes(self) -> None:
        """Demand that each process has ended, and has heard of the same end or of none; and that nothing is left."""
        for number, (role, host) in enumerate(zip(self.plan.roles, self.hosts, strict=True)):
            if host.process.popen.poll() is None and not self._waits(number):
                self.wrong.append(f"{role} {number} has not ended")
            last = host.output[-1] if host.codes and host.codes[-1] not in (0, *SIGNALLED) else ""
            if last and not any(text in last for text in UNHEARD):
                self.wrong.append(f"{role} {number} reports: {last.splitlines()[-2]}")
        known = {host.process.popen.pid for host in self.hosts}
        if not all(is_gone(pid, 1.0) for pid in self.place.pids() if pid not in known):
            self.wrong.append("a process is left")


def soak(seed: int) -> tuple[str, bool, str]:
    """Run the plan of a seed; return its line, whether all was right, and what the processes printed."""
    plan = Plan.of(seed)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="lt-") as temporary:
        place = Place(Path(folder), Path(temporary))
        write_tiny(place.folder)
        (place.folder / "model.py").write_text(MODEL)
        try:
            with hosts(len(plan.roles), plan.rate) as net:
                started = SoakRun(plan, place, net)
                outcome = started.run()
        finally:
            running = {host.process.popen.pid for host in started.hosts if host.process.popen.poll() is None}
            place.clear()
        left = left_of({one.popen.pid for one in place.started}, place, is_killed=bool(running))
        shown = [f"--- {role}\n{''.join(host.output)}" for role, host in zip(plan.roles, started.hosts, strict=True)]
    outcome = f"WRONG: {left}; {outcome}" if left else outcome
    return f"{plan.text()}: {outcome}", not (started.wrong or left), "\n".join(shown)


def left_of(pids: set[int], place: Place, *, is_killed: bool) -> str:
    """Return what processes have left that the next start would not remove; empty if there is nothing."""
    sweep(shared_root())
    files = [path for path in shared_root().glob("lockstep-*") if path.name.split("-")[2:3] in [[str(p)] for p in pids]]
    files += [] if is_killed else [path for path in place.temporary.iterdir() if not sweep(place.temporary)]
    return f"{files[0]} is left" if files else ""


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
