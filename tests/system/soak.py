"""Random runs of real processes on hosts of their own, with random faults: `scripts/soak --minutes N --seed S`.

Each host is a network namespace with a cable to a switch: see `hosts.py`. A process that ends with an error is started
again with its command, as a cluster manager does. Each run has to end with the digest of one process, all of whose
processes report the same end, and leaves nothing. A seed decides the run and its faults, but not how the system
schedules the processes: a seed that fails may pass when it is run again.

Some runs have hosts that share even less: a boot id, a clock, shared memory and a folder for temporary files of their
own. In some, the disk of the first server is small and full for a while. Some are those of one host, on which `train`,
or `fit` with a callback, starts all processes. The faults then happen to these.

What this cannot show: no date is wrong, because Linux has one for all namespaces; a lost machine or a shortage of
memory is not tried, and the kernel neither delays nor reorders packets. For these, `scripts/simulate` has virtual
time.
"""

import argparse
import contextlib
import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Self

import msgspec

from lockstep.cli.main import run
from lockstep.common.runtime.environment import child_environment
from lockstep.common.transport.shared_memory.folder import shared_root, sweep
from lockstep.launch.lifetime import interrupt_on_signals
from lockstep.launch.remote.agent import children_of
from lockstep.runs.run_dir import has_begun, keep_parts
from tests.lockstep.tiny_data import write_tiny
from tests.system.alone import train_alone
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

#: A program with a callback, which decides by the number of an epoch: then it may be called again after a restart.
CALLBACK, PROGRAM = (
    "callback",
    """
import sys
from pathlib import Path

from lockstep import LambdaCallback, fit, resume

stopper = LambdaCallback(on_epoch_end=lambda training, epoch: training.stop() if epoch.epoch == 12 else None)
folder, workers = Path(sys.argv[1]), int(sys.argv[2])
how = {"workers": workers, "checkpoint_every_steps": 10, "callbacks": [stopper], "verbose": False}
if workers:
    how |= {"transport": "tcp", "min_workers": 1}
if (folder / "job.toml").exists() and (folder / "job.toml").stat().st_size:
    resume(folder, **how)
else:
    job = {"global_batch": 32, "micro_batches": 4, "momentum": 0.9, "epochs": 20}
    fit("unhurried.py:delicate_without_pauses", "tiny.npz", run_dir=folder, **job, **how)
""",
)

#: The folder of a run. It may be on a disk of its own, of so many MiB.
DISK, RUN, DISK_MIB = "disk", "disk/run", 64

#: Options of all runs.
OPTIONS = ("--transport", "tcp", "--set", "checkpoint_every_steps=10", "--min-workers", "1")
WORKERS = 2

#: Kinds of faults: those of any process, and one of the first server only.
KINDS, DELETE = ("kill", "kill", "terminate", "stop", "cut", "cut up", "cut down", "flap"), "delete folder"
FILL = "fill disk"

#: Those of a `train`: of itself, and of the processes that it has started.
TRAIN_KINDS = ("kill part", "kill part", "kill part", "stop part", "kill", "terminate")

#: Those of a host with a rank of `lockstep node`, with which all of its processes stop or die, and of one of them.
RANKS = 3
RANK_KINDS = ("kill", "kill part", "kill part", "terminate", "stop", "cut", "cut up", "cut down", "flap")

#: Most faults of a run, the share with a deleted folder, and the seconds within which each fault begins.
MOST_FAULTS, DELETING, WITHIN_S = 3, 0.15, 8.0

#: The shares of runs with a full disk, with hosts that share no clock, and with a `train` on one host.
FILLING, APART, TRAINING = 0.15, 0.3, 0.25

#: Most starts of a process: one that is refused as often is refused for good.
MOST_STARTS = 40

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
UNHEARD = (
    "no server answered",
    "is it gone?",
    "evicted",
)


