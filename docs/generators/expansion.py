"""Puts what is generated into the pages of the site: what follows a comment `<!-- generated: NAME -->` is made again.

What is committed there, up to the comment that ends it, is what GitHub shows: `committed` writes it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.generators import (
    command_line,
    differences,
    job_values,
    measured,
    outcomes,
    protocol,
    public_api,
    pytorch_models,
    records,
)

#: What a page can ask for.
PIECES: Mapping[str, Callable[[], str]] = {
    "command line": command_line.command_line,
    "job values": job_values.job_values,
    "shipped jobs": job_values.shipped_jobs,
    "state machines": protocol.state_machines,
    "wire messages": protocol.wire_messages,
    "wire limits": protocol.wire_limits,
    "metrics lines": records.metrics_lines,
    "ledger lines": records.ledger_lines,
    "result file": records.result_file,
    "receipt file": records.receipt_file,
    "prometheus metrics": records.prometheus_metrics,
    "pytorch nets": pytorch_models.pytorch_nets,
    "pytorch layers": pytorch_models.pytorch_layers,
    "differences": differences.differences,
    "exit codes": outcomes.exit_codes,
    "error classes": outcomes.error_classes,
    "api functional": public_api.api_functional,
    "api layers": public_api.api_layers,
    "api module": public_api.api_module,
    "api init": public_api.api_init,
    "api models": public_api.api_models,
    "api optim": public_api.api_optim,
}

#: How the names of what was measured begin.
MEASURED = "measured "

#: A link with its text.
LINK = re.compile(r"\[([^\[\]]+)\]\(([^()\s]+)\)")

COMMENT = re.compile(r"^<!-- generated: (.+?) -->$", re.MULTILINE)

#: Such a comment, with what is committed below it, if anything is.
SECTION = re.compile(
    r"^<!-- generated: (.+?) -->$(?:(?:(?!^<!-- generated: ).)*?^<!-- end of \1 -->$)?", re.MULTILINE | re.DOTALL
)


def end_of(name: str) -> str:
    """Return the comment that ends what is generated under a name."""
    return f"<!-- end of {name} -->"


def collapsed(text: str) -> str:
    """Return a page without what is generated: what people have written."""
    return SECTION.sub(lambda section: f"<!-- generated: {section[1]} -->", text)


def expand(text: str) -> str:
    """Return a page with everything in it that is generated; `KeyError` for a name that makes nothing."""
    return SECTION.sub(lambda section: piece(section[1]), text)


def piece(name: str) -> str:
    """Return what one name makes; `api NAMES` makes the entries of these names of `lockstep`."""
    if name in PIECES:
        return PIECES[name]()
    if name.startswith(MEASURED):
        return measured.Report().piece(name.removeprefix(MEASURED))
    kind, _, names = name.partition(" of ")
    if kind == "api":
        return public_api.api(names)
    raise KeyError(f"{name!r} makes nothing: expected one of {', '.join(PIECES)}, or `api of NAMES`")


def without_folder_links(text: str, folder: Path) -> str:
    """Return a page of `folder` with plain text in place of links to folders, which GitHub lists and a site cannot."""
    return LINK.sub(lambda link: link[1] if (folder / link[2]).is_dir() else link[0], text)
