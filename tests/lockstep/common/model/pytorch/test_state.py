"""State that a model keeps from one call to the next is found wherever it is, before it has changed any result.

Each planted way counts calls, and would change results from the hundredth on: only looking can find it.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.source import open_model, read_model_source
from tests.lockstep.common.model.pytorch.jobs import NAMES, NETS, batch, model_file, model_of

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

NET = """
{before}

class Net(nn.Module):
    {of_class}
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)
        {made}

    def forward(self, x{default}):
        x = x.flatten(1)
        {done}
        return self.inner(x)
"""

COUNTER = """
class Counter:
    {slots}
    def __init__(self):
        self.n = 0

    def __call__(self, *args):
        self.n += 1
"""

CLOSURE = """
def counting():
    n = 0

    def count(*args):
        nonlocal n
        n += 1
        return n

    return count
"""


def net(before: str = "", of_class: str = "", made: str = "pass", default: str = "", done: str = "pass") -> str:
    return NET.format(before=before, of_class=of_class, made=made, default=default, done=done)


#: By what keeps the state: the model, and how the place of the state is called.
PLANTED = {
    "public attribute": (net(made="self.n = 0", done="self.n += 1"), "n"),
    "private attribute": (net(made="self._n = 0", done="self._n += 1"), "_n"),
    "private tensor": (net(made="self._mean = torch.zeros(1)", done="self._mean = self._mean + 1"), "_mean"),
    "tensor changed in place": (net(made="self._mean = [torch.zeros(1)]", done="self._mean[0] += 1"), "_mean"),
    "private dictionary": (net(made="self._seen = {}", done="self._seen[len(self._seen)] = 1"), "_seen"),
    "array of NumPy": (
        net("import numpy", made="self._sums = numpy.zeros(2)", done="self._sums += 1"), "_sums",
    ),
    "plain object": (
        net(COUNTER.format(slots=""), made="self.tracker = Counter()", done="self.tracker()"), "tracker.n",
    ),
    "object with slots": (
        net(COUNTER.format(slots="__slots__ = ('n',)"), made="self.tracker = Counter()", done="self.tracker()"),
        "tracker.n",
    ),
    "object in a list": (
        net(COUNTER.format(slots=""), made="self.all = [Counter()]", done="self.all[0]()"), "all",
    ),
    "class attribute": (net(of_class="n = 0", done="Net.n += 1"), "Net.n"),
    "attribute of another class": (
        net(COUNTER.format(slots="") + "\nCounter.calls = 0\n", made="self.tracker = Counter()",
            done="Counter.calls += 1"),
        "Counter.calls",
    ),
    "autograd function": (
        net("""
