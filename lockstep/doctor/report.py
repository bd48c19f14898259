"""Findings for a person, in lines of a terminal's width."""

import textwrap
from collections.abc import Sequence

from lockstep.doctor.finding import Finding

#: Characters of a line.
WIDTH = 80


def findings_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings, numbered, each after an empty line."""
    lines = list[str]()
    for number, finding in enumerate(findings, 1):
        lines += ["", *wrapped(f"{number}. ", finding.what)]
        for heading in ("evidence", "cause", "change"):
            lines += wrapped(f"   {heading:<10}", getattr(finding, heading))
    return lines


def wrapped(lead: str, text: str) -> list[str]:
    """Return text behind a lead, its other lines indented as far."""
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)