class Fault(msgspec.Struct, frozen=True):
    """What happens, to which host, when, and for how many seconds."""

    kind: str
    host: int
    at: float
    seconds: float
    #: Of a process that another one has started, which one.
    part: int = 0


class Plan(msgspec.Struct, frozen=True):
    """A run and its faults."""

    seed: int
    job: str
    #: By host, the part of its process.
    roles: tuple[str, ...]
    faults: tuple[Fault, ...]
    rate: str
    #: By host, the seconds that its clock is ahead; empty if all share a clock, and the rest of a machine.
    clocks: tuple[int, ...] = ()

    @classmethod
    def of(cls, seed: int, *, has_ranks: bool = False) -> Self:
        """Return the plan of a seed; with a rank of `lockstep node` on each of three hosts if that is asked for."""
        draw = random.Random(seed)
        job, shards = draw.choice(list(JOBS)), draw.choice((0, 0, 2))
        roles: tuple[str, ...] = ("server", *["shard"] * shards, *["worker"] * WORKERS)
        kinds: tuple[str, ...] = KINDS
        if draw.random() < TRAINING:
            job, roles, kinds = draw.choice((job, CALLBACK)), ("train",), TRAIN_KINDS
        if has_ranks:
            job, roles, kinds = draw.choice(list(JOBS)), ("rank",) * RANKS, RANK_KINDS
        of_disk = [(DELETE, 0)] * (draw.random() < DELETING) + [(FILL, 0)] * (draw.random() < FILLING)
        chosen = [(draw.choice(kinds), draw.randrange(len(roles))) for _ in range(draw.randint(1, MOST_FAULTS))]
        faults = [
            Fault(
                kind=kind,
                host=host,
                at=WITHIN_S * draw.random(),
                seconds=LEAST_S * (MOST_S / LEAST_S) ** draw.random(),
                part=draw.randrange(100),
            )
            for kind, host in (*chosen, *of_disk)
        ]
        clocks = tuple(draw.randrange(10**6) for _ in roles) if draw.random() < APART else ()
        by_time = tuple(sorted(faults, key=lambda fault: fault.at))
        return cls(seed, job, roles, by_time, draw.choice(RATES), clocks)

    @property
    def train_flags(self) -> tuple[str, ...]:
        """The flags of a `train` for servers."""
        return ((), ("--servers", "2"))[0 if self.job == CALLBACK else self.seed % 2]

    def text(self) -> str:
        """Return the plan as a line."""
        servers = 1 + self.roles.count("shard")
        shape = f"{self.job}, {servers} {'servers' if servers > 1 else 'server'}"
        shape += f", {self.rate}{', clocks apart' * bool(self.clocks)}"
        if "train" in self.roles:
            shape = f"{self.job}, {' '.join(('train', *self.train_flags))}{', clocks apart' * bool(self.clocks)}"
        if "rank" in self.roles:
            shape = f"{self.job}, {RANKS} hosts with a rank each, {self.rate}{', clocks apart' * bool(self.clocks)}"
        faults = ", ".join(f"{one.kind} {self.roles[one.host]} {one.host} @{one.at:.1f}s" for one in self.faults)
        return f"seed {self.seed}: {shape}; {faults}"


