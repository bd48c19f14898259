"""The reference follows from the code: each definition of it has its entry, and each entry explains itself."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

from docs.generators import check, job_values, outcomes, protocol, public_api, records
from docs.generators.command_line import command_line, literal_lines, place_of
from docs.generators.committed import committed, readable
from docs.generators.expansion import COMMENT, MEASURED, PIECES, collapsed, expand, piece, without_folder_links
from docs.generators.tables import comments_of, fields_table, first_sentence
from lockstep import F, fit, nn
from lockstep.cli.main import cli
from lockstep.common.job.job import Job
from lockstep.common.nn.module import LAYERS
from lockstep.common.protocol.messages import EpochRecord, ServerMessage, WorkerMessage
from lockstep.common.protocol.run_options import KEPT_OPTIONS
from lockstep.common.protocol.shard_messages import ShardMessage, ToShardMessage, WorkerToShardMessage
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.runs.job_file import resolve
from tests.architecture.source import ROOT
from tests.docs.pages import Block, PageError, page_paths, read_page
from tests.docs.prose import passages_of_markdown
from tests.docs.words import complaints

PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = sorted({name for path in PAGES for name in COMMENT.findall(path.read_text(encoding="utf-8"))})


def test_each_piece_is_on_a_page() -> None:
    assert sorted(PIECES) == [name for name in NAMES if not name.startswith(("api of ", MEASURED))]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("api of sklearn")])
def test_a_piece_is_made(name: str) -> None:
    text = piece(name)
    assert len(text) > 100
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row for row in rows if row.startswith("| |")] == []
    # An entry of the API that is no function and no class would be an empty one.
    assert "<function" not in text
    assert " object at 0x" not in text
    assert [each for passage in passages_of_markdown(text, name) for each in complaints(passage)] == []


@pytest.mark.parametrize("path", [path for path in PAGES if COMMENT.search(path.read_text(encoding="utf-8"))], ids=str)
def test_what_github_shows_is_what_the_code_gives(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "api of sklearn" in text:
        pytest.importorskip("sklearn")
    told = "the reference is not current: run .venv/bin/python -m docs.generators.committed"
    try:
        current = committed(collapsed(text))
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not recorded yet")
    assert text == current, told


def test_what_is_committed_is_written_once_and_needs_no_sphinx() -> None:
    page = "a\n\n<!-- generated: exit codes -->\n\nb\n"
    once = committed(page)
    assert collapsed(once) == page
    assert committed(collapsed(once)) == once
    assert once.count("| code | meaning |") == 1
    assert expand(once) == expand(page)
    for name in NAMES:
        if not name.startswith(("api of sklearn", "pytorch ")):
            assert "{eval-rst}" not in readable(piece(name))


def test_a_name_that_makes_nothing_is_an_error() -> None:
    assert expand("a\n<!-- generated: exit codes -->\nb").startswith("a\n| code")
    with pytest.raises(KeyError, match="makes nothing"):
        expand("<!-- generated: nothing -->")


def test_every_value_of_a_job_has_a_row() -> None:
    text = job_values.job_values()
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted({*Job.__struct_fields__, *KEPT_OPTIONS})
    assert "| `lr` | number, above 0 | `0.05` |" in text
    assert "| `workers` | whole number from 0 to 1,024 | one per core; train: 0 if that is quicker |" in text


def test_the_job_files_that_pages_show_are_good() -> None:
    blocks = [block for path in page_paths() for block in parsed(path) if block.language == "toml"]
    jobs = [tomllib.loads(block.text) for block in blocks if "file" in block.markers]
    assert len(jobs) > 0
    for values in jobs:
        resolve(values, {})


def parsed(path: Path) -> tuple[Block, ...]:
    try:
        return read_page(path).blocks
    except PageError:  # another test names it
        return ()


#: All messages, by who takes part.
OF_WORKERS = WorkerMessage, ServerMessage
OF_SHARDS = ShardMessage, ToShardMessage, WorkerToShardMessage


def tag_of(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def test_every_message_has_an_entry() -> None:
    kinds = {tag_of(kind) for union in (*OF_WORKERS, *OF_SHARDS) for kind in get_args(union)}
    assert set(re.findall(r"^\| `(\w+)` \|", protocol.wire_messages(), re.MULTILINE)) == kinds


@pytest.mark.parametrize("machine", protocol.MACHINES, ids=lambda machine: str(machine.title))
def test_a_drawing_has_each_state_and_an_arc_for_each_change(machine: protocol.Machine) -> None:
    drawn = protocol.drawing(machine)
    changes = {
        (state, target)
        for (state, _), targets in machine.transitions.items()
        for target in targets or ()
        if target is not state
    }
    assert all(comments_of(machine.states).values())
    assert drawn.count("<rect") == len(machine.states)
    assert drawn.count('class="arc"') == len(changes) > 0
    assert "\n" not in drawn


def test_all_tables_of_transitions_are_drawn() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lockstep").rglob("*.py")
        if re.search(r"^TRANSITIONS\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(files) == len(protocol.MACHINES)


@pytest.mark.parametrize("kind", records.RECORDS, ids=lambda kind: str(kind.__name__))
def test_each_field_of_a_file_is_explained(kind: type) -> None:
    comments = comments_of(kind)
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|(.*)\|$", fields_table(kind), re.MULTILINE)
    assert rows
    assert [name for name, text in rows if not text.strip()] == [], comments


def test_the_errors_and_the_codes_are_all_there() -> None:
    text = outcomes.error_classes()
    from lockstep.common import errors

    kinds = {name for name in vars(errors) if name.endswith("Error")}
    assert set(re.findall(r"`(\w+Error)`", text)) == kinds
    assert re.findall(r"^\| `(\d+)`", outcomes.exit_codes(), re.MULTILINE) == ["0", "1", "2", "130"]


def test_the_functions_and_the_layers_are_all_there() -> None:
    assert set(re.findall(r"`F\.(\w+)\(", readable(public_api.api_functional()))) == set(public_api.functions_of(F))
    assert set(re.findall(r"`nn\.(\w+)\(", readable(public_api.api_layers()))) == set(LAYERS)
    assert "_indices" not in public_api.functions_of(F)
    assert public_api.members_of(nn.Linear) == []
    assert "named_parameters" in public_api.members_of(nn.Module)


def test_every_command_has_its_place() -> None:
    text = command_line()
    assert [name for name in cli.commands if f":prog: lockstep {name}\n" not in text] == []
    assert place_of(cli.commands["train"]) == "lockstep.cli.training.train:train"


def test_a_signature_is_short() -> None:
    array = "_Buffer | _SupportsArray[dtype[Any]] | _NestedSequence[_SupportsArray[dtype[Any]]] | complex | bytes | str"
    array += " | _NestedSequence[complex | bytes | str]"
    signature = f"(x: Any, data: str | tuple[{array}, {array}] | Any = 'mnist', *, **values: Any)"
    assert public_api.short_signature(signature) == (
        "(x, data: str | tuple[ArrayLike, ArrayLike] | Any = 'mnist', *, **values)"
    )


def test_examples_of_the_help_are_a_block() -> None:
    assert literal_lines(["Train.", "", "|   lockstep train", "|   more", "", "End."]) == [
        *("Train.", "", ".. code-block:: text", "", "     lockstep train", "     more", "", "End.")
    ]


def test_comments_above_attributes_are_read() -> None:
    assert comments_of(RunPhase)["AUDITING"].startswith(
        "All results of a step are there, and some of its micro-batches"
    )
    assert comments_of(EpochRecord)["epoch"] == "Its number, from 1."  # of the class that it inherits from
    assert first_sentence("One `a.b` thing. Another.\n\nMore.") == "One `a.b` thing."


def test_links_to_folders_are_text() -> None:
    text = "[a](../common) [b](../README.md) [c](https://x.y)"
    assert without_folder_links(text, ROOT / "docs") == "a [b](../README.md) [c](https://x.y)"


def test_broken_links_and_foreign_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "good.html").write_text('<p id="a"><a href="good.html#a">x</a><a href="https://x.y">x</a>')
    assert list(check.problems(tmp_path)) == []
    (tmp_path / "bad.html").write_text(
        '<script src="https://x.y/z.js"></script><img src="no.png"><a href="no.html">x</a>'
        '<a href="good.html#b">x</a><a href="folder/">x</a><a href="#c">x</a>'
    )
    assert [text.removeprefix("bad.html: ").split(",")[0] for text in check.problems(tmp_path)] == [
        "loads 'https://x.y/z.js' from elsewhere",
        "loads 'no.png'",
        "the link 'no.html' leads nowhere",
        "the anchor of 'good.html#b' is not there",
        "the link 'folder/' leads to a folder",
        "the anchor of '#c' is not there",
    ]


def test_the_page_of_the_run_folder_has_each_file(tmp_path: Path) -> None:
    x = np.zeros((8, 3))
    model = nn.Sequential(nn.Linear(3, 2))
    data = ((x, np.arange(8) % 2), (x, np.arange(8) % 2))
    fit(model, data, epochs=1, global_batch=8, workers=0, verbose=False, run_dir=tmp_path / "run", warm_start=True)
    text = (ROOT / "docs" / "reference" / "run-folder.md").read_text(encoding="utf-8")
    files = [path.name for path in (tmp_path / "run").iterdir()]
    assert len(files) >= 8
    assert [name for name in files if f"`{name}`" not in text and f"`{name}/`" not in text] == []
