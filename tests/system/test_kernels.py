"""A kernel of OpenBLAS with which a process crashes: the run ends at once, and names the signal and the kernel."""

import pytest

from tests.system.jobs import BRIEF
from tests.system.kernels import crashing_kernel
from tests.system.processes import Place


@pytest.mark.parametrize("servers", ["1", "2"])
def test_a_crash_before_a_process_is_ready_is_one_line_with_the_signal_and_the_kernel(
    place: Place, servers: str
) -> None:
    kernel = crashing_kernel()
    if kernel is None:
        pytest.skip("no kernel of the BLAS here crashes")
    process = place.start(
        "train", *BRIEF, "--set", "numerics=native", "--servers", servers, environ={"OPENBLAS_CORETYPE": kernel}
    )
    _, err = process.popen.communicate(timeout=60)
    assert process.popen.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert " was killed by SIG" in line
    # OpenBLAS need not call a kernel what it was asked for.
    assert "before it was ready; the BLAS kernel is '" in line
