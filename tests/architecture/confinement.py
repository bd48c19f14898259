"""What belongs in one file only, or in none: sockets, clocks, the environment, randomness."""

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch

from tests.architecture.source import Source, Violation, is_within

#: Modules outside the tree that a few files alone may import.
CONFINED = {
    "zmq": ("lockstep.common.transport.zeromq.*", "lockstep.common.transport.auth.curve"),
    "msgpack": ("lockstep.common.protocol.codec",),
    "ray": ("lockstep.launch.remote.ray_*",),
    "sklearn": ("lockstep.sklearn.estimators",),
    "torch": ("lockstep.common.model.pytorch.*",),
    "time": ("lockstep.common.runtime.clock",),
    "datetime": ("lockstep.common.runtime.clock",),
    "random": ("lockstep.common.numerics.random",),
    "numpy.random": ("lockstep.common.numerics.random",),
    "importlib.util": ("lockstep.common.model.source",),
    "importlib.machinery": ("lockstep.common.model.source",),
    "runpy": ("lockstep.common.model.source",),
}

#: A script that runs alone under a Python which has torch and not us: it cannot import what confines a module.
ALONE = "lockstep.bench.torch_baseline"

#: The same for what is used rather than imported: attributes and builtins.
CONFINED_USES = {
    "os.environ": "lockstep.common.runtime.environment",
    "os.environb": "lockstep.common.runtime.environment",
    "os.getenv": "lockstep.common.runtime.environment",
    "os.getenvb": "lockstep.common.runtime.environment",
    "os.putenv": "lockstep.common.runtime.environment",
    "os.unsetenv": "lockstep.common.runtime.environment",
}

#: What takes the address of an array, as an attribute of anything or by its name; and the only module that may, because
#: it keeps the array until the address was used.
ADDRESSES = (
    "__array_interface__", "__array_struct__", "_as_parameter_", "ctypes", "data_as", "addressof", "byref",
    "byte_bounds", "from_address", "from_buffer",
)  # fmt: skip
KEEPS_ARRAYS = "lockstep.common.numerics.kernels.calls"

#: What follows addresses, or takes them in another way; and what does so elsewhere, with no array: the words of the
#: command of this process.
ADDRESS_FUNCTIONS = (
    *(f"ctypes.{name}" for name in (*ADDRESSES, "cast", "memmove", "memset", "pointer", "string_at")),
    "numpy.ctypeslib",
    "numpy.lib.array_utils.byte_bounds",
)
NAMES_PROCESS = {("lockstep.common.runtime.environment", name) for name in ("ctypes.memmove", "ctypes.memset")}

#: Of numpy.random, what a type annotation may name anywhere.
RANDOM_TYPES = ("numpy.random.Generator", "numpy.random.BitGenerator")

#: State machines and the rules that they follow: these decide, and shells act.
PURE = (
    "lockstep.common.statemachine.client",
    "lockstep.common.statemachine.machine",
    "lockstep.ps.coordinator.coordinator",
    "lockstep.ps.coordinator.effects",
    "lockstep.ps.coordinator.events",
    "lockstep.ps.coordinator.failures",
    "lockstep.ps.coordinator.findings",
    "lockstep.ps.coordinator.membership",
    "lockstep.ps.coordinator.parts.audit",
    "lockstep.ps.coordinator.parts.callbacks",
    "lockstep.ps.coordinator.parts.multi_step",
    "lockstep.ps.coordinator.parts.team_lease",
    "lockstep.ps.coordinator.parts.several_servers",
    "lockstep.ps.coordinator.admission",
    "lockstep.ps.coordinator.scheduling.round_state",
    "lockstep.ps.coordinator.scheduling.lease_table",
    "lockstep.ps.coordinator.scheduling.scheduler",
    "lockstep.ps.coordinator.scheduling.stragglers",
    "lockstep.ps.coordinator.status",
    "lockstep.ps.coordinator.timer_queue",
    "lockstep.ps.coordinator.transitions",
    "lockstep.ps.records.ledger",
    "lockstep.ps.records.receipt",
    "lockstep.ps.run.plan",
    "lockstep.ps.run.plan",
    "lockstep.ps.run.progress",
    "lockstep.ps.run.progress",
    "lockstep.common.aggregation.checksum",
    "lockstep.ps.shard.shard",
    "lockstep.ps.shard.service",
    "lockstep.ps.shard_group.members",
    "lockstep.ps.shard.state",
    "lockstep.worker.state",
    "lockstep.worker.team.division",
    "lockstep.worker.team.progress",
)

