"""Compiles the kernels by whatever C compiler there is; installing Lockstep does so (hatch_build.py).

In a clone, `python -m lockstep.common.numerics.kernels.compilation` does it again after a change of a source.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lockstep.common.errors import NumericsError
from lockstep.common.numerics.kernels.library import (
    FLAGS,
    LINKED,
    Target,
    is_current,
    library_path,
    sources,
    sources_digest,
    targets_of,
    this_machine,
)
from lockstep.common.runtime.environment import own_environment

#: The oldest processors of a kind of machine, first as GCC and clang call them, then as zig does: a compiler may have
#: been built to assume newer ones.
BASELINES = {"x86_64": (("-march=x86-64",), ("-march=x86_64",)), "aarch64": (("-march=armv8-a",), ("-mcpu=generic",))}

#: A wheel that contains clang, for machines without a compiler.
COMPILER_PACKAGE = "ziglang"

#: All that a compiler needs apart from itself: headers and a linker.
SMALLEST = "#include <math.h>\n#include <string.h>\nint one(void) { return 1; }\n"


def find_compiler(given: str = "") -> tuple[str, ...]:
    """Return the command of a compiler that works, for all processors of this machine; empty if none works.

    It is the given one, or a compiler of the system, or the one in the wheel `ziglang`.
    """
    named = [shlex.split(given)] if given else [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]
    baselines: Sequence[tuple[str, ...]] = BASELINES.get(this_machine(), ((),))
    commands = [(*command, *baseline) for command in named for baseline in baselines]
    if not given:
        commands.append(wheel_compiler(this_machine(), sys.platform, platform.libc_ver()[0]))
    return next(filter(_works, commands), ())


def wheel_compiler(machine: str, system: str, libc: str) -> tuple[str, ...]:
    """Return the command of the compiler in the wheel. It compiles for the processor that it runs on if it is not told
    for which kind, and for glibc as of 2012.
    """
    processor = {"arm64": "aarch64"}.get(machine, machine)
    kind = "macos" if system == "darwin" else "linux-gnu.2.17" if libc == "glibc" else "linux-musl"
    return (sys.executable, "-m", COMPILER_PACKAGE, "cc", "-target", f"{processor}-{kind}", "-s")


def _works(command: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory(prefix="lockstep-compiler-") as folder:
        source = Path(folder, "smallest.c")
        source.write_text(SMALLEST, encoding="ascii")
        words = [*command, "-shared", "-fPIC", str(source), "-o", str(source.with_suffix(".so"))]
        try:
            return subprocess.run(words, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def compile_command(target: Target, to: Path, compiler: Sequence[str], extra: Iterable[str] = ()) -> list[str]:
    """Return the command that compiles a library; `extra` flags override the others."""
    digest = f'-DLOCKSTEP_SOURCES="{sources_digest(target)}"'
    return [*compiler, *FLAGS, *target.flags, digest, *extra, *map(str, sources()), "-o", str(to), *LINKED]


def compile_libraries(targets: Mapping[Path, Target], compiler: Sequence[str], extra: Iterable[str] = ()) -> None:
    """Compile libraries at the same time, each into its file; `NumericsError` if the compiler refuses.

    A process that has loaded the previous file keeps that.
    """
    new = {to: to.with_name(f".{os.getpid()}-{to.name}") for to in targets}
    commands = [compile_command(target, new[to], compiler, extra) for to, target in targets.items()]
    started = [
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for words in commands
    ]
    printed = [process.communicate()[1] for process in started]
    failed = [said for process, said in zip(started, printed, strict=True) if process.returncode]
    for to in targets:
        if failed:
            new[to].unlink(missing_ok=True)
        else:
            os.replace(new[to], to)
    if failed:
        raise NumericsError(
            f"{shlex.join(compiler)!r} cannot compile the kernels: {_reason(failed[0])}: choose another compiler, as "
            "in CC=clang"
        )


def _reason(said: str) -> str:
    """Return the first error in what a compiler printed."""
    lines = said.strip().splitlines() or ["it printed nothing"]
    return next((line for line in lines if "error" in line), lines[-1])


def compile_here() -> list[Target]:
    """Compile outdated libraries for this machine, next to the sources; return the targets that there are then.

    These are none without a compiler. A compiler that the variable CC names compiles current ones as well.
    """
    given = own_environment().get("CC", "")
    targets = {library_path(target): target for target in targets_of(this_machine())}
    old = {path: target for path, target in targets.items() if given or not is_current(target, path)}
    if old:
        compiler = find_compiler(given)
        if not compiler:
            return []
        compile_libraries(old, compiler)
    return list(targets.values())


if __name__ == "__main__":
    made = compile_here()
    print("compiled for " + ", ".join(target.name for target in made) if made else "error: no C compiler works here")
    sys.exit(not made and bool(targets_of(this_machine())))
