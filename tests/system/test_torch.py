"""Real processes that train a model of PyTorch come to one digest: over any transport, killed, and resumed."""

from pathlib import Path

import pytest

from tests.lockstep.common.model.pytorch.jobs import NAMES, NETS
from tests.system.alone import train_alone
from tests.system.processes import GONE_S, Place, digest_in

pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

DATA = ("--data", "tiny.npz", "--global-batch", "32", "--micro-batches", "4", "--momentum", "0.9")


def job(name: str, steps: int = 6) -> tuple[str, ...]:
    return ("--model", f"{NETS}:{name}", *DATA, "--steps", str(steps))


def digest_with(place: Place, arguments: tuple[str, ...], *flags: str, run: str = "run") -> str:
    """Train in processes of their own; return the digest of the weights."""
    code, _, error = place.start("train", *arguments, "--run-dir", run, *flags).end(within_s=600.0)
    assert (code, error) == (0, "")
    assert place.is_empty(GONE_S)
    return digest_in(place.folder / run)


def test_killed_and_over_shared_memory_a_run_comes_to_the_bits_of_one_process(place: Place, tmp_path: Path) -> None:
    arguments = job("mlp", 150)
    flags = ("--workers", "2", "--chaos", "kill-worker=1", "--chaos-seed", "3", "--set", "audit=5%")
    assert digest_with(place, arguments, *flags) == digest_in(train_alone(tmp_path, *arguments))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nine_nets_have_one_digest_each(place: Place, tmp_path: Path, name: str) -> None:
    calm = digest_in(train_alone(tmp_path, *job(name)))
    for number, flags in enumerate(
        (
            ("--workers", "1"),
            ("--workers", "2", "--transport", "ipc"),
            ("--workers", "3", "--transport", "tcp"),
            ("--workers", "8"),
        )
    ):
        assert digest_with(place, job(name), *flags, run=f"run{number}") == calm, flags


@pytest.mark.slow
def test_servers_wires_and_deaths_change_nothing(place: Place, tmp_path: Path) -> None:
    arguments = (*job("lenet", 60), "--set", "wire=int8", "--set", "wire_weights=bfloat16")
    calm = digest_in(train_alone(tmp_path, *arguments))
    wild = ("--workers", "2", "--servers", "3", "--set", "checkpoint_every_steps=5")
    assert digest_with(place, arguments, *wild, "--chaos", "kill-server=1 kill-worker=1") == calm


@pytest.mark.slow
def test_a_run_that_was_interrupted_is_resumed_with_other_workers(place: Place, tmp_path: Path) -> None:
    arguments = job("lenet", 300)
    calm = digest_in(train_alone(tmp_path, *arguments))
    train = place.start("train", *arguments, "--workers", "2", "--set", "checkpoint_every_steps=5", "--run-dir", "run")
    train.line_with("epoch 3/")
    train.interrupt()
    code, out, error = place.start("train", "--resume", "run", "--workers", "3", "--transport", "tcp").end(600.0)
    assert (code, error) == (0, "")
    assert "resumes after step " in out
    assert digest_in(place.folder / "run") == calm
