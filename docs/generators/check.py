"""Looks at a site that was built: links and anchors lead somewhere in it, and nothing is loaded from the internet."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What makes a browser load something by itself.
LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}

#: `link` elements that load nothing.
POINTERS = {"canonical", "index", "search", "next", "prev", "author", "copyright", "top", "up"}

#: Pages that Sphinx makes, and whose links its scripts fill in.
OF_SPHINX = ("search.html",)


@dataclass
class Links(HTMLParser):
    """The links and the anchors of one page."""

    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name, value in given.items():
            is_pointer = tag == "link" and given.get("rel", "") in POINTERS
            if (tag, name) in LOADS and not is_pointer:
                self.loads.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)


def problems(site: Path) -> Iterator[str]:
    """Yield what is wrong with the site in a folder."""
    pages = {path: _links_of(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for target in page.loads:
            if urlsplit(target).scheme not in ("", "data") or target.startswith("//"):
                yield f"{name}: loads {target!r} from elsewhere"
            elif not urlsplit(target).scheme and not _file(path, target).exists():
                yield f"{name}: loads {target!r}, which is not there"
        for target in page.links if name not in OF_SPHINX else []:
            yield from (f"{name}: {text}" for text in _broken(path, target, pages))


def _links_of(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def _file(page: Path, target: str) -> Path:
    path = unquote(urlsplit(target).path)
    return (page.parent / path).resolve() if path else page


def _broken(page: Path, target: str, pages: dict[Path, Links]) -> Iterator[str]:
    split = urlsplit(target)
    if split.scheme or target.startswith("//"):
        return
    file = _file(page, target)
    if not file.exists():
        yield f"the link {target!r} leads nowhere"
    elif file.is_dir():
        yield f"the link {target!r} leads to a folder, which a browser shows only from disk"
    elif split.fragment and file in pages and unquote(split.fragment) not in pages[file].anchors:
        yield f"the anchor of {target!r} is not there"


def main(site: Path) -> int:
    """Print what is wrong with a site; return the exit code."""
    index = site / "index.html"
    index.write_text('<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n', encoding="utf-8")
    found = list(problems(site.resolve()))
    print("\n".join(found) or f"the site is good: open {index}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
