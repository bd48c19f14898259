"""Numerics in real processes: each takes those of the run that it joins, whoever started it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lockstep import fit
from lockstep.api.callbacks import LambdaCallback
from lockstep.common.errors import NumericsError
from lockstep.common.numerics.kernels.library import load, targets_of, this_machine
from lockstep.common.runtime.environment import KERNELS_VARIABLE
from lockstep.common.runtime.numerics import own_numerics
from tests.architecture.source import ROOT
from tests.lockstep.tiny_data import write_tiny
from tests.system.jobs import BRIEF
from tests.system.processes import Place, result_in


def digest(run: Path, numerics: str = "portable") -> str:
    result = result_in(run)
    assert result["numerics"]["mode"] == numerics
    return str(result["weights_sha256"])


@pytest.mark.parametrize("numerics", ["portable", "native"])
def test_fit_in_this_process_gives_the_bits_of_workers_and_leaves_its_numerics_alone(
    tmp_path: Path, numerics: str
) -> None:
    values: dict[str, Any] = {"global_batch": 48, "micro_batches": 4, "steps": 8, "verbose": False}
    called: list[int] = []
    callback = LambdaCallback(on_epoch_end=lambda training, epoch: called.append(epoch.epoch))
    data, given = write_tiny(tmp_path), {**values, "numerics": numerics}
    first = fit("linear", data, run_dir=tmp_path / "0", workers=0, callbacks=[callback], **given)
    second = fit("linear", data, run_dir=tmp_path / "2", workers=2, **given)
    assert digest(tmp_path / "0", numerics) == first.weights_sha256 == second.weights_sha256
    assert called == [1, 2]
    assert own_numerics() == "portable"


def test_processes_that_a_person_starts_take_the_numerics_of_the_job(place: Place) -> None:
    address = place.address()
    job = (*BRIEF, "--set", "numerics=native")
    server = place.start("server", *job, "--bind", address, "--run-dir", "run", "--servers", "2")
    server.line_with("listening")
    shard, worker = place.start("shard", address), place.start("worker", address)
    assert [process.end()[0] for process in (worker, shard, server)] == [0, 0, 0]
    assert place.start("train", *job, "--workers", "0", "--run-dir", "again").end()[0] == 0
    assert digest(place.folder / "run", "native") == digest(place.folder / "again", "native")


def loaded_targets() -> list[str]:
    """Return the targets whose kernels this processor can run."""
    targets = []
    for target in targets_of(this_machine()):
        with suppress(NumericsError):
            targets.append(load(target.name).target)
    return targets


def test_workers_with_the_kernels_of_different_processors_give_the_bits_of_one_process(place: Place) -> None:
    targets = loaded_targets()
    if len(targets) < 2:
        pytest.skip("this processor can run the kernels of one target only")
    job = (*BRIEF, "--model", "lenet")
    flags = ("--min-workers", str(len(targets)), "--transport", "tcp", "--run-dir", "run")
    server, address = place.serve(*job, *flags, bind="tcp://127.0.0.1:0")
    workers = [
        place.start("worker", address, "--workers", "1", "--apart", environ={KERNELS_VARIABLE: target})
        for target in targets
    ]
    alone = place.start("train", *job, "--workers", "0", "--run-dir", "alone")
    ended = [process.end() for process in (*workers, server, alone)]
    assert [code for code, _, _ in ended] == [0] * len(ended), [err for _, _, err in ended]
    assert place.result()["workers"] == len(targets)
    assert digest(place.folder / "run") == digest(place.folder / "alone")


@pytest.mark.slow
def test_the_readmes_first_run_has_the_digest_that_it_shows(place: Place) -> None:
    code, out, err = place.start("train", "--no-picture", "--run-dir", "run").end()
    assert code == 0, err
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in out.splitlines():
        if line.startswith(("weights sha256", "test accuracy")):
            assert f"\n{line}\n" in readme
    assert digest(place.folder / "run") in readme
