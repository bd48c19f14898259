"""What the doctor says of one mistake; knows no check."""

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One mistake. Each text is one line; `change` is what a person has to do."""

    #: What kind of mistake, in a word or two with hyphens: for programs.
    kind: str
    what: str
    evidence: str
    cause: str
    change: str

    def __str__(self) -> str:
        return f"{self.what}: {self.evidence}; {self.cause}; {self.change}"
