"""The canary names what computes other bits, and the known ones are by version."""

from pathlib import Path

import msgspec
import pytest

from lockstep.common.errors import NumericsError
from lockstep.common.protocol.canary import (
    PARTS,
    KnownCanaries,
    KnownCanary,
    canary,
    canary_digest,
    check_canary,
    known_canaries,
    known_canary,
    version_note,
)
from tests.architecture.source import ROOT

HERE = canary()
KNOWN = KnownCanary(numpy="2.0", blas="openblas 1", parts=HERE)


def test_there_is_a_digest_for_each_part() -> None:
    assert list(HERE) == list(PARTS)
    assert len(set(HERE.values())) == len(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_differs_is_named(part: str) -> None:
    check_canary(HERE, KNOWN)
    other = {**HERE, part: "0123456789abcdef"}
    assert canary_digest(other) != canary_digest(HERE)
    with pytest.raises(NumericsError, match=f"other bits here than elsewhere in {part}: digest '0123456789abcdef'"):
        check_canary(other, KNOWN)


def test_nothing_is_compared_with_a_version_that_nobody_has_recorded() -> None:
    check_canary(HERE, None)


def test_known_digests_are_found_by_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    path.write_bytes(msgspec.json.encode(KnownCanaries(pinned_numpy="2.0", known=[KNOWN])))
    assert known_canary("2.0", "openblas 1", path) == KNOWN
    assert known_canary("2.0", "openblas 2", path) is None
    assert known_canary("2.1", "openblas 1", path) is None


def test_all_known_ones_have_all_parts() -> None:
    for each in known_canaries().known:
        assert list(each.parts) == list(PARTS), f"NumPy {each.numpy}: record it again by scripts/golden --record"


def test_the_pinned_version_is_known_and_is_that_of_the_lock() -> None:
    pinned = known_canaries().pinned_numpy
    assert pinned in {each.numpy for each in known_canaries().known}
    lines = (ROOT / "requirements" / "watch.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines if line.startswith("numpy=")] == [f"numpy=={pinned}"]


def test_versions_other_than_the_pinned_one_are_told() -> None:
    pinned = next(each for each in known_canaries().known if each.numpy == known_canaries().pinned_numpy)
    assert version_note(pinned.numpy, pinned.blas) == ""
    assert "nobody has recorded them (scripts/golden --record)" in version_note(pinned.numpy, "mkl 1")
    others = [each for each in known_canaries().known if each.numpy != pinned.numpy]
    for other in others:
        note = version_note(other.numpy, other.blas)
        assert (
            f"NumPy {other.numpy} with {other.blas}, whose bits may differ from those of NumPy {pinned.numpy}" in note
        )
        assert "recorded" not in note
