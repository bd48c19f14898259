"""The same bits on other processors, emulated: servers, workers and `verify` on four kinds of them, in one run.

Needs qemu-x86_64 (Debian: qemu-user), and is skipped without it. A process that an emulated one starts is not emulated,
which is why every process is started here by itself. Emulation takes thirty times as long.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from lockstep.runs.job_file import to_toml
from tests.golden.digests import computed, known_weights
from tests.golden.jobs import GOLDEN, golden_job
from tests.system.jobs import FILES
from tests.system.processes import Place, Process, digest_in, result_in

QEMU = "qemu-x86_64"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed (Debian: qemu-user)"),
]

#: Intel of 2013 and 2015, AMD of 2019; all with AVX2 and FMA, none with AVX-512.
EMULATED = ("Haswell", "Skylake-Client", "EPYC-Rome")

#: This machine itself.
HOST = "host"

#: An Intel of 2008.
OLD = "Nehalem"


def on(processor: str) -> tuple[str, ...]:
    """Return what a command begins with that runs on a processor."""
    return () if processor == HOST else (QEMU, "-cpu", processor)


def known(name: str) -> str:
    return known_weights().weights[name]


@dataclass
class Bench:
    """A place where golden jobs are trained, on processors of choice."""

    place: Place

    def start(self, processor: str, *arguments: str) -> Process:
        return self.place.start(*arguments, within=on(processor))

    def job(self, name: str) -> Path:
        """Write the job file of a golden job."""
        path = self.place.folder / "job.toml"
        path.write_text(to_toml(*golden_job(name, self.place.folder)), encoding="utf-8")
        return path

    def train(self, name: str, server: str, workers: tuple[str, ...], *flags: str) -> Path:
        """Train a golden job; return the run's folder."""
        flags = ("--min-workers", str(len(workers)), "--no-picture", "--lease-timeout", "600", *flags)
        job = ("--job", str(self.job(name)), "--run-dir", "run")
        serving = self.start(server, "server", *job, "--bind", self.bind(flags), *flags)
        address = serving.line_with("lockstep worker").split()[2]
        working = [
            self.start(processor, "worker", address, "--workers", "1", "--apart", "--timeout", "120")
            for processor in workers
        ]
        ended = [process.end() for process in (*working, serving)]
        assert [code for code, _, _ in ended] == [0] * len(ended), [err for _, _, err in ended]
        return self.place.folder / "run"

    def bind(self, flags: tuple[str, ...]) -> str:
        return "tcp://127.0.0.1:0" if "tcp" in flags else self.place.address()

    def verify(self, processor: str, run: Path) -> None:
        """Compute the run again on a processor."""
        code, out, err = self.start(processor, "verify", str(run)).end()
        assert code == 0, err
        assert "the same bits: steps 0 to 5" in out


@pytest.fixture
def bench(place: Place) -> Bench:
    return Bench(place)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("processor", EMULATED)
def test_one_process_on_another_processor(processor: str, name: str) -> None:
    assert computed([name], on(processor))[name] == known(name)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_server_and_workers_on_different_processors(bench: Bench, name: str) -> None:
    run = bench.train(name, HOST, EMULATED, "--transport", "tcp")
    assert digest_in(run) == known(name)
    assert result_in(run)["workers"] == len(EMULATED)


def test_workers_on_different_processors_audit_one_another(bench: Bench) -> None:
    run = bench.train("lenet", "Haswell", (HOST, "EPYC-Rome"), "--set", "audit=1.0", "--transport", "tcp")
    assert digest_in(run) == known("lenet")
    assert result_in(run)["audited"] > 0
    bench.verify("Skylake-Client", run)


def error_of(process: Process) -> str:
    """Return the one line of an error with exit code 2; the emulator's own warnings aside."""
    code, _, err = process.end()
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if not line.startswith(QEMU)]
    return line


#: What begins with a job that asks for portable numerics.
BEGINNINGS = {
    "train": ("train", "--workers", "2"),
    "train alone": ("train", "--workers", "0"),
    "server": ("server", "--bind", "tcp://127.0.0.1:0"),
}


@pytest.mark.parametrize("command", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_processor_without_avx2_is_refused(place: Place, command: tuple[str, ...]) -> None:
    job = ("--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--set", "numerics=portable")
    line = error_of(place.start(*command, *job, within=on(OLD)))
    assert line.startswith("error: numerics = 'portable' on a machine without kernels: ")
    assert {path.name for path in place.folder.iterdir()} == FILES


def test_a_worker_without_avx2_ends_where_the_run_is_portable(bench: Bench) -> None:
    server = bench.start(HOST, "server", "--job", str(bench.job("mlp")), "--bind", bench.place.address())
    address = server.line_with("lockstep worker").split()[2]
    code, _, err = bench.place.start("worker", address, "--workers", "1", "--apart", within=on(OLD)).end()
    assert code == 2
    assert "has no kernels for the portable numerics of this run" in err.splitlines()[-1]
