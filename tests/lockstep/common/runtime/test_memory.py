"""The allocator can be told to keep what is freed, and arrays come back to the same place then."""

import platform

import numpy as np
import pytest

from lockstep.common.runtime.environment import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_freed_array_is_used_again() -> None:
    assert keep_freed_memory()
    first = np.empty(1 << 20, dtype=np.float32)
    first.fill(1.0)
    place = first.ctypes.data
    del first
    assert np.empty(1 << 20, dtype=np.float32).ctypes.data == place
