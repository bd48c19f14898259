"""A stand-in for the Python that has torch: it takes the arguments of the baseline and answers as it does."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

from lockstep.bench.peers import Answer, Stepper

#: Its steps take no time, but what they are said to take: a millisecond less in the layout that is asked for by a flag.
SOURCE = """#!{python}
import json, sys
arguments = sys.argv[2:]
seconds = 0.004 if "--channels-last" in arguments else 0.005
open({calls!r}, "a").write(" ".join(arguments) + "\\n")
for line in sys.stdin:
    answer = {{"version": "9.9", "seconds": [seconds] * int(line), "peak_rss_bytes": 1}}
    if {refused!r} in arguments:
        answer = {{"obstacle": "it cannot do with " + {refused!r}}}
    print(json.dumps(answer), flush=True)
"""


def write_peer(folder: Path, refused: str = "") -> tuple[Path, Path]:
    """Write the stand-in, which refuses a flag; return its path, and that of a file with the arguments of each call."""
    python, calls = folder / "python-with-torch", folder / "calls.txt"
    python.write_text(SOURCE.format(python=sys.executable, calls=str(calls), refused=refused))
    python.chmod(0o700)
    return python, calls


def baseline(layout: str, *turns: list[float]) -> Stepper:
    """Return a baseline that has ended, with the seconds of the steps of its turns."""
    answers = [Answer("2", seconds, 10 * number) for number, seconds in enumerate(turns, 1)]
    return Stepper("the baseline", Mock(subprocess.Popen), layout, turns=answers)
