"""The page's own files: nothing from elsewhere, nothing inline, nothing missing."""

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("starlette", reason="the page is served by Starlette: .venv/bin/pip install -e '.[watch]'")

from lockstep.results.watch.serving import FILES, PAGE

INDEX = (PAGE / "index.html").read_text(encoding="utf-8")
OWN = sorted(name for name in FILES if not name.startswith("uplot/"))
SCRIPTS = [name for name in OWN if name.endswith(".js")]


class Page(HTMLParser):
    """Collects what a document asks for, and what its policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        for name, value in attrs:
            if name in ("src", "href") and value and value not in ("#", "data:,"):
                self.asked.append(value)
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}")
            if name == "id" and value:
                self.ids.append(value)

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


def parsed() -> Page:
    page = Page()
    page.feed(INDEX)
    return page


def test_all_that_the_page_asks_for_is_there_and_below_it() -> None:
    assert all(name.startswith("page/") and name.removeprefix("page/") in FILES for name in parsed().asked)


def test_nothing_is_inline() -> None:
    assert parsed().inline == []


@pytest.mark.parametrize("name", OWN)
def test_nothing_comes_from_elsewhere_and_no_text_becomes_markup(name: str) -> None:
    text = (PAGE / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]+/|@import", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_part_that_a_script_looks_for_is_in_the_page(name: str) -> None:
    text = (PAGE / name).read_text(encoding="utf-8")
    wanted = set(re.findall(r"(?:\$|getElementById)\(\"([\w-]+)\"\)", text))
    assert wanted <= set(parsed().ids)
    assert len(parsed().ids) == len(set(parsed().ids))


@pytest.mark.parametrize("name", SCRIPTS)
def test_modules_import_one_another_by_names_that_are_there(name: str) -> None:
    text = (PAGE / name).read_text(encoding="utf-8")
    assert all(f"scripts/{other}" in FILES for other in re.findall(r"from \"\./([\w.]+)\"", text))
    # What answers is asked by the page that waits for it, which forgets it when it ends.
    assert "fetch(" not in text or name in ("scripts/page.js", "scripts/watch.js")
