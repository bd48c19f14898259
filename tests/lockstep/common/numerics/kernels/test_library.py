"""The kernels are loaded if they compute what the contract demands, on every target, also of emulated processors."""

import math
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.errors import NumericsError
from lockstep.common.numerics.kernel_leaves import KERNELS, OPERATIONS
from lockstep.common.numerics.kernels.calls import Calls, Pinned, Written, shows_running
from lockstep.common.numerics.kernels.compilation import BASELINES, compile_command, compile_libraries
from lockstep.common.numerics.kernels.library import (
    AVX2,
    AVX512,
    DIGEST,
    NEON,
    PLAIN,
    SELF_TEST,
    SIGNATURES,
    SOURCE,
    A,
    F,
    Library,
    N,
    Target,
    check,
    check_libraries,
    library_path,
    load,
    sources,
    targets_of,
    this_machine,
)
from lockstep.common.numerics.leaves import exp
from lockstep.common.numerics.operands import GATES, Mean, Window
from lockstep.common.runtime.environment import child_environment, kernels_target

#: Of the targets of this machine, the one that most processors support.
COMMON = (*targets_of(this_machine()), PLAIN)[-2:][0]

#: What C calls the types that functions return.
C_NAMES = {None: "void", N: "int64_t", DIGEST: "uint64_t"}

#: Lets a compiler change what is computed, as little as any flag does: -ffast-math includes it.
BREAKING = "-ffp-contract=fast"


def test_what_is_installed_passes_its_self_test(compiler: tuple[str, ...]) -> None:
    targets = targets_of(this_machine())
    check_libraries(targets)
    assert load().target in {target.name for target in targets}
    assert load() is load()


def test_plain_c_passes_the_same_self_test(plain: Library) -> None:
    check(plain)


