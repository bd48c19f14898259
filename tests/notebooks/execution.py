"""Runs a notebook from its first cell to its last in a clean kernel. Knows nothing of what it should hold."""

import json
import os
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from matplotlib import font_manager
from nbclient import NotebookClient

from tests.notebooks.folder import Notebook

#: Seconds that one cell may take, on a machine that does other things too.
CELL_TIMEOUT_S = 300


def executed(notebook: Notebook) -> Notebook:
    """Return the notebook with the outputs of a run in an empty folder, which is gone afterwards.

    Raises `nbclient.exceptions.CellExecutionError` with the cell and its traceback where one fails.
    """
    # The first use on a machine makes a cache of fonts, and would say so among the outputs.
    font_manager.get_font_names()
    run = nbformat.reads(json.dumps(notebook), as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        _execute(run, Path(folder))
    result: Notebook = json.loads(nbformat.writes(run))  # type: ignore[no-untyped-call]
    return result


def _execute(run: nbformat.NotebookNode, folder: Path) -> None:
    working = folder / "working"
    working.mkdir()
    client = NotebookClient(
        run,
        # Socket files and not ports: two kernels that start at once cannot choose the same one.
        km=AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "kernel")),
        timeout=CELL_TIMEOUT_S,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(working)}},
        extra_arguments=["--HistoryManager.enabled=False"],
    )
    # A person's own profile, with its extensions and start-up files, is no part of a clean kernel.
    client.execute(cleanup_kc=True, env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})
