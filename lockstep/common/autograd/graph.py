"""The graph of a computation, and the backward pass over it. Names no primitive and does not know `Tensor`."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import count
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lockstep.common.autograd.primitives.primitive import RESULT, Array, Primitive
from lockstep.common.numerics import leaves

_T = TypeVar("_T")

#: Context variables and not globals: each thread and each asynchronous task has its own.
recording: ContextVar[bool] = ContextVar("recording", default=True)
_digesting: ContextVar[bool] = ContextVar("digesting", default=False)

#: `(primitive, "forward" or "backward", function, *arguments, **options) -> the function's result`.
Observer = Callable[..., Any]
observing: ContextVar[Observer | None] = ContextVar("observing", default=None)

_serials = count()


class Version:
    """The number of times that the memory of an array, and of all its views, was changed in place."""

    #: Class attributes are the defaults: creating a version costs nothing until it changes.
    count = 0
    #: Whether a view of the memory was made by a primitive.
    viewed = False


def version_of(result: Array, arrays: Sequence[Any], versions: Sequence[Version | None]) -> Version:
    """Return the version of the argument whose memory `result` shares, or a new one."""
    is_view = result.base is not None
    for array, version in zip(arrays, versions, strict=True):
        if version is not None and (array is result or (is_view and np.may_share_memory(array, result))):
            version.viewed = True
            return version
    return Version()


class Leaf:
    """The end of a backward pass: the gradient of a tensor that was created and not computed."""

    __slots__ = ("buffer", "dtype", "grad", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        #: The sum of the gradients since it was last dropped. It is `buffer` if there is one.
        self.grad: Array | None = None
        #: Memory of the leaf's shape and dtype; its contents have no meaning while `grad` is None.
        self.buffer: Array | None = None

    def accumulate(self, gradient: Array) -> None:
        """Add `gradient`, of the leaf's shape and dtype; the caller may go on using its memory."""
        if self.grad is not None:
            np.add(self.grad, gradient, out=self.grad)
        elif self.buffer is None:
            self.grad = np.array(gradient)
        else:
            np.copyto(self.buffer, gradient)
            self.grad = self.buffer


class GraphNode:
    """One application of a primitive. It refers only to older nodes, so no cycle keeps an array alive."""

    __slots__ = (
        "arrays", "digests", "dtype", "options", "parents", "primitive", "saved", "serial", "shape", "watched"
    )  # fmt: skip

    def __init__(
        self, primitive: Primitive, parents: Sequence["Parent"], options: dict[str, Any], result: Array
    ) -> None:
        self.primitive = primitive
        #: One per argument; None if no gradient is wanted.
        self.parents = parents
        self.options = options
        self.shape = result.shape
        self.dtype = result.dtype
        #: Grows with time, so that descending order is a topological order of any graph.
        self.serial = next(_serials)
        #: The arguments that the derivatives read, None for the others.
        self.arrays: list[Any] | None = None
        self.saved: Any = None
        #: The versions of the memory that must not have changed, and their counts.
        self.watched: list[tuple[Version, int]] = []
        self.digests: list[int] | None = None

    def keep(self, arrays: list[Any], saved: Any, versions: Sequence[Version | None], own: Version) -> None:
        """Keep what the derivatives read. `saved` is the result, at version `own`, or what the primitive kept."""
        primitive, watched = self.primitive, self.watched
        held: list[Any] = [None] * len(arrays)
        if primitive.keeps:
            self.saved = saved
        for index in needed(primitive, self.parents):
            if index != RESULT:
                held[index] = arrays[index]
                version = versions[index]
            elif primitive.keeps:
                continue
            else:
                self.saved = saved
                version = own
            if version is not None:
                watched.append((version, version.count))
        self.arrays = held
        if _digesting.get():
            self.digests = self._digest()

    def release(self) -> None:
        """Drop everything: the node cannot be walked again."""
        self.arrays = self.saved = None
        self.watched = []

    def check(self) -> list[Any]:
        """Return the kept arguments; raise RuntimeError if they are gone or no longer what they were."""
        if self.arrays is None:
            raise RuntimeError(
                f"the graph was already released at {self.primitive.name!r}: "
                "call backward(retain_graph=True) on every walk but the last"
            )
        for version, seen in self.watched:
            if version.count != seen:
                self._raise_changed(f"it is at version {version.count}, expected {seen}")
        if self.digests is not None and self.digests != self._digest():
            self._raise_changed("its contents differ")
        return self.arrays

    def _raise_changed(self, evidence: str) -> None:
        raise RuntimeError(
            f"an array that the gradient of {self.primitive.name!r} needs, result shape {self.shape}, was changed "
            f"in place: {evidence}; compute a new tensor instead, or change a copy"
        )

    def _digest(self) -> list[int]:
        held = [*(self.arrays or ()), self.saved]
        return [zlib.crc32(each.tobytes()) for each in held if isinstance(each, np.ndarray)]


