"""A compiler, and the library of the target that no run uses."""

import pytest

from lockstep.common.numerics.kernels.compilation import compile_libraries, find_compiler
from lockstep.common.numerics.kernels.library import PLAIN, Library, library_path, load


@pytest.fixture(scope="session")
def compiler() -> tuple[str, ...]:
    """Return a compiler that works here."""
    found = find_compiler()
    if not found:
        pytest.skip("no C compiler works here")
    return found


@pytest.fixture(scope="session")
def plain(compiler: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Return the kernels in C without vectors of a processor."""
    folder = tmp_path_factory.mktemp("plain")
    compile_libraries({library_path(PLAIN, folder): PLAIN}, compiler)
    return load("plain", folder)