class Twice(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        Twice.calls += 1
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient
""", done="x = Twice.apply(x)"),
        "Twice.calls",
    ),
    "global variable": (net("N = 0", done="globals()['N'] += 1; N"), "N"),
    "global list": (net("SEEN = []", done="SEEN.append(1)"), "SEEN"),
    "function's attribute": (
        net("def count():\n    count.n += 1\n\n\ncount.n = 0", done="count()"), "count.n",
    ),
    "local of a thread": (
        net("import threading", made="self._local = threading.local(); self._local.n = 0", done="self._local.n += 1"),
        "_local.n",
    ),
    "typed array": (net("import array", made="self._n = array.array('q', [0])", done="self._n[0] += 1"), "_n"),
    "decimal number": (net("import decimal", made="self._n = decimal.Decimal(0)", done="self._n += 1"), "_n"),
    "file in memory": (net("import io", made="self._log = io.BytesIO()", done="self._log.write(b'.')"), "_log"),
    "iterator of a library": (
        net("import itertools", made="self._n = itertools.islice([1] * 999, 999)", done="next(self._n)"), "_n",
    ),
    "default argument": (net(default=", seen=[]", done="seen.append(1)"), "Net.forward, a default"),
    "closure": (net(CLOSURE, made="self.count = counting()", done="self.count()"), "count, n"),
    "one of two closures": (
        net(CLOSURE, made="self.count, self.still = counting(), counting()", done="self.count()"), "count, n",
    ),
    "the other closure": (
        net(CLOSURE, made="self.still, self.count = counting(), counting()", done="self.count()"), "count, n",
    ),
    "default of a context variable": (
        net("from contextvars import ContextVar\n\nN = ContextVar('N', default=[])", done="N.get().append(1)"), "N",
    ),
    "hook with a closure": (
        net(CLOSURE, made="c = counting(); self.inner.register_forward_hook(lambda *_: c() and None)"), "count, n",
    ),
    "hook with an object": (
        net(COUNTER.format(slots=""), made="self.inner.register_forward_pre_hook(Counter())"), "a hook of inner.n",
    ),
    "hook of a gradient": (
        net(CLOSURE, made="self.inner.weight.register_hook(lambda g, count=counting(): (count(), g)[1])"), "count, n",
    ),
    "partial": (
        net("from functools import partial", made="self.act = partial(lambda seen, x: seen.append(1), [])",
            done="self.act(x)"),
        "act",
    ),
    "generator function": (
        net("def numbers():\n    n = 0\n    while True:\n        n += 1\n        yield n",
            made="self.numbers = numbers(); next(self.numbers)", done="next(self.numbers)"),
        "n",
    ),
    "iterator": (net(made="self.order = iter(range(1000))", done="next(self.order)"), "order"),
    "itertools": (
        net("import itertools", made="self.order = itertools.count()", done="next(self.order)"), "order",
    ),
    "generator of its own": (
        net("import random", made="self.rng = random.Random(1)", done="self.rng.random()"), "rng",
    ),
    "generator of NumPy": (
        net("import numpy", made="self.rng = numpy.random.default_rng(1)", done="self.rng.random()"), "rng",
    ),
    "generator of PyTorch": (
        net(made="self.rng = torch.Generator()", done="torch.rand(1, generator=self.rng)"), "rng",
    ),
    "context variable": (
        net("from contextvars import ContextVar\n\nN = ContextVar('N', default=0)", done="N.set(N.get() + 1)"), "N",
    ),
    "layer in a list": (net(made="self.norms = [nn.BatchNorm1d(784)]", done="self.norms[0](x)"), "norms"),
}  # fmt: skip

FIRST_ONLY = {
    "first samples": (
        net(
            made="self._mean = None",
            done="""
        if self._mean is None:
            self._mean = x.mean().item()
        x = x - self._mean""",
        ),
        "_mean",
    ),
}


@pytest.mark.parametrize("way", PLANTED)
def test_state_is_found_with_its_place(tmp_path: Path, way: str) -> None:
    text, place = PLANTED[way]
    with pytest.raises(ModelError, match=f"keeps state of its own .* in '{re.escape(place)}'") as raised:
        model_of(tmp_path, text).evidence(Objective(), *batch())
    assert "\n" not in str(raised.value)


def test_state_in_another_file_of_the_model_is_found(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("calls = 0\nseen = []\n")
    model = model_of(tmp_path, net("import helpers", done="helpers.seen.append(1)"))
    with pytest.raises(ModelError, match=r"in 'helpers.seen'"):
        model.evidence(Objective(), *batch())


@pytest.mark.parametrize("draw", ["random.random()", "numpy.random.rand()"])
def test_draws_that_decide_now_and_then_are_found(tmp_path: Path, draw: str) -> None:
    text = net("import random\nimport numpy", done=f"x = x * 2 if {draw} < 1e-9 else x")
    with pytest.raises(
        ModelError, match=r"the model draws from (Python's random|numpy\.random): expected draws from Py"
    ):
        model_of(tmp_path, text).evidence(Objective(), *batch())


@pytest.mark.parametrize("way", FIRST_ONLY)
def test_what_is_kept_of_the_first_samples_is_found(tmp_path: Path, way: str) -> None:
    text, place = FIRST_ONLY[way]
    source = read_model_source(model_file(tmp_path, text))
    with pytest.raises(ModelError, match=f"in '{place}': the gradient .* another micro-batch before"):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch())


def test_what_is_kept_of_one_sample_is_found_since_another_one_is_made_of_it(tmp_path: Path) -> None:
    text, place = FIRST_ONLY["first samples"]
    source = read_model_source(model_file(tmp_path, text))
    with pytest.raises(ModelError, match=f"in '{place}'"):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch(1))


def test_what_is_kept_of_the_first_tokens_is_found(tmp_path: Path) -> None:
    text = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self._first = nn.Embedding(9, 4), None

    def forward(self, x):
        if self._first is None:
            self._first = x[0].sum().item()
        return self.table(x).mean(1) * self._first
"""
    source = read_model_source(model_file(tmp_path, text))
    tokens = np.arange(12, dtype=np.int32).reshape(4, 3) % 7
    with pytest.raises(ModelError, match="in '_first'"):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), tokens, np.arange(4))


#: State that only grows: after samples with the same maximum, and the same values, it is what it was.
RATCHETS = {
    "a maximum": net(made="self.top = 0.0", done="self.top = max(self.top, x.max().item()); x = x / self.top"),
    "a greatest magnitude, as of fake quantization": net(
        made="self.range = torch.zeros(())",
        done="self.range = torch.maximum(self.range, x.detach().abs().max()); x = x / self.range",
    ),
    "a minimum that changes no result yet": net(
        made="self.low = 0.0", done="self.low = min(self.low, x.min().item()); x = x if self.low > -99 else -x"
    ),
    "values of samples": net(
        made="self.seen = set()", done="self.seen.update(x[:, 0].tolist()); x = x * len(self.seen)"
    ),
}