@cache
def digest_of(job: str) -> str:
    """Return the digest of the weights that a job comes to in one process."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write_files(Path(folder))
        if job == CALLBACK:
            command = [sys.executable, "program.py", "calm", "0"]
            subprocess.run(command, cwd=folder, env=dict(child_environment()), check=True)
            return digest_in(Path(folder) / "calm")
        return digest_in(train_alone(Path(folder), *COMMON, *JOBS[job]))


def write_files(folder: Path) -> None:
    """Write the data, the model and the program of all runs."""
    write_tiny(folder)
    (folder / "unhurried.py").write_text(UNHURRIED)
    (folder / "program.py").write_text(PROGRAM)


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
        """Return the command of a host, the same at each start, unless `train` is to resume the run."""
        own, first = (f"tcp://{self.net.address(host)}:5555" for host in (number, 0))
        bound, job = ["--bind", own, "--insecure"], [*COMMON, *JOBS.get(self.plan.job, ())]
        run_dir = self.place.folder / RUN
        if number == 0:
            keep_parts(run_dir, lambda text: None)  # as the error demands of a person
        match self.plan.roles[number]:
            case "train" if has_begun(run_dir):
                return ["train", "--resume", RUN, "--workers", str(WORKERS)]
            case "train":
                return ["train", *job, *OPTIONS, "--workers", str(WORKERS), "--run-dir", RUN, *self.plan.train_flags]
            case "rank":
                values = [*job, *OPTIONS, "--run-dir", RUN, "--workers", "1"]
                return ["node", *values, "--insecure", "--timeout", str(TIMEOUT_S)]
            case "server":
                servers = str(1 + self.plan.roles.count("shard"))
                return ["server", *job, *OPTIONS, "--servers", servers, *bound, "--run-dir", RUN]
            case "shard":
                return ["shard", first, *bound, "--timeout", str(TIMEOUT_S)]
            case _:
                return ["worker", first, "--workers", "1", "--timeout", str(TIMEOUT_S)]

    def start(self, number: int) -> Process:
        self.disturbed = max(self.disturbed, self.now())
        within: tuple[str, ...] = self.net.within(number)
        environ = dict[str, str]()
        if self.plan.clocks:
            own = self.place.temporary / str(number)
            within, environ = (*within, *host_apart(own, self.plan.clocks[number])), {"TMPDIR": str(own / "tmp")}
        if self.plan.roles[number] == "rank":
            environ |= {"MASTER_ADDR": self.net.address(0), "MASTER_PORT": "5555"}
            environ |= {"JOB_COMPLETION_INDEX": str(number), "WORLD_SIZE": str(RANKS)}
        if self.plan.job == CALLBACK:
            # The rest of the command is nothing to the program.
            within = (*within, sys.executable, "program.py", RUN, str(WORKERS))
        return self.place.start(*self.command(number), within=within, environ=environ)

    def parts(self) -> list[int]:
        """Return the processes that a `train` has started, or all ranks."""
        own = {one.popen.pid for one in self.place.started}
        return [pid for pid in sorted(self.place.pids("-P -m lockstep")) if pid not in own]

    def results(self) -> list[Path]:
        """Return the folders that hold a result."""
        run = self.place.folder / RUN
        return [run] if (run / "result.json").exists() else []

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
        """Tell whether no process runs or starts."""
        return all(host.is_over for host in self.hosts)

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
                is_last = not code or len(host.codes) == MOST_STARTS
                host.is_over, host.due = is_last, math.inf if is_last else now + AGAIN_S

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
        process = self.hosts[host].process
        end: Callable[[], object] | None = None
        match fault.kind:
            case "kill" if self.plan.roles[host] == "rank":
                send_all(signal.SIGKILL, process.popen.pid)
            case "kill":
                process.send(signal.SIGKILL)
            case "terminate":
                process.send(signal.SIGTERM)
            case "stop" if self.plan.roles[host] == "rank":
                send_all(signal.SIGSTOP, process.popen.pid)
                end = partial(send_all, signal.SIGCONT, process.popen.pid)
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
            case "kill part" | "stop part" if parts := self.parts():
                pid, is_stopped = parts[fault.part % len(parts)], fault.kind == "stop part"
                send(signal.SIGSTOP if is_stopped else signal.SIGKILL, pid)
                end = partial(send, signal.SIGCONT, pid) if is_stopped else None
            case "kill part" | "stop part":
                pass
            case _ if fault.kind == FILL:
                end = fill(self.place.folder / DISK)
            case _ if not self.results():  # afterwards there is nothing to save the run from
                shutil.rmtree(self.place.folder / RUN, ignore_errors=True)
        if end is not None:
            self.endings.append((now + fault.seconds, end))

    def _let_through(self, ways: list[tuple[int, int]]) -> None:
        for way in ways:
            self.net.let_through(*way)

    def _outcome(self) -> str:
        results = self.results()
        if not results:
            is_refused = any(len(host.codes) == MOST_STARTS for host in self.hosts)
            self.wrong.append("it is refused again and again" if is_refused else "it hangs: there is no result")
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
            is_running = host.process.popen.poll() is None
            if is_running:
                self.wrong.append(f"{role} {number} has not ended")
            # One that has ended since the last look is not judged.
            is_heard = is_running or not host.codes or host.codes[-1] in (0, *SIGNALLED)
            if not is_heard and not any(text in (last := host.output[-1]) for text in UNHEARD):
                self.wrong.append(f"{role} {number} reports: {last.splitlines()[-2]}")
        known = {host.process.popen.pid for host in self.hosts}
        if not all(is_gone(pid, 1.0) for pid in self.place.pids() if pid not in known):
            self.wrong.append("a process is left")


def send(number: signal.Signals, pid: int) -> None:
    """Send a signal to a process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def send_all(number: signal.Signals, pid: int) -> None:
    """Send a signal to a process and to all that it has started."""
    for one in [pid, *children_of(pid)]:
        send(number, one)


