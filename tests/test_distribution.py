"""The wheel and the source distribution: what is in them, and that both can be used in a fresh environment."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from lockstep.common.numerics.kernels.compilation import find_compiler
from lockstep.common.numerics.kernels.library import library_path, targets_of, this_machine
from lockstep.common.runtime.version import VERSION
from tests.architecture.source import PACKAGES, ROOT

MNIST = {
    f"lockstep/common/data/mnist/{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
}


def build(target: str, folder: Path, root: Path = ROOT) -> Path:
    """Build a wheel or an sdist, and return its file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> list[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel_file) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def sdist_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def sdist(sdist_file: Path) -> set[str]:
    """The names of the files in the source distribution, without its one folder."""
    with tarfile.open(sdist_file) as archive:
        names = [member.name.partition("/") for member in archive.getmembers() if not member.isdir()]
    assert {top for top, _, _ in names} == {f"lockstep_sgd-{VERSION}"}
    return {name for _, _, name in names}


def test_the_wheel_has_the_packages_and_nothing_else(wheel: list[str]) -> None:
    assert {name.partition("/")[0] for name in wheel} == {*PACKAGES, f"lockstep_sgd-{VERSION}.dist-info"}


def test_the_wheel_has_every_module_at_its_path(wheel: list[str]) -> None:
    on_disk = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in wheel if name.endswith(".py")} == on_disk


def test_the_wheel_has_mnist_and_the_jobs(wheel: list[str]) -> None:
    assert {name for name in wheel if name.endswith(".gz")} == MNIST
    jobs = {f"lockstep/jobs/{model}.toml" for model in ("linear", "mlp", "lenet", "cnn")}
    assert jobs <= {name for name in wheel if name.endswith(".toml")}


def test_the_wheel_has_the_licence_and_the_command(wheel: list[str]) -> None:
    (metadata,) = {name.partition("/")[0] for name in wheel if ".dist-info/" in name}
    assert {f"{metadata}/entry_points.txt", f"{metadata}/licenses/LICENSE"} <= set(wheel)


def test_the_wheel_has_kernels_for_all_processors_of_its_platform_and_fits_every_python(
    wheel: list[str], wheel_file: Path
) -> None:
    if not find_compiler():
        pytest.skip("no C compiler works here")
    targets = targets_of(this_machine())
    compiled = {str(library_path(target).relative_to(ROOT)) for target in targets}
    assert {name for name in wheel if "/numerics/kernels/" in name and not name.endswith(".py")} == compiled
    with zipfile.ZipFile(wheel_file) as archive:
        (name,) = (name for name in wheel if name.endswith(".dist-info/WHEEL"))
        text = archive.read(name).decode()
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert f"Tag: py3-none-{platform}\n" in text
    assert "Root-Is-Purelib: false\n" in text


def test_the_wheel_has_no_tests_and_nothing_that_was_compiled(wheel: list[str]) -> None:
    assert not [name for name in wheel if "test" in name.lower() or name.endswith((".pyc", ".log"))]


def test_the_source_distribution_has_what_git_has(sdist: set[str]) -> None:
    """So that tests, documentation and examples work in it as in a clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = (name for name in listed.split("\0") if name)
    # The links at the top name what the package has already.
    known = {name for name in names if (ROOT / name).exists() and not (ROOT / name).is_symlink()}
    assert sorted(known - sdist) == []


def test_the_source_distribution_has_nothing_that_a_run_or_a_tool_left(sdist: set[str]) -> None:
    left = ("__pycache__", ".ipynb_checkpoints", "/_build/", ".pyc", ".so", ".log")
    assert not [name for name in sdist if any(part in f"/{name}" for part in left)]
    assert not [name for name in sdist if name.startswith(("runs/", "keys/", ".venv", ".env", "notebooks/runs/"))]


def test_the_workflow_builds_a_wheel_for_each_platform_and_lets_it_test_itself() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8"))
    wheel = workflow["jobs"]["wheel"]
    assert wheel["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm", "macos-15-intel", "macos-15"]
    self_test = "python -P -m lockstep.common.numerics.kernels.library"
    assert wheel["env"]["CIBW_TEST_COMMAND"].startswith(self_test)
    assert self_test in [step.get("run") for step in wheel["steps"]]
    assert (workflow["permissions"], wheel["permissions"]) == ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 30
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_the_citation_has_the_version_and_the_licence() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (VERSION, project["license"])
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in project["authors"]]
    assert {"cff-version", "message", "title", "type"} <= set(cited)


# Beside a person's own modules, whose names are those of our folders.

#: A script of theirs: training with workers and without comes to the same bits.
SCRIPT = """
import lockstep
import numpy as np
from lockstep import fit, nn

