"""What is installed only where somebody wants it."""

import importlib.metadata

from common.errors import UsageError


def demand(distribution: str, extra: str, what: str) -> None:
    """Raise `UsageError` where a distribution is not installed that `what` needs: it says how to get it."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"{what} needs {distribution}, which is not installed: pip install 'lockstep[{extra}]'"
        ) from None
