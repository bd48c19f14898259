"""`lockstep pack` of tables: what it shows, and that a person may paste what it advises."""

import re
import shlex
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.data.folder import read_manifest

pytest.importorskip("pyarrow")

#: A value of each column is bad, in another way: the area, the town, the year, and the price to predict.
HOMES = ["id;area, m2;town;year;price"] + [
    f"h{row};{row},5;{['Bern', 'Zug'][row % 2]};{1990 + row};{row * 1000}" for row in range(30)
]
HOMES[4] = "h3;-;Bern;1993;3000"
HOMES[9] = "h8;8,5;Zug;n. a.;8000"
HOMES[14] = "h13;13,5;Zug;2003;unknown"


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "homes.csv").write_text("\n".join([*HOMES, ""]), encoding="utf-16")
    return tmp_path


def test_advice_can_be_pasted_until_the_table_is_packed(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pack", "homes.csv", "homes.data", "--target", "price"]
    given: list[str] = []
    for expected in (
        "row 2, column 'id': 'h0' is one of 30 different texts among 30",
        "row 2, column 'area, m2': '0,5' is not a number",
        "row 5, column 'area, m2': '-' is not a number",
        "row 10, column 'year': 'n. a.' is not a number, as 29 of the 30",
        "row 15, column 'price': 'unknown' is not a number",
    ):
        assert run([*command, *given]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: homes.csv: {expected}")
        advised = re.search(r"(--(?:drop|decimal|na|missing) .*?)(?: if | leaves |$)", error)
        assert advised is not None
        given += shlex.split(advised[1])
        assert list(homes.glob("homes.data*")) == []
    assert run([*command, *given, "--dry-run"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("homes.csv has 24 rows to train on and 5 to test with;")
    assert second == "each is 3 of float32"
    assert run([*command, *given, "--one-hot", "town", "--dry-run"]) == 0
    several = capsys.readouterr().out.splitlines()[1]
    assert list(homes.glob("*.data")) == []
    assert run([*command, *given]) == 0
    manifest = read_manifest(homes / "homes.data")
    assert [column.name for column in manifest.columns] == ["area, m2", "town", "year"]
    assert several == f"each is {2 + len(manifest.columns[1].categories)} of float32"
    assert (set(manifest.reading.na), manifest.reading.decimal) == ({"-", "n. a.", "unknown"}, ",")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--delimiter", ";;"], "';;' is not a valid delimiter: expected one character, like ';' or tab"),
        (["--encoding", "utf-99"], "'utf-99' is not a known encoding: expected one like cp1252 or utf-16"),
        (["--decimal", "-"], "invalid value for '--decimal': "),
        ([], "missing argument 'DEST'"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(
    flags: list[str], told: str, homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pack", "homes.csv", *(["homes.data"] if flags else []), "--target", "price", *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_only_a_table_has_columns_to_show(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pack", "mnist", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: --dry-run of 'mnist': expected a table")


def test_a_file_that_is_misspelt_is_proposed(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pack", "home.csv", "new", "--target", "price"]) == 2
    assert capsys.readouterr().err.startswith("error: no source 'home.csv' (did you mean 'homes.csv'?): expected")
    assert run(["train", "--data", str(homes / "homes.cvs"), "--target", "price"]) == 2
    assert "homes.cvs: does not exist (did you mean 'homes.csv'?): expected a .csv" in capsys.readouterr().err


def test_the_advice_for_a_target_and_a_loss_of_two_kinds_works(
    homes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(homes / "cache"))
    (homes / "t.csv").write_text("a,b,c\n" + "".join(f"{row},{'xy'[row % 2]},{row}.5\n" for row in range(60)))
    for target, given, advice in (
        ("b", ["--loss", "mse"], ["--task", "classes", "--loss", "cross-entropy"]),
        ("c", ["--loss", "cross-entropy", "--task", "classes"], ["--task", "numbers", "--loss", "mse"]),
    ):
        command = ["train", "--data", "t.csv", "--target", target, "--steps", "2", "--workers", "0", "--no-picture"]
        assert run([*command, *given]) == 2
        assert capsys.readouterr().err.endswith(f"expected {' '.join(advice)}\n")
        assert run([*command, *advice]) == 0


def test_a_tab_and_names_with_commas_can_be_given(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{row},\t{row % 3}\n" for row in range(30)).replace(",", "")
    (homes / "t.csv").write_text('"a, b"\ty\n' + rows)
    for tab in ("tab", "\t", r"\t"):
        flags = ["--delimiter", tab, "--categories", '"a, b"', "--dry-run"]
        assert run(["pack", "t.csv", "--target", "y", *flags]) == 0
        assert "  a, b  category, one-hot  0, 1, 2, 3, 4, 5, … (30)\n" in capsys.readouterr().out
    assert run(["pack", "t.csv", "--target", "y", "--delimiter", "tab", "--categories", "a, b", "--dry-run"]) == 2
    listed = re.search(r"no columns 'a' and 'b': expected one of (.*), y$", capsys.readouterr().err)
    assert listed is not None
    (pasted,) = shlex.split(listed[1])
    assert run(["pack", "t.csv", "--target", "y", "--delimiter", "tab", "--categories", pasted, "--dry-run"]) == 0
    for name in ("a, b", pasted):
        assert run(["pack", "t.csv", "--target", name, "--delimiter", "tab", "--dry-run"]) == 0
