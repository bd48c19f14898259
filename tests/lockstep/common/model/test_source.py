"""A job's value becomes a model of the library or of PyTorch, and PyTorch is loaded for the latter alone."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.common import nn
from lockstep.common.errors import ModelError
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.source import open_model, read_model_source
from lockstep.common.nn.description import describe
from lockstep.common.nn.models import MODELS
from tests.architecture.source import ROOT
from tests.lockstep.common.model.built import build_model

OURS = "from lockstep import nn  # as in torch\n\n\ndef build():\n    return nn.Sequential(nn.Linear(3, 2))\n"


def test_a_model_of_the_library_is_computed_by_our_autograd(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OURS)
    for value in ("linear", f"{tmp_path}/net.py:build"):
        assert isinstance(open_model(value, 1), AutogradModel)
    assert read_model_source("linear").digest == ""
    assert len(read_model_source(f"{tmp_path}/net.py:build").digest) == 64


def test_without_pytorch_its_models_say_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n\n\ndef build():\n    return torch.nn.Linear(2, 2)\n")
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from lockstep.common.model.source import open_model\n"
        f"open_model('{tmp_path}/net.py:build', 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"run `{sys.executable} -m pip install 'torch>=2.9'`" in done.stderr.splitlines()[-1]


def test_pytorch_is_not_loaded_where_no_model_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OURS)
    program = (
        "import sys, lockstep, lockstep.cli.training.train, lockstep.cli.machines.worker\n"
        "import lockstep.cli.results.evaluate\n"
        "from lockstep import fit, load_run\n"
        "from lockstep.common.model.source import open_model\n"
        f"open_model('lenet', 1), open_model('{tmp_path}/net.py:build', 1)\n"
        "assert not {'torch', 'lockstep.common.model.pytorch'} & set(sys.modules), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_models_are_built_by_name(name: str) -> None:
    assert list(build_model(name).parameters())
    assert read_model_source(name).digest == ""


def test_a_mistyped_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(ModelError, match=r"'lenat' is not known \(did you mean 'lenet'\?\): expected one of linear,"):
        build_model("lenat")


def test_a_description_is_built_and_has_no_source() -> None:
    description = dict(describe(nn.Linear(4, 2)))
    assert isinstance(build_model(description), nn.Linear)
    assert read_model_source(description).digest == ""


SOURCE = """
from dataclasses import dataclass
from lockstep.common import nn

@dataclass
class Sizes:
    hidden: "int" = 3

def build():
    return nn.Sequential(nn.Linear(4, Sizes().hidden), nn.ReLU())

def number():
    return 3

def needs(argument):
    return argument

def fails():
    raise LookupError("first line\\n  second line")

value = 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "my_model.py"
    file.write_text(SOURCE)
    return file


def test_the_function_builds_the_model(path: Path) -> None:
    assert repr(build_model(f"{path}:build")).startswith("Sequential(\n  (0): Linear(in_features=4, out_features=3")


def test_what_is_built_is_what_was_digested_even_if_the_file_changes(path: Path) -> None:
    source = read_model_source(f"{path}:build")
    path.write_text("raise ValueError")
    assert source.build(0).layout.size
    assert source.digest == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert read_model_source(f"{path}:build").digest != source.digest


def test_a_changed_file_of_the_same_size_is_seen(path: Path) -> None:
    build_model(f"{path}:build")
    path.write_text(SOURCE.replace('hidden: "int" = 3', 'hidden: "int" = 5'))
    assert "out_features=5" in repr(build_model(f"{path}:build"))
    assert [each.name for each in path.parent.iterdir()] == ["my_model.py"], "no __pycache__"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("biuld", "has no function 'biuld': did you mean 'build'?"),
        ("value", "has no function 'value': did you mean"),
        ("number", r":number returned 3: expected a Module"),
        ("fails", ":fails raised LookupError: first line second line: expected a function that returns a Module"),
        ("needs", r":needs raised TypeError: .*: expected a function that returns a Module"),
    ],
)
def test_a_wrong_function_is_told_in_one_line(path: Path, function: str, text: str) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        build_model(f"{path}:{function}")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "import no_such_module",
            "cannot be imported: it raised ModuleNotFoundError: .*no_such_module",
        ),
        ("def build(:", r"it raised SyntaxError: .*line 1"),
        ("raise SystemExit", "it raised SystemExit"),
        ("\0", "it raised (SyntaxError|ValueError)"),
        ("", "has no function 'build': the file defines none"),
    ],
)
def test_a_file_that_does_not_run_is_told_in_one_line(tmp_path: Path, source: str, text: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(ModelError, match=text) as caught:
        build_model(f"{file}:build")
    assert "\n" not in str(caught.value)


def test_the_original_exception_is_kept(path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(f"{path}:fails")
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'.*/none\.py' cannot be read: .*; expected a file"):
        build_model(f"{tmp_path}/none.py:build")
    (tmp_path / "net.py").touch()
    with pytest.raises(ModelError, match=r"'.*/net' cannot be read: .* \(did you mean 'net.py'\?\); expected a file"):
        build_model(f"{tmp_path}/net:build")
    with pytest.raises(ModelError, match=f"cannot be read: {os.strerror(errno.EISDIR)}"):
        build_model(f"{tmp_path}:build")


@pytest.mark.parametrize("name", ["my_model.py", "my_model.py:", ":build", "my_model.py:3", "my_model.py:a.b"])
def test_a_name_that_is_no_pair_is_told(name: str) -> None:
    with pytest.raises(ModelError, match=r"expected path/to/file\.py:function"):
        build_model(name)
