"""The front page of the site begins as the README does, and no page begins with its end."""

import pytest

from tests.architecture.source import ROOT
from tests.docs.pages import page_paths

README, INDEX = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/index.md"))


def test_the_front_page_begins_as_the_readme_does() -> None:
    lead = README[README.index("# Lockstep\n") : README.index("## Two commands")]
    assert lead.count("```python") == 1
    assert lead in INDEX


def test_both_show_the_same_picture() -> None:
    (picture,) = [line for line in INDEX.splitlines() if line.startswith("![")]
    assert picture.replace("(images/", "(docs/images/") in README


@pytest.mark.parametrize("path", page_paths(), ids=lambda path: path.name)
def test_no_page_begins_with_what_is_true_at_its_end(path: object) -> None:
    assert "At the end of this page" not in (ROOT / str(path)).read_text(encoding="utf-8")
