"""The command that starts this program again, as a person would type it: for every line that is there to be pasted."""

import os
import shlex
import shutil
import sys
from pathlib import Path

#: The name of the program, and of its script in an environment.
NAME = "lockstep"


def own_command(*arguments: object) -> str:
    """Return a shell command that runs this program with these arguments from the current folder."""
    words = shlex.join(map(str, arguments))
    return f"{command_for(Path(sys.executable or 'python'), shutil.which(NAME), Path.cwd())} {words}".strip()


def command_for(python: Path, found: str | None, cwd: Path) -> str:
    """Return the program's name in the folder `cwd`, where a shell finds `found` under its name.

    `scripts/train` runs in an environment that is not activated: there, the name alone would not be found.
    """
    script = python.with_name(NAME)
    if not script.exists():
        return f"{shlex.quote(str(python))} -m {NAME}"
    if found is not None and os.path.samefile(found, script):
        return NAME
    return shlex.quote(str(script.relative_to(cwd) if script.is_relative_to(cwd) else script))
