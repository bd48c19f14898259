"""Every command and every block of Python in README and docs is run as it is pasted, or says in the page why not."""

import importlib.util
import re
from pathlib import Path

import click
import pytest

from lockstep.common.errors import JobError
from tests.architecture.source import ROOT
from tests.docs.commands import calls, check_call, missing_names
from tests.docs.pages import Block, Page, PageError, page_paths, parse_page, read_page
from tests.docs.running import BlockError, run_page

PATHS = {path.relative_to(ROOT).as_posix(): path for path in page_paths()}


def good_page(path: Path) -> Page | None:
    """Return a page, None if it breaks a rule: that is said by a test, and not while tests are collected."""
    try:
        return read_page(path)
    except PageError:
        return None


PAGES = [page for path in PATHS.values() if (page := good_page(path)) is not None]

#: The pages that have something to run; those that say so are slow.
TO_RUN = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if "slow" in page.markers else [])
    for page in PAGES
    if any(block.is_run for block in page.blocks)
]


@pytest.mark.parametrize("name", PATHS)
def test_a_page_follows_the_rules(name: str) -> None:
    page = read_page(PATHS[name])
    for block in page.blocks:
        if block.language == "bash":
            for call in calls(block.text):
                try:
                    check_call(call)
                except click.ClickException as error:
                    pytest.fail(f"{block.place}: lockstep {' '.join(call)}: {error.format_message()}")
        elif block.language == "python" and importlib.util.find_spec(page.markers.get("needs", "click")):
            assert missing_names(block) == [], block.place


@pytest.mark.parametrize("page", TO_RUN)
def test_a_page_is_run_as_it_is_pasted(page: Page, tmp_path: Path) -> None:
    pytest.importorskip(page.markers.get("needs", "click"))
    run_page(page, tmp_path)


#: Blocks that no test runs as they are pasted: clusters, Docker, other machines, minutes of measuring. Their commands
#: are still held to the flags that there are. Whoever has to add one raises it.
NOT_RUN = 69


def test_the_blocks_that_are_not_run_are_counted() -> None:
    blocks = [block for page in PAGES for block in page.blocks if block.language in ("bash", "python")]
    not_run = [block.place for block in blocks if not block.is_run]
    assert len(not_run) <= NOT_RUN, not_run
    assert len(blocks) >= 130


#: What takes seconds: a page that does it is not of the default suite.
TAKES_SECONDS = re.compile(
    r"\blockstep (?:train|bench|find-lr|watch|server|simulate)\b(?!.*--help)|scripts/train|\bfit\("
)


@pytest.mark.parametrize("page", [page for page in PAGES if "slow" not in page.markers], ids=lambda page: page.name)
def test_a_page_that_takes_seconds_says_that_it_is_slow(page: Page) -> None:
    run = [block for block in page.blocks if block.is_run and block.language in ("bash", "python")]
    assert [block.place for block in run if TAKES_SECONDS.search(block.text)] == []


# The tools themselves.

FENCE = "```"


def page_of(text: str) -> Page:
    return parse_page("page.md", text.replace("'''", FENCE))


def test_a_marker_belongs_to_the_block_below_it() -> None:
    page = page_of("<!-- not run: needs two machines -->\n'''bash\nlockstep train\n'''\n\n'''bash\ntrue\n'''\n")
    assert [block.is_run for block in page.blocks] == [False, True]
    assert [block.line for block in page.blocks] == [2, 6]


def test_a_file_of_any_language_and_its_page_are_known() -> None:
    page = page_of("<!-- slow: trains -->\n\nText.\n\n<!-- file: a/job.toml -->\n'''toml\nlr = 0.1\n'''\n")
    assert page.markers == {"slow": "trains"}
    assert (page.blocks[0].markers, page.blocks[0].is_run) == ({"file": "a/job.toml"}, True)


#: A whole digest, which a page promises.
DIGEST = "0a1b" * 16

#: The figures of an epoch, which it promises as well.
EPOCH = "epoch 1/2  loss 0.4542  accuracy 87.45%  test 96.09%"


