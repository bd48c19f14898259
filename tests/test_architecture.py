"""The packages keep to the architecture, and the checker finds each kind of violation that is planted."""

import errno
import os
from pathlib import Path

import pytest

from tests.architecture.confinement import LONGEST, PURE
from tests.architecture.direction import ORDERS
from tests.architecture.foreign_words import PHRASES, check_foreign_words
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

#: What is wrong: a module of the package, its source, and a part of what is said of it.
PLANTED = (
    ("common.protocol.messages", "from lockstep.common.protocol.codec import encode", "which is not below it"),
    ("common.protocol.messages", "from lockstep.common.protocol import codec", "which is not below it"),
    ("common.protocol.messages", "import lockstep.common.protocol.codec", "which is not below it"),
    ("common.errors", "def f():\n    from lockstep.common.protocol.codec import encode", "which is not below it"),
    ("common.errors", "if TYPE_CHECKING:\n    import lockstep.common.protocol.codec", "which is not below it"),
    ("common.protocol.messages", "import lockstep.ps.coordinator.coordinator", "which is not below it"),
    ("ps.coordinator.coordinator", "from lockstep.worker.state import WorkerState", "which is not below it"),
    ("worker.state", "from lockstep.ps import coordinator", "which is not below it"),
    ("common.runtime.clock", "import lockstep.common.numerics.random", "which is not below it"),
    ("common.autograd.primitives.shape", "import lockstep.common.autograd.graph", "not below it"),
    ("common.autograd.primitives.primitive", "from lockstep.common.autograd.primitives import shape",
     "which is not below it"),
    ("common.autograd.graph", "from lockstep.common.autograd.tensor import Tensor", "not below it"),
    ("common.autograd.graph", "import lockstep.common.autograd.primitives.shape", "must not import"),
    ("common.autograd.tensor", "from lockstep.common.autograd import functional", "not below it"),
    ("common.transport.port", "from lockstep.common.protocol.messages import Join", "not below it"),
    ("common.surprise", "import math", "has no place"),
    ("common.autograd.surprise", "import math", "has no place"),
    ("common.nn.module", "from . import model_file", "relative import"),
    ("common.nn.module", "from math import *", "imports * from math"),
    ("ps.server.server", "def f():\n    import zmq.asyncio", "imports zmq"),
    ("common.protocol.messages", "from msgpack import packb", "imports msgpack"),
    ("worker.compute", "def f():\n    import torch", "imports torch"),
    ("cli.main", "from torch.nn import Module", "imports torch"),
    ("ps.server.server", "from time import monotonic", "imports time"),
    ("cli.main", "import datetime as dt", "imports datetime"),
    ("cli.main", "import os\nos.environ['A']", "uses os.environ"),
    ("cli.main", "import os as system\nsystem.environ", "uses os.environ"),
    ("cli.main", "from os import environ as e\ne['A']", "uses os.environ"),
    ("cli.main", "import os\nos.getenv('A')", "uses os.getenv"),
    ("common.model.source", "eval('1')", "uses eval"),
    ("common.nn.module", "import importlib.util", "imports importlib.util"),
    ("common.nn.module", "import numpy as np\nnp.random.normal()", "uses numpy.random"),
    ("common.nn.module", "import numpy\nnumpy.random.Generator(None)", "uses numpy.random"),
    ("common.nn.module", "import numpy as np\nf = np.random.default_rng", "uses numpy.random"),
    ("common.nn.module", "from numpy.random import normal", "imports numpy.random"),
    ("common.nn.module", "from numpy import random as r\nr.normal()", "uses numpy.random"),
    ("common.nn.module", "import random", "imports random"),
    ("ps.coordinator.coordinator", "from lockstep.common.runtime.clock import SystemClock", "has to be pure"),
    ("worker.state", "from pathlib import Path", "has to be pure"),
    ("worker.state", "print('hello')", "has to be pure"),
    ("worker.state", "class Join: ...\nclass Other:\n    class Join: ...", "class Join is defined in"),
    ("ps.store", "# The run is in a stretch.", "says 'stretch'"),
    ("ps.store", "'It takes back what was sent.'", "says 'takes back'"),
    ("ps.store", "def f(is_listed: bool) -> None: ...", "is_listed is a private word"),
    ("ps.store", "self.mergedSums = 1", "mergedSums is a private word"),
    ("ps.store", "class Manner: ...", "Manner is a private word"),
    ("common.nn.module", "import numpy as np\nnp.matmul(1, 2)", "has np.matmul, whose bits may"),
    ("worker.compute", "import numpy as np\nf = np.dot", "has np.dot, whose bits may"),
    ("ps.shard", "a @ b", "has a @ b, whose bits may"),
    ("common.optim", "a @= b", "has a @= b, whose bits may"),
    ("common.job", "from numpy import exp\nexp(1)", "has exp, whose bits may"),
    ("common.optim", "import math\nmath.cos(1)", "has math.cos, whose bits may"),
    ("common.optim", "beta ** (step + 1)", "has beta ** (step + 1), whose bits may"),
    ("common.data", "import numpy as np\nnp.add.reduce(x)", "has np.add.reduce, whose bits"),
    ("common.aggregation", "x.sum()", "has x.sum, whose bits may"),
    ("common.nn.module", "rng.normal(0, 1)", "has rng.normal, whose bits may"),
    ("common.autograd.functional", "from numpy.polynomial import chebyshev",
     "imports numpy.polynomial, whose bits may"),
    ("ps.store", "from dataclasses import field\nclass Stored(Struct):\n    a: list[str] = field(default_factory=list)",
     "Stored is not a dataclass"),
    ("common.numerics.kernel_leaves", "f(x.ctypes.data)", "takes an address by ctypes"),
    ("common.autograd.tape", "a.__array_interface__['data'][0]", "takes an address"),
    ("worker.team.memory", "from ctypes import addressof\naddressof(a)", "takes an address"),
    ("worker.compute", "getattr(x, '__array_interface__')", "takes an address"),
    ("worker.compute", "(kind * 4).from_buffer(x)", "takes an address by from_buffer"),
    ("worker.compute", "from numpy.lib.array_utils import byte_bounds as f\nf(x)",
     "takes an address by numpy.lib.array_utils.byte_bounds"),
    ("worker.compute", "import ctypes as c\nc.memmove(to, x, 4)", "by memmove"),
    ("common.nn.module", "\n" * (LONGEST + 1), "lines, above"),
    # Code or objects out of data.
    ("ps.server.server", "import pickle", "imports pickle"),
    ("ps.server.server", "from _pickle import loads", "imports _pickle"),
    ("ps.server.server", "def f():\n    from pickle import loads", "imports pickle"),
    ("ps.server.server", "import pickle as json", "imports pickle"),
    ("ps.server.server", "from marshal import loads", "imports marshal"),
    ("ps.server.server", "import shelve", "imports shelve"),
    ("ps.server.server", "import dill", "imports dill"),
    ("ps.server.server", "from joblib import load", "imports joblib"),
    ("ps.server.server", "import cloudpickle.cloudpickle", "imports cloudpickle"),
    ("ps.server.server", "eval('1')", "uses eval"),
    ("ps.server.server", "f = eval", "uses eval"),
    ("ps.server.server", "import builtins\nbuiltins.eval('1')", "uses builtins.eval"),
    ("ps.server.server", "from builtins import eval as judge\njudge('1')", "uses builtins.eval"),
    ("ps.server.server", "exec('1')", "uses exec"),
    ("ps.server.server", "f = compile('1', '', 'eval')", "uses compile"),
    ("ps.server.server", "__builtins__['eval']('1')", "uses __builtins__"),
    ("ps.server.server", "import importlib\nimportlib.import_module(name)", "uses importlib.import_module"),
    ("ps.server.server", "from importlib import import_module as f\nf(name)", "uses importlib.import_module"),
    ("ps.server.server", "__import__('os')", "uses __import__"),
    ("ps.server.server", "socket.recv_pyobj()", "uses recv_pyobj"),
    ("ps.server.server", "send = self.raw.send_pyobj", "uses send_pyobj"),
    ("ps.server.server", "getattr(socket, 'recv_pyobj')()", "names 'recv_pyobj'"),
    ("ps.server.server", "import numpy as np\nnp.load('', allow_pickle=True)", "lets NumPy unpickle"),
    ("ps.server.server", "import numpy as np\nnp.load('', allow_pickle=trusted)", "lets NumPy unpickle"),
    ("ps.server.server", "from numpy import load\nload('', None, True)", "lets NumPy unpickle"),
    ("ps.server.server", "from numpy.lib import format as npy\nnpy.read_array(f, True)", "lets NumPy unpickle"),
    ("ps.server.server", "import yaml\nyaml.load('')", "uses yaml.load"),
    ("ps.server.server", "from yaml import unsafe_load\nunsafe_load('')", "uses yaml.unsafe_load"),
    ("ps.server.server", "import torch\ntorch.load('')", "uses torch.load"),
    ("ps.server.server", "import torch\ntorch.load('', weights_only=trusted)", "uses torch.load"),
    ("ps.server.server", "from torch import load\nread = load", "uses torch.load"),
    ("ps.server.server", "import subprocess\nsubprocess.run('ls', shell=True)", "gives a shell"),
    ("ps.server.server", "from subprocess import Popen\nPopen('ls', shell=is_easy)", "gives a shell"),
    ("ps.server.server", "import os\nos.system('ls')", "uses os.system"),
    ("ps.server.server", "from os import system as run\nrun('ls')", "uses os.system"),
    ("ps.server.server", "import os\nos.popen('ls')", "uses os.popen"),
    ("ps.server.server", "import subprocess as s\ns.getoutput('ls')", "uses subprocess.getoutput"),
    ("common.model.source", "import pickle", "imports pickle"),
    ("cli.main", "exec('1')", "uses exec"),
)  # fmt: skip

