"""The packages keep to the architecture, and the checker finds each kind of violation that is planted."""

from pathlib import Path

import pytest

from tests.architecture.confinement import LONGEST, PURE
from tests.architecture.direction import ORDERS
from tests.architecture.leaves import unused
from tests.architecture.naming import folder_faults
from tests.architecture.rules import violations
from tests.architecture.source import ROOT, read_tree, sources_of

#: A tree in which nothing is wrong; each case below lays one module over it.
CLEAN = {
    "lockstep": "",
    "lockstep.cli.main": "import click\nimport lockstep.ps.coordinator.coordinator\nimport lockstep.worker.state\n",
    "lockstep.ps": "",
    "lockstep.ps.coordinator.coordinator": "import enum\nfrom lockstep.common.protocol.messages import Join\n",
    "lockstep.worker": "",
    "lockstep.worker.state": "from lockstep.common.protocol import messages\n",
    "lockstep.common": "",
    "lockstep.common.protocol": "",
    "lockstep.ps.coordinator": "",
    "lockstep.common.transport": "",
    "lockstep.common.transport.port": "from typing import Protocol\n",
    "lockstep.common.transport.zeromq.ports": "import zmq\nfrom lockstep.common.transport.port import Port\n",
    "lockstep.common.protocol.codec": "import msgpack\nfrom lockstep.common.protocol.messages import Join\n",
    "lockstep.common.protocol.messages": "",
    "lockstep.common.nn": "from lockstep.common.nn.module import Module\n",
    "lockstep.common.nn.module": "from lockstep.common.autograd import functional as F\n",
    "lockstep.common.model.source": "exec(compile('', '', 'exec'), {})\n",
    "lockstep.common.autograd": "from lockstep.common.autograd.tensor import Tensor\n",
    "lockstep.common.autograd.functional": "from lockstep.common.autograd.tensor import Tensor\n",
    "lockstep.common.autograd.tensor": "import lockstep.common.autograd.graph\n",
    "lockstep.common.autograd.graph": "from lockstep.common.autograd.primitives.primitive import Primitive\n",
    "lockstep.common.autograd.primitives": "",
    "lockstep.common.autograd.primitives.shape": "import lockstep.common.autograd.primitives.primitive\n",
    "lockstep.common.autograd.primitives.primitive": "import numpy as np\n\n\nRandom = np.random.Generator\n",
    "lockstep.common.numerics.random": "import numpy as np\n\nnp.random.Generator(np.random.Philox(0))\n",
    "lockstep.common.runtime.clock": "import time\nfrom datetime import datetime\n",
    "lockstep.common.runtime.environment": "import os\n\nos.environ['A'] = os.getenv('B', '')\n",
    "lockstep.common.errors": "import re\n\nre.compile('exec')\n",
}

