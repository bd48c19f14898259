"""Rules R4 and R6: one BLAS thread, and a fingerprint that tells machines apart."""

import shutil
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from lockstep.common.protocol.fingerprint import (
    DECIDING,
    DECIDING_FIELDS,
    Fingerprint,
    code_digest,
    fingerprint,
    fingerprint_of,
)
from lockstep.common.runtime.blas import blas_threads
from lockstep.common.runtime.numerics import Numerics
from tests.architecture.direction import edges_of
from tests.architecture.source import ROOT, is_within, read_tree, sources_of

#: Where the computation of a step begins: a worker's part and a shard's.
ROOTS = ("lockstep.worker.compute", "lockstep.ps.shard.shard")

#: What these import that does not decide bits: errors, files, the types of messages, and what a job's numerics may be.
UNDECIDING = (
    *("lockstep.common.errors", "lockstep.common.files", "lockstep.common.protocol"),
    *("lockstep.common.runtime.numerics", "lockstep.common.runtime.environment"),
    "lockstep.common.runtime.lent_process",
)


def test_the_blas_has_one_thread() -> None:
    assert blas_threads() in (0, 1)


def test_a_fingerprint_is_taken_once_and_equals_itself() -> None:
    assert fingerprint() is fingerprint()
    assert fingerprint().differences(fingerprint()) == []


def test_canary_and_code_are_the_same_each_time() -> None:
    again = fingerprint.__wrapped__()
    assert again == fingerprint()
    assert code_digest() == code_digest()


MODES: tuple[Numerics, ...] = get_args(Numerics)
CASES = [(mode, field) for mode in MODES for field in Fingerprint.__struct_fields__ if field != "mode"]


@pytest.mark.parametrize(
    ("mode", "field"), [(mode, field) for mode, field in CASES if field not in DECIDING_FIELDS[mode]]
)
def test_what_decides_no_bits_is_named_and_not_compared(mode: Numerics, field: str) -> None:
    ours = fingerprint_of(mode)
    assert getattr(ours, field) or field == "libc"
    changed = 99 if isinstance(getattr(ours, field), int) else "other"
    assert ours.differences(msgspec.structs.replace(ours, **{field: changed})) == []


def test_other_numerics_are_a_difference() -> None:
    ours, theirs = fingerprint_of("portable"), fingerprint_of("native")
    assert ours.differences(theirs) == [("mode", "portable", "native")]


@pytest.mark.parametrize(("mode", "field"), [(mode, field) for mode, field in CASES if field in DECIDING_FIELDS[mode]])
def test_each_field_that_differs_is_named_with_both_values(mode: Numerics, field: str) -> None:
    ours = fingerprint_of(mode)
    value = getattr(ours, field)
    changed = 99 if isinstance(value, int) else value + "-other"
    theirs = msgspec.structs.replace(ours, **{field: changed})
    assert ours != theirs
    assert ours.differences(theirs) == [(field, value, changed)]
    assert theirs.differences(ours) == [(field, changed, value)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("*.gz", "__pycache__")
    for package in ("common", "ps", "worker"):
        shutil.copytree(ROOT / "lockstep" / package, tmp_path / "lockstep" / package, ignore=ignored)
    return tmp_path


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_the_digest_depends_on_the_code_alone(tree: Path) -> None:
    assert code_digest(tree) == code_digest() == fingerprint().code


@pytest.mark.parametrize(
    "path", [f"lockstep/{path}.py" for path in ("ps/records/ledger", "ps/coordinator/coordinator", "worker/state")]
)
def test_what_decides_no_bits_changes_nothing(tree: Path, path: str) -> None:
    before = code_digest(tree)
    _append(tree / path, "\nCHANGED = True\n")
    assert code_digest(tree) == before


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_bits_changes_the_digest(tree: Path, name: str) -> None:
    before = code_digest(tree)
    place = tree.joinpath(*name.split("."))
    _append(place / "__init__.py" if place.is_dir() else place.with_suffix(".py"), "\nCHANGED = True\n")
    assert code_digest(tree) != before


def test_a_changed_primitive_changes_the_digest(tree: Path) -> None:
    before = code_digest(tree)
    path = tree / "lockstep" / "common" / "autograd" / "primitives" / "elementwise.py"
    path.write_text(path.read_text().replace("0.044715", "0.044716"))
    assert code_digest(tree) != before


def test_all_that_the_computation_imports_is_covered() -> None:
    tree = sources_of(read_tree(ROOT, (f"lockstep/{name}" for name in ("common", "ps", "worker"))))
    imported: dict[str, set[str]] = {}
    for edge in edges_of(tree):
        imported.setdefault(edge.importer, set()).add(edge.imported)
    reached, unvisited = set[str](), set(ROOTS)
    while unvisited:
        module = unvisited.pop()
        if not any(is_within(module, other) for other in UNDECIDING):
            reached.add(module)
            unvisited |= imported.get(module, set()) - reached
    missing = {module for module in reached if not any(is_within(module, name) for name in DECIDING)}
    assert not missing, f"add {missing} to DECIDING, or to UNDECIDING if they decide no bits"
    assert set(DECIDING) <= set(tree)


def test_another_build_of_the_kernels_is_the_same_code(tree: Path) -> None:
    before = code_digest(tree)
    path = tree / "lockstep" / "common" / "numerics" / "kernels" / "source" / "vector.h"
    _append(path, "int changed;\n")
    assert code_digest(tree) == before  # the contract's version and the digest of the self-test stand for them