def test_a_compiler_that_changes_operations_fails_the_self_test(compiler: tuple[str, ...], tmp_path: Path) -> None:
    # With fewer optimizations, which take most of the time.
    flags = (BREAKING, "-O1", "-fexpensive-optimizations")
    compile_libraries({library_path(COMMON, tmp_path): COMMON}, compiler, flags)
    text = r"self-test of the kernels failed: \w+ of .* ha\w+ the digest \w{16}, expected \w{16}, .*: install Lockstep"
    with pytest.raises(NumericsError, match=text) as raised:
        load(COMMON.name, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_call_keeps_subnormal_numbers_whatever_another_library_has_set(
    compiler: tuple[str, ...], tmp_path: Path
) -> None:
    # What is linked with -ffast-math drops subnormal numbers in all code of a process, whatever else is in it.
    (tmp_path / "nothing.c").write_text("int nothing;\n")
    path = tmp_path / "nothing.so"
    subprocess.run([*compiler, "-shared", "-fPIC", "-ffast-math", str(tmp_path / "nothing.c"), "-o", path], check=True)
    program = f"""
        import ctypes
        import numpy as np
        from lockstep.common.numerics.leaves import exp
        before = exp(np.full(3, -90.0, np.float32)).tobytes()
        ctypes.CDLL({str(path)!r})
        print(before.hex() == exp(np.full(3, -90.0, np.float32)).tobytes().hex(), before.hex() != bytes(12).hex())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True True\n"


def test_kernels_show_that_a_thread_runs_only_where_it_wants_that() -> None:
    shown, values = np.zeros(2), np.full(3, 0.5, np.float32)
    other = threading.Thread(target=exp, args=(values,))
    with shows_running(shown):
        other.start()
        other.join()
        assert shown.tolist() == [0.0, 0.0]
        exp(values)
        first = float(shown[0])
        exp(values)
    last = float(shown[0])
    exp(values)
    assert 0.0 < first < last == shown[0]
    assert shown[1] == 0.0


def test_the_types_of_arguments_are_those_of_the_sources() -> None:
    pattern = re.compile(r"^EXPORT (\w+) (ls_\w+)\(([^)]*)\)", re.MULTILINE)
    declared = {
        name: (returned, taken) for path in sources() for returned, name, taken in pattern.findall(path.read_text())
    }
    assert set(declared) == set(SIGNATURES)
    for name, (returned, taken) in SIGNATURES.items():
        in_c = declared[name][1].removeprefix("void").split(",")
        types = {"*": A, "int64_t": N, "float": F}
        kinds = [next(kind for key, kind in types.items() if key in word) for word in in_c if word]
        assert (declared[name][0], kinds) == (C_NAMES[returned], list(taken)), name


def test_a_target_can_be_chosen(plain: Library) -> None:
    assert kernels_target({"LOCKSTEP_KERNELS": "avx2"}) == "avx2"
    assert kernels_target({}) == ""
    assert load("plain", plain.path.parent).target == "plain"
    with pytest.raises(
        NumericsError, match=r"'sse' is not a target of the kernels .*: expected one of avx512, avx2, ne"
    ):
        load("sse")


def test_a_process_has_the_target_of_its_environment(compiler: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "lockstep.common.numerics.kernels.library"]
    environment = {**child_environment(), "LOCKSTEP_KERNELS": COMMON.name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"kernels for {COMMON.name}, self-test passed: \w{{16}}\n", done.stdout)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        NumericsError, match=f"no kernels for plain are installed in {re.escape(str(tmp_path))}: install"
    ):
        load("plain", tmp_path)


def test_a_library_of_other_sources_is_not_loaded(tmp_path: Path) -> None:
    library_path(PLAIN, tmp_path).write_bytes(b"from other sources")
    with pytest.raises(NumericsError, match="compiled from other sources or with other flags: run `python -m lockstep"):
        load("plain", tmp_path)


def test_loading_needs_no_numpy() -> None:
    program = "import sys; from lockstep.common.numerics.kernels import library; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# On other processors, by an emulator.


def emulated(folder: Path, target: Target, compiler: str, *emulator: str) -> str:
    """Run a program that prints the digests of the self-test, and return what it prints."""
    for command in (compiler, emulator[0]):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    parts = [f'printf("{part} %016llx\\n", (unsigned long long)ls_check_{part}());' for part in SELF_TEST]
    declared = "".join(f"uint64_t ls_check_{part}(void);\n" for part in SELF_TEST)
    body = "\n".join(['if (!ls_supported()) return puts("not supported"), 0;', *parts, "return 0;"])
    main, program = folder / "main.c", folder / "program"
    includes = "#include <stdint.h>\n#include <stdio.h>\nint64_t ls_supported(void);\n"
    main.write_text(f"{includes}{declared}int main(void) {{\n{body}\n}}\n", encoding="ascii")
    machine = BASELINES[target.machines[0]][0]
    words = compile_command(target, program, (compiler, *machine), ("-static", str(main)))
    subprocess.run([word for word in words if word != "-shared"], check=True, cwd=SOURCE)
    return subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=True).stdout


X86, ARM = "qemu-x86_64-static", "qemu-aarch64-static"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "compiler", "emulator"),
    [
        (NEON, "aarch64-linux-gnu-gcc", (ARM,)),
        (NEON, "aarch64-linux-gnu-gcc", (ARM, "-cpu", "cortex-a53")),
        (AVX2, "cc", (X86, "-cpu", "Haswell")),
        (AVX2, "cc", (X86, "-cpu", "EPYC-Rome")),
    ],
)
def test_an_emulated_processor_passes_the_same_self_test(
    tmp_path: Path, target: Target, compiler: str, emulator: tuple[str, ...]
) -> None:
    expected = "".join(f"{part} {digest:016x}\n" for part, digest in SELF_TEST.items())
    assert emulated(tmp_path, target, compiler, *emulator) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("target", "processor"), [(AVX512, "Haswell"), (AVX2, "Nehalem"), (AVX512, "Nehalem")])
def test_an_older_processor_is_asked_and_does_not_crash(tmp_path: Path, target: Target, processor: str) -> None:
    assert emulated(tmp_path, target, "cc", X86, "-cpu", processor) == "not supported\n"


Floats = NDArray[np.float32]


def _drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


#: A leaf, shapes of its operands, that of the result, and options.
_Call = tuple[str, list[tuple[int, ...]], tuple[int, ...], tuple[Any, ...]]


def _of_vectors(name: str, count: int) -> _Call:
    return name, [(203,)] * count, (203,), ()


_CONVOLVED = ((Window(7, 3, 2, 1), Window(6, 2, 2, 1, 2)), 2)
_POOLS = [(Window(6, 2, 2), Window(8, 2, 2)), (Window(6, 3, 2, 1), Window(8, 3, 1, 1))]
#: Of widths that are multiples of no vector's.
_CALLS: list[_Call] = [
    ("product", [(23, 600), (600, 75)], (23, 75), ()),
    ("product", [(23, 2100), (2100, 75), (23,)], (23, 75), ()),
    ("product", [(3, 7, 9), (3, 9, 5)], (3, 7, 5), ()),
    ("product", [(7, 600), (5, 600, 3), (7,)], (5, 7, 3), ()),
    ("product_sum", [(7, 13, 300), (7, 300, 53)], (13, 53), (False,)),
    ("sum", [(5, 77, 37)], (5, 37), ((1,), False)),
    ("sum", [(5, 77)], (5,), ((1,), False)),
    *[_of_vectors(name, 1) for name in ("exp", "log", "log1p", "tanh", "sigmoid", "erf", "relu")],
    *[_of_vectors(name, 2) for name in ("power", "relu_gradient")],
    ("convolution", [(4, 9, 8, 5), (6, 2, 3, 2), (6,)], (6, 4, 3, 5), _CONVOLVED),
    ("convolution_to_input", [(6, 4, 3, 5), (6, 2, 3, 2)], (4, 7, 6, 5), _CONVOLVED),
    ("convolution_to_kernels", [(6, 4, 3, 5), (4, 9, 8, 5)], (6, 2, 3, 2), _CONVOLVED),
    ("max_pool", [(2, 6, 8, 19)], (2, 3, 4, 19), (_POOLS[0],)),
    ("max_pool", [(2, 6, 8, 19)], (2, 3, 8, 19), (_POOLS[1],)),
    ("max_pool_gradient", [(2, 3, 4, 19), (2, 6, 8, 19), (2, 3, 4, 19)], (2, 6, 8, 19), (_POOLS[0],)),
    ("max_pool_gradient", [(2, 3, 8, 19), (2, 6, 8, 19), (2, 3, 8, 19)], (2, 6, 8, 19), (_POOLS[1],)),
]


@pytest.fixture
def others(plain: Library) -> list[Library]:
    """Return what this processor can run besides; their scratch memory is not larger than that of the fastest."""
    libraries = [load(target.name) for target in targets_of(this_machine())]
    fastest = load().target
    names = [each.target for each in libraries]
    return [*libraries[names.index(fastest) + 1 :], plain]


def _check(call: Callable[[], object], again: Callable[[Library], object], out: Floats, others: list[Library]) -> None:
    out.fill(7.0)
    call()
    expected = out.tobytes()
    for library in others:
        out.fill(7.0)
        again(library)
        assert out.tobytes() == expected, library.target


@pytest.mark.parametrize(("name", "shapes", "result", "options"), _CALLS)
def test_a_call_has_the_same_bits_on_every_target(
    name: str, shapes: list[tuple[int, ...]], result: tuple[int, ...], options: tuple[Any, ...], others: list[Library]
) -> None:
    operands, out = [_drawn(*shape, seed=seed) for seed, shape in enumerate(shapes)], np.empty(result, np.float32)
    call = KERNELS[name](*operands, out, *options)
    assert isinstance(call, Calls)
    _check(call, lambda library: library.functions.ls_run(Pinned(call.rows), len(call.rows)), out, others)


_INDICES = np.array([0, 1, 4, 4, 2, 4, 0, 3, 4])


@pytest.mark.parametrize(
    ("name", "operands", "result", "options"),
    [
        ("add_rows", [_drawn(9, 33), _INDICES], (5, 33), ()),
        ("cross_entropy", [_drawn(37, 9), _INDICES], (9,), (0.1,)),
        ("cross_entropy_gradient", [_drawn(37, 9), _INDICES, _drawn(9)], (37, 9), (0.1,)),
    ],
)
def test_a_call_with_indices_has_the_same_bits_on_every_target(
    name: str, operands: list[Any], result: tuple[int, ...], options: tuple[Any, ...], others: list[Library]
) -> None:
    out = np.empty(result, np.float32)
    call = KERNELS[name](*operands, out, *options)
    if not isinstance(call, Calls):  # it checks its indices first
        row = (OPERATIONS.index(name), len(operands[1]), result[1], *operands, Written(out))
        call = Calls.of(load().functions.ls_run, [row])
    _check(call, lambda library: library.functions.ls_run(Pinned(call.rows), len(call.rows)), out, others)


@pytest.mark.parametrize(("is_reversed", "lengths"), [(False, None), (True, np.arange(41) % 7 + 1)])
@pytest.mark.parametrize("is_back", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_a_recurrent_layer_has_the_same_bits_on_every_target(
    kind: str, is_back: bool, is_reversed: bool, lengths: NDArray[np.int64] | None, others: list[Library]
) -> None:
    steps, batch, features, hidden = 7, 41, 19, 70
    rows = GATES[kind] * hidden
    state, weights, gates = (batch, hidden), [(rows, features), (rows, hidden)], (steps, batch, rows)
    kept = [gates, *((count, *state) for count in _kept_of_steps(kind, steps))]
    x, to_input, to_state, *biases = (_drawn(*each) for each in ((steps, batch, features), *weights, (rows,), (rows,)))
    filled = [(2, *state), gates, x.shape, *weights, (2, rows)] if is_back else kept
    out = np.empty(sum(map(math.prod, filled)), np.float32)
    ends = np.cumsum([math.prod(each) for each in filled])
    written = [part.reshape(shape) for part, shape in zip(np.split(out, ends[:-1]), filled, strict=True)]
    ways = [_drawn(steps, *state), *written] if is_back else biases
    values = [_drawn(*each) for each in kept] if is_back else written
    name = "recurrent_gradient" if is_back else "recurrent"
    call = KERNELS[name](x, to_input, *ways, lengths, to_state, *values, kind, is_reversed)
    assert isinstance(call, Calls)
    _check(call, lambda library: library.functions.ls_run(Pinned(call.rows), len(call.rows)), out, others)


def _kept_of_steps(kind: str, steps: int) -> tuple[int, int, int]:
    """Return how many curves, cells and states there are."""
    curves, cells = {"lstm": (steps, steps + 1), "gru": (steps, 0)}.get(kind, (0, 0))
    return curves, cells, steps + 1


@pytest.mark.parametrize("is_nesterov", [False, True])
def test_an_update_is_the_same_on_every_target(is_nesterov: bool, others: list[Library]) -> None:
    weights, old, out, new, first, second = arrays = [_drawn(101, seed=seed) for seed in range(6)]
    at = [each.ctypes.data for each in arrays]
    update = KERNELS["momentum"](weights, old, out, new, 0.9, 0.01, is_nesterov)
    _check(
        lambda: update(Mean([first, second], 37.0, 0.5), 0.1),
        lambda library: library.functions.ls_momentum(
            101, *at[:4], 0.9, 0.01, is_nesterov, *at[4:], 37.0, True, 0.5, True, 0.1
        ),
        out,
        others,
    )
