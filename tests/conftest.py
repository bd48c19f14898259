"""One BLAS thread for every test (rule R4): with more, a product may have other bits. A run tells of its fuzzing."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import settings

from lockstep.common.runtime.environment import cache_home, collector_paused, use_one_blas_thread

# No test asserts a time, and all of them try the same examples each time.
settings.register_profile("lockstep", deadline=None, derandomize=True)
settings.load_profile("lockstep")

#: Bytes of the path of the folder for temporary files that leave room for a socket, whose path has at most 107, in the
#: folders that tests and processes make there.
LONGEST_TMPDIR = 60

if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR and os.access("/tmp", os.W_OK):
    # Here and for all processes that are started here.
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

use_one_blas_thread()

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        # As a shell starts a command in the background (`scripts/test &`), and `nohup` any: its processes inherit it.
        signal.signal(number, handler)

# What is trained here is not what the person who runs the tests trusts, here and in all processes that are started.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lockstep-tests-state-")
    atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# A picture at the end of each run would double the time of the short ones; its own test asks for it.
os.environ["LOCKSTEP_PICTURE"] = "no"

from lockstep.common.runtime.blas import set_blas_threads  # noqa: E402

set_blas_threads(1)

if sys.dont_write_bytecode:
    # Whoever asks for no bytecode wants none in the checkout. Without any, each of the hundreds of processes that the
    # tests start would compile all modules again, a third of a second of computing: it goes to a folder elsewhere.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.path.join(cache_home(), "lockstep-tests")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


#: A place for real processes, in every folder of tests.
pytest_plugins = ["tests.system.fixtures"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep modules and tests, which stay until the end, from the garbage collector: tests that call it are quick."""
    with collector_paused():
        result = yield
    gc.collect()
    gc.freeze()
    return result


#: Seconds for a test that takes minutes.
SLOW_S = 3600.0


#: The folders of tests that mostly wait for processes.
WAITING = frozenset({"system", "deploy"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the modules whose tests wait, and give tests marked slow more time if they do not ask for another limit.

    Side by side, as they are collected, tests that wait would leave cores idle.
    """
    modules = [list(module) for _, module in groupby(items, key=lambda item: item.path)]
    waiting = [module for module in modules if module[0].path.parent.name in WAITING]
    others = [module for module in modules if module[0].path.parent.name not in WAITING]
    places = [
        ((number + 0.5) / len(group), module) for group in (waiting, others) for number, module in enumerate(group)
    ]
    items[:] = [item for _, module in sorted(places, key=lambda each: each[0]) for item in module]
    for item in items:
        if item.get_closest_marker("slow") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_S))


@pytest.fixture
def short_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder with room in its path for a socket, however long `TMPDIR` is: the path is relative."""
    monkeypatch.chdir(tmp_path)
    root = Path("m")
    root.mkdir()
    return root


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many cases the rooms of tests/fuzz looked at, in all processes of the run."""
    reports = [report for report in terminalreporter.stats.get("passed", []) if isinstance(report, pytest.TestReport)]
    cases = [int(str(value)) for report in reports for name, value in report.user_properties if name == "cases"]
    if cases:
        terminalreporter.write_line(f"fuzz: {sum(cases):,} cases in {len(cases)} tests")
