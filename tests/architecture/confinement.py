"""What belongs in one file only, or in none: sockets, clocks, the environment, randomness."""

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch

from tests.architecture.source import Source, Violation, is_within

#: Modules outside the tree that one file alone may import.
CONFINED = {
    "zmq": "common.transport.zeromq*",
    "msgpack": "common.codec",
    "ray": "lockstep.clusters.ray_*",
    "time": "common.clock",
    "datetime": "common.clock",
    "random": "common.randomness",
    "numpy.random": "common.randomness",
    "importlib.util": "common.nn.model_file",
    "importlib.machinery": "common.nn.model_file",
    "runpy": "common.nn.model_file",
}

#: Scripts that run alone under a Python which has the peer and not us: they cannot import what confines a module.
ALONE = "lockstep.peers.*"

#: The same for what is used rather than imported: attributes and builtins.
CONFINED_USES = {
    "os.environ": "common.environment",
    "os.environb": "common.environment",
    "os.getenv": "common.environment",
    "os.getenvb": "common.environment",
    "os.putenv": "common.environment",
    "os.unsetenv": "common.environment",
}

#: Of numpy.random, what a type annotation may name anywhere.
RANDOM_TYPES = ("numpy.random.Generator", "numpy.random.BitGenerator")

#: State machines and the rules that they follow: these decide, and shells act.
PURE = (
    "ps.admission",
    "ps.alarms",
    "ps.audit",
    "ps.coordinator",
    "ps.course",
    "ps.effects",
    "ps.events",
    "ps.leasing",
    "ps.ledger",
    "ps.mark",
    "ps.phases",
    "ps.pieces",
    "ps.plan",
    "ps.progress",
    "ps.receipt",
    "ps.reception",
    "ps.reminder",
    "ps.report",
    "ps.roster",
    "ps.round_books",
    "ps.shard",
    "ps.slots",
    "ps.timing",
    "ps.trouble",
    "worker.effects",
    "worker.events",
    "worker.state",
)

#: What would make them impure.
OUTER_WORLD = (
    "asyncio",
    "common.atomic",
    "common.clock",
    "common.environment",
    "common.safetensors",
    "common.transport",
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
LONGEST = 400


def check_imports(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find imports of what is confined to another file."""
    for source in sources.values():
        for found in source.imports:
            names = (found.module, f"{found.module}.{found.name}")
            for confined, home in CONFINED.items():
                is_home = fnmatch(source.module, home) or fnmatch(source.module, ALONE)
                if any(is_within(name, confined) for name in names) and not is_home:
                    yield Violation(source.module, found.line, f"imports {confined}, which only {home} may")


def check_uses(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find uses of the environment and of NumPy's randomness."""
    for source in sources.values():
        for node in ast.walk(source.tree):
            name = source.dotted(node)
            if name in CONFINED_USES and source.module != CONFINED_USES[name]:
                yield Violation(source.module, _line(node), f"uses {name}, which only {CONFINED_USES[name]} may")
            if _is_random(source, node) and source.module != "common.randomness":
                yield Violation(source.module, _line(node), "uses numpy.random, which only common.randomness may")


def _is_random(source: Source, node: ast.AST) -> bool:
    """Tell whether the node calls a part of numpy.random or names one that is not a type."""
    if isinstance(node, ast.Call):
        return source.dotted(node.func) in RANDOM_TYPES
    name = source.dotted(node)
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
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and source.dotted(node.func) in ("open", "print", "input"):
                yield Violation(source.module, node.lineno, f"calls {source.dotted(node.func)}, and has to be pure")


def check_length(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find files that are too long."""
    for source in sources.values():
        lines = len(source.text.splitlines())
        if lines > LONGEST:
            yield Violation(source.module, lines, f"has {lines} lines, above {LONGEST}: split it by concept")
