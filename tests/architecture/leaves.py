"""What decides bits calls no function whose bits depend on a processor, or on a version of NumPy or of the C library.

Such functions are leaves, in `lockstep.common.numerics`. The rest may call what IEEE 754 fixes, and copies, comparisons
and whole numbers.
"""

import ast
from collections.abc import Iterator, Mapping

from lockstep.common.protocol.fingerprint import DECIDING
from tests.architecture.source import Source, Violation, is_within

#: Where they may be called.
HOME = "lockstep.common.numerics"

#: Functions of NumPy and of Python, and modules of which nothing may be imported.
FUNCTIONS = frozenset(
    {
        *(f"numpy.{name}" for name in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp")),
        *(f"numpy.{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "arctan", "arctan2", "hypot")),
        *(f"numpy.{name}" for name in ("power", "float_power", "cbrt", "interp", "convolve", "correlate")),
        *(f"numpy.{name}" for name in ("matmul", "dot", "vdot", "inner", "outer", "einsum", "tensordot", "matvec")),
        *(f"numpy.{name}" for name in ("sum", "mean", "average", "var", "std", "cumsum", "nansum", "trapezoid")),
        *(f"numpy.add.{name}" for name in ("reduce", "accumulate", "reduceat")),
        *(f"math.{name}" for name in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "hypot")),
        *(f"math.{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "erf", "erfc", "gamma", "sumprod")),
    }
)
MODULES = ("numpy.linalg", "numpy.fft", "numpy.polynomial", "statistics")

#: Methods of arrays and of generators, whatever they are called on: who calls it knows, and not the syntax.
METHODS = frozenset(
    {
        *("sum", "mean", "var", "std", "dot", "cumsum"),
        *("normal", "standard_normal", "lognormal", "exponential", "standard_exponential", "gamma", "beta"),
        *("uniform", "multivariate_normal", "standard_gamma", "poisson", "binomial", "laplace"),
    }
)

_WHOLE = "adds whole numbers, which is exact in any order"
_NODES = "is a method of ours, which computes or returns sums of the tree"
_TENSOR = "is an operation of a tensor, which has leaves below it"
_CHECK = "checks gradients in float64, with a tolerance"

#: Module and what is called there, as `ast.unparse` writes it -> why it may be.
ALLOWED: Mapping[tuple[str, str], str] = {
    ("lockstep.common.aggregation.checksum", "np.add.reduce"): _WHOLE,
    ("lockstep.common.aggregation.update", "self.mean"): _NODES,
    ("lockstep.common.autograd.functional", "builtins.sum"): _WHOLE,
    ("lockstep.common.autograd.gradient_check", "np.sum"): _CHECK,
    ("lockstep.common.autograd.gradient_check", "rng.standard_normal"): _CHECK,
    ("lockstep.common.data.preparation", "np.dot"): _WHOLE,
    ("lockstep.common.data.preparation", "values.sum"): _WHOLE,
    ("lockstep.common.job.objective", "(losses * library.constant(weights.reshape(shape))).sum"): _TENSOR,
    ("lockstep.common.nn.layers.sizes", "max(1, value) ** axes"): "counts, in whole numbers",
}


def check_leaves(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find calls and operators in code that decides bits, whose bits might be others elsewhere."""
    for source in sources.values():
        if is_within(source.module, HOME) or not any(is_within(source.module, name) for name in DECIDING):
            continue
        for found in source.imports:
            module = next((each for each in MODULES if is_within(f"{found.module}.{found.name}", each)), None)
            if module is not None:
                yield Violation(source.module, found.line, f"imports {module}, whose bits may differ elsewhere")
        for node in source.nodes:
            what = _called(source, node) or _operator(node)
            if what and (source.module, what) not in ALLOWED:
                line = getattr(node, "lineno", 1)
                yield Violation(source.module, line, f"has {what}, whose bits may differ elsewhere: use a leaf")


def unused(sources: Mapping[str, Source]) -> set[tuple[str, str]]:
    """Return what is allowed, and nowhere called any more."""
    found = {
        (source.module, what)
        for source in sources.values()
        for node in source.nodes
        if (what := _called(source, node) or _operator(node))
    }
    return set(ALLOWED) - found


def _called(source: Source, node: ast.AST) -> str:
    """Return what is called or named that only leaves may, empty if it is nothing of the kind."""
    if isinstance(node, ast.Attribute | ast.Name):
        # A variable may have the name of a module.
        name = source.dotted(node) if _root(node) in source.bindings else ""
        return ast.unparse(node) if name in FUNCTIONS else ""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return ""
    is_function = source.dotted(node.func).startswith(("numpy.", "math.", "lockstep."))
    return ast.unparse(node.func) if node.func.attr in METHODS and not is_function else ""


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _operator(node: ast.AST) -> str:
    """Return a product of matrices, or a power whose exponent is not a constant."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        operand = node.right if isinstance(node, ast.BinOp) else node.value
        is_constant = isinstance(operand.operand if isinstance(operand, ast.UnaryOp) else operand, ast.Constant)
        if isinstance(node.op, ast.MatMult) or (isinstance(node.op, ast.Pow) and not is_constant):
            return ast.unparse(node)
    return ""