PLANTED = {
    "upwards": (
        "lockstep.common.protocol.messages",
        "from lockstep.common.protocol.codec import encode",
        "which is not below it",
    ),
    "upwards by module": (
        "lockstep.common.protocol.messages",
        "from lockstep.common.protocol import codec",
        "which is not below it",
    ),
    "upwards, import statement": (
        "lockstep.common.protocol.messages",
        "import lockstep.common.protocol.codec",
        "which is not below it",
    ),
    "upwards, nested": (
        "lockstep.common.errors",
        "def f():\n    from lockstep.common.protocol.codec import encode",
        "which is not below it",
    ),
    "upwards, for types": (
        "lockstep.common.errors",
        "if TYPE_CHECKING:\n    import lockstep.common.protocol.codec",
        "which is not below it",
    ),
    "common knows ps": (
        "lockstep.common.protocol.messages",
        "import lockstep.ps.coordinator.coordinator",
        "which is not below it",
    ),
    "ps knows worker": (
        "lockstep.ps.coordinator.coordinator",
        "from lockstep.worker.state import WorkerState",
        "which is not below it",
    ),
    "worker knows ps": ("lockstep.worker.state", "from lockstep.ps import coordinator", "which is not below it"),
    "side by side": (
        "lockstep.common.runtime.clock",
        "import lockstep.common.numerics.random",
        "which is not below it",
    ),
    "primitive knows graph": (
        "lockstep.common.autograd.primitives.shape",
        "import lockstep.common.autograd.graph",
        "not below it",
    ),
    "primitive knows primitives": (
        "lockstep.common.autograd.primitives.primitive",
        "from lockstep.common.autograd.primitives import shape",
        "which is not below it",
    ),
    "graph knows tensor": (
        "lockstep.common.autograd.graph",
        "from lockstep.common.autograd.tensor import Tensor",
        "not below it",
    ),
    "graph names a primitive": (
        "lockstep.common.autograd.graph",
        "import lockstep.common.autograd.primitives.shape",
        "must not import",
    ),
    "tensor knows functional": (
        "lockstep.common.autograd.tensor",
        "from lockstep.common.autograd import functional",
        "not below it",
    ),
    "transport sees a message": (
        "lockstep.common.transport.port",
        "from lockstep.common.protocol.messages import Join",
        "not below it",
    ),
    "no place": ("lockstep.common.surprise", "import math", "has no place"),
    "no place in autograd": ("lockstep.common.autograd.surprise", "import math", "has no place"),
    "relative": ("lockstep.common.nn.module", "from . import model_file", "relative import"),
    "star": ("lockstep.common.nn.module", "from math import *", "imports * from math"),
    "socket": ("lockstep.ps.server.server", "def f():\n    import zmq.asyncio", "imports zmq"),
    "msgpack": ("lockstep.common.protocol.messages", "from msgpack import packb", "imports msgpack"),
    "torch": ("lockstep.worker.compute", "def f():\n    import torch", "imports torch"),
    "torch, by its part": ("lockstep.cli.main", "from torch.nn import Module", "imports torch"),
    "time": ("lockstep.ps.server.server", "from time import monotonic", "imports time"),
    "datetime": ("lockstep.cli.main", "import datetime as dt", "imports datetime"),
    "pickle": ("lockstep.common.protocol.codec", "import pickle", "imports pickle"),
    "marshal": ("lockstep.common.protocol.codec", "from marshal import loads", "imports marshal"),
    "shelve": ("lockstep.ps.store", "import shelve", "imports shelve"),
    "unpickling arrays": (
        "lockstep.common.nn.module",
        "import numpy as np\nnp.load('', allow_pickle=True)",
        "unpickle",
    ),
    "environ": ("lockstep.cli.main", "import os\nos.environ['A']", "uses os.environ"),
    "environ, renamed": ("lockstep.cli.main", "import os as system\nsystem.environ", "uses os.environ"),
    "environ, by name": ("lockstep.cli.main", "from os import environ as e\ne['A']", "uses os.environ"),
    "getenv": ("lockstep.cli.main", "import os\nos.getenv('A')", "uses os.getenv"),
    "eval": ("lockstep.common.model.source", "eval('1')", "uses eval"),
    "exec": ("lockstep.common.nn.module", "exec('1')", "uses exec"),
    "exec, passed on": ("lockstep.common.nn.module", "f = exec", "uses exec"),
    "importlib": ("lockstep.common.nn.module", "import importlib.util", "imports importlib.util"),
    "import by name": ("lockstep.cli.bench", "import importlib\nimportlib.import_module('x')", "uses importlib"),
    "global randomness": ("lockstep.common.nn.module", "import numpy as np\nnp.random.normal()", "uses numpy.random"),
    "own generator": ("lockstep.common.nn.module", "import numpy\nnumpy.random.Generator(None)", "uses numpy.random"),
    "generator's maker": (
        "lockstep.common.nn.module",
        "import numpy as np\nf = np.random.default_rng",
        "uses numpy.random",
    ),
    "random by name": ("lockstep.common.nn.module", "from numpy.random import normal", "imports numpy.random"),
    "random, renamed": ("lockstep.common.nn.module", "from numpy import random as r\nr.normal()", "uses numpy.random"),
    "random of Python": ("lockstep.common.nn.module", "import random", "imports random"),
    "state machine with a clock": (
        "lockstep.ps.coordinator.coordinator",
        "from lockstep.common.runtime.clock import SystemClock",
        "has to be pure",
    ),
    "state machine with files": ("lockstep.worker.state", "from pathlib import Path", "has to be pure"),
    "state machine that prints": ("lockstep.worker.state", "print('hello')", "has to be pure"),
    "class name twice": (
        "lockstep.worker.state",
        "class Join: ...\nclass Other:\n    class Join: ...",
        "class Join is defined in",
    ),
    "private word": ("lockstep.ps.store", "# The run is in a stretch.", "says 'stretch'"),
    "private words": ("lockstep.ps.store", "'It takes back what was sent.'", "says 'takes back'"),
    "private name": ("lockstep.ps.store", "def f(is_listed: bool) -> None: ...", "is_listed is a private word"),
    "private attribute": ("lockstep.ps.store", "self.mergedSums = 1", "mergedSums is a private word"),
    "private class": ("lockstep.ps.store", "class Manner: ...", "Manner is a private word"),
    "product": ("lockstep.common.nn.module", "import numpy as np\nnp.matmul(1, 2)", "has np.matmul, whose bits may"),
    "product, passed on": ("lockstep.worker.compute", "import numpy as np\nf = np.dot", "has np.dot, whose bits may"),
    "product, by operator": ("lockstep.ps.shard", "a @ b", "has a @ b, whose bits may"),
    "product, in place": ("lockstep.common.optim", "a @= b", "has a @= b, whose bits may"),
    "function, by name": ("lockstep.common.job", "from numpy import exp\nexp(1)", "has exp, whose bits may"),
    "function of the C library": ("lockstep.common.optim", "import math\nmath.cos(1)", "has math.cos, whose bits may"),
    "power": ("lockstep.common.optim", "beta ** (step + 1)", "has beta ** (step + 1), whose bits may"),
    "sum of NumPy": ("lockstep.common.data", "import numpy as np\nnp.add.reduce(x)", "has np.add.reduce, whose bits"),
    "sum of an array": ("lockstep.common.aggregation", "x.sum()", "has x.sum, whose bits may"),
    "normal numbers": ("lockstep.common.nn.module", "rng.normal(0, 1)", "has rng.normal, whose bits may"),
    "series": (
        "lockstep.common.autograd.functional",
        "from numpy.polynomial import chebyshev",
        "imports numpy.polynomial, whose bits may",
    ),
    "field of a record": (
        "lockstep.ps.store",
        "from dataclasses import field\nclass Stored(Struct):\n    names: list[str] = field(default_factory=list)",
        "Stored is not a dataclass",
    ),
    "address": ("lockstep.common.numerics.kernel_leaves", "f(x.ctypes.data)", "takes an address by ctypes"),
    "address, by the interface": (
        "lockstep.common.autograd.tape",
        "a.__array_interface__['data'][0]",
        "takes an address",
    ),
    "address, by ctypes": (
        "lockstep.worker.team.memory",
        "from ctypes import addressof\naddressof(a)",
        "takes an address",
    ),
    "address, by a name in a text": (
        "lockstep.worker.compute",
        "getattr(x, '__array_interface__')",
        "takes an address",
    ),
    "address, of a buffer": ("lockstep.worker.compute", "(kind * 4).from_buffer(x)", "takes an address by from_buffer"),
    "address, of an end": (
        "lockstep.worker.compute",
        "from numpy.lib.array_utils import byte_bounds as f\nf(x)",
        "takes an address by numpy.lib.array_utils.byte_bounds",
    ),
    "memory at an address": ("lockstep.worker.compute", "import ctypes as c\nc.memmove(to, x, 4)", "by memmove"),
    "long": ("lockstep.common.nn.module", "\n" * (LONGEST + 1), "lines, above"),
}


