"""Who may import whom: one order from top to bottom, a finer one within autograd, and no cycle anywhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from tests.architecture.source import Import, Source, Violation, is_within


@dataclass(frozen=True)
class Order:
    """Groups of modules within `scope`; each may import from later groups only, and never another of its own group."""

    scope: str
    groups: tuple[tuple[str, ...], ...]

    def place(self, module: str) -> tuple[int, str] | None:
        """Return the group's index and the unit that the module belongs to: the longest that it lies in."""
        units = [(len(unit), i, unit) for i, group in enumerate(self.groups) for unit in group]
        fitting = [found for found in units if is_within(module, found[2])]
        return max(fitting)[1:] if fitting else None

    def covers(self, module: str) -> bool:
        """Tell whether the module needs a place. The `__init__` of the scope itself does not: it is only a list."""
        return module.startswith(self.scope + ".") if self.scope else True


#: The rooms of the package: each may import from those below it.
PACKAGE_ORDER = Order(
    scope="lockstep",
    groups=(
        ("lockstep.__main__",),
        ("lockstep.cli",),
        ("lockstep.checking.verify",),
        ("lockstep.checking.recorded_run",),
        ("lockstep.checking.comparison",),
        ("lockstep.bench",),
        ("lockstep.cli.options",),
        ("lockstep.checking.doctor_connection",),
        ("lockstep.checking.doctor",),
        ("lockstep.checking.doctor_checks",),
        ("lockstep.checking.examined_job",),
        ("lockstep.sklearn",),
        ("lockstep.api", "lockstep.results.watch"),
        ("lockstep.launch",),
        ("lockstep.results.plots", "lockstep.results.summary"),
        ("lockstep.results.display",),
        ("lockstep.results.evaluation",),
        ("lockstep.packing",),
        ("lockstep.runs",),
        ("lockstep.ps", "lockstep.worker"),
        ("lockstep.common.statemachine",),
        ("lockstep.common.protocol",),
        ("lockstep.common.transport",),
        ("lockstep.common.model.source", "lockstep.common.model.initial"),
        ("lockstep.common.model.pytorch",),
        ("lockstep.common.model",),
        ("lockstep.common.job",),
        ("lockstep.common.data",),
        ("lockstep.common.aggregation",),
        ("lockstep.common.optim",),
        ("lockstep.common.nn",),
        ("lockstep.common.autograd",),
        ("lockstep.common.numerics",),
        ("lockstep.common.files", "lockstep.common.numerics.random", "lockstep.common.runtime"),
        ("lockstep.common.errors",),
    ),
)

#: Derivatives know no graph, the graph no tensor, the tensor no function of functions.
AUTOGRAD_ORDER = Order(
    scope="lockstep.common.autograd",
    groups=(
        ("lockstep.common.autograd.gradient_check",),
        ("lockstep.common.autograd.program",),
        ("lockstep.common.autograd.capture",),
        ("lockstep.common.autograd.functional",),
        ("lockstep.common.autograd.windowed",),
        ("lockstep.common.autograd.tensor",),
        ("lockstep.common.autograd.graph",),
        ("lockstep.common.autograd.tape",),
        ("lockstep.common.autograd.primitives",),
        ("lockstep.common.autograd.primitives.primitive",),
    ),
)

#: The codec makes messages of frames; what is said between servers knows what is said to workers.
PROTOCOL_ORDER = Order(
    scope="lockstep.common.protocol",
    groups=(
        ("lockstep.common.protocol.codec",),
        ("lockstep.common.protocol.shard_messages", "lockstep.common.protocol.team_memory"),
        ("lockstep.common.protocol.messages",),
        (
            "lockstep.common.protocol.fingerprint",
            "lockstep.common.protocol.run_options",
        ),
    ),
)

#: Sockets stand above the vectors in shared memory, these above what knows no medium.
TRANSPORT_ORDER = Order(
    scope="lockstep.common.transport",
    groups=(
        ("lockstep.common.transport.zeromq",),
        ("lockstep.common.transport.in_memory", "lockstep.common.transport.shared_memory"),
        ("lockstep.common.transport.auth",),
        ("lockstep.common.transport.limits",),
        ("lockstep.common.transport.port",),
        ("lockstep.common.transport.address", "lockstep.common.transport.transports"),
    ),
)