#: What is right.
HARMLESS = (
    ("common.numerics", "import numpy as np\nnp.exp(1)"),
    ("cli.main", "import numpy as np\nnp.exp(1)"),
    ("common.nn.module", "import numpy as np\nimport math\nnp.sqrt(x) + math.sqrt(2) + x**2 + 2.0**-16"),
    ("common.nn.module", "statistics = {}\nstatistics.items()"),
    ("common.model.source", "exec(compile('', '', 'exec'), {})"),
    ("cli.main", "from importlib import import_module\nimport_module(name)"),
    ("ps.server.server", "import re\nre.compile('exec')"),
    ("ps.server.server", "model.compile()\nmodel.eval()"),
    ("ps.server.server", "import subprocess\nsubprocess.run(['ls'], shell=False, check=True)"),
    ("ps.server.server", "import numpy as np\nnp.load('', allow_pickle=False)\nnp.load('', None, False)"),
    ("ps.server.server", "text = 'no pickle here'"),
    ("common.model.pytorch.module", "import torch\ntorch.load('', weights_only=True)"),
    ("ps.server.server", "import yaml\nyaml.safe_load('')"),
)

#: Of a test, a source that pins what another library says, and the library.
FOREIGN = (
    ("assert 'Expected `int`, got `str` - at `$.step`' in text", "msgspec"),
    ("CASES = [(1, \"header of 'a': expected `object`\")]", "msgspec"),
    ("match(r'got `str` - at `\\$.step`')", "msgspec"),
    ("with pytest.raises(ValueError, match='9 exceeds max_array_len'): ...", "msgpack"),
    (r"match(r'exceeds max_(bin|ext)_len\(0\)')", "msgpack"),
    ("assert error == 'No such option: --epoch'", "click"),
    ("assert error == 'got unexpected extra argument (b)'", "click"),
    ("assert out.startswith('Usage: lockstep')", "click"),
    ("told = \"'two' is not a valid integer\"", "click"),
    ("told = 'is not valid TOML: Invalid value (at line 1'", "tomllib"),
    ("told = 'Expecting value: line 1'", "json"),
    ("told = r'damaged .Not a gzipped file'", "gzip"),
    ("told = 'damaged (File is not a zip file)'", "gzip"),
    ("raises(TypeError, match='does not support ufuncs')", "NumPy"),
    ("told = \"it raised ModuleNotFoundError: No module named 'x'\"", "Python"),
    ("told = \"header: 'utf-8' codec\"", "Python"),
    (f"told = 'cannot be read ({os.strerror(errno.ENOENT)})'", "the system"),
    (f"assert b'{os.strerror(errno.EACCES)}' in done.stderr", "the system"),
    (f"told = f'{{path}}: {os.strerror(errno.EISDIR)}: expected'", "the system"),
    ("told = (\n    'Not a '\n    'gzipped file'\n)", "gzip"),
)

