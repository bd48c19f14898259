"""The checker of what makes code or objects out of data, one of the rules, finds each way of it that is planted."""

import pytest

from tests.architecture.code_from_data import IMPORTS_COMMANDS, RUNS_SOURCE, check_code_from_data
from tests.architecture.source import ROOT, Violation, read_tree, sources_of

#: Source that does it, with what is to be said of it.
PLANTED = {
    "pickle": ("import pickle", "imports pickle"),
    "pickle, in C": ("from _pickle import loads", "imports _pickle"),
    "pickle, nested": ("def f():\n    from pickle import loads", "imports pickle"),
    "pickle, renamed": ("import pickle as json", "imports pickle"),
    "marshal": ("from marshal import loads", "imports marshal"),
    "shelve": ("import shelve", "imports shelve"),
    "dill": ("import dill", "imports dill"),
    "joblib": ("from joblib import load", "imports joblib"),
    "cloudpickle": ("import cloudpickle.cloudpickle", "imports cloudpickle"),
    "eval": ("eval('1')", "uses eval"),
    "eval, passed on": ("f = eval", "uses eval"),
    "eval, of builtins": ("import builtins\nbuiltins.eval('1')", "uses builtins.eval"),
    "eval, of builtins, renamed": ("from builtins import eval as judge\njudge('1')", "uses builtins.eval"),
    "exec": ("exec('1')", "uses exec"),
    "compile": ("f = compile('1', '', 'eval')", "uses compile"),
    "builtins by their other name": ("__builtins__['eval']('1')", "uses __builtins__"),
    "import by name": ("import importlib\nimportlib.import_module(name)", "uses importlib.import_module"),
    "import by name, renamed": ("from importlib import import_module as f\nf(name)", "uses importlib.import_module"),
    "__import__": ("__import__('os')", "uses __import__"),
    "recv_pyobj": ("socket.recv_pyobj()", "uses recv_pyobj"),
    "send_pyobj": ("send = self.raw.send_pyobj", "uses send_pyobj"),
    "recv_pyobj, by its name": ("getattr(socket, 'recv_pyobj')()", "names 'recv_pyobj'"),
    "np.load": ("import numpy as np\nnp.load('', allow_pickle=True)", "lets NumPy unpickle"),
    "np.load, by a variable": ("import numpy as np\nnp.load('', allow_pickle=trusted)", "lets NumPy unpickle"),
    "np.load, by place": ("from numpy import load\nload('', None, True)", "lets NumPy unpickle"),
    "read_array, by place": ("from numpy.lib import format as npy\nnpy.read_array(f, True)", "lets NumPy unpickle"),
    "yaml.load": ("import yaml\nyaml.load('')", "uses yaml.load"),
    "yaml.load, by name": ("from yaml import unsafe_load\nunsafe_load('')", "uses yaml.unsafe_load"),
    "torch.load": ("import torch\ntorch.load('')", "uses torch.load"),
    "torch.load, by a variable": ("import torch\ntorch.load('', weights_only=trusted)", "uses torch.load"),
    "torch.load, by another name": ("from torch import load\nread = load", "uses torch.load"),
    "shell": ("import subprocess\nsubprocess.run('ls', shell=True)", "gives a shell"),
    "shell, by a variable": ("from subprocess import Popen\nPopen('ls', shell=is_easy)", "gives a shell"),
    "os.system": ("import os\nos.system('ls')", "uses os.system"),
    "os.system, renamed": ("from os import system as run\nrun('ls')", "uses os.system"),
    "popen": ("import os\nos.popen('ls')", "uses os.popen"),
    "getoutput": ("import subprocess as s\ns.getoutput('ls')", "uses subprocess.getoutput"),
}

HARMLESS = {
    "a pattern": "import re\nre.compile('exec')",
    "a method of that name": "model.compile()\nmodel.eval()",
    "a list of arguments": "import subprocess\nsubprocess.run(['ls'], shell=False, check=True)",
    "arrays without pickles": "import numpy as np\nnp.load('', allow_pickle=False)\nnp.load('', None, False)",
    "the word in a text": "text = 'no pickle here'",
    "tensors alone": "import torch\ntorch.load('', weights_only=True)",
    "safe YAML": "import yaml\nyaml.safe_load('')",
}


def found_in(module: str, text: str) -> list[Violation]:
    return list(check_code_from_data(sources_of({module: text})))


def test_what_is_checked_is_all_of_it() -> None:
    assert {
        "lockstep.common.protocol.codec",
        "lockstep.ps.server.server",
        "lockstep.worker.shell",
        "lockstep.runs.job_file",
        RUNS_SOURCE,
    } <= set(read_tree(ROOT))


@pytest.mark.parametrize(("text", "expected"), PLANTED.values(), ids=list(PLANTED))
def test_what_is_planted_is_found(text: str, expected: str) -> None:
    assert [violation for violation in found_in("lockstep.ps.server.server", text) if expected in violation.text]


@pytest.mark.parametrize("text", HARMLESS.values(), ids=list(HARMLESS))
def test_what_is_harmless_is_not(text: str) -> None:
    assert found_in("lockstep.ps.server.server", text) == []


def test_one_file_may_run_a_users_source_and_nothing_else_of_it() -> None:
    assert found_in(RUNS_SOURCE, "exec(compile('', '', 'exec'), {})") == []
    assert found_in(RUNS_SOURCE, "eval('1')")
    assert found_in(RUNS_SOURCE, "import pickle")


def test_one_file_may_import_by_name_and_nothing_else_of_it() -> None:
    assert found_in(IMPORTS_COMMANDS, "from importlib import import_module\nimport_module(name)") == []
    assert found_in(IMPORTS_COMMANDS, "exec('1')")
