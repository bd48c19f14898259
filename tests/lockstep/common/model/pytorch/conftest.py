"""Models of PyTorch are computed with native numerics."""

from collections.abc import Iterator

import pytest

from lockstep.common.runtime.numerics import kept_numerics, use_numerics


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    """Compute with native numerics during each test."""
    with kept_numerics():
        use_numerics("native")
        yield
