"""The command `lockstep`: its commands in the groups of its help, each imported when called; errors become one line."""

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from lockstep.cli.options.completion import as_given
from lockstep.common.errors import LockstepError, UsageError, nearest
from lockstep.common.files.sanitize import cut, one_line, printable
from lockstep.common.runtime.environment import collector_paused, most_open_files
from lockstep.common.runtime.exit_codes import ExitCode
from lockstep.common.runtime.interrupts import held_back
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.common.runtime.version import VERSION
from lockstep.launch.lifetime import ignore_signals, interrupt_on_signals
from lockstep.launch.supervision.channel import EndReport, ParentLink
from lockstep.runs.job_file import ELSEWHERE
from lockstep.runs.own_command import own_command
from lockstep.runs.removed import removed_command, removed_option

#: The commands by what they are for, and the module and the function of each below this package. The import is
#: always one of these texts, never a text from outside.
SECTIONS: dict[str, dict[str, str]] = {
    "Train": {
        "train": "training.train:train",
        "find-lr": "training.find_lr:find_lr",
        "doctor": "training.doctor:doctor",
        "pack": "training.pack:pack_command",
    },
    "Use a run": {
        "evaluate": "results.evaluate:evaluate",
        "predict": "results.predict:predict",
        "export": "results.export:export",
        "compare": "results.compare:compare",
        "plot": "results.plot:plot",
        "watch": "results.watch:watch",
    },
    "Check": {
        "ledger": "checking.ledger:ledger",
        "verify": "checking.verify:verify",
        "replay": "checking.replay:replay_command",
    },
    "Several machines": {
        "server": "machines.server:server",
        "worker": "machines.worker:worker",
        "shard": "machines.shard:shard",
        "node": "machines.node:node",
        "keys": "machines.keys:keys",
        "status": "machines.status:status",
    },
    "Develop": {
        "bench": "bench:bench",
    },
}

#: Characters of an error's text: a value in it may be as long as a file.
MOST_SHOWN = 4000

PLACES = {name: place for places in SECTIONS.values() for name, place in places.items()}


class Commands(Mapping[str, click.Command]):
    """All commands by name, each imported when it is looked up: the processes of a run need one command each."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, function = PLACES[name].partition(":")
        # Raised while a class is being made, an interrupt would end in a RuntimeError of Python 3.11.
        with collector_paused(), held_back():
            command: click.Command = getattr(import_module(f"lockstep.cli.{module}"), function)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(PLACES)

    def __len__(self) -> int:
        return len(PLACES)


class Root(click.Group):
    """A group whose help shows its commands in sections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commands = Commands()  # type: ignore[assignment]  # none is added later

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, with the rest; a usage error has the nearest name."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            if gone := removed_command(name):
                raise click.UsageError(gone, ctx)
            meant = f" (did you mean {ELSEWHERE_COMMANDS[name]!r}?)" if name in ELSEWHERE_COMMANDS else ""
            raise click.UsageError(f"no such command {name!r}{meant or nearest(name, self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of commands: click's own place for this."""
        for heading, names in SECTIONS.items():
            commands = [self.commands[name] for name in names]
            with formatter.section(heading):
                formatter.write_dl([(command.name or "", command.get_short_help_str()) for command in commands])


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="lockstep", message="%(prog)s %(version)s")
def cli() -> None:
    """Train neural networks on many processes, in NumPy: the same job gives the same bits.

    \b
    On this machine, with a server and one worker per core:
      lockstep train --model lenet
    On several machines. On the first, whose address is 192.168.1.7 here:
      lockstep keys create keys
      lockstep server --model lenet --bind tcp://192.168.1.7:5555 --keys keys
    On each of the others, after copying keys/worker-1.key to it:
      lockstep worker tcp://192.168.1.7:5555 --key worker-1.key

    \b
    `lockstep COMMAND --help` explains a command.
    Exit codes: 0 success, 1 failed run, 2 wrong usage or job, 130 interrupted.
    """


#: Commands that people look for, if their name is not near to that of ours.
ELSEWHERE_COMMANDS = {
    "resume": "train --resume",
    "list": "watch",
    "ls": "watch",
    "fit": "train",
    "test": "evaluate",
    "diff": "compare",
}


def main() -> None:
    """Run the command line and exit."""
    interrupt_on_signals()
    open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        # The name of a folder may have letters that the chosen encoding lacks.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are files
    try:
        called = own_command()
    except FileNotFoundError:
        sys.exit(_end("the current folder was removed: change to another one, such as `cd ~`", ExitCode.USAGE))
    code = run(sys.argv[1:], called=called)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # As click ends a command whose reader has seen enough, `head` for one: quietly, and without the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or ExitCode.FAILED
    # The interpreter takes our handlers away before it is gone, and an impatient Ctrl-C would have the last word.
    ignore_signals()
    sys.exit(code)


