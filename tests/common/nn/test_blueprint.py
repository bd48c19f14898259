"""From the `model` value of a job to a Module that fits the data."""

from pathlib import Path

import pytest

from common import nn
from common.errors import ModelError
from common.nn.blueprint import blueprint_of, build_model
from common.nn.description import describe
from common.nn.models import MODELS

FILE = """
from common import nn

def build():
    return nn.Linear(4, 2)
"""


@pytest.mark.parametrize("name", MODELS)
def test_the_models_are_built_by_name(name: str) -> None:
    assert list(build_model(name).parameters())
    assert blueprint_of(name).source == ""


def test_a_mistyped_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(ModelError, match=r"'lenat' is not known \(did you mean 'lenet'\?\): expected one of linear,"):
        build_model("lenat")


def test_a_description_is_built_and_has_no_source() -> None:
    description = dict(describe(nn.Linear(4, 2)))
    assert isinstance(build_model(description), nn.Linear)
    assert blueprint_of(description).source == ""


def test_a_file_of_ones_own_is_built_and_its_source_is_digested(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    assert isinstance(build_model(f"{path}:build"), nn.Linear)
    before = blueprint_of(f"{path}:build").source
    assert len(before) == 64
    path.write_text(FILE + "# changed\n")
    assert blueprint_of(f"{path}:build").source != before


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        build_model(f"{tmp_path}/none.py:build")
