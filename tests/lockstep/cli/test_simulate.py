"""`lockstep simulate`: what it prints, and with which exit code it ends."""

import pytest

from lockstep.cli.main import run
from lockstep.cli.simulate import replay_command


def test_seeds_that_keep_the_promise_are_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--seeds", "0:3"]) == 0
    out, error = capsys.readouterr()
    assert "\nfaults: " in f"\n{out}"  # on a slow machine, behind lines of how far it is
    assert out.splitlines()[-1].startswith("3 runs, ")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert error == ""


def test_one_seed_is_replayed_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for _ in range(3):
        assert run(["simulate", "--seeds", "1", "--trace"]) == 0
        told.append(capsys.readouterr().out.splitlines())
    first, *others = told
    # But for the time that it took.
    assert all(other[:-2] + other[-1:] == first[:-2] + first[-1:] for other in others)
    assert first[-1].startswith("digest of the trace: ")
    assert any(": receives Join(" in line for line in first)


def test_numbers_that_are_given_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--workers", "2", "--processes", "3", "--servers", "2", "--steps", "3"]
    assert run(["simulate", "--seeds", "4", *given, "--trace"]) == 0
    assert ", 3 + 3 processes, 2 servers" in capsys.readouterr().out
    expected = "lockstep simulate --seeds 4 --workers 2 --processes 3 --steps 3 --trace"
    assert replay_command(4, {"workers": 2, "processes": 3, "servers": None, "steps": 3}) == expected
    assert (
        replay_command(4, {"servers": 3, "spread": True}) == "lockstep simulate --seeds 4 --servers 3 --spread --trace"
    )
    assert replay_command(4, {"spread": False}) == "lockstep simulate --seeds 4 --no-spread --trace"


@pytest.mark.parametrize("seeds", ["", "3:3", "5:2", "a", "-1:4", "1:2:3"])
def test_what_names_no_seeds_is_refused(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", f"--seeds={seeds}"]) == 2
    assert f"{seeds!r} is not a valid range: expected A..B" in capsys.readouterr().err
