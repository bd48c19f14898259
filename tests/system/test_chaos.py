"""A run that does things to its own processes comes to the bits of a calm one, and says what it did."""

import pytest

from tests.system.alone import digest_alone, run_here
from tests.system.processes import GONE_S, Place

#: Long enough for things to happen to it.
LASTING = ("--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--steps", "1500")

#: As long, with hardly anything to compute; and the same without its pauses.
UNHURRIED = ("--model", "unhurried.py:Unhurried", "--steps", "150")
WITHOUT_PAUSES = ("--model", "unhurried.py:without_pauses", "--steps", "150")


def train(place: Place, name: str, *flags: str) -> tuple[str, list[str]]:
    """Train; return the digest of the weights, and what was done to the run."""
    code, out, error = place.start("train", *LASTING, "--run-dir", name, *flags).end(within_s=600.0)
    assert (code, error) == (0, "")
    assert place.is_empty(GONE_S)
    return place.digest(name), [line for line in out.splitlines() if line.startswith("chaos: ")]


def test_a_run_that_is_harmed_comes_to_the_bits_of_a_calm_one(place: Place) -> None:
    calm = digest_alone(*LASTING, *WITHOUT_PAUSES)
    flags = ("--workers", "2", "--chaos", "kill-worker=1 kill-server=1", "--chaos-seed", "7")
    digest, done = train(place, "wild", *UNHURRIED, *flags)
    assert digest == calm
    assert sorted(line.partition(" (")[0] for line in done[:-1]) == [
        "chaos: killed a worker",
        "chaos: killed the server",
    ]
    assert done[-1] == "chaos: injected 2 of 2 faults"


@pytest.mark.slow
def test_a_run_that_is_harmed_in_every_way_comes_to_the_bits_of_a_calm_one(place: Place) -> None:
    calm = digest_alone(*LASTING)
    wanted = "kill-worker=2 stop-worker=1 slow-worker=1 stop-server=1 kill-server=1"
    digest, done = train(place, "wild", "--workers", "3", "--chaos", wanted, "--chaos-seed", "7")
    assert digest == calm
    for text, count in (("killed a worker", 2), ("stopped a worker", 1), ("slowed down a worker", 1)):
        assert len([line for line in done if text in line]) == count
    for text in ("stopped the server (pid ", "killed the server (pid "):
        assert len([line for line in done if text in line]) == 1
    assert done[-1] == "chaos: injected 6 of 6 faults"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--workers", "0", "--chaos", "stop-worker=1"), "--workers 0 has none"),
        (("--workers", "2", "--chaos", "kill=1"), "unknown fault 'kill'"),
        (("--workers", "2", "--chaos", "kill-shard=1"), "--servers 1, which has no shards"),
        (("--workers", "2", "--chaos", "kill-server=1", "--set", "max_restarts=0"), "none is restarted"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_begins(
    place: Place, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], told: str
) -> None:
    code, _, error = run_here(place.folder, capsys, "train", *LASTING, "--run-dir", "run", *flags)
    assert code == 2
    assert error.count("\n") == 1
    assert told in error
    assert not (place.folder / "run").exists()
