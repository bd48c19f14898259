"""Options of benches, and mistakes, which are reported in one line before anything is measured."""

import click
import pytest

from lockstep.bench.bench import NUMBERS, Several, duration, link_speed
from lockstep.cli.main import run
from lockstep.cli.options.types import whole_number

#: Flags that each bench is tried with, so that nothing takes long.
TINY = {
    "exchange": ["--steps", "8", "--rounds", "1"],
    "scaling": ["--model", "linear", "--batch", "32", "--steps", "8", "--rounds", "1"],
    "straggler": [],
    "predict": [],
}


@pytest.mark.parametrize(
    ("bench", "flags", "message"),
    [
        ("exchange", ["--wire", "float8"], "float8"),
        ("exchange", ["--params", "0"], "'0': expected a whole number from 1 to 1073741824"),
        ("exchange", ["--servers", "65"], "'65': expected a whole number from 1 to 64"),
        ("exchange", ["--peer-python", "nowhere"], "cannot run --peer-python 'nowhere'"),
        ("scaling", ["--strong", "--workers", "1,3"], "a batch of 32 cannot be divided among 3 workers"),
        ("scaling", ["--models", "mlp.py:build", "--peer-python", "nowhere"], "model file 'mlp.py' cannot be read"),
        ("scaling", ["--peer-python", "nowhere"], "cannot run --peer-python 'nowhere'"),
        ("scaling", ["--transports", "auto,smoke"], "invalid value for '--transports': "),
        ("scaling", ["--workers", "0"], "'0': expected a whole number from 1 to 1024"),
        ("scaling", ["--workers", "1..2000"], "'2000': expected a whole number from 1 to 1024"),
        ("scaling", ["--workers", "1,6", "--teams", "4"], "--teams 4 with 6 workers: expected a number that divides 6"),
        ("scaling", ["--values", "62000"], "--values without --sleep: expected --sleep TIME too"),
        ("scaling", ["--sleep", "20"], "'20' is not a valid time"),
        ("scaling", ["--sleep", "20ms"], "--sleep with --model: the model that sleeps is one of its own"),
        ("scaling", ["--batches", "32,"], "'': expected a whole number >= 1"),
        ("scaling", ["--plot", "rows.pdf"], "--plot 'rows.pdf': expected a name that ends in .png"),
        ("scaling", ["--models", "resnet"], "model = 'resnet' is not known"),
        ("straggler", ["--workers", "1"], "'1': expected a whole number from 2 to 1024"),
        ("straggler", ["--cases", "2,4"], "invalid value for '--cases': "),
        ("straggler", ["--model", "resnet"], "model = 'resnet' is not known"),
        ("straggler", ["--plot", "rows.pdf"], "--plot 'rows.pdf': expected a name that ends in .png"),
        ("straggler", ["--batch", "4"], "micro_batches = 8"),
        ("predict", ["--workers", "8..2"], "'8..2' is not a valid range: expected A..B"),
        ("predict", ["--workers", "1..many"], "'1..many' is not a valid range"),
        ("predict", ["--hosts", "0"], "'0': expected a whole number from 1 to 65536"),
        ("predict", ["--sleep", "20ms", "--model", "mlp"], "--sleep with --from or --model: nothing is measured"),
        ("predict", ["--link", "fast"], "'fast' is not a valid speed: expected one such as 100Mbit"),
        ("predict", ["--link", "0Gbit"], "'0Gbit' is not a valid speed"),
        ("predict", ["--from", "nowhere.json"], "cannot read 'nowhere.json': "),
    ],
)
def test_mistakes_are_one_line(bench: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", bench, *TINY[bench], *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert message in error[-1]


@pytest.mark.parametrize(("text", "speed"), [("1Gbit", 125e6), ("2.5 gbit/s", 312.5e6), ("100Mbit", 12.5e6)])
def test_links_are_named_in_bits(text: str, speed: float) -> None:
    assert link_speed(text) == speed


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1..8", (1, 2, 4, 8)), ("3..20", (3, 4, 8, 16, 20)), ("5..5", (5,)), ("1,7,7", (1, 7))],
)
def test_a_range_stands_for_powers_of_two(text: str, numbers: tuple[int, ...]) -> None:
    assert Several(NUMBERS.kind, has_ranges=True).convert(text, None, None) == numbers


def test_a_range_does_not_go_on_for_ever() -> None:
    with pytest.raises(click.BadParameter, match=r"'100000000': expected a whole number from 1 to 1024"):
        Several(whole_number(1, 1024), has_ranges=True).convert("1..100000000", None, None)


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1.5 s", 1.5), ("250us", 0.00025), ("60s", 60.0)])
def test_times_have_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["20", "ms", "-1ms", "61s", "20 minutes"])
def test_what_is_not_a_time_is_reported(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a valid time: expected one such as 20ms"):
        duration(text)
