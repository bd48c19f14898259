"""Sets, caches, clocks, memory of C and iterators: state that a net keeps is found, and so is a clock that it reads."""

from pathlib import Path
from typing import Any

import pytest

from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.source import read_model_source
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.setup import open_run
from tests.lockstep.common.model.pytorch.jobs import batch, model_file
from tests.simulation.small import digits, job_of

pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

NET = """
import collections, ctypes, datetime, enum, functools, heapq, itertools, mmap, multiprocessing, pathlib, re, sqlite3
import tempfile, threading, time, uuid, weakref
import numpy

class Point:
    def __init__(self, a=0):
        self.a = a

class Alike(float):
    def __hash__(self):
        return 1
    def __eq__(self, other):
        return True

{top}

class Net(nn.Module):
    {body}
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)
        {init}

    def extra(self, x):
        {extra}

    def forward(self, x):
        x = x.flatten(1)
        return self.inner(x * (1 + 0.01 * float(self.extra(x))))
"""

DESCRIPTOR = """
class D:
    def __init__(self):
        self.by = {}
    def __get__(self, owner, kind):
        return self.by.get(id(owner), 0.0)
    def __set__(self, owner, value):
        self.by[id(owner)] = value
"""

CLOSURE = """
def make():
    top = 0.0
    def largest(value):
        nonlocal top
        top = max(top, value)
        return top
    return largest
"""

