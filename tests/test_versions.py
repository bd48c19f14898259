"""The lock: it has what pyproject.toml asks for, each file by its hash, from nowhere in particular."""

import re
import tomllib
from functools import cache
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lockstep.common.numerics.kernels.compilation import COMPILER_PACKAGE
from tests.architecture.source import ROOT

REQUIREMENTS = ROOT / "requirements"
LOCKED = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
PINNED = re.compile(r"(?P<requirement>[a-z0-9-]+==[^ ]+(?: ; .+)?)(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)")

#: What the scripts and the image install, each by the extras of pyproject.toml.
EXTRAS = {
    "build": (),
    "compiler": (),
    "watch": ("watch",),
    "data": ("data",),
    "train": ("watch", "plot", "predict"),
    **{name: (name,) for name in ("dev", "mutation", "docs", "notebook", "advisories", "versions")},
}


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def asked(name: str) -> list[Requirement]:
    """Return what the project itself asks for in a file of the lock, with the extras that its extras name."""
    if name == "build":
        return [Requirement(text) for text in pyproject()["build-system"]["requires"]]
    if name == "compiler":
        return [Requirement(COMPILER_PACKAGE)]
    project = pyproject()["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    extras = list(EXTRAS[name])
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            if requirement.name == project["name"]:
                extras.extend(requirement.extras - set(extras))
            else:
                found.append(requirement)
    return found


def entries(name: str) -> list[Requirement]:
    """Return what a file of the lock pins, with the files that it includes."""
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
    included = [entry for below in re.findall(r"^-r (\w+)\.txt$", text, re.MULTILINE) for entry in entries(below)]
    return [*included, *(Requirement(found["requirement"]) for found in PINNED.finditer(text))]


@pytest.mark.parametrize("name", LOCKED)
def test_the_lock_has_what_the_project_asks_for(name: str) -> None:
    """Otherwise `scripts/versions lock` writes it again."""
    pinned = {canonicalize_name(entry.name): entry for entry in entries(name) if entry.marker is None}
    for requirement in asked(name):
        (version,) = pinned[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(version.version), str(requirement)


@pytest.mark.parametrize("name", LOCKED)
def test_the_lock_has_hashes_and_no_index(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
    rest = PINNED.sub("", text).split("\n")
    assert [line for line in rest if line and not re.fullmatch(r"# Written by .*|-r \w+\.txt", line)] == []


def test_the_files_agree() -> None:
    versions: dict[str, set[str]] = {}
    for entry in (entry for name in LOCKED for entry in entries(name)):
        versions.setdefault(entry.name, set()).add(str(entry.specifier))
    assert [package for package, found in versions.items() if len(found) > 1] == []


def test_the_lock_is_made_of_the_extras_that_the_scripts_and_the_image_use() -> None:
    assert set(LOCKED) == set(EXTRAS)
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").iterdir()]
    used = {name for text in texts for name in re.findall(r"\b(?:use_environment_with|run_module) ([a-z]+)", text)}
    image = set(re.findall(r"requirements/(\w+)\.txt", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert used | image <= set(LOCKED)


def test_both_ends_of_the_ranges_are_tried_each_week() -> None:
    loaded = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text(encoding="utf-8"))
    job = loaded["jobs"]["tests"]
    assert job["strategy"]["matrix"]["versions"] == ["lowest", "newest"]
    assert job["steps"][-1]["run"] == "scripts/versions ${{ matrix.versions }}"