x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
y = (x.sum(axis=1) > 0).astype(np.int64)
model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
for workers in (2, 0):
    values = dict(epochs=2, global_batch=16, numerics="portable", verbose=False)
    print(fit(model, ((x, y), (x, y)), workers=workers, **values).weights_sha256)
print(lockstep.__file__)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with modules that must never be imported by us."""
    folder = tmp_path / "project"
    (folder / "common").mkdir(parents=True)
    for name in ("worker.py", "ps.py", "common/__init__.py"):
        (folder / name).write_text(f"raise RuntimeError('{name} is not of Lockstep')\n")
    (folder / "mine.py").write_text(SCRIPT)
    return folder


def call(*words: str | Path, cwd: Path) -> str:
    """Run a command as somebody who has no clone: without our path, and elsewhere."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LOCKSTEP_PICTURE")}
    done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def train(*command: str | Path, cwd: Path) -> str:
    """Train some steps with two workers, and return the digest of the weights."""
    words = ("train", "--model", "linear", "--steps", "5", "--workers", "2", "--set", "numerics=portable")
    call(*command, *words, "--run-dir", "run", cwd=cwd)
    result = json.loads((cwd / "run" / "result.json").read_text(encoding="utf-8"))
    assert isinstance(result["weights_sha256"], str)
    return result["weights_sha256"]


def check_project(python: Path, project: Path) -> None:
    """Train in the project by its script, with the modules of its folder first on the path."""
    with_workers, alone, where = call(python, "mine.py", cwd=project).splitlines()
    assert with_workers == alone
    assert Path(where).is_relative_to(python.parents[1])


def test_the_wheel_trains_beside_modules_with_the_names_of_our_folders(project: Path, wheel_file: Path) -> None:
    """In an environment with the wheel's files, which borrows the packages that it depends on from ours."""
    home = project.parent / "venv"
    venv.create(home)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(packages)
    # A path that is added this way brings no others: not that of our checkout, which is installed editable there.
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    check_project(home / "bin" / "python", project)
    assert len(train(home / "bin" / "python", "-m", "lockstep", cwd=project)) == 64


# In fresh environments. All of these need a package index.


def environment(folder: Path) -> Path:
    """Make an environment with nothing but pip, and return its folder of commands."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_trains_in_a_fresh_environment(project: Path, wheel_file: Path) -> None:
    commands = environment(project.parent / "venv")
    call(commands / "pip", "install", "--quiet", "-r", ROOT / "requirements" / "train.txt", cwd=project)
    call(commands / "pip", "install", "--quiet", "--no-deps", wheel_file, cwd=project)
    assert call(commands / "lockstep", "--version", cwd=project).strip() == f"lockstep {VERSION}"
    assert len(train(commands / "lockstep", cwd=project)) == 64
    call(commands / "lockstep", "verify", "run", cwd=project)
    check_project(commands / "python", project)


@pytest.mark.slow
def test_a_wheel_of_the_source_distribution_is_the_wheel(tmp_path: Path, sdist_file: Path, wheel: list[str]) -> None:
    (tmp_path / "made").mkdir()
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path / "made", sdist_file)
    call(environment(tmp_path / "venv") / "python", *words, cwd=tmp_path)
    (path,) = (tmp_path / "made").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == set(wheel)


@pytest.mark.slow
def test_the_source_distribution_passes_its_tests(tmp_path: Path, sdist_file: Path) -> None:
    """All of them are collected, and those are run that read files outside of the packages."""
    with tarfile.open(sdist_file) as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / f"lockstep_sgd-{VERSION}"
    commands = environment(tmp_path / "venv")
    call(commands / "pip", "install", "--quiet", "-r", "requirements/dev.txt", cwd=root)
    call(commands / "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", ".", cwd=root)
    pytest_here = (commands / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    call(*pytest_here, "--collect-only", cwd=root)
    tests = sorted(path.relative_to(root) for path in (root / "tests").glob("test_*.py"))
    folders = ("tests/deploy", "tests/docs/test_words.py", "tests/docs/test_reference.py", "tests/architecture")
    # What these scripts do in a clone needs a clone.
    call(*pytest_here, "-n", "2", "-m", "not slow", "-k", "not clone", *tests, *folders, cwd=root)
