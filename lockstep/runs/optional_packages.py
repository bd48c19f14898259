"""Packages that only some commands need: whether they are installed, and the command that installs them."""

import importlib.metadata
import json
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lockstep.common.errors import UsageError
from lockstep.common.runtime.version import DISTRIBUTION


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
    return command_for(extra, editable_checkout(), Path(sys.prefix), Path(sys.executable or "python"), Path.cwd())


def command_for(extra: str, checkout: Path | None, prefix: Path, python: Path, cwd: Path) -> str:
    """Return a command to paste in the folder `cwd`; without a checkout, the package was installed from a wheel."""
    if checkout is None:
        return f"{shlex.quote(str(python))} -m pip install {shlex.quote(f'{DISTRIBUTION}[{extra}]')}"
    if cwd.resolve() == checkout and prefix.resolve() == checkout / ".venv":
        return f".venv/bin/pip install -e '.[{extra}]'"
    return f"{shlex.quote(str(python))} -m pip install -e {shlex.quote(f'{checkout}[{extra}]')}"


def editable_checkout() -> Path | None:
    """Return the checkout that is installed editable in this environment, None if there is none (PEP 610)."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin: dict[str, Any] = json.loads(text or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(origin["url"]).path)).resolve()