@pytest.mark.parametrize("scale", [0.1, 4.0])
@pytest.mark.parametrize("what", RATCHETS)
def test_what_only_grows_is_found(tmp_path: Path, what: str, scale: float) -> None:
    source = read_model_source(model_file(tmp_path, RATCHETS[what]))
    images, labels = batch()
    with pytest.raises(
        ModelError, match=r"keeps state of its own from one call to the next, in '(top|range|low|seen)'"
    ):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), images * np.float32(scale), labels)


def test_a_set_of_tokens_is_found(tmp_path: Path) -> None:
    text = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.seen = nn.Embedding(9, 4), set()

    def forward(self, x):
        self.seen.update(x.flatten().tolist())
        return self.table(x).mean(1) * len(self.seen)
"""
    source = read_model_source(model_file(tmp_path, text))
    tokens = np.array([[1, 7], [7, 1]], np.int32)
    with pytest.raises(ModelError, match="in 'seen'"):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), tokens, np.arange(2))


def test_an_object_that_cannot_be_looked_into_is_named_by_its_effect(tmp_path: Path) -> None:
    text = net(
        "import zlib",
        made="self._all = zlib.compressobj()",
        done="self._all.compress(x.detach().numpy().tobytes()); x = x * len(self._all.copy().flush())",
    )
    source = read_model_source(model_file(tmp_path, text))
    with pytest.raises(ModelError, match=r"not repeatable: .*; '_all' is a Compress, which cannot be looked into"):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch())


ALLOWED = {
    "a shape": net(made="self._shape = None", done="self._shape = x.shape"),
    "a mask for a length": net(
        made="self._masks = {}", done="x = x * self._masks.setdefault(len(x), torch.ones(len(x), 1))"
    ),
    "a tensor of the last call": net(made="self.last = None", done="self.last = x.detach()"),
    "constants": net("from dataclasses import dataclass\n\nSCALE = 2.0", done="x = x * SCALE"),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_changes_no_result_is_allowed(tmp_path: Path, what: str) -> None:
    source = read_model_source(model_file(tmp_path, ALLOWED[what]))
    assert source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch()).digest


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_nets_are_allowed(name: str) -> None:
    source = read_model_source(f"{NETS}:{name}")
    assert source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch()).digest


VIEWS = {
    "parameters": (
        "self.other = nn.Linear(784, 10); self.other.weight = nn.Parameter(self.inner.weight.data)",
        r"the parameters 'inner.weight' and 'other.weight' share memory: expected one parameter under both names",
    ),
    "part of a parameter": (
        "self.part = nn.Parameter(self.inner.weight.data[:2])",
        r"the parameters 'part' and 'inner.weight' share memory|'inner.weight' and 'part' share memory",
    ),
    "buffer": (
        "self.register_buffer('alias', self.inner.weight.detach()[2])",
        r"the buffer 'alias' shares memory with the parameter 'inner.weight': expected a copy",
    ),
    "kept view": ("self.rows = self.inner.weight[:2]", r"keeps a view of the parameter 'inner.weight' in 'rows'"),
    "detached": (
        "self._kept = [self.inner.bias.detach()]", r"keeps a view of the parameter 'inner.bias' in '_kept'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", VIEWS)
def test_views_of_parameters_are_found(tmp_path: Path, what: str) -> None:
    made, text = VIEWS[what]
    with pytest.raises(ModelError, match=text) as raised:
        model_of(tmp_path, net(made=made)).evidence(Objective(), *batch())
    assert "\n" not in str(raised.value)


def test_buffers_may_share_memory_with_each_other(tmp_path: Path) -> None:
    text = net(
        made="self.register_buffer('a', torch.ones(784)); self.register_buffer('b', self.a[3:])", done="x = x * self.a"
    )
    assert model_of(tmp_path, text).evidence(Objective(), *batch()).digest


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_a_search_reads_every_type_of_tensor(tmp_path: Path) -> None:
    text = net(
        made="""
        self.register_buffer("brief", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("pairs", torch.ones(3, dtype=torch.complex64).conj())
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("rows", torch.eye(3).to_sparse_csr())
        self.register_buffer("none", torch.ones(0))
        self.register_buffer("flags", torch.ones(3, dtype=torch.bool))
        self.others = [torch.ones(2, dtype=torch.float16), torch.eye(2).to_sparse(), torch.ones(1, 4)[:, 0]]"""
    )
    assert model_of(tmp_path, text).evidence(Objective(), *batch()).digest
    assert np.isfinite(open_model(model_file(tmp_path, text), 3).outputs(batch()[0])).all()
