"""What cannot be measured is reported in one line, before anything is measured."""

import pytest

from lockstep.cli.main import run

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
        ("straggler", ["--model", "mlp,cnn", "--plot", "rows.png"], "--plot with --model mlp,cnn: expected one model"),
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
