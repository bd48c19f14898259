"""Runs the peer beside us: a process for each of its memory layouts, that makes steps when it is asked to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunError, UsageError
from lockstep.bench.baseline.stepper import Answer, Stepper

#: No module beside it has a name of the standard library: a script finds those of its folder first.
SCRIPT = Path(__file__).with_name("torch_baseline.py")


@dataclass
class Baseline:
    """One peer process, or the first of a group of them."""

    layout: str
    stepper: Stepper

    @classmethod
    def start(cls, python: Path, arguments: Sequence[str], layout: str = "contiguous") -> "Baseline":
        """Start the peer under `python`; `UsageError` where there is no such program."""
        flags = ["--channels-last"] if layout == "channels-last" else []
        try:
            stepper = Stepper.start("the peer", [str(python), str(SCRIPT), *arguments, *flags])
        except OSError as error:
            raise UsageError(
                f"cannot run --peer-python {str(python)!r}: {error.strerror}: expected the Python of an environment "
                "with torch (pip install torch)"
            ) from error
        return cls(layout, stepper)

    def steps(self, count: int) -> Answer:
        """Let the peer make `count` steps while we wait; `RunError` where it has died."""
        try:
            return self.stepper.steps(count)
        except RunError as error:
            raise RunError(f"{error}; has its environment torch?") from error

    def close(self) -> None:
        """End the process."""
        self.stepper.close()


def layouts_of(model: str) -> tuple[str, ...]:
    """Return the memory layouts in which the peer is to be tried: the faster one counts."""
    return ("contiguous", "channels-last") if model in ("lenet", "cnn") else ("contiguous",)
