"""Each kind of object that holds state is found with each way of changing it: a maximum, a counter, a first batch."""

from pathlib import Path
from typing import Any

import pytest

from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.source import read_model_source
from tests.lockstep.common.model.pytorch.jobs import batch, model_file

pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

NET = """
import array, collections, contextvars, ctypes, decimal, fractions, io, itertools, queue, threading, types, weakref
import numpy

class Box:
    pass

class Slots:
    __slots__ = ("v",)

VAR = contextvars.ContextVar("VAR", default=0.0)
BOX = Box()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)
        {made}

    def get(self):
        {get}

    def put(self, value):
        {put}

    def forward(self, x):
        x = x.flatten(1)
        old, seen = self.get(), float({seen})
        self.put({change})
        return self.inner(x * (1 + float(self.get())))
"""

#: By kind of object: how it is made, read and written.
KINDS = {
    "attribute": ("self.v = 0.0", "return self.v", "self.v = value"),
    "list": ("self.v = [0.0]", "return self.v[0]", "self.v[0] = value"),
    "dictionary": ("self.v = {'a': 0.0}", "return self.v['a']", "self.v['a'] = value"),
    "deque": ("self.v = collections.deque([0.0], 1)", "return self.v[0]", "self.v.append(value)"),
    "typed array": ("self.v = array.array('d', [0.0])", "return self.v[0]", "self.v[0] = value"),
    "array of NumPy": ("self.v = numpy.zeros(1)", "return self.v[0]", "self.v[0] = value"),
    "tensor": ("self.v = torch.zeros(1)", "return self.v[0].item()", "self.v[0] = value"),
    "decimal": ("self.v = decimal.Decimal(0)", "return self.v", "self.v = decimal.Decimal(value)"),
    "fraction": ("self.v = fractions.Fraction(0)", "return self.v", "self.v = fractions.Fraction(value)"),
    "file in memory": (
        "self.v = io.BytesIO(b'0.0')",
        "return float(self.v.getvalue())",
        "self.v.seek(0); self.v.truncate(); self.v.write(repr(value).encode())",
    ),
    "text in memory": (
        "self.v = io.StringIO('0.0')",
        "return float(self.v.getvalue())",
        "self.v.seek(0); self.v.truncate(); self.v.write(repr(value))",
    ),
    "local of a thread": ("self.v = threading.local(); self.v.v = 0.0", "return self.v.v", "self.v.v = value"),
    "namespace": ("self.v = types.SimpleNamespace(v=0.0)", "return self.v.v", "self.v.v = value"),
    "object with slots": ("self.v = Slots(); self.v.v = 0.0", "return self.v.v", "self.v.v = value"),
    "context variable": ("VAR.set(0.0)", "return VAR.get()", "VAR.set(value)"),
    "global object": ("BOX.v = 0.0", "return BOX.v", "BOX.v = value"),
    "class": ("Net.v = 0.0", "return Net.v", "Net.v = value"),
    "bytes": ("self.v = bytearray(b'0.0')", "return float(self.v)", "self.v[:] = repr(value).encode()"),
    "queue": (
        "self.v = queue.Queue(); self.v.put(0.0)",
        "return self.v.queue[0]",
        "self.v.get(); self.v.put(value)",
    ),
    "number of C": ("self.v = ctypes.c_double(0.0)", "return self.v.value", "self.v.value = value"),
}

#: By way of changing: a number that the samples give, and the new value.
WAYS = {
    "maximum": ("x.max()", "max(float(old), seen)"),
    "counter": ("0", "float(old) + 1"),
    "first batch": ("x.mean() + 9", "float(old) or seen"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_state_of_each_kind_is_found(tmp_path: Path, kind: str, way: str) -> None:
    made, get, put = KINDS[kind]
    seen, change = WAYS[way]
    text = NET.format(made=made, get=get, put=put, seen=seen, change=change)
    source: Any = read_model_source(model_file(tmp_path, text))
    with pytest.raises(ModelError, match=r"keeps state of its own|is not repeatable|is another one"):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch())
