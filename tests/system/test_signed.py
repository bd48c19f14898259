"""A run of real processes with keys whose results are signed, and verified by the list of keys."""

import pytest

from tests.system.alone import run_here
from tests.system.processes import Place
from tests.system.test_audit import JOB, honest_digest, lying_job

pytest.importorskip("cryptography")


def served(place: Place, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, list[int]]:
    """Serve a run to two workers with a key each; return the server's code and output, and the workers' codes."""
    assert run_here(place.folder, capsys, "keys", "create", "keys", "--workers", "2")[0] == 0
    server = place.start(
        "server",
        *flags,
        "--bind",
        place.address(),
        "--keys",
        "keys",
        "--signed",
        "--min-workers",
        "2",
        "--run-dir",
        "run",
    )
    address = server.line_with("lockstep worker").split()[2]
    workers = [
        place.start("worker", address, "--workers", "1", "--apart", "--key", f"keys/worker-{number}.key")
        for number in (1, 2)
    ]
    code, out, _ = server.end()
    return code, out, sorted(worker.end()[0] for worker in workers)


def test_results_are_signed_and_a_change_of_the_record_is_found(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, codes = served(place, capsys, *JOB)
    assert (code, codes) == (0, [0, 0])
    code, out, _ = run_here(place.folder, capsys, "verify", "run", "--keys", "keys")
    assert code == 0
    assert "results are signed: " in out
    assert "by key 'worker-" in out
    ledger = place.folder / "run" / "ledger.jsonl"
    whole = ledger.read_text()
    begin, mark, rest = whole.partition('"signed":[["')
    # The first digit of what names the run.
    ledger.write_text(f"{begin}{mark}{'1' if rest[0] == '0' else '0'}{rest[1:]}")
    code, _, error = run_here(place.folder, capsys, "verify", "run")
    assert code == 1
    assert "the signature is forged" in error


def test_a_convicted_key_is_refused_whatever_process_has_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    job = lying_job(place)
    code, out, codes = served(place, capsys, *job, "--set", "audit=100%")
    assert (code, codes) == (0, [0, 2])
    assert "the run goes back to its beginning" in out
    assert place.digest() == honest_digest(place, job)
    (line,) = (place.folder / "run" / "convictions.jsonl").read_text().splitlines()
    assert '"identity":"key worker-' in line
