"""Commands to paste: one starts this program again, as a person would type it, one installs what an extra needs.

Only some commands need the packages of extras, and each finds out whether they are installed."""

import importlib.metadata
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lockstep.common.errors import UsageError
from lockstep.common.runtime.version import DISTRIBUTION

#: The name of the program, and of its script in an environment.
NAME = "lockstep"


def own_command(*arguments: object) -> str:
    """Return a shell command that runs this program with these arguments from the current folder."""
    words = shlex.join(map(str, arguments))
    return f"{command_for(Path(sys.executable or 'python'), shutil.which(NAME), Path.cwd())} {words}".strip()


def with_own_commands(text: str) -> str:
    """Return a text with commands of this program, in backquotes, as they can be pasted in the current folder."""
    return text.replace("`lockstep ", f"`{own_command()} ")


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


def demand(distribution: str, extra: str, what: str) -> None:
    """Raise `UsageError` if a distribution that `what` needs is not installed; it names the command to install it."""
    if not is_installed(distribution):
        raise UsageError(f"{what} needs {distribution}, which is not installed: {install_command(extra)}")


def is_installed(distribution: str) -> bool:
    """Return whether this environment has a distribution, without importing it."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def install_command(extra: str) -> str:
    """Return a shell command that adds an extra to the environment of this process."""
    return pip_command(extra, editable_checkout(), Path(sys.prefix), Path(sys.executable or "python"), Path.cwd())


def pip_command(extra: str, checkout: Path | None, prefix: Path, python: Path, cwd: Path) -> str:
    """Return a command to paste in the folder `cwd`; without a checkout, the package was installed from a wheel."""
    if checkout is None:
        return f"{shlex.quote(str(python))} -m pip install {shlex.quote(f'{DISTRIBUTION}[{extra}]')}"
    if cwd.resolve() == checkout and prefix.resolve() == checkout / ".venv":
        return f".venv/bin/pip install -e '.[{extra}]'"
    return f"{shlex.quote(str(python))} -m pip install -e {shlex.quote(f'{checkout}[{extra}]')}"


def editable_checkout() -> Path | None:
    """Return the checkout that is installed editable in this environment, None without one (PEP 610)."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin: dict[str, Any] = json.loads(text or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(origin["url"]).path)).resolve()
