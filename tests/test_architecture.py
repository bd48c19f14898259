"""The packages keep to the architecture, and the checker finds each kind of violation that is planted."""

from pathlib import Path

import pytest

from tests.architecture.confinement import LONGEST, PURE
from tests.architecture.direction import ORDERS
from tests.architecture.rules import violations
from tests.architecture.source import PACKAGES, ROOT, read_tree

#: A tree in which nothing is wrong; each case below lays one module over it.
CLEAN = {
    "lockstep": "",
    "lockstep.cli.main": "import click\nimport ps.coordinator.coordinator\nfrom worker.state import WorkerState\n",
    "ps": "",
    "ps.coordinator.coordinator": "import enum\nfrom common.protocol.messages import Join\n",
    "worker": "",
    "worker.state": "from common.protocol import messages\n",
    "common": "",
    "common.protocol": "",
    "ps.coordinator": "",
    "common.transport": "",
    "common.transport.port": "from typing import Protocol\n",
    "common.transport.zeromq.ports": "import zmq\nfrom common.transport.port import Port\n",
    "common.protocol.codec": "import msgpack\nfrom common.protocol.messages import Join\n",
    "common.protocol.messages": "",
    "common.nn": "from common.nn.module import Module\n",
    "common.nn.module": "from common.autograd import functional as F\n",
    "common.nn.model_source": "exec(compile('', '', 'exec'), {})\n",
    "common.autograd": "from common.autograd.tensor import Tensor\n",
    "common.autograd.functional": "from common.autograd.tensor import Tensor\n",
    "common.autograd.tensor": "from common.autograd import graph\nfrom common.autograd.primitives import shape\n",
    "common.autograd.graph": "from common.autograd.primitives.primitive import Primitive\n",
    "common.autograd.primitives": "",
    "common.autograd.primitives.shape": "from common.autograd.primitives.primitive import Primitive\n",
    "common.autograd.primitives.primitive": "import numpy as np\n\n\ndef f(rng: np.random.Generator) -> None: ...\n",
    "common.random": "import numpy as np\n\nnp.random.Generator(np.random.Philox(0))\n",
    "common.runtime.clock": "import time\nfrom datetime import datetime\n",
    "common.runtime.environment": "import os\n\nos.environ['A'] = os.getenv('B', '')\n",
    "common.errors": "import re\n\nre.compile('exec')\n",
}

