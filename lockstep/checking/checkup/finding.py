"""One mistake that the doctor found, and findings as lines for a terminal; knows no check."""

import textwrap
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One mistake. Each text is one line; `change` is what the user has to do."""

    #: The kind of mistake for programs, in a word or two joined by hyphens.
    kind: str
    what: str
    evidence: str
    cause: str
    change: str

    def __str__(self) -> str:
        return f"{self.what}: {self.evidence}; {self.cause}; {self.change}"


def found(name: str, /, **facts: object) -> Finding:
    """Return a finding by its name in `findings.toml`, with the facts filled in."""
    return Finding(**{key: text.format(**facts) for key, text in texts()[name].items()})


@cache
def texts() -> dict[str, dict[str, str]]:
    return tomllib.loads(resources.files(__package__).joinpath("findings.toml").read_text(encoding="utf-8"))


#: Characters per line.
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
    """Return text after a lead, with its other lines indented as far."""
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)