def test_the_text_directly_below_a_command_is_its_output() -> None:
    shown = page_of("'''bash\necho 1\n'''\n\n'''text\n1\n'''\n\n'''text\n2\n'''\n")
    assert [block.output for block in shown.blocks] == ["1\n", None, None]
    assert page_of("'''bash\necho 1\n'''\n\nProse.\n\n'''text\n1\n'''\n").blocks[0].output is None
    differs = f"'''bash\necho 1\n'''\n\n<!-- output differs: times -->\n'''text\n1 s\nsha256 {DIGEST}\n'''\n"
    assert page_of(differs).blocks[0].output == f"sha256 {DIGEST}"
    epochs = f"'''bash\necho 1\n'''\n\n<!-- output differs: times -->\n'''text\n1 s\n{EPOCH}  2.1 s\n'''\n"
    assert page_of(epochs).blocks[0].output == f"{EPOCH}  2.1 s"
    # A command that is stopped may not come so far.
    assert page_of(f"<!-- exit code: 130 -->\n{epochs}").blocks[0].output == ""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Text.\n\n    lockstep train\n", id="an indented block"),
        pytest.param("'''\nlockstep train\n'''\n", id="a block without a language"),
        pytest.param("'''console\n$ lockstep train\n'''\n", id="a language that nothing runs"),
        pytest.param("<!-- not ran: x -->\n'''bash\ntrue\n'''\n", id="a marker that is misspelt"),
        pytest.param("<!-- not run -->\n'''bash\ntrue\n'''\n", id="a marker without a reason"),
        pytest.param("<!-- not run: x -->\n\nText.\n\n'''bash\ntrue\n'''\n", id="a marker above a paragraph"),
        pytest.param("Text <!-- not run: x -->\n\n'''bash\ntrue\n'''\n", id="a marker within a paragraph"),
        pytest.param("<!-- background -->\n'''text\ntrue\n'''\n", id="a marker of what is not run"),
        pytest.param("'''bash\ntrue\n'''\n\n<!-- not run: x -->\n", id="a marker at the end"),
    ],
)
def test_a_page_that_breaks_a_rule_is_refused(text: str) -> None:
    with pytest.raises(PageError, match=r"page\.md"):
        page_of(text)


def test_calls_are_found_in_whatever_starts_them() -> None:
    text = (
        "A=1 lockstep train --model mlp \\\n    --epochs 2   # a comment\nssh -L 1:h:1 h lockstep watch runs | tee x\n"
        "cat > f <<'END'\nlockstep nonsense\nEND\n.venv/bin/lockstep predict a b > c && scripts/worker tcp://h:1\n"
        ".venv/bin/pip show lockstep\n"
    )
    assert list(calls(text)) == [
        ["train", "--model", "mlp", "--epochs", "2"],
        ["watch", "runs"],
        ["predict", "a", "b"],
        ["worker", "tcp://h:1"],
    ]


@pytest.mark.parametrize("call", ["train --workers 3", "verify RUN --steps 400..419", "keys create keys", "--version"])
def test_a_call_that_the_command_line_takes_is_good(call: str) -> None:
    check_call(call.split())


@pytest.mark.parametrize(
    "call", ["train --wokers 3", "trian", "train --workers x", "train --set wir=int8", "ledger", "keys", "ledger a b"]
)
def test_a_call_that_the_command_line_refuses_is_found(call: str) -> None:
    with pytest.raises((click.UsageError, JobError)):
        check_call(call.split())


def test_names_that_are_missing_are_found() -> None:
    text = "from lockstep import nn, fitt\n\nnn.Linear(1, 2)\nnn.Lineal(1, 2)\n"
    assert missing_names(Block("p", 1, "python", text, {})) == ["lockstep.fitt", "nn.Lineal"]


def test_blocks_are_run_in_order_in_one_folder(tmp_path: Path) -> None:
    run_page(
        page_of(
            "<!-- file: net.py -->\n'''python\nfrom lockstep import nn\n\n\nclass Net(nn.Module):\n"
            "    def forward(self, x):\n        return x\n'''\n\n"
            "<!-- background -->\n'''bash\necho waiting; exec sleep 1000\n'''\n\n"
            "'''bash\nls net.py  # there\necho 3 of 4, 0a1b2c3d\n'''\n\n'''text\nnet.py\n…\n17 of 23, ffff00…\n'''\n\n"
            "'''python\nfrom net import Net\n\nrun = 1\n'''\n\n'''python\nassert Net()(run) == 1\nprint('ok')\n'''\n\n"
            "'''text\nok\n'''\n\n'''python\n>>> run + 1\n2\n'''\n\n"
            "<!-- exit code: 2 -->\n'''bash\nlockstep train --epochs no\n'''\n\n'''text\nerror: …\n'''\n"
        ),
        tmp_path,
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("'''bash\nfalse\ntrue\n'''", id="a command that fails"),
        pytest.param("<!-- exit code: 1 -->\n'''bash\ntrue\n'''", id="another exit code"),
        pytest.param("'''bash\necho one\n'''\n\n'''text\ntwo\n'''", id="another output"),
        pytest.param(f"'''bash\necho {DIGEST[4:]}0a1c\n'''\n\n'''text\n{DIGEST}\n'''", id="another digest"),
        pytest.param(f"'''bash\necho '{EPOCH[:-2]}8%  2 s'\n'''\n\n'''text\n{EPOCH}  3 s\n'''", id="other figures"),
        pytest.param("'''python\n1 / 0\n'''", id="an exception"),
        pytest.param("'''python\n>>> 1\n2\n'''", id="another value"),
        pytest.param("'''python\nimport os\nos._exit(0)\n'''", id="a process that ends"),
        pytest.param("<!-- background -->\n'''bash\nexit 3\n'''\n\n'''bash\nsleep 0.3\n'''", id="in the background"),
    ],
)
def test_a_block_that_fails_is_found(text: str, tmp_path: Path) -> None:
    with pytest.raises(BlockError, match=r"page\.md:[12]"):
        run_page(page_of(text), tmp_path)