def test_the_packages_keep_to_the_architecture() -> None:
    found = violations(read_tree(ROOT))
    assert not found, "\n".join(map(str, found))


def test_a_clean_tree_has_no_violation() -> None:
    assert violations(CLEAN) == []


@pytest.mark.parametrize(("module", "text", "expected"), PLANTED.values(), ids=list(PLANTED))
def test_a_planted_violation_is_found(module: str, text: str, expected: str) -> None:
    found = violations({**CLEAN, module: text})
    assert [violation.module for violation in found if expected in violation.text] == [module]


@pytest.mark.parametrize(
    "closing",
    [
        "import lockstep.ps.a",
        "from lockstep.ps import a",
        "def f():\n    import lockstep.ps.a",
        "if TYPE_CHECKING:\n    from lockstep.ps.a import x",
    ],
)
def test_a_planted_cycle_is_found(closing: str) -> None:
    found = violations(
        {
            **CLEAN,
            "lockstep.ps.a": "import lockstep.ps.b",
            "lockstep.ps.b": "from lockstep.ps.c import x",
            "lockstep.ps.c": closing,
        }
    )
    assert [
        violation.text
        for violation in found
        if {"lockstep.ps.a", "lockstep.ps.b", "lockstep.ps.c"} <= set(violation.text.split())
    ]


