"""The arguments of PyTorch that Lockstep refuses: from the list that the conformance suite knows."""

from docs.generators.tables import table
from tests.conformance.reasons import rows


def differences() -> str:
    """Return what is refused, and what to use instead."""
    return table(("PyTorch", "Lockstep"), [list(row) for row in rows()])
