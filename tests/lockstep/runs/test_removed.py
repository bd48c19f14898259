"""Names that are gone: each is refused with one line that says what to do instead, or changes nothing."""

from pathlib import Path

import pytest

from lockstep.cli.main import PLACES, run
from lockstep.common.errors import JobError
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.runs.job_file import resolve
from lockstep.runs.removed import COMMANDS, OPTIONS, VALUES, removed_command, removed_option
from tests.lockstep.test_previous_version import command_of, flags_of

ROOT = Path(__file__).parents[3]


def is_gone(name: str) -> bool:
    """Tell whether no command, or not the one that is named before an option, has that option."""
    *own, flag = name.rsplit(" ", 1)
    commands = [command for each in own or PLACES if (command := command_of(each)) is not None]
    return not any(flag in flags_of(command) for command in commands)


GONE_VALUES = sorted(VALUES.keys() - {*Job.__struct_fields__, *RunOptions.__struct_fields__})


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - PLACES.keys()))
def test_a_command_that_is_gone_says_what_to_do_instead(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "x", "--y"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    group = " ".join(["lockstep", *name.split()[:-1]])
    assert shown.err == f"error: the command {name!r} is gone: {COMMANDS[name]}: see `{group} --help`\n"


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_gone_says_what_to_do_instead(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    *own, flag = name.rsplit(" ", 1)
    command = own[0] if own else "find-lr"
    assert run([*command.split(), flag, "x"]) == 2
    shown = capsys.readouterr().err
    assert shown == f"error: the option {flag!r} is gone: {OPTIONS[name]}: see `lockstep {command} --help`\n"


@pytest.mark.parametrize("name", VALUES)
def test_so_does_the_flag_of_a_value(name: str) -> None:
    for flag in (f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"):
        assert removed_option(flag) == f"the option {flag!r} is gone: {VALUES[name].instead}"


def test_the_changelog_has_a_row_for_each_name_that_is_gone() -> None:
    unreleased = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    rows = [row for row in unreleased.splitlines() if row.startswith("| ")]
    gone = [*(name for name in COMMANDS if name.split()[0] not in PLACES), *filter(is_gone, OPTIONS), *GONE_VALUES]
    words = {name: name.split()[-1].replace("_", "-") for name in gone}
    assert [name for name, word in words.items() if not any(word in row for row in rows)] == []


def test_other_names_are_not_gone() -> None:
    assert removed_command("train") == removed_option("--lr") == removed_option("--no-nesterov") == ""


@pytest.mark.parametrize("name", GONE_VALUES)
def test_a_job_file_with_a_value_that_is_gone_is_as_without_it_or_is_refused(name: str) -> None:
    plain = {"model": "mlp"}
    for value in VALUES[name].ignored or (3,):
        assert resolve({**plain, name: value}, {}) == resolve(plain, {})
    if VALUES[name].ignored:
        with pytest.raises(JobError, match=rf"^{name} = 'other': the value is gone: "):
            resolve({**plain, name: "other"}, {})
