"""Compiles the kernels when a wheel is built or the project is installed; without a compiler there are none in it."""

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What is built is this checkout, not a package that may be installed here.
sys.path.insert(0, str(Path(__file__).parent))

from lockstep.common.numerics.kernels.compilation import COMPILER_PACKAGE, compile_here, find_compiler
from lockstep.common.numerics.kernels.library import check_libraries, library_path, targets_of, this_machine
from lockstep.common.runtime.environment import own_environment


class KernelsHook(BuildHookInterface):
    """Puts one library for each kind of processor of this platform into the wheel."""

    def dependencies(self) -> list[str]:
        """Ask for a compiler if none is installed; pip offers it to the build alone."""
        is_needed = targets_of(this_machine()) and not find_compiler(own_environment().get("CC", ""))
        return [COMPILER_PACKAGE] if is_needed else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and test what was compiled; a compiler that breaks the contract ends the installation."""
        targets = compile_here()
        if not targets:
            self.app.display_warning("no C compiler works here: Lockstep is installed without kernels")
            return
        check_libraries(targets)
        build_data["artifacts"] += [str(library_path(target).relative_to(self.root)) for target in targets]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"


def _platform() -> str:
    """Return the platform's name in a wheel's tag."""
    name = sysconfig.get_platform()
    if name.endswith("universal2"):  # a Python for two kinds of processors: the libraries are for this one
        name = f"macosx-{'11.0' if this_machine() == 'arm64' else '10.13'}-{this_machine()}"
    return name.replace("-", "_").replace(".", "_")
