"""What a model imports from its own folder belongs to it: it is found without being run, digested, and imported."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lockstep.common import nn
from lockstep.common.errors import ModelError
from lockstep.common.job.job import Job
from lockstep.common.model.files import (
    MOST_FILES,
    ModelFile,
    differing,
    digest_of,
    read_copy,
    read_model_files,
)
from lockstep.common.model.source import WantedSource, read_model_source
from tests.architecture.source import ROOT
from tests.lockstep.common.model.built import build_model

#: A model of three inputs, as wide as a name of its own says.
NET = "from lockstep import nn\n\n\ndef build():\n    return nn.Linear(3, WIDTH)\n"


def write(root: Path, texts: Mapping[str, str]) -> None:
    for place, text in texts.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text)


def width_of(model: str) -> int:
    built = build_model(model)
    assert isinstance(built, nn.Linear)
    return int(built.weight.shape[0])


#: What is imported, by the statement in the model's file, the name of the model, and all its files in order.
IMPORTS = {
    "a neighbour": ("from helpers import WIDTH", "net.py", {"helpers.py": "WIDTH = 7"}),
    "a neighbour as a whole": ("import helpers; WIDTH = helpers.WIDTH", "net.py", {"helpers.py": "WIDTH = 7"}),
    "relative, and no package": ("from .helpers import WIDTH", "net.py", {"helpers.py": "WIDTH = 7"}),
    "a relative module": ("from . import helpers; WIDTH = helpers.WIDTH", "net.py", {"helpers.py": "WIDTH = 7"}),
    "a neighbour's neighbour": (
        "from helpers import WIDTH",
        "net.py",
        {"helpers.py": "from sizes import *", "sizes.py": "WIDTH = 7"},
    ),
    "each other": (
        "from helpers import WIDTH",
        "net.py",
        {"helpers.py": "import net\nWIDTH = 7\nassert net.__name__.endswith('.net')"},
    ),
    "a package beside it": (
        "import sizes.small as small; WIDTH = small.WIDTH",
        "net.py",
        {"sizes/__init__.py": "", "sizes/small.py": "from .base import WIDTH", "sizes/base.py": "WIDTH = 7"},
    ),
    "a folder beside it": (
        "import sizes.small; WIDTH = sizes.small.WIDTH",
        "net.py",
        {"sizes/small.py": "WIDTH = 7"},
    ),
    "its package, relative": (
        "from .helpers import WIDTH",
        "models/net.py",
        {"models/helpers.py": "from . import BASE; WIDTH = BASE + 3", "models/__init__.py": "BASE = 4"},
    ),
    "its package, by name": (
        "from models.helpers import WIDTH",
        "models/net.py",
        {"models/__init__.py": "", "models/helpers.py": "WIDTH = 7"},
    ),
    "a neighbour in its package": (
        "from helpers import WIDTH",
        "models/net.py",
        {"models/helpers.py": "WIDTH = 7", "models/__init__.py": ""},
    ),
    "the package above": (
        "from ..sizes import WIDTH",
        "all/models/net.py",
        {"all/__init__.py": "", "all/sizes.py": "WIDTH = 7", "all/models/__init__.py": ""},
    ),
    "a value of its package": ("from . import WIDTH", "models/net.py", {"models/__init__.py": "WIDTH = 7"}),
    "of a package itself": (
        "from .helpers import WIDTH",
        "net/__init__.py",
        {"net/helpers.py": "WIDTH = 7"},
    ),
    "within a function": (
        "def width():\n    from helpers import WIDTH\n    return WIDTH\nWIDTH = width()",
        "net.py",
        {"helpers.py": "WIDTH = 7"},
    ),
    "the name of a module of Python's, relative": (
        "import random; from .random import WIDTH; random.Random()",
        "net.py",
        {"random.py": "WIDTH = 7"},
    ),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_what_a_model_imports_from_its_folder_belongs_to_it(tmp_path: Path, name: str) -> None:
    statement, main, others = IMPORTS[name]
    write(tmp_path, {main: f"{statement}\n{NET}", **others})
    model = f"{tmp_path}/{main}:build"
    files = read_model_files(model)
    assert files.root == tmp_path
    assert files.main == main
    assert set(files.texts) == {main, *others}
    assert width_of(model) == 7
    copy = tmp_path / "copy"
    write(copy, {place: text.decode() for place, text in files.texts.items()})
    assert read_model_files(f"{copy}/{main}:build").digest == files.digest, "wherever they are"


@pytest.mark.parametrize("name", IMPORTS)
def test_a_change_in_any_file_changes_the_digest_and_is_named(tmp_path: Path, name: str) -> None:
    statement, main, others = IMPORTS[name]
    write(tmp_path, {main: f"{statement}\n{NET}", **others})
    before = read_model_files(f"{tmp_path}/{main}:build")
    for place in (main, *others):
        text = (tmp_path / place).read_text()
        (tmp_path / place).write_text(f"{text}\n# changed\n")
        after = read_model_files(f"{tmp_path}/{main}:build")
        assert after.digest != before.digest
        assert differing(after.digests(), before.digests()).startswith(f"{place!r}: SHA-256 ")
        (tmp_path / place).write_text(text)
    assert read_model_files(f"{tmp_path}/{main}:build").digest == before.digest


def test_the_digest_is_what_sha256sum_gives(tmp_path: Path) -> None:
    write(tmp_path, {"net.py": f"from helpers import WIDTH\n{NET}", "helpers.py": "WIDTH = 7"})
    sums = subprocess.run(["sha256sum", "helpers.py", "net.py"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert read_model_source(f"{tmp_path}/net.py:build").digest == hashlib.sha256(sums).hexdigest()


def test_a_file_alone_has_its_own_digest_in_a_package_too(tmp_path: Path) -> None:
    text = f"import numpy, random, lockstep\nWIDTH = 7\n{NET}"
    write(tmp_path, {"__init__.py": "raise ValueError", "net.py": text, "random.py": "", "lockstep.py": ""})
    assert read_model_files(f"{tmp_path}/net.py:build").digest == hashlib.sha256(text.encode()).hexdigest()
    assert width_of(f"{tmp_path}/net.py:build") == 7


def test_a_module_is_found_in_the_current_folder_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"models/__init__.py": "from . import sizes", "models/net.py": f"from .sizes import WIDTH\n{NET}"}
    write(tmp_path, {**texts, "models/sizes.py": "import sys\nWIDTH = 7\nsys.has_run = True\n"})
    files = read_model_files("models.net:build")
    assert list(files.texts) == ["models/net.py", "models/__init__.py", "models/sizes.py"]
    assert not hasattr(sys, "has_run")
    assert files.digest == read_model_files("models/net.py:build").digest
    assert width_of("models.net:build") == 7
    del sys.has_run  # type: ignore[attr-defined]  # of the model above


def test_an_installed_package_is_found_without_all_that_is_installed_beside_it(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    write(site, {"models/__init__.py": "", "models/net.py": f"import numpy\nfrom .sizes import WIDTH\n{NET}"})
    write(site, {"models/sizes.py": "WIDTH = 7", "numpy.py": "raise ValueError"})
    program = (
        "from lockstep.common.model.files import read_model_files\n"
        "texts = read_model_files('models.net:build').texts\n"
        "assert list(texts) == ['models/net.py', 'models/__init__.py', 'models/sizes.py'], texts\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = [{str(ROOT)!r}, *sys.path, {str(site)!r}]\n{program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["models.nte:build", "nothing:build"])
def test_a_module_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no module '.*' in this folder .* expected package\.module:function"):
        read_model_files(name)


def test_two_models_have_helpers_of_their_own(tmp_path: Path) -> None:
    for width in (5, 7):
        write(tmp_path / str(width), {"net.py": f"from helpers import WIDTH\n{NET}", "helpers.py": f"WIDTH = {width}"})
    models = [build_model(f"{tmp_path}/{width}/net.py:build") for width in (5, 7, 5)]
    assert [model.weight.shape[0] for model in models if isinstance(model, nn.Linear)] == [5, 7, 5]
    assert "helpers" not in sys.modules


def test_what_runs_is_what_was_digested(tmp_path: Path) -> None:
    write(tmp_path, {"net.py": f"from helpers import WIDTH\n{NET}", "helpers.py": "WIDTH = 7"})
    source = read_model_source(f"{tmp_path}/net.py:build")
    (tmp_path / "helpers.py").write_text("raise ValueError")
    assert source.build(0).layout.size == 4 * 7


def test_a_helper_that_fails_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"net.py": f"from helpers import WIDTH\n{NET}", "helpers.py": "import no_such_module"})
    with pytest.raises(ModelError, match=r"model file '.*/helpers\.py' cannot be imported: it raised ModuleNotFound"):
        build_model(f"{tmp_path}/net.py:build")
    (tmp_path / "helpers.py").write_text("from .nothing import WIDTH")
    with pytest.raises(ModelError, match=r"it raised ModuleNotFoundError: .*nothing"):
        build_model(f"{tmp_path}/net.py:build")


def test_a_module_of_another_folder_is_not_the_models_and_the_error_tells_how_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"models/net.py": f"from sizes.small import WIDTH\n{NET}", "sizes/small.py": "WIDTH = 7"})
    with pytest.raises(ModelError, match=r"not in the model's: name the model as package\.module:function"):
        build_model("models/net.py:build")
    assert width_of("models.net:build") == 7


def test_a_model_of_too_many_files_is_refused(tmp_path: Path) -> None:
    names = [f"part{number}" for number in range(MOST_FILES)]
    write(tmp_path, {"net.py": "".join(f"import {name}\n" for name in names), **{f"{name}.py": "" for name in names}})
    with pytest.raises(ModelError, match=rf"imports more than {MOST_FILES} files"):
        read_model_files(f"{tmp_path}/net.py:build")


def wanted(tmp_path: Path, copy: Path | None) -> WantedSource:
    files = read_model_files(f"{tmp_path}/net.py:build").digests()
    return WantedSource(digest=digest_of(files), files=files, copy=copy, owner="the run's", advice="find it")


def test_the_source_of_that_digest_is_taken_from_where_it_is(tmp_path: Path) -> None:
    texts = {"net.py": f"from helpers import WIDTH\n{NET}", "helpers.py": "WIDTH = 7"}
    model, copy = f"{tmp_path}/net.py:build", tmp_path / "copy"
    write(tmp_path, texts)
    write(copy, texts)
    source, alone = wanted(tmp_path, copy), wanted(tmp_path, None)
    assert source.read(Job(model=model)).files == {"model": read_model_files(model)}
    (tmp_path / "helpers.py").write_text("WIDTH = 8")
    assert source.read(Job(model=model)).build(0).layout.size == 4 * 7
    with pytest.raises(ModelError, match=r"is not the run's \('helpers\.py': SHA-256 .*… here, .*… there\): find it"):
        alone.read(Job(model=model))
    (tmp_path / "net.py").unlink()
    assert source.read(Job(model=model)).build(0).layout.size == 4 * 7
    with pytest.raises(ModelError, match=r"net\.py' cannot be read: .*: find it"):
        alone.read(Job(model=model))


def test_a_copy_that_was_changed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"net.py": f"WIDTH = 7\n{NET}"})
    copy = tmp_path / "copy"
    write(copy, {"net.py": f"WIDTH = 8\n{NET}"})
    source = wanted(tmp_path, copy)
    (tmp_path / "net.py").unlink()
    with pytest.raises(ModelError, match=r"the copy of the model in '.*' was changed: 'net\.py': SHA-256"):
        source.read(Job(model=f"{tmp_path}/net.py:build"))


def test_a_copy_lists_nothing_outside_of_it(tmp_path: Path) -> None:
    import msgspec

    for place in ("/etc/passwd", "../net.py", "a/../../net.py", "..", ""):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"place": place, "sha256": "0" * 64}, ModelFile)
    write(tmp_path, {"net.py": NET})
    with pytest.raises(ModelError, match="cannot be read"):
        read_copy(tmp_path, "build", [ModelFile("other.py", "0" * 64)])
