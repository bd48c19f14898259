"""Portable numerics in real processes: all have them, whoever started them, and one that does not is found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep import fit
from lockstep.api.callbacks import LambdaCallback
from lockstep.checking.verification.recorded_run import open_again, other_numerics, read_run
from lockstep.common.errors import NumericsError
from lockstep.common.protocol.canary import installed_canary, known_canaries
from lockstep.common.runtime.environment import child_environment
from lockstep.common.runtime.numerics import CORETYPE, DISABLED, HASWELL, KERNEL, NUMERICS, feature_table
from tests.architecture.source import ROOT
from tests.lockstep.common.runtime.test_numerics import needs_portable
from tests.lockstep.tiny_data import write_tiny
from tests.system.jobs import BRIEF
from tests.system.processes import Place

pytestmark = needs_portable

PORTABLE = (*BRIEF, "--numerics", "portable")


def digest(run: Path) -> str:
    numerics = json.loads((run / "result.json").read_text())["numerics"]
    assert (numerics["mode"], numerics["kernel"]) == ("portable", "Haswell")
    assert set(numerics["features"].split()) <= HASWELL
    return str(json.loads((run / "result.json").read_text())["weights_sha256"])


#: How a run is carried out.
WAYS = {
    "workers": ("--workers", "2"),
    "servers over tcp": ("--workers", "1", "--servers", "2", "--transport", "tcp"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of the brief job, trained by one process that began again to have its numerics."""
    place = Place(tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("t"))
    write_tiny(place.folder)
    code, _, err = place.start("train", *PORTABLE, "--workers", "0", "--run-dir", "run").end()
    assert code == 0, err
    return digest(place.folder / "run")


@pytest.mark.parametrize("way", ["workers", pytest.param("servers over tcp", marks=pytest.mark.slow)])
def test_all_processes_of_a_run_have_them(place: Place, alone: str, way: str) -> None:
    code, _, err = place.start("train", *PORTABLE, *WAYS[way], "--run-dir", "run").end()
    assert code == 0, err
    assert digest(place.folder / "run") == alone
    # They were started so: to begin again takes a third of a second.
    logs = {path.name: path.read_text() for path in (place.folder / "run").glob("*.log")}
    assert len(logs) == 1 + 2
    assert not [name for name, text in logs.items() if "restarting" in text]
    code, out, err = place.start("verify", "run").end()
    assert code == 0, err
    assert "the same bits: steps 0 to 7" in out


def test_a_run_can_be_looked_at_where_the_bits_may_differ(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    assert place.start("train", *PORTABLE, "--workers", "0", "--run-dir", "run").end()[0] == 0
    recorded = read_run(Path("run"))
    with pytest.raises(NumericsError, match="in a process that has native ones"):
        open_again(recorded, allows_mixed_numerics=False)
    setup = open_again(recorded, allows_mixed_numerics=True)
    assert other_numerics(recorded, setup).startswith("mode 'portable' in the run, 'native' here")


def test_fit_has_them_in_a_process_that_has_loaded_numpy_long_ago(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "global_batch": 48,
        "micro_batches": 4,
        "steps": 8,
        "numerics": "portable",
        "verbose": False,
    }
    called: list[int] = []
    callback = LambdaCallback(on_epoch_end=lambda training, epoch: called.append(epoch.epoch))
    first = fit("linear", write_tiny(tmp_path), run_dir=tmp_path / "0", workers=0, callbacks=[callback], **values)
    second = fit("linear", write_tiny(tmp_path), run_dir=tmp_path / "2", workers=2, **values)
    assert digest(tmp_path / "0") == first.weights_sha256 == second.weights_sha256
    assert called == [1, 2]


def test_processes_that_a_person_starts_take_the_numerics_of_the_job(place: Place, alone: str) -> None:
    address = place.address()
    server = place.start("server", *PORTABLE, "--bind", address, "--run-dir", "run", "--servers", "2")
    server.line_with("listening")
    shard, worker = place.start("shard", address), place.start("worker", address)
    assert worker.error_with("restarting") == "the run has portable numerics: restarting with these"
    assert [process.end()[0] for process in (worker, shard, server)] == [0, 0, 0]
    assert digest(place.folder / "run") == alone


def test_a_worker_that_insists_on_native_numerics_is_refused_with_both_named(place: Place, alone: str) -> None:
    address = place.address()
    server = place.start("server", *PORTABLE, "--bind", address, "--run-dir", "run")
    server.line_with("listening")
    code, _, err = place.start("worker", address, "--numerics", "native").end()
    assert code == 2
    assert "computes with native numerics, and this run with portable ones" in err.splitlines()[-1]
    assert place.start("worker", address, "--numerics", "portable").end()[0] == 0
    assert server.end()[0] == 0
    assert digest(place.folder / "run") == alone


def lies() -> dict[str, dict[str, str]]:
    """Return environments of processes that were to be portable, and are not."""
    newer = [name for name in feature_table()[0] if name not in HASWELL]
    found = {"another kernel": {NUMERICS: "portable", CORETYPE: KERNEL, DISABLED: "X86_V3"}}
    if newer:
        found["a feature left on"] = {NUMERICS: "portable", CORETYPE: KERNEL, DISABLED: " ".join(newer[1:]) or "X86_V3"}
    return found


@pytest.mark.parametrize("lie", lies().values(), ids=lies())
def test_a_process_that_was_to_have_them_and_does_not_is_found_before_it_changes_a_weight(
    place: Place, alone: str, lie: dict[str, str]
) -> None:
    address = place.address()
    for command in (
        ("server", *PORTABLE, "--bind", address, "--run-dir", "bad"),
        ("worker", address, "--workers", "1"),
    ):
        code, _, err = place.start(*command, environ=lie).end()
        assert code == 2
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "portable" in line
    assert not (place.folder / "bad").exists()


@pytest.mark.slow
def test_a_run_that_lost_its_end_is_resumed_with_them(place: Place, alone: str) -> None:
    flags = ("--workers", "0", "--checkpoint-every-steps", "3", "--run-dir", "run")
    assert place.start("train", *PORTABLE, *flags).end()[0] == 0
    run = place.folder / "run"
    # As if the machine had been lost after the sixth of eight steps.
    for path in (run / "result.json", run / "weights.safetensors", *sorted((run / "checkpoints").iterdir())):
        if path.name > "step-00000006.safetensors" or path.parent == run:
            path.unlink()
    code, out, err = place.start("train", "--resume", "run", "--workers", "1").end()
    assert code == 0, err
    assert "resumes after step 6 of 8" in out + err
    assert digest(run) == alone


def test_the_environment_of_this_process_is_native() -> None:
    assert NUMERICS not in child_environment()


@pytest.mark.slow
def test_the_readmes_first_run_has_the_digest_that_it_shows(place: Place) -> None:
    if installed_canary() is None or known_canaries().pinned_numpy != np.__version__:
        pytest.skip("the README's digest is that of the pinned version of NumPy")
    code, out, err = place.start("train", "--numerics", "portable", "--no-picture", "--run-dir", "run").end()
    assert code == 0, err
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in out.splitlines():
        if line.startswith(("weights sha256", "numerics ", "test accuracy")):
            assert f"\n{line}\n" in readme
    assert digest(place.folder / "run") in readme
