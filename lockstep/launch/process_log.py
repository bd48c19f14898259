"""What a process that we started has said, as a file that grows: its news, and its last words."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from common.runtime.clock import wall_time

#: How the names of logs end.
LOG = ".log"

#: What `lockstep` prints before the text of an error, at the start of a line.
ERROR_MARK = "error: "

#: Most lines of a log that are shown where it holds no error of ours.
TAIL_LINES = 20


@dataclass
class ProcessLog:
    """One process's part of a log file; before it are the words of those whose place it took."""

    path: Path
    #: Bytes before its part.
    begin: int = 0
    #: Bytes of the file that `news` has returned, or that were there before.
    told_bytes: int = 0

    @classmethod
    def at_end_of(cls, path: Path) -> "ProcessLog":
        """Return the log of a process that is about to write; the file is made where there is none."""
        with path.open("ab") as file:
            end = file.tell()
        return cls(path, end, end)

    def add(self, words: bytes) -> None:
        """Write what a process has said elsewhere."""
        with self.path.open("ab") as file:
            file.write(words)

    def last_error(self) -> str:
        """Return the text of the last error of ours, with all its lines; empty where there is none."""
        _, mark, words = ("\n" + self._text()).rpartition("\n" + ERROR_MARK)
        return words.strip() if mark else ""

    def last_words(self) -> str:
        """Return the last error, or else the traceback, or else the last lines."""
        text = self._text()
        traceback = text.rfind("Traceback (most recent call last)")
        tail = text[traceback:] if traceback >= 0 else "\n".join(text.splitlines()[-TAIL_LINES:])
        return self.last_error() or tail.strip()

    def news(self) -> list[str]:
        """Return the lines that came since the last call, but for one that has no end yet."""
        with self.path.open("rb") as file:
            file.seek(self.told_bytes)
            whole, end, _ = file.read().rpartition(b"\n")
        self.told_bytes += len(whole) + len(end)
        return whole.decode(errors="replace").splitlines()

    def _text(self) -> str:
        return self.path.read_bytes()[self.begin :].decode("utf-8", "replace")


def keep_logs(folder: Path, run: Path) -> None:
    """Move the logs in a folder into a run's, where they are added to those of the run's earlier parts."""
    for log in sorted(folder.glob(f"*{LOG}")):
        target = run / log.name
        has_earlier = target.exists() and target.stat().st_size > 0
        with target.open("ab") as file, log.open("rb") as words:
            if has_earlier:
                file.write(f"--- the run was gone on with, until {wall_time()} ---\n".encode())
            shutil.copyfileobj(words, file)
        log.unlink()