def host_apart(own: Path, ahead_s: int) -> tuple[str, ...]:
    """Return what comes before a command for it to have a clock, a boot id and shared memory of its own."""
    if not own.exists():
        for name in ("tmp", "shm"):
            (own / name).mkdir(parents=True)
        (own / "boot_id").write_text(f"{uuid.uuid4()}\n")
    mounts = f"mount --bind {own}/shm /dev/shm && mount --bind {own}/boot_id /proc/sys/kernel/random/boot_id"
    return ("unshare", "--mount", "--time", "--monotonic", str(ahead_s), "sh", "-c", f'{mounts} && exec "$@"', "sh")


@contextlib.contextmanager
def disk_of(plan: Plan, folder: Path) -> Iterator[None]:
    """Make the folder of the first server; a small disk if it is to be full."""
    folder.mkdir()
    if not any(fault.kind == FILL for fault in plan.faults):
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Callable[[], None]:
    """Fill a small disk; return what makes room again."""
    other = disk / "other"
    with contextlib.suppress(OSError), other.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return partial(other.unlink, missing_ok=True)


def soak(seed: int, *, has_ranks: bool = False) -> tuple[str, bool, str]:
    """Run the plan of a seed; return its line, whether all was right, and what the processes printed."""
    plan = Plan.of(seed, has_ranks=has_ranks)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="lt-") as temporary:
        place = Place(Path(folder), Path(temporary))
        write_files(place.folder)
        with disk_of(plan, place.folder / DISK):
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
    apart = [place.temporary / path.parent.name for path in place.temporary.glob("*/boot_id")]
    folders = [own / name for own in apart for name in ("tmp", "shm")] or [place.temporary]
    for folder in [] if is_killed else folders:
        sweep(folder)
        files += folder.iterdir()
    return f"{files[0]} is left" if files else ""


def main(arguments: list[str]) -> int:
    """Run seeds one after the other for some minutes, at least one; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Random runs with random faults.")
    parser.add_argument("--minutes", type=float, default=0.0, help="0 for one run")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--ranks", action="store_true", help="a rank of `lockstep node` on each of three hosts")
    options = parser.parse_args(arguments)
    interrupt_on_signals()  # so that no host is left
    until, seed, failed = time.monotonic() + 60.0 * options.minutes, options.seed, list[int]()
    while seed == options.seed or time.monotonic() < until:
        line, is_right, shown = soak(seed, has_ranks=options.ranks)
        print(line, flush=True)
        if not is_right:
            failed.append(seed)
            print(shown, file=sys.stderr, flush=True)
        seed += 1
    print(f"{seed - options.seed} runs, {len(failed)} wrong" + (f": seeds {failed}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