def test_a_planted_file_is_found_in_a_folder(tmp_path: Path) -> None:
    for package in ("ps", "worker"):
        (tmp_path / "lockstep" / package / "server").mkdir(parents=True)
    (tmp_path / "lockstep" / "ps" / "server" / "__init__.py").write_text("import lockstep.worker.server.x\n")
    (tmp_path / "lockstep" / "worker" / "server" / "x.py").write_text("")
    assert [str(found) for found in violations(read_tree(tmp_path))] == [
        "lockstep.ps.server:1: imports lockstep.worker.server.x, which is not below it"
    ]


@pytest.mark.parametrize(("entries", "fault"), [(2, "has 2 entries, below"), (15, "has 15 entries, above"), (14, "")])
def test_a_folder_is_neither_full_nor_a_closet(tmp_path: Path, entries: int, fault: str) -> None:
    for name in ["__init__.py", *(f"{i}.py" for i in range(entries))]:
        (tmp_path / "lockstep" / "room").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lockstep" / "room" / name).touch()
    found = [text for text in folder_faults(tmp_path / "lockstep") if text.startswith("lockstep/room ")]
    assert [fault in text for text in found] == [True] * bool(fault)


def test_no_folder_of_the_package_is_full_or_a_closet() -> None:
    assert list(folder_faults(ROOT / "lockstep")) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("lockstep.common.numerics", "import numpy as np\nnp.exp(1)"),
        ("lockstep.cli.main", "import numpy as np\nnp.exp(1)"),
        ("lockstep.common.nn.module", "import numpy as np\nimport math\nnp.sqrt(x) + math.sqrt(2) + x**2 + 2.0**-16"),
        ("lockstep.common.nn.module", "statistics = {}\nstatistics.items()"),
    ],
)
def test_leaves_are_called_where_they_may_be(module: str, text: str) -> None:
    assert violations({**CLEAN, "lockstep.common.numerics": "", module: text}) == []


def test_no_leaf_is_allowed_that_is_called_nowhere() -> None:
    assert unused(sources_of(read_tree(ROOT))) == set()


def test_the_rules_name_modules_that_exist() -> None:
    tree = read_tree(ROOT)
    named = {unit for order in ORDERS for group in order.groups for unit in group}
    assert named | set(PURE) <= set(tree)