#: By name: what the file has, how a net begins, the number that a forward uses, and what its class has.
STATES = {
    "set of seen": ("", "self.v = set()", "self.v.add(round(float(x.sum()), 2)); return len(self.v)", "pass"),
    "set of tuples": ("", "self.v = set()", "self.v.add(tuple(x[0, :3].tolist())); return len(self.v)", "pass"),
    "frozenset replaced": (
        "",
        "self.v = frozenset()",
        "self.v = self.v | {round(float(x.sum()), 2)}; return len(self.v)",
        "pass",
    ),
    "set of objects": (
        "",
        "self.v = set()",
        "self.v.add(Point(round(float(x.sum()), 2))); return len({p.a for p in self.v})",
        "pass",
    ),
    "weak set": (
        "",
        "self.keep = []; self.v = weakref.WeakSet()",
        "p = Point(); self.keep.append(p); self.v.add(p); return len(self.v)",
        "pass",
    ),
    "set in a class": ("", "pass", "Net.seen.add(round(float(x.sum()), 2)); return len(Net.seen)", "seen = set()"),
    "global set": ("SEEN = set()", "pass", "SEEN.add(round(float(x.sum()), 2)); return len(SEEN)", "pass"),
    "keys of a dictionary": ("", "self.v = {}", "self.v[round(float(x.sum()), 2)] = 1; return len(self.v)", "pass"),
    "counter of collections": (
        "",
        "self.v = collections.Counter()",
        "self.v[round(float(x.max()))] += 1; return max(self.v.values())",
        "pass",
    ),
    "default dictionary": ("", "self.v = collections.defaultdict(int)", "self.v['a'] += 1; return self.v['a']", "pass"),
    "chain of maps": (
        "",
        "self.v = collections.ChainMap({})",
        "self.v[round(float(x.sum()), 2)] = 1; return len(self.v)",
        "pass",
    ),
    "user list": ("", "self.v = collections.UserList()", "self.v.append(1); return len(self.v)", "pass"),
    "lru_cache of a function": (
        "@functools.lru_cache\ndef cached(n, k):\n    return float(k)\ndef first(n, m): return cached(n, Alike(m))",
        "pass",
        "n = first(len(x), float(x.max())); return n",
        "pass",
    ),
    "cache of a method": (
        "",
        "pass",
        "return self.of(Alike(float(x.max())))",
        "@functools.cache\n    def of(self, k): return float(k)\n",
    ),
    "cache that is counted": (
        "@functools.cache\ndef cached(k): return k",
        "pass",
        "cached(round(float(x.sum()), 2)); return cached.cache_info().currsize",
        "pass",
    ),
    "lru_cache that forgets": (
        "@functools.lru_cache(maxsize=1)\ndef cached(k): return k",
        "pass",
        "cached(round(float(x.sum()), 2)); return cached.cache_info().misses",
        "pass",
    ),
    "cached property": (
        "",
        "pass",
        "self.last = x; return self.scale",
        "@functools.cached_property\n    def scale(self): return float(self.last.max())\n",
    ),
    "singledispatch": (
        "@functools.singledispatch\ndef f(a): return 0",
        "pass",
        "n = len(f.registry); f.register(type('T', (), {}))(lambda a: a); return n",
        "pass",
    ),
    "weak values": (
        "",
        "self.keep = []; self.v = weakref.WeakValueDictionary()",
        "p = Point(); self.keep.append(p); self.v[len(self.keep)] = p; return len(self.v)",
        "pass",
    ),
    "weak keys": (
        "",
        "self.keep = []; self.v = weakref.WeakKeyDictionary()",
        "p = Point(); self.keep.append(p); self.v[p] = 1; return len(self.v)",
        "pass",
    ),
    "positions by length": (
        "",
        "self.v = {}",
        "self.v.setdefault(x.shape[1], float(x.max())); return self.v[x.shape[1]]",
        "pass",
    ),
    "memo in a default": (
        "def memo(v, seen=[]):\n    if not seen: seen.append(v)\n    return seen[0]",
        "pass",
        "return memo(float(x.max()))",
        "pass",
    ),
    "memo in an attribute of a function": (
        "def memo(v):\n    memo.first = getattr(memo, 'first', v)\n    return memo.first",
        "pass",
        "return memo(float(x.max()))",
        "pass",
    ),
    "memo in a closure": (
        CLOSURE,
        "self.f = make()",
        "return self.f(float(x.max()))",
        "pass",
    ),
    "running minimum of lengths": ("", "self.v = 99", "self.v = min(self.v, len(x)); return self.v", "pass"),
    "time": ("", "pass", "return time.time() % 1", "pass"),
    "performance counter": ("", "pass", "return time.perf_counter() % 1", "pass"),
    "processor time": ("", "pass", "return time.process_time_ns() % 1000", "pass"),
    "now": ("", "pass", "return datetime.datetime.now().microsecond % 97", "pass"),
    "elapsed since built": ("", "self.t = time.perf_counter()", "return time.perf_counter() - self.t", "pass"),
    "whole seconds": ("", "pass", "return int(time.time()) % 7", "pass"),
    "hour of the day": ("", "pass", "return time.localtime().tm_hour", "pass"),
    "hour, formatted": ("", "pass", "return int(time.strftime('%H'))", "pass"),
    "weekday": ("", "pass", "return datetime.date.today().weekday()", "pass"),
    "hour by datetime": ("", "pass", "return datetime.datetime.now().hour", "pass"),
    "month in UTC": ("", "pass", "return datetime.datetime.now(datetime.timezone.utc).month", "pass"),
    "imported clock": ("from time import time as now", "pass", "return int(now()) % 7", "pass"),
    "imported date": ("from datetime import date as today", "pass", "return today.today().day", "pass"),
    "clock of another function": ("def hour(): return time.gmtime().tm_hour", "pass", "return hour()", "pass"),
    "minutes since start": ("", "pass", "return time.monotonic() // 60 % 7", "pass"),
    "file": (
        "",
        "self.p = pathlib.Path(__file__).with_name('n')",
        "n = int(self.p.read_text()) + 1 if self.p.exists() else 1; self.p.write_text(str(n)); return n",
        "pass",
    ),
    "mapped memory": ("", "self.m = mmap.mmap(-1, 8)", "self.m[0] = (self.m[0] + 1) % 256; return self.m[0]", "pass"),
    "database in memory": (
        "",
        "self.d = sqlite3.connect(':memory:'); self.d.execute('create table t (a)')",
        "self.d.execute('insert into t values (1)'); return self.d.execute('select count(*) from t').fetchone()[0]",
        "pass",
    ),
    "shared value": ("", "self.v = multiprocessing.Value('d', 0.0)", "self.v.value += 1; return self.v.value", "pass"),
    "semaphore": ("", "self.s = threading.Semaphore(1000)", "self.s.acquire(); return self.s._value", "pass"),
    "unique number": ("", "pass", "return uuid.uuid4().int % 97", "pass"),
    "struct of C": (
        "class S(ctypes.Structure):\n    _fields_ = [('n', ctypes.c_int)]",
        "self.v = S()",
        "self.v.n += 1; return self.v.n",
        "pass",
    ),
    "pointer of C": (
        "",
        "self.v = ctypes.pointer(ctypes.c_int(0))",
        "self.v.contents.value += 1; return self.v.contents.value",
        "pass",
    ),
    "generator": (
        "def gen():\n    n = 0\n    while True:\n        n += 1; yield n",
        "self.g = gen()",
        "return next(self.g)",
        "pass",
    ),
    "coroutine's send": (
        "def gen():\n    top = 0.0\n    while True:\n        top = max(top, (yield top))",
        "self.g = gen(); next(self.g)",
        "return self.g.send(float(x.max()))",
        "pass",
    ),
    "cycle": ("", "self.g = itertools.cycle([1, 2, 3])", "return next(self.g)", "pass"),
    "zip": ("", "self.g = zip(range(10**6), range(10**6))", "return next(self.g)[0] % 7", "pass"),
    "map": ("", "self.g = map(float, itertools.count())", "return next(self.g)", "pass"),
    "tee": ("", "self.g, self.h = itertools.tee(itertools.count())", "return next(self.g)", "pass"),
    "matches": ("", "self.g = re.finditer('a', 'a' * 10**5)", "return next(self.g).start()", "pass"),
    "heap": (
        "",
        "self.v = []",
        "heapq.heappush(self.v, float(x.max())); return -heapq.nsmallest(1, self.v)[0]",
        "pass",
    ),
    "bits of an integer": (
        "",
        "self.v = 0",
        "self.v |= 1 << (round(float(x.abs().sum())) % 60); return bin(self.v).count('1')",
        "pass",
    ),
    "enumeration": (
        "class E(enum.Enum):\n    A = 1\nE.A.count = 0",
        "pass",
        "E.A.count += 1; return E.A.count",
        "pass",
    ),
    "descriptor": (
        DESCRIPTOR,
        "self.n = 0.0",
        "self.n = self.n + 1; return self.n",
        "n = D()\n",
    ),
    "metaclass": (
        "class Meta(type):\n    calls = 0\nclass Counted(metaclass=Meta): pass",
        "pass",
        "type(Counted).calls += 1; return type(Counted).calls",
        "pass",
    ),
    "generator of PyTorch": (
        "",
        "self.r = torch.Generator().manual_seed(1)",
        "return torch.rand((), generator=self.r).item()",
        "pass",
    ),
    "array of objects": (
        "",
        "self.v = numpy.array([0, None], object)",
        "self.v[0] = self.v[0] + 1; return self.v[0]",
        "pass",
    ),
    "array with names": (
        "",
        "self.v = numpy.zeros(1, [('a', float)])",
        "self.v['a'] += 1; return self.v['a'][0]",
        "pass",
    ),
    "sparse tensor": (
        "",
        "self.v = torch.zeros(3).to_sparse()",
        "self.v = (self.v + torch.ones(3).to_sparse()); return self.v.to_dense()[0]",
        "pass",
    ),
    "attribute of a tensor": (
        "",
        "pass",
        "self.inner.weight.n = getattr(self.inner.weight, 'n', 0) + 1; return self.inner.weight.n",
        "pass",
    ),
    "storage": (
        "",
        "self.v = torch.zeros(4).untyped_storage()",
        "self.v[0] = (self.v[0] + 1) % 256; return self.v[0]",
        "pass",
    ),
    "hook of a layer": (
        "",
        "self.n = [0]; self.inner.register_forward_hook(lambda *a: self.n.__setitem__(0, self.n[0] + 1))",
        "return self.n[0]",
        "pass",
    ),
    "layers that are added": (
        "",
        "self.ls = nn.ModuleList()",
        "self.ls.append(nn.Identity()); return len(self.ls)",
        "pass",
    ),
    "depth of dropout": (
        "",
        "self.d = nn.Dropout(0.0)",
        "self.d.p = min(0.5, self.d.p + 0.01); return self.d.p",
        "pass",
    ),
    "global number": ("N = 0", "pass", "global N; N += 1; return N", "pass"),
}


