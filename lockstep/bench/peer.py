"""Runs the peer beside us: a process for each of its memory layouts, that makes steps when it is asked to."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec

from common.environment import child_environment
from common.errors import RunError, UsageError

#: In a folder of its own: a script's folder is searched for modules first, and ours have names of the standard library.
SCRIPT = Path(__file__).parent.parent / "peers" / "torch_step.py"


class PeerAnswer(msgspec.Struct, frozen=True):
    """What the peer says of the steps that it made."""

    version: str
    seconds: list[float]
    peak_rss_bytes: int


@dataclass
class Peer:
    """One peer process."""

    layout: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, python: Path, model: str, batch: int, layout: str) -> "Peer":
        """Start the peer under `python`; `UsageError` where there is no such program."""
        flags = ["--channels-last"] if layout == "channels-last" else []
        command = [str(python), str(SCRIPT), model, str(batch), *flags]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
            )
        except OSError as error:
            raise UsageError(
                f"cannot run --peer-python {str(python)!r}: {error.strerror}: expected the Python of an environment "
                "with torch (pip install torch)"
            ) from error
        return cls(layout, process)

    def steps(self, count: int) -> PeerAnswer:
        """Let the peer make `count` steps while we wait; `RunError` where it has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(count, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunError(f"the peer died with exit code {self.process.wait()}: has its environment torch?")
        return msgspec.json.decode(line, type=PeerAnswer)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def layouts_of(model: str) -> tuple[str, ...]:
    """Return the memory layouts in which the peer is to be tried: the faster one counts."""
    return ("contiguous", "channels-last") if model in ("lenet", "cnn") else ("contiguous",)