#: Of a test, what pins nothing: our own words, those that the system is asked for, and an error of the test.
OWN = (
    "told = \"invalid value for '--epochs': \"",
    "told = \"'20' is not a valid time: expected one such as 20ms\"",
    "told = \"no such option '--epoch' (did you mean '--epochs'?)\"",
    "told = f'cannot be read ({os.strerror(errno.ENOENT)})'",
    f"raise OSError(28, '{os.strerror(errno.ENOSPC)}')",
    "def test_x():\n    'It was: Not a gzipped file.'",
)


def test_the_packages_keep_to_the_architecture() -> None:
    found = violations(read_tree(ROOT))
    assert not found, "\n".join(map(str, found))


def test_a_clean_tree_has_no_violation() -> None:
    assert violations(CLEAN) == []


@pytest.mark.parametrize(("module", "text", "expected"), PLANTED, ids=range(len(PLANTED)))
def test_a_planted_violation_is_found(module: str, text: str, expected: str) -> None:
    found = violations({**CLEAN, f"lockstep.{module}": text})
    assert {violation.module for violation in found if expected in violation.text} == {f"lockstep.{module}"}


@pytest.mark.parametrize(("module", "text"), HARMLESS, ids=range(len(HARMLESS)))
def test_what_is_harmless_is_no_violation(module: str, text: str) -> None:
    assert violations({**CLEAN, "lockstep.common.numerics": "", f"lockstep.{module}": text}) == []


def foreign_words(texts: dict[str, str]) -> list[str]:
    return [str(found) for found in check_foreign_words(sources_of(texts))]


@pytest.mark.parametrize(("text", "library"), FOREIGN, ids=range(len(FOREIGN)))
def test_planted_words_of_a_library_are_found(text: str, library: str) -> None:
    assert [f"the words of {library}:" in each for each in foreign_words({"tests.test_x": text})] == [True]


def test_no_test_pins_the_words_of_a_library() -> None:
    assert {library for _, library in FOREIGN} == set(PHRASES)
    assert foreign_words({f"tests.test_{number}": text for number, text in enumerate(OWN)}) == []
    # Those that hold the words of the rule itself.
    tables = ("tests.architecture.foreign_words", __name__)
    assert foreign_words({name: text for name, text in read_tree(ROOT, ["tests"]).items() if name not in tables}) == []


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


def test_no_leaf_is_allowed_that_is_called_nowhere() -> None:
    assert unused(sources_of(read_tree(ROOT))) == set()


def test_the_rules_name_modules_that_exist() -> None:
    tree = read_tree(ROOT)
    named = {unit for order in ORDERS for group in order.groups for unit in group}
    assert named | set(PURE) <= set(tree)
