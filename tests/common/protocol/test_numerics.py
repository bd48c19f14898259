"""Rules R4 and R6: one BLAS thread, and a fingerprint that tells machines apart."""

import msgspec
import pytest

from common.protocol.numerics import Fingerprint, canary_digest, code_digest, fingerprint
from common.runtime.blas import blas_threads, limit_blas_threads


def test_the_blas_has_one_thread() -> None:
    limit_blas_threads()
    assert blas_threads() in (0, 1)


def test_a_fingerprint_is_taken_once_and_equals_itself() -> None:
    assert fingerprint() is fingerprint()
    assert fingerprint().differences(fingerprint()) == []


def test_canary_and_code_are_the_same_each_time() -> None:
    assert canary_digest() == canary_digest() == fingerprint().canary
    assert code_digest() == code_digest()


@pytest.mark.parametrize("field", Fingerprint.__struct_fields__)
def test_each_field_that_differs_is_named_with_both_values(field: str) -> None:
    ours = fingerprint()
    value = getattr(ours, field)
    changed = 99 if isinstance(value, int) else value + "-other"
    theirs = msgspec.structs.replace(ours, **{field: changed})
    assert ours != theirs
    assert ours.differences(theirs) == [(field, value, changed)]
    assert theirs.differences(ours) == [(field, changed, value)]
