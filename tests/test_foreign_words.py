"""No test pins what another library says, and the rule finds each library's words where they are planted."""

import errno
import os

import pytest

from tests.architecture.foreign_words import PHRASES, check_foreign_words
from tests.architecture.source import ROOT, read_tree, sources_of

#: The table of the rule, and what is planted below.
TABLES = ("tests.architecture.foreign_words", "tests.test_foreign_words")

#: A test's source, with the library whose words it pins.
PLANTED = {
    "msgspec": ("assert 'Expected `int`, got `str` - at `$.step`' in text", "msgspec"),
    "msgspec, in our case": ("CASES = [(1, \"header of 'a': expected `object`\")]", "msgspec"),
    "msgspec, escaped": ("match(r'got `str` - at `\\$.step`')", "msgspec"),
    "msgpack": ("with pytest.raises(ValueError, match='9 exceeds max_array_len'): ...", "msgpack"),
    "msgpack, escaped": (r"match(r'exceeds max_(bin|ext)_len\(0\)')", "msgpack"),
    "click": ("assert error == 'No such option: --epoch'", "click"),
    "click, in lower case": ("assert error == 'got unexpected extra argument (b)'", "click"),
    "click's usage": ("assert out.startswith('Usage: lockstep')", "click"),
    "click's number": ("told = \"'two' is not a valid integer\"", "click"),
    "tomllib": ("told = 'is not valid TOML: Invalid value (at line 1'", "tomllib"),
    "json": ("told = 'Expecting value: line 1'", "json"),
    "gzip": ("told = r'damaged .Not a gzipped file'", "gzip"),
    "zip": ("told = 'damaged (File is not a zip file)'", "gzip"),
    "NumPy": ("raises(TypeError, match='does not support ufuncs')", "NumPy"),
    "Python": ("told = \"it raised ModuleNotFoundError: No module named 'x'\"", "Python"),
    "Python's codec": ("told = \"header: 'utf-8' codec\"", "Python"),
    "the system": (f"told = 'cannot be read ({os.strerror(errno.ENOENT)})'", "the system"),
    "bytes": (f"assert b'{os.strerror(errno.EACCES)}' in done.stderr", "the system"),
    "a part of an f-string": (f"told = f'{{path}}: {os.strerror(errno.EISDIR)}: expected'", "the system"),
    "in two lines": ("told = (\n    'Not a '\n    'gzipped file'\n)", "gzip"),
}

#: What is allowed.
ALLOWED = {
    "our own": "told = \"invalid value for '--epochs': \"",
    "our own, of a value": "told = \"'20' is not a valid time: expected one such as 20ms\"",
    "our own suggestion": "told = \"no such option '--epoch' (did you mean '--epochs'?)\"",
    "the system, asked": "told = f'cannot be read ({os.strerror(errno.ENOENT)})'",
    "an error of the test": f"raise OSError(28, '{os.strerror(errno.ENOSPC)}')",
    "a docstring": "def test_x():\n    'It was: Not a gzipped file.'",
}


@pytest.mark.parametrize(("text", "library"), PLANTED.values(), ids=list(PLANTED))
def test_planted_words_are_found(text: str, library: str) -> None:
    found = [violation.text for violation in check_foreign_words(sources_of({"tests.test_x": text}))]
    assert [f"the words of {library}:" in each for each in found] == [True]


@pytest.mark.parametrize("text", ALLOWED.values(), ids=list(ALLOWED))
def test_what_pins_nothing_is_allowed(text: str) -> None:
    assert list(check_foreign_words(sources_of({"tests.test_x": text}))) == []


def test_words_of_each_library_are_planted() -> None:
    assert {library for _, library in PLANTED.values()} == set(PHRASES)


def test_no_test_pins_the_words_of_a_library() -> None:
    texts = read_tree(ROOT, ["tests"])
    sources = sources_of({module: text for module, text in texts.items() if module not in TABLES})
    assert [str(violation) for violation in check_foreign_words(sources)] == []
