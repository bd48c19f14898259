"""The settings that decide the bits of PyTorch: threads, deterministic algorithms, generators, and its build."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import msgspec
import torch
import torch.utils.deterministic

from lockstep.common.model.port import DrawKey
from lockstep.common.numerics.kernels.calls import LINE_BYTES
from lockstep.common.numerics.random import Purpose, Seeds
from lockstep.common.runtime.lent_process import lend

#: Seeds the draws of an evaluation: a model that draws in evaluation mode still has one result.
EVALUATION_SEED = 0

#: Those of micro-batches. PyTorch has one generator for each process, and so there is one of these.
_SEEDS = Seeds(Purpose.DROPOUT)


class Settings(msgspec.Struct, frozen=True):
    """The settings with which a process computes, and the state of its generator."""

    threads: int
    #: PyTorch's number for what it does about operations that it calls nondeterministic.
    debug_mode: int
    fills_new_memory: bool
    generator: Any

    @classmethod
    def now(cls) -> Self:
        """Return what they are."""
        return cls(
            torch.get_num_threads(),
            torch.get_deterministic_debug_mode(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.default_generator.get_state(),
        )

    def restore(self) -> None:
        """Let this process have them again."""
        torch.set_num_threads(self.threads)
        torch.set_deterministic_debug_mode(self.debug_mode)
        fill_new_memory(self.fills_new_memory)
        torch.default_generator.set_state(self.generator)


def make_repeatable() -> None:
    """Let this process compute with one thread, and only what PyTorch calls deterministic (rule R4).

    In a process that is not ours, until the end of `lent_process.computing`.
    """
    use_one_thread()
    # As `use_deterministic_algorithms(True)`, which also loads the compiler: that takes a second, and makes a folder.
    torch.set_deterministic_debug_mode("error")
    # Otherwise each new tensor would be filled with NaN first, those of PyTorch's own kernels included. `evidence`
    # does that once, and finds a model that reads what it has not written.
    fill_new_memory(False)


def use_one_thread() -> None:
    """Let this process compute with one thread, as long as `make_repeatable` does."""
    lend("PyTorch", lambda: Settings.now().restore)
    torch.set_num_threads(1)


def fill_new_memory(is_filled: bool) -> None:
    """Fill new tensors with NaN, or leave them as they are."""
    torch.utils.deterministic.fill_uninitialized_memory = is_filled


def placed(tensor: Any) -> Any:
    """Return a tensor if it begins at a line of the cache, as all that PyTorch makes do, else a copy that does.

    Kernels of oneDNN may have other bits at another alignment, which of NumPy's arrays differs from process to process.
    """
    return tensor.clone() if tensor.layout == torch.strided and tensor.data_ptr() % LINE_BYTES else tensor


def seed_draws(key: DrawKey | None) -> None:
    """Let all that PyTorch draws follow from the place in the run (rule R2), or from nothing in an evaluation."""
    seed = EVALUATION_SEED
    if key is not None:
        at, m = key.step, key.micro_batch
        seed = _SEEDS.at(key.seed, at=at, micro_batch=m)
    torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the context, draw what follows from the seed; afterwards, what would have been drawn without it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build_name() -> str:
    """Return PyTorch's version and the instructions that it uses of this processor."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
