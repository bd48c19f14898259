"""How much memory a command takes at most."""

import subprocess
import sys
from pathlib import Path

#: What hostile files may take, in kilobytes.
MOST_KB = 500 * 1024

#: Linux counts it from the start of a program; what `getrusage` returns has that of the process before `exec`.
_PROGRAM = """
import sys
from pathlib import Path
from lockstep.cli.main import run
code = run(sys.argv[1:])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(code, peak.split()[1])
"""


def peak_of(folder: Path, *arguments: str) -> tuple[str, int]:
    """Run a command in a process of its own; return what it printed, and its peak in kilobytes."""
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    told, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return told, int(last.split()[1])