#: The rooms of the server: the shell above the state machines, these above what a run is and what it leaves.
SERVER_ORDER = Order(
    scope="lockstep.ps",
    groups=(
        ("lockstep.ps.server",),
        ("lockstep.ps.shard_group",),
        ("lockstep.ps.checkpoint",),
        ("lockstep.ps.setup",),
        ("lockstep.ps.shard",),
        ("lockstep.ps.coordinator",),
        ("lockstep.ps.records",),
        ("lockstep.ps.run",),
    ),
)

#: What a team does is decided by modules that know neither memory nor weights; above them is what carries it out, and
#: above that what knows of runs and servers.
WORKER_ORDER = Order(
    scope="lockstep.worker",
    groups=(
        ("lockstep.worker.shell", "lockstep.worker.team.helper"),
        ("lockstep.worker.session",),
        ("lockstep.worker.team.leader", "lockstep.worker.team.session"),
        ("lockstep.worker.setup", "lockstep.worker.team.member"),
        ("lockstep.worker.team.updates",),
        ("lockstep.worker.team.sums",),
        ("lockstep.worker.team.pace",),
        ("lockstep.worker.team.memory", "lockstep.worker.team.meeting"),
        ("lockstep.worker.team.progress",),
        ("lockstep.worker.team.division",),
        ("lockstep.worker.compute", "lockstep.worker.connections", "lockstep.worker.samples", "lockstep.worker.state"),
        ("lockstep.worker.local_steps",),
        ("lockstep.worker.node_sums",),
        ("lockstep.worker.batches", "lockstep.worker.gradient_sink"),
    ),
)

ORDERS = (PACKAGE_ORDER, AUTOGRAD_ORDER, PROTOCOL_ORDER, TRANSPORT_ORDER, SERVER_ORDER, WORKER_ORDER)

#: What the orders would allow and the design does not, with the one exception: the engine names no primitive.
FORBIDDEN = (
    (
        "lockstep.common.autograd.graph",
        "lockstep.common.autograd.primitives",
        "lockstep.common.autograd.primitives.primitive",
    ),
)


@dataclass(frozen=True)
class Edge:
    """One module of the tree imports another."""

    importer: str
    imported: str
    line: int


def edges_of(sources: Mapping[str, Source]) -> list[Edge]:
    """Return all imports of one module of the tree by another; `from package import module` is one of the module."""
    return [
        Edge(source.module, imported, found.line)
        for source in sources.values()
        for found in source.imports
        if (imported := _target(found, sources))
    ]


def _target(found: Import, sources: Mapping[str, Source]) -> str:
    if found.name is not None and f"{found.module}.{found.name}" in sources:
        return f"{found.module}.{found.name}"
    return found.module if found.module in sources else ""


def check_directions(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find imports against an order, and modules that have no place in it."""
    edges = edges_of(sources)
    for order in ORDERS:
        for source in sources.values():
            if order.covers(source.module) and not order.place(source.module) and source.imports:
                yield Violation(source.module, 1, "has no place in the import order: give it one")
        yield from (violation for edge in edges for violation in _against(order, edge))
    for edge in edges:
        for importer, imported, excepted in FORBIDDEN:
            if is_within(edge.importer, importer) and is_within(edge.imported, imported) and edge.imported != excepted:
                yield Violation(edge.importer, edge.line, f"must not import {edge.imported}")


def _against(order: Order, edge: Edge) -> Iterator[Violation]:
    if not (order.covers(edge.importer) and order.covers(edge.imported)):
        return
    importer, imported = order.place(edge.importer), order.place(edge.imported)
    if importer and imported and importer != imported and importer[0] >= imported[0]:
        yield Violation(edge.importer, edge.line, f"imports {edge.imported}, which is not below it")


def check_cycles(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find one cycle of imports, where there is any."""
    graph: dict[str, set[str]] = {module: set() for module in sources}
    for edge in edges_of(sources):
        graph[edge.importer].add(edge.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = error.args[1]
        yield Violation(cycle[0], 1, "import cycle: " + " <- ".join(cycle))


def check_form(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find relative imports and imports of everything."""
    for source in sources.values():
        for found in source.imports:
            if found.level:
                yield Violation(source.module, found.line, "relative import: say the whole name")
            if found.name == "*":
                yield Violation(source.module, found.line, f"imports * from {found.module}: say what")
