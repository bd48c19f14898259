"""Two receipts: whether the weights are the same, and if not, what decides the bits comes before where they part."""

from pathlib import Path

import msgspec
import pytest

from lockstep.checking.recorded_run import comparison
from lockstep.cli.main import run
from lockstep.common.errors import FileFormatError
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.ps.records.receipt import Receipt, ReceiptLink

HERE = fingerprint()


def link(epoch: int, weights: str) -> ReceiptLink:
    return ReceiptLink(epoch=epoch, step=4 * epoch, weights_sha256=weights * 32, link="ab" * 32)


def receipt(weights: str = "abc", **numerics: str) -> Receipt:
    """Return a receipt of a run whose weights after each epoch have these digests."""
    return Receipt(
        run="mine",
        job_sha256="1" * 64,
        dataset_sha256="2" * 64,
        layout_sha256="3" * 64,
        model_source_sha256="",
        code=HERE.code,
        numerics=msgspec.to_builtins(msgspec.structs.replace(HERE, **numerics)),
        total_steps=8,
        chain=[link(epoch, digit) for epoch, digit in enumerate(weights)],
    )


def test_equal_weights_are_equal_whatever_computed_them() -> None:
    assert comparison(receipt(), receipt(kernel="Other", canary="other")) == ""


@pytest.mark.parametrize(
    ("weights", "when"), [("xyz", "before the first step"), ("ayz", "epoch 1"), ("abz", "epoch 2")]
)
def test_the_first_epoch_that_differs_is_named(weights: str, when: str) -> None:
    assert when in comparison(receipt(), receipt(weights))


def test_the_mode_comes_first_then_the_versions() -> None:
    text = comparison(receipt(), receipt("axy", mode="portable", kernel="Other", numpy="9.9"))
    causes = text.partition("what differs: ")[2].split("; ")
    assert [cause.split()[0] for cause in causes] == ["mode", "numpy", "kernel"]
    assert causes[0] == "mode 'native' here, 'portable' there"


@pytest.mark.parametrize(
    ("field", "what"),
    [("job_sha256", "job"), ("dataset_sha256", "dataset"), ("layout_sha256", "model"), ("code", "code")],
)
def test_what_else_differs_is_named(field: str, what: str) -> None:
    numerics = {"code": "other"} if field == "code" else {}
    theirs = receipt("axy", **numerics)
    if not numerics:
        theirs = msgspec.structs.replace(theirs, **{field: "9" * 64})
    assert f"{what} " in comparison(receipt(), theirs)


def test_where_all_else_is_equal_the_c_library_is_named() -> None:
    assert comparison(receipt(), receipt("axy", libc="musl 1")).endswith(
        "libc " + f"{HERE.libc!r} here, 'musl 1' there"
    )
    assert "nothing that a receipt records" in comparison(receipt(), receipt("axy"))


def test_a_shorter_run_is_the_same_as_far_as_it_goes() -> None:
    assert comparison(receipt(), receipt("ab")).startswith("2 epochs here and 1 there, the same as far as both go")


def test_the_command_compares_and_computes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "receipt.json").write_bytes(msgspec.json.encode(receipt()))
    other = tmp_path / "hers.json"
    other.write_bytes(msgspec.json.encode(receipt()))
    assert run(["verify", str(tmp_path / "mine"), "--against", str(other)]) == 0
    assert capsys.readouterr().out == f"the same weights after each of 2 epochs: {'c' * 32}\n"
    other.write_bytes(msgspec.json.encode(receipt("abd", kernel="Other")))
    assert run(["verify", str(tmp_path / "mine"), "--against", str(other)]) == 1
    assert "kernel" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "{}", "[1]"])
def test_a_file_that_is_no_receipt_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    path = tmp_path / "receipt.json"
    if text is not None:
        path.write_text(text)
    assert run(["verify", str(path), "--against", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "receipt" in line


def test_numerics_of_another_version_are_one_line() -> None:
    old = msgspec.structs.replace(receipt("axy"), numerics={"numpy": 2})
    with pytest.raises(FileFormatError, match="mine: has no numerics of this version"):
        comparison(receipt(), old)
