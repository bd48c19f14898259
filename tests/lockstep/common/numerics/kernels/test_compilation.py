"""Which compiler compiles the kernels, and how."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lockstep.common.errors import NumericsError
from lockstep.common.numerics.kernels.compilation import (
    BASELINES,
    COMPILER_PACKAGE,
    compile_command,
    compile_libraries,
    find_compiler,
    wheel_compiler,
)
from lockstep.common.numerics.kernels.library import (
    AVX2,
    AVX512,
    NEON,
    PLAIN,
    TARGETS,
    Library,
    Target,
    is_current,
    library_path,
    targets_of,
    this_machine,
)

#: Prints the command of the compiler that a process with this environment finds.
FIND = "import json; from lockstep.common.numerics.kernels.compilation import *; print(json.dumps(find_compiler()))"


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that finds the compiler where the commands of the system are these scripts."""

    def find(**scripts: str) -> list[str]:
        for name, script in scripts.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
            path.chmod(0o755)
        # Without what is installed here, among which the wheel with a compiler may be.
        words = [sys.executable, "-S", "-c", FIND]
        environment = {"PATH": str(tmp_path), "PYTHONPATH": os.getcwd()}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        command = json.loads(done.stdout)
        assert isinstance(command, list)
        return command

    return find


def test_the_contract_holds_for_every_target() -> None:
    for target in TARGETS:
        command = compile_command(target, Path("to.so"), ("cc",))
        assert "-ffp-contract=off" in command
        assert not [flag for flag in command if "fast" in flag or "unsafe" in flag]


@pytest.mark.parametrize(
    ("machine", "targets"),
    [("x86_64", [AVX512, AVX2]), ("aarch64", [NEON]), ("arm64", [NEON]), ("riscv64", [])],
)
def test_a_machine_has_its_targets_the_fastest_first(machine: str, targets: list[Target]) -> None:
    assert targets_of(machine) == targets


def test_without_a_compiler_none_is_found(found: Callable[..., list[str]]) -> None:
    assert found() == []


def test_a_compiler_that_lacks_a_linker_or_headers_is_passed_over(
    found: Callable[..., list[str]], compiler: tuple[str, ...]
) -> None:
    real = shutil.which(compiler[0])
    # A compiler starts others, which it looks for there.
    works = f'PATH="{os.environ["PATH"]}" exec "{real}" "$@"'
    assert found(cc="exit 1", gcc=works)[0] == "gcc"
    assert found(cc=works)[0] == "cc"


def test_a_compiler_that_is_given_is_the_only_one(compiler: tuple[str, ...]) -> None:
    assert find_compiler("lockstep-has-no-such-compiler --flag") == ()
    assert find_compiler(f"{compiler[0]} -pipe")[:2] == (compiler[0], "-pipe")


@pytest.mark.skipif(this_machine() not in BASELINES, reason="no processor of this machine has a name here")
def test_a_compiler_with_other_names_for_processors_is_found(tmp_path: Path) -> None:
    refused = BASELINES[this_machine()][0]
    script = tmp_path / "zig"
    script.write_text(f'#!/bin/sh\ncase " $* " in *" {refused[0]} "*) exit 1 ;; esac\n', encoding="ascii")
    script.chmod(0o755)
    assert find_compiler(str(script)) == (str(script), *BASELINES[this_machine()][1])


@pytest.mark.parametrize(
    ("machine", "system", "libc", "kind"),
    [
        ("x86_64", "linux", "glibc", "x86_64-linux-gnu.2.17"),
        ("aarch64", "linux", "", "aarch64-linux-musl"),
        ("arm64", "darwin", "", "aarch64-macos"),
    ],
)
def test_the_wheel_with_a_compiler_compiles_for_every_processor_of_a_kind(
    machine: str, system: str, libc: str, kind: str
) -> None:
    command = wheel_compiler(machine, system, libc)
    assert command[:6] == (sys.executable, "-m", COMPILER_PACKAGE, "cc", "-target", kind)


def test_a_library_is_current_for_its_sources_and_flags(plain: Library, tmp_path: Path) -> None:
    assert not is_current(PLAIN, library_path(PLAIN, tmp_path))
    assert is_current(PLAIN, plain.path)
    assert not is_current(Target(name="plain", machines=(), flags=("-O2",)), plain.path)


def test_a_compiler_that_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    path = library_path(PLAIN, tmp_path)
    path.write_text("before")
    refuses = tmp_path / "refuses"
    refuses.write_text("#!/bin/sh\necho 'a.c:1: error: unknown flag' >&2\necho 'it ends' >&2\nexit 1\n")
    refuses.chmod(0o755)
    with pytest.raises(
        NumericsError, match=r"refuses.* cannot compile the kernels: a.c:1: error: unknown flag: choose"
    ):
        compile_libraries({path: PLAIN}, (str(refuses),))
    assert path.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == sorted([path, refuses])