@pytest.mark.parametrize("what", STATES)
def test_what_a_net_keeps_or_reads_is_found(tmp_path: Path, what: str) -> None:
    top, init, extra, body = STATES[what]
    text = NET.format(top=top, init=init, extra=extra, body=body)
    source: Any = read_model_source(model_file(tmp_path, text))
    with pytest.raises(ModelError, match=r"keeps state of its own|is not repeatable"):
        source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch())


def test_a_switch_that_each_forward_turns_is_found_before_a_run(tmp_path: Path) -> None:
    extra = "self.v.move_to_end(next(iter(self.v))); return self.v[next(iter(self.v))]"
    text = NET.format(top="", init="self.v = collections.OrderedDict(a=1, b=2)", extra=extra, body="pass")
    job = job_of(numerics="native", model=model_file(tmp_path, text))
    # A pass of the trial has two forwards. The dry run before has one, and so the two models differ.
    with pytest.raises(ModelError, match="keeps state of its own"):
        open_run("run", job, digits(), RunOptions())


PLAIN = {
    "a clock that is only shown": ("SEEN = []", "pass", "print(time.strftime('%H')) if len(x) == 99 else 0; return 1"),
    "a table by the number of samples": ("", "self.v = {}", "return self.v.setdefault(len(x), 2.0 * len(x))"),
    "the time in a name that is unused": ("NOW = time.time()", "pass", "return 1"),
}


@pytest.mark.parametrize("what", PLAIN)
def test_a_net_whose_result_does_not_follow_them_is_allowed(tmp_path: Path, what: str) -> None:
    top, init, extra = PLAIN[what]
    source: Any = read_model_source(model_file(tmp_path, NET.format(top=top, init=init, extra=extra, body="pass")))
    assert source.check_repeated(source.build(3), Objective(Job(seed=3)), *batch()).digest
