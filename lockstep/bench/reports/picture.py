"""Has rows drawn by a program of its own: the core never loads matplotlib, which takes half a second."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from common.errors import RunError


def draw(kind: str, rows: msgspec.Struct | Sequence[msgspec.Struct], path: Path) -> None:
    """Draw rows, or what else that kind of picture shows, as a PNG; `RunError` where that fails."""
    command = [sys.executable, "-P", "-m", "lockstep.bench.reports.plot", kind, str(path)]
    done = subprocess.run(command, input=msgspec.json.encode(rows), capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RunError(f"the picture {str(path)!r} could not be drawn: {last}")