def is_text(argument: str) -> bool:
    """Tell whether an argument can be written into a file: Python keeps bytes that it cannot decode as surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_missing_streams() -> None:
    """Discard all output if this process was started with its standard output closed, as `>&-` does.

    A socket or a file would get that number otherwise, and the output of libraries.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def run(arguments: list[str], called: str = "lockstep") -> int:
    """Run one command; return its exit code.

    `called` is how a shell finds this program: the commands that errors name can be pasted.
    """

    link = ParentLink()

    def end(text: str, code: int, error: BaseException | None = None) -> int:
        link.report(EndReport(text=text) if error is None else EndReport.of(error))
        return _end(as_given(text).replace("`lockstep ", f"`{called} "), code)

    for argument in arguments:
        if not is_text(argument):
            return end(
                f"{argument!r} is not text in {sys.getfilesystemencoding()}, the encoding of file names here: expected "
                "a name that a run can record; set PYTHONUTF8=1, or rename it",
                ExitCode.USAGE,
            )
    try:
        with kept_numerics():
            code = cli.main(arguments, prog_name="lockstep", standalone_mode=False, obj=link)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.ClickException as error:
        return end(_one_line(error), ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return end("interrupted", ExitCode.INTERRUPTED)
    except UsageError as error:
        # One line, whatever is in the name of a file.
        return end(one_line(str(error), 10 * len(str(error))), ExitCode.USAGE)
    except LockstepError as error:
        return end(str(error), ExitCode.FAILED, error)
    except OSError as error:
        # Unforeseen: a full disk, a folder that was removed. The reason says more than our frames would.
        return end(system_error_text(error), ExitCode.FAILED)
    return code if isinstance(code, int) else ExitCode.DONE


def _end(text: str, code: int) -> int:
    click.echo(f"error: {printable(cut(text, MOST_SHOWN))}", err=True)
    return code


def system_error_text(error: OSError) -> str:
    """Return what the system refused, with what to do if that is known."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        most = most_open_files()
        return f"too many open files: this process may have {most}; run `ulimit -n 1024`, or use fewer workers"
    reason = error.strerror or str(error)
    named = "" if error.filename is None else f"{str(error.filename)!r}: "
    return f"{named}{reason[:1].lower()}{reason[1:]}"


def _one_line(error: click.ClickException) -> str:
    """Return the error of a command line as our errors read: one line, a fact in lower case, what to do."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "lockstep"
    return f"{_complaint(error)}: see `{command} --help`"


def _complaint(error: click.ClickException) -> str:
    """Return the fact, in our own words if click's exception has what these need."""
    match error:
        case click.NoSuchOption():
            command = error.ctx.command_path.partition(" ")[2] if error.ctx is not None else ""
            gone = removed_option(error.option_name, command)
            return gone or f"no such option {error.option_name!r}{_meant(error)}"
        case click.NoSuchCommand():
            command = error.ctx.command_path.partition(" ")[2] if error.ctx is not None else ""
            return removed_command(f"{command} {error.command_name}") or _text(error)
        case click.MissingParameter():
            kind = error.param_type or (error.param.param_type_name if error.param is not None else "parameter")
            return f"missing {kind} {_parameter(error)}"
        case click.BadParameter():
            return f"invalid value for {_parameter(error)}: {_flat(error.message)}"
        case _:
            return _text(error)


def _text(error: click.ClickException) -> str:
    text = _flat(error.format_message())
    return f"{text[:1].lower()}{text[1:]}"


def _meant(error: click.NoSuchOption) -> str:
    """Return the option of the command that is nearest, or that has another name in other libraries."""
    name = ELSEWHERE.get(error.option_name.lstrip("-").replace("-", "_"))
    flag = f"--{(name or '').replace('_', '-')}"
    known = () if error.ctx is None else [option for each in error.ctx.command.params for option in each.opts]
    if flag in known:
        return f" (did you mean {flag!r}?)"
    # Imported here, since they are needed by errors only.
    from lockstep.cli.options.job import set_instead
    from lockstep.packing.options import DIRECT

    if "--set" in known and (instead := set_instead(error.option_name)):
        return f": expected {instead}"
    if "--data" in known and error.option_name.lstrip("-").replace("-", "_") in DIRECT:
        return ": a table is packed first, with `lockstep pack`"
    return nearest(error.option_name, error.possibilities or ())


def _parameter(error: click.BadParameter) -> str:
    """Return the name of the parameter that a complaint is about, as it is written on a command line."""
    if error.param is None:
        return repr(error.param_hint)
    return repr(
        max(error.param.opts, key=len) if isinstance(error.param, click.Option) else error.param.human_readable_name
    )


def _flat(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
