"""A job's value becomes a model of the library or of PyTorch, and PyTorch is loaded for the latter alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.common.errors import ModelError
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.source import open_model, read_model_source
from tests.architecture.source import ROOT

OURS = "from lockstep import nn  # as in torch\n\n\ndef build():\n    return nn.Sequential(nn.Linear(3, 2))\n"


def test_a_model_of_the_library_is_computed_by_our_autograd(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OURS)
    for value in ("linear", f"{tmp_path}/net.py:build"):
        assert isinstance(open_model(value, 1), AutogradModel)
    assert read_model_source("linear").digest == ""
    assert len(read_model_source(f"{tmp_path}/net.py:build").digest) == 64


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build():\n    return 3\n")
    with pytest.raises(ModelError, match=r"net.py:build returned 3: expected a Module"):
        open_model(f"{tmp_path}/net.py:build", 1)


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