PLANTED = {
    "upwards": ("common.protocol.messages", "from common.protocol.codec import encode", "which is not below it"),
    "upwards by module": ("common.protocol.messages", "from common.protocol import codec", "which is not below it"),
    "upwards, import statement": ("common.protocol.messages", "import common.protocol.codec", "which is not below it"),
    "upwards, nested": (
        "common.errors",
        "def f():\n    from common.protocol.codec import encode",
        "which is not below it",
    ),
    "upwards, for types": (
        "common.errors",
        "if TYPE_CHECKING:\n    import common.protocol.codec",
        "which is not below it",
    ),
    "common knows ps": ("common.protocol.messages", "import ps.coordinator.coordinator", "which is not below it"),
    "ps knows worker": ("ps.coordinator.coordinator", "from worker.state import WorkerState", "which is not below it"),
    "worker knows ps": ("worker.state", "from ps import coordinator", "which is not below it"),
    "side by side": ("common.runtime.clock", "import common.random", "which is not below it"),
    "primitive knows graph": ("common.autograd.primitives.shape", "import common.autograd.graph", "not below it"),
    "primitive knows primitives": (
        "common.autograd.primitives.primitive",
        "from common.autograd.primitives import shape",
        "which is not below it",
    ),
    "graph knows tensor": ("common.autograd.graph", "from common.autograd.tensor import Tensor", "not below it"),
    "graph names a primitive": ("common.autograd.graph", "import common.autograd.primitives.shape", "must not import"),
    "tensor knows functional": ("common.autograd.tensor", "from common.autograd import functional", "not below it"),
    "transport sees a message": ("common.transport.port", "from common.protocol.messages import Join", "not below it"),
    "no place": ("common.surprise", "import math", "has no place"),
    "no place in autograd": ("common.autograd.surprise", "import math", "has no place"),
    "relative": ("common.nn.module", "from . import model_file", "relative import"),
    "star": ("common.nn.module", "from math import *", "imports * from math"),
    "socket": ("ps.server.server", "def f():\n    import zmq.asyncio", "imports zmq"),
    "msgpack": ("common.protocol.messages", "from msgpack import packb", "imports msgpack"),
    "torch": ("worker.compute", "def f():\n    import torch", "imports torch"),
    "torch, by its part": ("lockstep.cli.main", "from torch.nn import Module", "imports torch"),
    "time": ("ps.server.server", "from time import monotonic", "imports time"),
    "datetime": ("lockstep.cli.main", "import datetime as dt", "imports datetime"),
    "pickle": ("common.protocol.codec", "import pickle", "imports pickle"),
    "marshal": ("common.protocol.codec", "from marshal import loads", "imports marshal"),
    "shelve": ("ps.store", "import shelve", "imports shelve"),
    "unpickling arrays": ("common.nn.module", "import numpy as np\nnp.load('', allow_pickle=True)", "unpickle"),
    "environ": ("lockstep.cli.main", "import os\nos.environ['A']", "uses os.environ"),
    "environ, renamed": ("lockstep.cli.main", "import os as system\nsystem.environ", "uses os.environ"),
    "environ, by name": ("lockstep.cli.main", "from os import environ as e\ne['A']", "uses os.environ"),
    "getenv": ("lockstep.cli.main", "import os\nos.getenv('A')", "uses os.getenv"),
    "eval": ("common.nn.model_source", "eval('1')", "uses eval"),
    "exec": ("common.nn.module", "exec('1')", "uses exec"),
    "exec, passed on": ("common.nn.module", "f = exec", "uses exec"),
    "importlib": ("common.nn.module", "import importlib.util", "imports importlib.util"),
    "import by name": ("lockstep.cli.main", "import importlib\nimportlib.import_module('x')", "uses importlib"),
    "global randomness": ("common.nn.module", "import numpy as np\nnp.random.normal()", "uses numpy.random"),
    "own generator": ("common.nn.module", "import numpy\nnumpy.random.Generator(None)", "uses numpy.random"),
    "generator's maker": ("common.nn.module", "import numpy as np\nf = np.random.default_rng", "uses numpy.random"),
    "random by name": ("common.nn.module", "from numpy.random import normal", "imports numpy.random"),
    "random, renamed": ("common.nn.module", "from numpy import random as r\nr.normal()", "uses numpy.random"),
    "random of Python": ("common.nn.module", "import random", "imports random"),
    "state machine with a clock": (
        "ps.coordinator.coordinator",
        "from common.runtime.clock import SystemClock",
        "has to be pure",
    ),
    "state machine with files": ("worker.state", "from pathlib import Path", "has to be pure"),
    "state machine that prints": ("worker.state", "print('hello')", "has to be pure"),
    "long": ("common.nn.module", "\n" * (LONGEST + 1), "lines, above"),
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
    ["import ps.a", "from ps import a", "def f():\n    import ps.a", "if TYPE_CHECKING:\n    from ps.a import x"],
)
def test_a_planted_cycle_is_found(closing: str) -> None:
    found = violations({**CLEAN, "ps.a": "import ps.b", "ps.b": "from ps.c import x", "ps.c": closing})
    assert [violation.text for violation in found if {"ps.a", "ps.b", "ps.c"} <= set(violation.text.split())]


def test_a_planted_file_is_found_in_a_folder(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package / "server").mkdir(parents=True)
    (tmp_path / "ps" / "server" / "__init__.py").write_text("import worker.server.x\n")
    (tmp_path / "worker" / "server" / "x.py").write_text("")
    assert [str(found) for found in violations(read_tree(tmp_path))] == [
        "ps.server:1: imports worker.server.x, which is not below it"
    ]


def test_the_rules_name_modules_that_exist() -> None:
    tree = read_tree(ROOT)
    named = {unit for order in ORDERS for group in order.groups for unit in group}
    assert named | set(PURE) <= set(tree)
