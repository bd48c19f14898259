"""Runs the blocks of a page as a reader would paste them: in order, in a clone of the checkout with .venv activated."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.architecture.source import PACKAGES, ROOT
from tests.docs.pages import DIGEST, EPOCH, Block, Page

#: Seconds for the end of a block in the background that was interrupted.
END_S = 60.0

#: What a reader's shell does not have: settings of the suite, and of whoever runs it.
NOT_INHERITED = ("PYTHONPATH", "LOCKSTEP_PICTURE", "VIRTUAL_ENV", "PYTHONHOME")

#: Exit codes of a command that was interrupted.
INTERRUPTED = (0, 130, -signal.SIGINT)


class BlockError(AssertionError):
    """A block did not do what the page says."""


def run_page(page: Page, folder: Path) -> None:
    """Run the blocks of a page in a clone that is made in `folder`; `BlockError` names the first that fails."""
    clone = make_clone(folder / "lockstep")
    reader = Reader(clone, folder, _environment(clone, folder))
    try:
        for block in page.blocks:
            if block.is_run:
                reader.run(block)
    finally:
        reader.leave()
    reader.check_background()


def make_clone(clone: Path) -> Path:
    """Make what `git clone` and the installation would leave; the packages are those of this checkout."""
    clone.mkdir()
    for name in (*PACKAGES, "tests"):
        (clone / name).symlink_to(ROOT / name)
    for name in ("examples", "notebooks", "scripts", "deploy"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, clone)
    _make_environment(clone)
    return clone


def _make_environment(clone: Path) -> None:
    """Make a .venv with the packages of the environment that runs this, in which `lockstep` is the clone's."""
    venv = clone / ".venv"
    site = venv / Path(sysconfig.get_path("purelib", vars={"base": ""}).lstrip("/"))
    site.mkdir(parents=True)
    site.joinpath("clone.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    python = venv / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(os.path.realpath(sys.executable))
    venv.joinpath("pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
    command = venv / "bin" / "lockstep"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} -P -m lockstep "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    # The scripts take it for one that they have brought up to date.
    said = subprocess.run(
        ["bash", "-c", 'source "$1" && fingerprint', "bash", str(clone / "scripts" / "environment")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for stamp in ("installed-train", "installed-data", "installed-dev"):
        (venv / stamp).write_text(said.stdout, encoding="utf-8")


def _environment(clone: Path, folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {
        **inherited,
        "PATH": f"{clone / '.venv' / 'bin'}{os.pathsep}{inherited['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
        # Its cache of fonts takes seconds to make, and is the same for all pages.
        "MPLCONFIGDIR": str(Path(tempfile.gettempdir()) / "lockstep-docs-matplotlib"),
    }


@dataclass
class Reader:
    """Somebody who pastes the blocks of a page."""

    clone: Path
    folder: Path
    environment: dict[str, str]
    _python: "PythonSession | None" = field(default=None, init=False)
    _background: "list[tuple[Block, subprocess.Popen[bytes], Path]]" = field(default_factory=list, init=False)

    def run(self, block: Block) -> None:
        """Run one block, or write its file."""
        if "file" in block.markers:
            path = self.clone / block.markers["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            if self._python is None:
                self._python = PythonSession(self.clone, self.folder, self.environment)
            check_output(block, self._python.run(block))
        else:
            self._run_commands(block)

    def _run_commands(self, block: Block) -> None:
        said = self.folder / f"output-{block.line}"
        with said.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-eo", "pipefail", "-c", block.text],
                cwd=self.clone,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if "background" in block.markers:
            self._background.append((block, process, said))
            return
        expected = int(block.markers.get("exit code", "0"))
        try:
            code = process.wait()
        finally:
            _end(process)
        text = said.read_text(encoding="utf-8", errors="replace")
        if code != expected:
            raise BlockError(f"{block.place}: exit code {code}, expected {expected}:\n{block.text}\n{text}")
        check_output(block, text)

    def leave(self) -> None:
        """End what still runs."""
        if self._python is not None:
            self._python.close()
        for _, process, _ in self._background:
            if process.poll() is None:
                _end(process, signal.SIGINT)

    def check_background(self) -> None:
        """Look at what ran in the background; `BlockError` if one failed."""
        for block, process, said in self._background:
            text = said.read_text(encoding="utf-8", errors="replace")
            if process.returncode not in INTERRUPTED:
                raise BlockError(f"{block.place}: exit code {process.returncode}:\n{block.text}\n{text}")
            check_output(block, text)


def _end(process: "subprocess.Popen[bytes]", number: int = signal.SIGKILL) -> None:
    """Signal all processes of a block, and wait for the first of them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class PythonSession:
    """The process that runs the Python blocks of one page."""

    def __init__(self, clone: Path, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._said = folder, folder / "python-output"
        reads, writes = os.pipe()
        try:
            with self._said.open("wb") as output:
                self._process = subprocess.Popen(
                    # Descriptor 3, whatever number the pipe has here.
                    ["bash", "-c", f'exec "$@" 3>&{writes} {writes}>&-', "bash", *self._command(clone)],
                    cwd=clone,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[writes],
                    start_new_session=True,
                    text=True,
                )
        finally:
            os.close(writes)
        self._answers = os.fdopen(reads, encoding="utf-8")

    def _command(self, clone: Path) -> list[str]:
        return [str(clone / ".venv" / "bin" / "python"), str(ROOT / "tests" / "docs" / "session.py")]

    def run(self, block: Block) -> str:
        """Run one block and return what it printed; `BlockError` with the traceback if it raised."""
        path = self._folder / f"block_{block.line}.py"
        path.write_text(block.text, encoding="utf-8")
        start = self._said.stat().st_size
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._answers.readline()
        with self._said.open("rb") as said:
            said.seek(start)
            text = said.read().decode(errors="replace")
        if answer != "\n":
            fault = json.loads(answer) if answer else "the process ended"
            raise BlockError(f"{block.place}:\n{fault}\n{text}")
        return text

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._answers.close()
        _end(self._process)  # type: ignore[arg-type]  # of text, which makes no difference here


#: What may differ from run to run and from machine to machine: numbers, parts of digests, times.
VARIABLE = re.compile(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{6,}\b|[-+]?[0-9](?:[0-9.,:]*[0-9])?(?:e[-+]?[0-9]+)?")


def pattern_of(line: str) -> str:
    """Return what is the same in each run of a line of output: its words, with `#` for each number and digest."""
    return " ".join(VARIABLE.sub("#", line).split())


def check_output(block: Block, said: str) -> None:
    """Find each line that the page shows in what was printed; `BlockError` names one that is not.

    Numbers may differ; a whole digest may not, since it is the promise, and neither may the figures of an epoch.

    `…` alone on a line stands for lines left out, at its end for the rest of the line.
    """
    printed = {pattern_of(line) for line in re.split(r"[\r\n]", said)}
    for line in (block.output or "").splitlines():
        shown = pattern_of(line)
        if shown in ("", "…", "..."):
            continue
        if any(digest not in said for digest in DIGEST.findall(line)):
            raise BlockError(f"{block.place}: the page shows another digest:\n{line}\nprinted was:\n{said}")
        if any(figures not in said for figures in EPOCH.findall(line)):
            raise BlockError(f"{block.place}: the page shows other figures:\n{line}\nprinted was:\n{said}")
        start = shown.removesuffix("…").removesuffix("...").rstrip()
        if shown not in printed and not (start != shown and any(found.startswith(start) for found in printed)):
            raise BlockError(
                f"{block.place}: the page shows a line that was not printed:\n{line}\nprinted was:\n{said}"
            )