#: An argument in the graph.
Parent = GraphNode | Leaf | None


def needed(primitive: Primitive, parents: Sequence[Parent]) -> Iterable[int]:
    """Return the indices, perhaps repeated, of what the wanted derivatives read."""
    if primitive.reads is None:
        return (*range(len(parents)), RESULT)
    return [
        index for parent, reads in zip(parents, primitive.reads, strict=False) if parent is not None for index in reads
    ]


@contextmanager
def _holding(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside: a context manager, or a decorator as `@no_grad()`.

    Results that are computed inside require no gradient, and take less memory.
    """
    with _holding(recording, False):
        yield


@contextmanager
def enable_grad() -> Iterator[None]:
    """Record again inside a `no_grad`."""
    with _holding(recording, True):
        yield


@contextmanager
def detect_in_place() -> Iterator[None]:
    """Digest every kept array, so that `backward` also finds writes that bypass `Tensor`, straight into an ndarray.

    For debugging: it reads all arrays once more in each direction.
    """
    with _holding(_digesting, True):
        yield


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Let `observer` call every primitive and derivative inside: what it returns counts as their result."""
    with _holding(observing, observer):
        yield


class Applied(NamedTuple):
    """A primitive, or one of its derivatives, that was applied."""

    primitive: Primitive
    #: "forward" or "backward".
    direction: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    #: Its result: of a forward that keeps something, the result and what it keeps.
    outcome: Any

    @property
    def result(self) -> Any:
        """The result of a forward: the very array with which the engine continues."""
        return self.outcome[0] if self.primitive.keeps else self.outcome


@contextmanager
def watch(look: Callable[[Applied], object]) -> Iterator[None]:
    """Call `look` inside after each primitive and derivative, with its name, arguments and result."""

    def observer(
        primitive: Primitive, direction: str, function: Callable[..., Any], *arrays: Any, **options: Any
    ) -> Any:
        outcome = function(*arrays, **options)
        if direction == "forward":  # as the engine does, which would continue with another array otherwise
            outcome = (np.asarray(outcome[0]), outcome[1]) if primitive.keeps else np.asarray(outcome)
        look(Applied(primitive, direction, arrays, options, outcome))
        return outcome

    with observe(observer):
        yield


def record(primitive: Primitive, parents: list[Parent], options: dict[str, Any], result: Array) -> GraphNode | None:
    """Return the node of a result; None if no argument that has a derivative wants a gradient."""
    derivatives = primitive.derivatives
    if isinstance(derivatives, tuple) and None in derivatives:
        parents = [parent if derivative else None for parent, derivative in zip(parents, derivatives, strict=True)]
        if parents.count(None) == len(parents):
            return None
    return GraphNode(primitive, parents, options, result)


#: Is called with each leaf as soon as its gradient is final, while the walk back goes on.
OnFinal = Callable[[Leaf], None]


def backward(
    root: GraphNode | Leaf, gradient: Array, retain_graph: bool = True, on_final: OnFinal | None = None
) -> None:
    """Add to each leaf under `root` its gradient, given that of `root`.

    The sums are taken in one fixed order, latest use first, so that the bits depend on the graph alone. With
    `retain_graph=False` every node drops its arrays once they are used: their memory serves the rest of the pass.
    """
    if isinstance(root, Leaf):
        root.accumulate(gradient)
        if on_final is not None:
            on_final(root)
        return
    backward_over(latest_first(root), gradient, retain_graph, on_final)


def backward_over(nodes: list[GraphNode], gradient: Array, retain_graph: bool, on_final: OnFinal | None = None) -> None:
    """Walk nodes, consumers before what they consumed, given the gradient of the first; as `backward`."""
    pending: dict[GraphNode, Array] = {nodes[0]: gradient}
    owned: set[GraphNode] = set()
    uses = Counter(_leaves(nodes)) if on_final is not None else None
    for node in nodes:
        _propagate(node, pending.pop(node), pending, owned)
        owned.discard(node)
        if not retain_graph:
            node.release()
        if on_final is not None and uses is not None:
            for leaf in _leaves([node]):
                uses[leaf] -= 1
                if not uses[leaf]:
                    on_final(leaf)


def _leaves(nodes: list[GraphNode]) -> Iterator[Leaf]:
    """Yield the leaves that nodes pass gradients to, each as often as it is used."""
    return (parent for node in nodes for parent in node.parents if type(parent) is Leaf)


def latest_first(root: GraphNode) -> list[GraphNode]:
    """Return all nodes under `root`, consumers before what they consumed."""
    found = {root}
    unvisited = [root]
    while unvisited:
        for parent in unvisited.pop().parents:
            if type(parent) is GraphNode and parent not in found:
                found.add(parent)
                unvisited.append(parent)
    return sorted(found, key=attrgetter("serial"), reverse=True)


def _propagate(node: GraphNode, upstream: Array, pending: dict[GraphNode, Array], owned: set[GraphNode]) -> None:
    """Pass `upstream`, the gradient of the node's result, on to the node's parents."""
    arrays = node.check()
    primitive, saved, options = node.primitive, node.saved, node.options
    derivatives = primitive.derivatives
    observer = observing.get()
    if observer is not None:
        derivatives = _observed(primitive, observer)
    for index, parent in enumerate(node.parents):
        if parent is None:
            continue
        if type(parent) is Leaf and parent.grad is None and parent.buffer is not None and index in primitive.writes:
            derivatives[index](upstream, saved, *arrays, **options, out=parent.buffer)  # type: ignore[index,misc]
            parent.grad = parent.buffer
            continue
        if isinstance(derivatives, tuple):
            gradient = derivatives[index](upstream, saved, *arrays, **options)  # type: ignore[misc]
        else:
            gradient = derivatives(index, upstream, saved, *arrays, **options)
        if type(gradient) is not np.ndarray or gradient.shape != parent.shape or gradient.dtype != parent.dtype:
            gradient = _fit(gradient, parent, primitive, index)
        if type(parent) is Leaf:
            parent.accumulate(gradient)
        else:
            _add(gradient, parent, pending, owned)  # type: ignore[arg-type]


def _observed(primitive: Primitive, observer: Observer) -> Any:
    """Return the primitive's derivatives, each called by the observer."""
    derivatives = primitive.derivatives
    if isinstance(derivatives, tuple):
        return tuple(derivative and partial(observer, primitive, "backward", derivative) for derivative in derivatives)
    return partial(observer, primitive, "backward", derivatives)


def _add(gradient: Array, node: GraphNode, pending: dict[GraphNode, Array], owned: set[GraphNode]) -> None:
    """Add to what the node has received so far. The first gradient may be another owner's array: only a sum is ours."""
    known = pending.get(node)
    if known is None:
        pending[node] = gradient
    elif node in owned:
        np.add(known, gradient, out=known)
    else:
        pending[node] = np.asanyarray(known + gradient)
        owned.add(node)


def _fit(gradient: Array, parent: GraphNode | Leaf, primitive: Primitive, index: int) -> Array:
    """Undo broadcasting and promotion: bring the gradient to the argument's shape and dtype."""
    gradient = np.asanyarray(gradient)
    shape = parent.shape
    surplus = gradient.ndim - len(shape)
    spread = tuple(
        axis for axis, size in enumerate(gradient.shape) if axis < surplus or (shape[axis - surplus] == 1 and size != 1)
    )
    if spread:
        gradient = leaves.total(gradient, spread, keepdims=True)
    if surplus > 0:
        gradient = gradient.reshape(gradient.shape[surplus:])
    if gradient.shape != shape:
        raise RuntimeError(
            f"the gradient of argument {index} of {primitive.name!r} has shape {gradient.shape}, "
            f"expected {shape} or one broadcast from it: its derivative is wrong"
        )
    return gradient.astype(parent.dtype, copy=False)
