"""A worker computes with the server's model: with its own files if they are the same, or else with the run's copy."""

from pathlib import Path

import msgspec
import pytest

from lockstep.common.errors import ModelError
from lockstep.common.model.source import source_from_welcome
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.setup import open_run
from lockstep.runs.run_dir import keep_files, told_folder
from lockstep.worker.setup import gather
from tests.lockstep.common.model.test_files import write
from tests.simulation.small import digits, job_of

FILES = {
    "models/__init__.py": "",
    "models/net.py": "from lockstep import nn\nfrom .sizes import WIDTH\n\n\ndef build():\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))\n",
    "models/sizes.py": "WIDTH = 6\n",
}


@pytest.fixture
def welcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Welcome:
    """Return the welcome to a run with a model of several files, of which its folder has a copy."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FILES)
    run = tmp_path / "run"
    setup = open_run("run", job_of(model="models.net:build"), digits(), RunOptions(), None, told_folder(run))
    keep_files(run, setup.source)
    sent = decode(encode(setup.info.welcome(0)), Welcome)[0]
    assert isinstance(sent, Welcome)
    return sent


def test_a_worker_has_all_files_of_the_servers_model(welcome: Welcome, tmp_path: Path) -> None:
    assert gather(welcome, lambda name: digits()).model.layout.size == 784 * 6 + 6 + 60 + 10
    assert [file.place for file in welcome.model_files] == ["models/net.py", "models/__init__.py", "models/sizes.py"]


@pytest.mark.parametrize("place", FILES)
def test_a_file_that_changes_during_a_run_changes_no_worker(welcome: Welcome, tmp_path: Path, place: str) -> None:
    write(tmp_path, {place: "raise ValueError\n"})
    assert gather(welcome, lambda name: digits()).model.layout.size == 784 * 6 + 6 + 60 + 10
    (tmp_path / place).unlink()
    assert gather(welcome, lambda name: digits()).model.layout.size == 784 * 6 + 6 + 60 + 10


@pytest.mark.parametrize("place", FILES)
def test_on_another_machine_one_line_names_the_file_that_differs(welcome: Welcome, tmp_path: Path, place: str) -> None:
    there = msgspec.structs.replace(welcome, model_folder="/no/such/folder")
    assert source_from_welcome(there.job, there.source, there.model_files, there.model_folder).digest == welcome.source
    write(tmp_path, {place: "# changed\n"})
    with pytest.raises(ModelError) as raised:
        gather(there, lambda name: digits())
    assert str(raised.value).startswith("the source of model 'models.net:build' is not the server's (")
    assert f"{place!r}: SHA-256 " in str(raised.value)
    assert str(raised.value).endswith(
        "copy the server's files to this machine: models/net.py, models/__init__.py, models/sizes.py"
    )
    assert "\n" not in str(raised.value)


def test_on_another_machine_one_line_names_the_file_that_is_missing(welcome: Welcome, tmp_path: Path) -> None:
    there = msgspec.structs.replace(welcome, model_folder="")
    (tmp_path / "models/sizes.py").unlink()
    with pytest.raises(ModelError, match=r"'models/sizes\.py': SHA-256 none here, .*… there\): copy the server's"):
        gather(there, lambda name: digits())
    (tmp_path / "models/net.py").unlink()
    with pytest.raises(ModelError, match=r"no module 'models\.net' in this folder .*: copy the server's files"):
        gather(there, lambda name: digits())


def test_a_model_of_the_library_tells_no_folder(tmp_path: Path) -> None:
    setup = open_run("run", job_of(), digits(), RunOptions(), None, told_folder(tmp_path))
    assert (setup.info.welcome(0).model_folder, setup.info.welcome(0).model_files) == ("", [])
