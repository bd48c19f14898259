"""What people read has none of the words and constructions that had to be read twice: docs, notebooks and help."""

import click
import pytest

from lockstep.cli.main import cli
from tests.architecture.source import ROOT
from tests.docs.prose import (
    Kind,
    Passage,
    commands_below,
    passages_of_file,
    passages_of_help,
    passages_of_markdown,
    passages_of_notebook,
)
from tests.docs.words import colons, complaints, complaints_of_source, long_sentences

FOLDERS = ("docs", "examples", "notebooks", "common", "deploy", ".github")
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted(
        [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*"))],
    )
    if path.suffix in (".md", ".ipynb") and not {"_build", ".ipynb_checkpoints"} & set(path.parts)
}
COMMANDS = dict(commands_below("lockstep", cli))

#: Pages that somebody reads from the beginning, and once.
READ_ONCE = [name for name in PAGES if name == "README.md" or name.startswith(("docs/tutorials/", "notebooks/"))]


@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_has_only_words_that_are_read_once(name: str) -> None:
    found = [complaint for passage in passages_of_file(PAGES[name], ROOT) for complaint in complaints(passage)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", READ_ONCE)
def test_the_sentences_of_a_tutorial_are_short_and_simple(name: str) -> None:
    passages = passages_of_file(PAGES[name], ROOT)
    found = [text for passage in passages for look in (long_sentences, colons) for text in look(passage)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_help_has_only_words_that_are_read_once(name: str) -> None:
    found = [complaint for passage in passages_of_help(name, COMMANDS[name]) for complaint in complaints(passage)]
    assert not found, "\n" + "\n".join(found)


def test_pages_and_commands_are_found() -> None:
    assert {"README.md", "SECURITY.md", "examples/README.md", "docs/how-to/data.md"} <= set(PAGES)
    assert {"lockstep train", "lockstep keys create"} <= set(COMMANDS)


BAD = (
    "What was broken is mended.",
    "The run is gone on with.",
    "Use images of one's own.",
    "The worker beside it computes.",
    "It builds the model anew.",
    "The sum comes to eight.",
    "The digest that stands there is the run's.",
    "The flag is laid over the job.",
    "Leave away the option.",
    "There is a worker a core.",
    "A command starts a task a core.",
    "This is no valid name.",
    "A mean of means is no mean.",
    "Who does not trust a machine's memory has a share of the work done twice.",
    "Whoever wants the same bits needs the same version.",
    "What compresses a gradient must be stateless.",
    "It works. Where nobody can, the lease expires.",
    "The doctor tells of it.",
    "More workers stand by, and are told so.",
    "`lockstep node` says why.",
    "It ends the run and says so.",
    "It is said once.",
    "The kernel is the processor's own.",
    "It is an assertion of libzmq's.",
    "It goes by the others'.",
)

GOOD = (
    "Run `lockstep mended beside`, which comes last.",
    "The letter M stands for the number of micro-batches.",
    "If you understand this, you have withstood the page.",
    "When it comes to a halt, the weights are kept.",
    "One worker per core computes micro-batches.",
    "There is no server, and there are no keys.",
    "The server is no longer there, and it is no faster than before.",
    "It makes no difference who computed what, and whoever answers first counts.",
    "What is a micro-batch?",
    "What you see depends on your machine.",
    "Who computes this? Where is it?",
    "Can you tell the two apart?",
    "Use your own model, or the server's own key.",
    "The gradients of PyTorch's modules are the same.",
    "The workers' times differ.",
    "The page is where you read it.",
)


@pytest.mark.parametrize("text", BAD)
def test_what_had_to_be_read_twice_is_found(text: str) -> None:
    assert [complaint for passage in passages_of_markdown(text, "page") for complaint in complaints(passage)]


@pytest.mark.parametrize("text", GOOD)
def test_plain_words_are_left_alone(text: str) -> None:
    assert not [complaint for passage in passages_of_markdown(text, "page") for complaint in complaints(passage)]


#: What a module has, and how often a word of it is to be replaced.
SOURCES = {
    '"""What a module is."""\n': 1,
    'def f():\n    """Whether it is."""\n': 1,
    'class B:\n    """A worker.\n\n    Whoever asks gets it.\n    """\n': 2,
    "#: There is nothing; None if there\n#: is none.\nx = 1\n": 1,
    "#: What is\n\n#: at hand\n": 2,
    'raise ValueError(f"the step {x} at hand is slow")\n': 1,
    "x = 1  # of a worker who is late\n": 1,
    '"""A worker that is late. The user who asks."""\n': 0,
    '"""A module."""\nx = "What is it?"\ny = {"who": "what is"}\n': 0,
    '"""The name `what is` of it."""\n': 0,
    'x = "at hand"\n': 0,
}


@pytest.mark.parametrize(("text", "count"), SOURCES.items())
def test_words_of_code_are_found(text: str, count: int) -> None:
    assert len(complaints_of_source(text, "a.py")) == count


PAGE = """\
---
title: mended
---
# What it costs

One sentence with `code` and
a [link beside](https://example.org/anew).

<!-- anew -->

    lockstep mended     # an indented block

```python
beside = "anew"
```

```{note}
A note is prose.
```

| a cell | `mended` |
| --- | --- |
| 1 | two<br>three |

Math $a \\beside b$ is code.
"""


def test_a_page_is_its_prose_with_the_lines_where_it_is() -> None:
    assert passages_of_markdown(PAGE, "page") == [
        Passage("page:4", Kind.HEADING, "What it costs"),
        Passage("page:6", Kind.TEXT, "One sentence with CODE and a link beside."),
        Passage("page:18", Kind.TEXT, "A note is prose."),
        Passage("page:21", Kind.CELL, "a cell"),
        Passage("page:21", Kind.CELL, "CODE"),
        Passage("page:23", Kind.CELL, "1"),
        Passage("page:23", Kind.CELL, "two. three"),
        Passage("page:25", Kind.TEXT, "Math CODE is code."),
    ]


def test_a_notebook_is_its_cells_of_markdown() -> None:
    notebook = (
        '{"cells": [{"cell_type": "code", "source": ["mended"]}, '
        '{"cell_type": "markdown", "source": ["One.\\n", "\\n", "Two."]}]}'
    )
    assert passages_of_notebook(notebook, "lab") == [
        Passage("lab, cell 2, line 1", Kind.TEXT, "One."),
        Passage("lab, cell 2, line 3", Kind.TEXT, "Two."),
    ]


@click.command(epilog="An end.")
@click.option("--rate", help="A rate,\nas in `--rate 0.1`.")
def tell() -> None:
    """Do `one` thing.

    \b
    In lines
    of two:
      lockstep tell      # with a comment
      lockstep tell --rate 1
    """


def test_a_help_is_its_words_without_its_commands() -> None:
    found = passages_of_help("lockstep tell", tell)
    assert {passage.place for passage in found} == {"lockstep tell --help"}
    assert [passage.text for passage in found] == [
        "Do CODE thing.",
        "In lines of two:",
        "with a comment",
        "An end.",
        "A rate, as in CODE.",
    ]


def test_a_sentence_ends_where_a_reader_would_end_it() -> None:
    text = "See J. Friedman, e.g. Table 2.5, or job.toml. It has 3 rows (all of them). **Then** `it` ends! 4 do not."
    (passage,) = passages_of_markdown(text, "page")
    assert passage.sentences() == [
        "See J. Friedman, e.g. Table 2.5, or job.toml.",
        "It has 3 rows (all of them).",
        "Then CODE ends!",
        "4 do not.",
    ]


@pytest.mark.parametrize(("count", "is_long"), [(30, False), (31, True)])
def test_a_sentence_of_more_than_thirty_words_is_too_long(count: int, is_long: bool) -> None:
    passage = Passage("page:1", Kind.TEXT, f"A short one. Word{' word' * (count - 1)}.")
    assert bool(list(long_sentences(passage))) is is_long


@pytest.mark.parametrize(("text", "is_too_much"), [("At 10:30: a list", False), ("One: two: three", True)])
def test_a_second_colon_in_a_paragraph_is_found(text: str, is_too_much: bool) -> None:
    assert bool(list(colons(Passage("page:1", Kind.TEXT, text)))) is is_too_much
