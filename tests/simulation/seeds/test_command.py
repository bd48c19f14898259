"""`scripts/simulate`: what it prints, and with which exit code it ends."""

import pytest
from click.testing import CliRunner

from tests.simulation.simulator.__main__ import replay_command, simulate_command


def printed(*flags: str) -> list[str]:
    done = CliRunner().invoke(simulate_command, flags)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_seeds_that_keep_the_promise_are_told_in_a_line() -> None:
    lines = printed("--seeds", "0:3")
    assert any(line.startswith("faults: ") for line in lines)
    assert lines[-1].startswith("3 runs, ")
    assert all(len(line) <= 80 for line in lines)


def test_one_seed_is_replayed_with_its_trace() -> None:
    first, *others = (printed("--seeds", "1", "--trace") for _ in range(3))
    # But for the time that it took.
    assert all(other[:-2] + other[-1:] == first[:-2] + first[-1:] for other in others)
    assert first[-1].startswith("digest of the trace: ")
    assert any(": receives Join(" in line for line in first)


def test_numbers_that_are_given_are_kept() -> None:
    given = ["--workers", "2", "--processes", "3", "--servers", "2", "--steps", "3"]
    assert any(", 3 + 3 processes, 2 servers" in line for line in printed("--seeds", "4", *given, "--trace"))
    expected = "scripts/simulate --seeds 4 --workers 2 --processes 3 --steps 3 --trace"
    assert replay_command(4, {"workers": 2, "processes": 3, "servers": None, "steps": 3}) == expected
    assert replay_command(4, {"servers": 3, "steps": None}) == "scripts/simulate --seeds 4 --servers 3 --trace"


@pytest.mark.parametrize("seeds", ["", "3:3", "5:2", "a", "-1:4", "1:2:3"])
def test_what_names_no_seeds_is_refused(seeds: str) -> None:
    done = CliRunner().invoke(simulate_command, [f"--seeds={seeds}"])
    assert done.exit_code == 2
    assert f"{seeds!r} is not a valid range: expected A..B" in done.stderr