#: What would make them impure.
OUTER_WORLD = (
    "asyncio",
    "lockstep.common.files.atomic",
    "lockstep.common.runtime.clock",
    "lockstep.common.runtime.environment",
    "lockstep.common.files.safetensors",
    "lockstep.common.transport",
    "multiprocessing",
    "os",
    "pathlib",
    "secrets",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "uuid",
)

#: Lines of the longest file.
LONGEST = 700


def check_imports(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find imports of what is confined to another file."""
    for source in sources.values():
        for found in source.imports:
            names = (found.module, f"{found.module}.{found.name}")
            for confined, homes in CONFINED.items():
                if not any(is_within(name, confined) for name in names):
                    continue
                if not any(fnmatch(source.module, home) for home in (*homes, ALONE)):
                    only = " and ".join(homes)
                    yield Violation(source.module, found.line, f"imports {confined}, which only {only} may")


def check_uses(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find uses of the environment and of NumPy's randomness."""
    for source in sources.values():
        for node in source.nodes:
            name = source.dotted(node)
            if name in CONFINED_USES and source.module != CONFINED_USES[name]:
                yield Violation(source.module, _line(node), f"uses {name}, which only {CONFINED_USES[name]} may")
            if _is_random(source, node, name) and source.module != "lockstep.common.numerics.random":
                text = "uses numpy.random, which only lockstep.common.numerics.random may"
                yield Violation(source.module, _line(node), text)


def check_addresses(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find what takes the address of an array elsewhere than where the array is kept."""
    for source in sources.values():
        if source.module == KEEPS_ARRAYS:
            continue
        for node in source.nodes:
            name, dotted = _attribute(node), source.dotted(node)
            is_taken = name in ADDRESSES or dotted in ADDRESS_FUNCTIONS
            if is_taken and (source.module, dotted) not in NAMES_PROCESS:
                text = f"takes an address by {name or dotted}, which only {KEEPS_ARRAYS} may"
                yield Violation(source.module, _line(node), text)


def _attribute(node: ast.AST) -> str:
    """Return the attribute that a node names, also in a text, as for `getattr`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != "ctypes":
        return node.value
    return node.attr if isinstance(node, ast.Attribute) else ""


def _is_random(source: Source, node: ast.AST, name: str) -> bool:
    """Tell whether the node, of that dotted name, calls a part of numpy.random or names one that is not a type."""
    if isinstance(node, ast.Call):
        return source.dotted(node.func) in RANDOM_TYPES
    return name.startswith("numpy.random.") and name not in RANDOM_TYPES


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", 1)


def check_purity(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find imports of the outer world by what has to be pure."""
    for source in sources.values():
        if source.module not in PURE:
            continue
        for found in source.imports:
            for outer in OUTER_WORLD:
                if is_within(found.module, outer) or f"{found.module}.{found.name}" == outer:
                    yield Violation(source.module, found.line, f"imports {outer}, and has to be pure")
        for node in source.nodes:
            if isinstance(node, ast.Call) and source.dotted(node.func) in ("open", "print", "input"):
                yield Violation(source.module, node.lineno, f"calls {source.dotted(node.func)}, and has to be pure")


def check_length(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find files that are too long."""
    for source in sources.values():
        lines = len(source.text.splitlines())
        if lines > LONGEST:
            yield Violation(source.module, lines, f"has {lines} lines, above {LONGEST}: split it by concept")
