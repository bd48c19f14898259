"""Nothing makes code or objects out of data: no pickle, no eval, no shell. One file runs a user's source."""

import ast
from collections.abc import Iterator, Mapping

from tests.architecture.source import Source, Violation, is_within

#: The one file that runs Python source: a model of the user's own, from the user's own disk.
RUNS_SOURCE = "lockstep.common.model.source"

#: The one file that imports by name: the commands of its own table.
IMPORTS_COMMANDS = "lockstep.cli.main"

#: Modules that make objects out of data, or code.
BANNED_MODULES = (
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "code",
    "codeop",
)

#: What runs source or a shell, by its whole name; whoever imports it under another is seen through.
RUNNERS = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "__builtins__",
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
    "builtins.__import__",
    "importlib.import_module",
)
SHELLS = (
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "pty.spawn",
)
UNPICKLERS = ("torch.load", "pandas.read_pickle", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all")

#: Methods of sockets and arrays that pickle, whatever they are called on, or by `getattr`.
PICKLING_METHODS = ("recv_pyobj", "send_pyobj", "recv_serialized", "send_serialized", "read_pickle", "to_pickle")

#: Of NumPy's readers, how many arguments may come before the one that allows pickles.
BEFORE_ALLOW_PICKLE = {"numpy.load": 2, "numpy.lib.format.read_array": 1, "numpy.lib.npyio.NpzFile": 2}


def check_code_from_data(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find imports and uses of what makes code or objects out of data."""
    for source in sources.values():
        yield from _imports(source)
        harmless = set(_harmless(source))
        for node in source.nodes:
            faults = () if node in harmless else _faults(source, node)
            yield from (Violation(source.module, getattr(node, "lineno", 1), text) for text in faults)


def _harmless(source: Source) -> Iterator[ast.AST]:
    """Yield what calls of PyTorch's reader name that takes nothing but tensors and plain values."""
    for node in source.nodes:
        if isinstance(node, ast.Call) and source.dotted(node.func) == "torch.load":
            given = {each.arg: each.value for each in node.keywords}.get("weights_only")
            if isinstance(given, ast.Constant) and given.value is True:
                yield node.func


def _imports(source: Source) -> Iterator[Violation]:
    for found in source.imports:
        for banned in BANNED_MODULES:
            if is_within(found.module, banned):
                yield Violation(source.module, found.line, f"imports {banned}, which nothing may")


def _faults(source: Source, node: ast.AST) -> Iterator[str]:
    name = source.dotted(node)
    is_table = name == "importlib.import_module" and source.module == IMPORTS_COMMANDS
    if name in RUNNERS and source.module != RUNS_SOURCE and not is_table:
        yield f"uses {name}, which only {RUNS_SOURCE} may"
    if name in ("eval", "builtins.eval") and source.module == RUNS_SOURCE:
        yield f"uses {name}, which nothing may"
    if name in SHELLS:
        yield f"uses {name}, a shell: start a program with a list of arguments"
    if name in UNPICKLERS:
        yield f"uses {name}, which unpickles"
    if isinstance(node, ast.Attribute) and node.attr in PICKLING_METHODS:
        yield f"uses {node.attr}, which pickles"
    if isinstance(node, ast.Constant) and node.value in PICKLING_METHODS:
        yield f"names {node.value!r}, which pickles"
    if isinstance(node, ast.keyword):
        yield from _keyword(node)
    if isinstance(node, ast.Call):
        before = BEFORE_ALLOW_PICKLE.get(source.dotted(node.func))
        if before is not None and len(node.args) > before and not _is_false(node.args[before]):
            yield "lets NumPy unpickle, which nothing may"


def _keyword(node: ast.keyword) -> Iterator[str]:
    """Judge an argument by its name. What is not written out as False may be true."""
    if node.arg == "allow_pickle" and not _is_false(node.value):
        yield "lets NumPy unpickle, which nothing may"
    if node.arg == "shell" and not _is_false(node.value):
        yield "gives a shell a command: start a program with a list of arguments"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False
