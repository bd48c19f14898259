"""One BLAS thread for every test (rule R4): with more, a product may have other bits. A run tells of its fuzzing."""

import os

import pytest

from common.runtime.environment import use_one_blas_thread

use_one_blas_thread()

# A picture at the end of each run would double the time of the short ones; its own test asks for it.
os.environ["LOCKSTEP_PICTURE"] = "no"

from common.runtime.blas import limit_blas_threads  # noqa: E402

limit_blas_threads()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many cases the rooms of tests/fuzz looked at, in all processes of the run."""
    reports = [report for report in terminalreporter.stats.get("passed", []) if isinstance(report, pytest.TestReport)]
    cases = [int(str(value)) for report in reports for name, value in report.user_properties if name == "cases"]
    if cases:
        terminalreporter.write_line(f"fuzz: {sum(cases):,} cases in {len(cases)} tests")
