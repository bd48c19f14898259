"""The command line as a person meets it: help that fits, one line for each mistake, exit codes, nothing left behind."""

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lockstep.cli.main import SECTIONS, Commands, cli, run, system_error_text
from lockstep.cli.options.job import USUAL_DIRECT
from lockstep.common.runtime.environment import child_environment
from lockstep.packing.options import DIRECT
from tests.architecture.source import ROOT
from tests.lockstep.tiny_data import write_tiny

HERE = ["train", "--workers", "0", "--data", "tiny.npz"]

#: Job files, by name.
JOBS = {
    "packing.toml": "data = 'tiny.npz'\ntarget = 'price'\none_hot = ['town']\n",
    "unknown.toml": "modle = 'mlp'",
    "mistyped.toml": "lr = 'fast'",
    "table.toml": "model = 'mlp'\n[lr]\npeak = 1",
    "syntax.toml": "lr = = 1",
    "layer.toml": "[model]\nclass = 'Linaer'",
}

#: Model files, by name.
MODELS = {
    "syntax.py": "def build(:",
    "imports.py": "import nowhere\ndef build(): pass",
    "raises.py": "def build():\n    raise ValueError('boom')",
    "nothing.py": "def build(): pass",
    "shape.py": "from lockstep import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))",
    "small.py": "from lockstep import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(3, 10))",
}

#: Command line -> what the one line says, from its start.
MISTAKES = {
    "command": (["trian"], "no such command 'trian' (did you mean 'train'?): see `lockstep --help`"),
    "option": (
        [*HERE, "--epoch", "3"],
        "no such option '--epoch' (did you mean '--epochs'?): see",
    ),
    "option of PyTorch": (
        [*HERE, "--batch-size", "3"],
        "no such option '--batch-size' (did you mean '--global-batch'?)",
    ),
    "option of Keras": (
        [*HERE, "--learning-rate", "3"],
        "no such option '--learning-rate' (did you mean '--lr'?): see",
    ),
    "option of tables": (
        ["server", "--data", "x.csv", "--target", "y"],
        "no such option '--target': a table is packed first, with `lockstep pack`: see",
    ),
    "option of another command": (["predict", "run", "--batch-size", "3"], "no such option '--batch-size': see"),
    "resume": (["resume"], "no such command 'resume' (did you mean 'train --resume'?): see `lockstep --help`"),
    "an option that is gone": (
        [*HERE, "--standby-of", "tcp://a:1"],
        "the option '--standby-of' is gone: start the server again with the same command",
    ),
    "list": (["list"], "no such command 'list' (did you mean 'watch'?): see `lockstep --help`"),
    "arrays as a job": (["train", "tiny.npz"], "'tiny.npz' is not a job file: expected a .toml, or --data tiny.npz to"),
    "a table as a job": (["doctor", "no.csv"], "'no.csv' is not a job file: expected a .toml, or --data no.csv to"),
    "a run as a job": (["train", "done"], "'done' is not a job file: expected a .toml, or --resume done to continue"),
    "no number": ([*HERE, "--epochs", "two"], "epochs = 'two': expected a whole number, got text"),
    "value without a flag": (
        [*HERE, "--wire", "int8"],
        "no such option '--wire': expected --set wire=VALUE: see `lock",
    ),
    "truth without a flag": (
        [*HERE, "--keep-best"],
        "no such option '--keep-best': expected --set keep_best=true: see",
    ),
    "not true": ([*HERE, "--no-normalize"], "no such option '--no-normalize': expected --set normalize=false: see"),
    "no value": ([*HERE, "--set", "lr"], "invalid value for '--set': 'lr': expected NAME=VALUE, as lr=0.1: see"),
    "set key": ([*HERE, "--set", "modle=mlp"], "the job has no key 'modle' (did you mean 'model'?)"),
    "set key of PyTorch": ([*HERE, "--set", "batch_size=3"], "the job has no key 'batch_size' (did you mean 'global"),
    "set kind": ([*HERE, "--set", "lr=fast"], "lr = 'fast': expected a number, got text"),
    "set truth": ([*HERE, "--set", "nesterov=maybe"], "nesterov = 'maybe': expected true or false, got text"),
    "set choice": ([*HERE, "--set", "wire=int9"], "wire = 'int9': expected one of float32, float16, bfloat16, int8"),
    "set list": ([*HERE, "--set", "hidden=64,x"], "hidden = [64, 'x']: expected a whole number, got text"),
    "set share": ([*HERE, "--set", "audit=101%"], "audit = 1.01: expected a number <= 1.0"),
    "set twice": ([*HERE, "--lr", "1", "--set", "lr=2"], "--lr and --set lr=... are given: remove one"),
    "set of packing": ([*HERE, "--set", "drop=x"], "invalid value for '--set': 'drop' is not a value of a job: "),
    "set of a server": ([*HERE, "--set", "lease-timeout=9"], "invalid value for '--set': 'lease_timeout' is not a v"),
    "set what is gone": ([*HERE, "--set", "spread=auto"], "invalid value for '--set': the option '--spread' is gone: "),
    "choice": ([*HERE, "--optimizer", "sdg"], "optimizer = 'sdg' (did you mean 'sgd'?): expected one of sgd"),
    "two jobs": ([*HERE, "a.toml", "--job", "b.toml"], "'a.toml' and --job 'b.toml' are two job files: remove one"),
    "a model as a job": (
        ["train", "mlp"],
        f"cannot read the job file 'mlp': {os.strerror(errno.ENOENT)} (did you mean --",
    ),
    "no bind": (["server"], "missing option '--bind': see `lockstep server --help`"),
    "no address": (["worker"], "missing argument 'ADDRESS': see `lockstep worker --help`"),
    "batch 0": ([*HERE, "--global-batch", "0"], "global_batch = 0: expected a whole number >= 1"),
    "rate nan": ([*HERE, "--lr", "nan"], "lr = nan: expected a number > 0.0"),
    "rate inf": ([*HERE, "--lr", "inf"], "lr = inf: expected a number <= 1e+30"),
    "rate -1": ([*HERE, "--lr", "-1"], "lr = -1.0: expected a number > 0.0"),
    "seed -1": ([*HERE, "--seed", "-1"], "seed = -1: expected a whole number >= 0"),
    "pieces": ([*HERE, "--micro-batches", "9999999"], "micro_batches = 9999999: expected a whole number <= 4096"),
    "more pieces": ([*HERE, "--micro-batches", "256"], "micro_batches = 256 is more than global_batch = 128"),
    "large batch": ([*HERE, "--global-batch", "9999"], "global_batch = 9999 is more than the 160 training samples"),
    "workers": (["train", "--workers", "-1"], "workers = -1: expected a whole number >= 0"),
    "min workers": (["train", "--workers", "2", "--set", "min_workers=3"], "min_workers = 3 is more than workers = 2"),
    "servers": (["train", "--servers", "2", "--workers", "0"], "servers = 2 with workers = 0, which trains in one"),
    "shard": (["shard", "tcp://192.0.2.7:5555"], "the server at 'tcp://192.0.2.7:5555' is on another machine"),
    "job gone": ([*HERE, "--job", "gone.toml"], "cannot read the job file 'gone.toml': "),
    "job key": ([*HERE, "--job", "unknown.toml"], "the job has no key 'modle' (did you mean 'model'?)"),
    "job packing": (
        ["doctor", "packing.toml"],
        (
            "packing.toml: 'target' is not a value of a job, but says how data is packed: remove target, one_hot, and "
            "give --target, --one-hot to `lockstep pack DATA FOLDER`"
        ),
    ),
    "job type": ([*HERE, "--job", "mistyped.toml"], "lr = 'fast': expected a number, got text"),
    "job table": ([*HERE, "--job", "table.toml"], "lr = {'peak': 1}: expected a number, got a table"),
    "job syntax": (
        [*HERE, "--job", "syntax.toml"],
        "the job file 'syntax.toml' is not valid TOML: ",
    ),
    "job layer": ([*HERE, "--job", "layer.toml"], "unknown module class 'Linaer': expected a class of lockstep.nn"),
    "model": ([*HERE, "--model", "mlpp"], "model = 'mlpp' is not known (did you mean 'mlp'?): expected one of"),
    "model gone": ([*HERE, "--model", "gone.py:build"], "model file 'gone.py' cannot be read: "),
    "model syntax": (
        [*HERE, "--model", "syntax.py:build"],
        "model file 'syntax.py' cannot be imported: it raised",
    ),
    "model import": ([*HERE, "--model", "imports.py:build"], "model file 'imports.py' cannot be imported: it raised M"),
    "model raises": ([*HERE, "--model", "raises.py:build"], "raises.py:build raised ValueError: boom"),
    "no model": ([*HERE, "--model", "nothing.py:build"], "nothing.py:build returned None: expected a Module"),
    "no function": ([*HERE, "--model", "nothing.py:bild"], "model file 'nothing.py' has no function 'bild': did you"),
    "output": ([*HERE, "--model", "shape.py:build"], "the model turns 2 samples of shape (1, 28, 28) into an array of"),
    "input": ([*HERE, "--model", "small.py:build"], "the model cannot take samples of shape (1, 28, 28)"),
    "data": ([*HERE, "--data", "absent"], "no dataset 'absent': expected 'mnist', a folder"),
    "table that is missing": (
        [*HERE, "--data", "gone.csv", "--target", "x"],
        "gone.csv: does not exist: expected a .csv",
    ),
    "data that is misspelt": ([*HERE, "--data", "foldr"], "no dataset 'foldr' (did you mean 'folder'?): expected "),
    "data folder": (
        [*HERE, "--data", "folder"],
        "folder: is a folder with taken: expected a folder inside it for the pictures of each class",
    ),
    "folder to pack": (["pack", "folder", "new"], "folder: is a folder with taken: expected a folder inside it for"),
    "data damaged": ([*HERE, "--data", "damaged.npz"], "damaged.npz: damaged ("),
    "weights": ([*HERE, "--initial", "gone"], "gone: cannot be read ("),
    "dir full": ([*HERE, "--run-dir", "folder"], "run folder 'folder' is not empty: expected a new or empty folder"),
    "dir file": ([*HERE, "--run-dir", "damaged.npz"], "run folder 'damaged.npz': 'damaged.npz' is not a folder"),
    "dir below": ([*HERE, "--run-dir", "damaged.npz/x"], "run folder 'damaged.npz/x': "),
    "bind": (["server", "--bind", "here"], "address 'here' is malformed: expected 'tcp://HOST:PORT'"),
    "bind open": (["server", "--bind", "tcp://0.0.0.0:5555"], "address 'tcp://0.0.0.0:5555' can be reached from other"),
    "bind folder": (
        ["server", "--bind", "ipc://gone/x.sock"],
        "address 'ipc://gone/x.sock' is in a folder that does not",
    ),
    "bind file": (["server", "--bind", "ipc://damaged.npz"], "address 'ipc://damaged.npz' is the path of something"),
    "dial": (["worker", "127.0.0.1:5555"], "address '127.0.0.1:5555' is malformed: expected 'tcp://HOST:PORT'"),
    "dial two": (["worker", "tcp://127.0.0.1:1,tcp://h:2", "--workers", "1"], "address 'tcp://127.0.0.1:1,tcp://h:2'"),
    "timeout": (
        ["worker", "tcp://127.0.0.1:1", "--timeout", "nan"],
        "invalid value for '--timeout': 'nan' is not a valid time",
    ),
    "ask": (["status", "here"], "address 'here' is malformed"),
    "evaluate": (
        ["evaluate", "gone"],
        "there is no folder 'gone': expected that of a run, with job.toml and weights",
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small dataset and files that are wrong in one way each."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    for name, text in {**JOBS, **MODELS, "damaged.npz": "nonsense", "job.toml": "data = 'tiny.npz'"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "job.toml").write_text("data = 'tiny.npz'")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "taken").touch()
    return tmp_path


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    before = everything(place)
    assert run(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: {text}")
    assert error.count("\n") == 1
    assert everything(place) == before


@pytest.mark.parametrize(
    ("wrong", "named", "advice"),
    # Of an option without its value, click does not know the command.
    [("--epochs", "'--epochs'", "see `lockstep --help`"), ("a.toml b", "b", "see `lockstep train --help`")],
)
def test_what_click_alone_can_say_is_shown_with_where_to_look(
    place: Path, capsys: pytest.CaptureFixture[str], wrong: str, named: str, advice: str
) -> None:
    assert run([*HERE, *wrong.split()]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.endswith(f": {advice}\n")
    assert error.count("\n") == 1


def all_commands() -> list[list[str]]:
    """Return the words of every command that help shows, those of groups too."""
    found: list[list[str]] = [[]]
    for name, command in Commands().items():
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, inner] for inner, each in command.commands.items() if not each.hidden]
    return found


def parameters(command: list[str]) -> list[click.Parameter]:
    """Return the parameters of a command."""
    found = cli
    for word in command:
        assert isinstance(found, click.Group)
        found = found.commands[word]  # type: ignore[assignment]  # the last one need not be a group
    return found.params


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_a_flag_is_there_once(command: list[str]) -> None:
    flags = [flag for each in parameters(command) for flag in (*each.opts, *each.secondary_opts)]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_help_fits_80_columns_and_teaches(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 100 or command == ["server"]
    # An example to copy; those of the commands of `keys` are in the help of the group.
    words = " ".join(["lockstep", *command])
    assert re.search(rf"^ {{2,}}.*{words}\b", text, re.MULTILINE) or (command[:1] == ["keys"] and len(command) == 2)
    options = text.partition("\nOptions:\n")[2]
    assert not re.search(r"\[[^]\s]*[<>]=?[^]\s]*\]|\d{10}", options)  # ranges, as click writes them
    assert not re.search(r"\]\s+\[(?!required)", options)  # two defaults


def test_examples_of_the_help_are_commands_with_flags_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in all_commands():
        run([*command, "--help"])
    examples = re.findall(r"^ {2,}(?:srun )?(lockstep .*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) > 60
    for example in examples:
        words = shlex.split(example, comments=True)[1:]
        path = next(path for path in sorted(all_commands(), key=len, reverse=True) if words[: len(path)] == path)
        flags = {name for each in parameters(path) for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= {*flags, "--help"}, example


def test_flags_mean_one_thing_in_every_command() -> None:
    kinds: dict[str, set[str]] = {"--json": set(), "--to": set(), "--job": set(), "--plot": set(), "--model": set()}
    for command in all_commands():
        for parameter in parameters(command):
            for flag in kinds.keys() & set(parameter.opts):
                kinds[flag].add("flag" if getattr(parameter, "is_flag", False) else parameter.type.name)
    assert kinds == {
        "--json": {"flag"},
        "--to": {"path"},
        "--job": {"path"},
        "--plot": {"path"},
        # A list in each of the benches.
        "--model": {"text", "list"},
    }
    benches = [command for command in all_commands() if command[:1] == ["bench"] and len(command) == 2]
    models = [each for bench in benches for each in parameters(bench) if "--model" in each.opts]
    assert {each.type.name for each in models} == {"list"}


@pytest.mark.parametrize("command", [command for command in all_commands() if command], ids=" ".join)
def test_a_job_file_is_an_argument_and_a_flag_of_every_command_that_takes_one(command: list[str]) -> None:
    names = {each.name for each in parameters(command)}
    assert ("job" in names) == ("job_flag" in names)
    assert ("job" in names) == (command[0] in ("train", "find-lr", "doctor", "server", "node"))


def test_a_command_in_an_error_can_be_pasted_where_the_name_alone_would_not_be_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["train", "--epoch", "3"], called=".venv/bin/lockstep") == 2
    assert capsys.readouterr().err.endswith(": see `.venv/bin/lockstep train --help`\n")


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    help_text = capsys.readouterr().err
    assert all(f"{heading}:\n" in help_text for heading in SECTIONS)


def test_the_help_shows_every_command_in_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    shown = [name for names in SECTIONS.values() for name in names]
    assert len(set(shown)) == len(shown)
    assert all(f"\n  {name} " in text for name in shown)


def test_train_takes_all_flags_of_tables_and_shows_the_usual_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(DIRECT) <= {parameter.name for parameter in parameters(["train"])}
    assert run(["train", "--help"]) == 0
    groups = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    assert groups[1::2] == ["Job", "Tables and pictures", "Options"]
    assert re.findall(r"^  --([\w-]+)", groups[4], flags=re.MULTILINE) == list(USUAL_DIRECT)


def test_every_module_of_a_command_has_its_name_in_its_section() -> None:
    folders = {"Train": "training", "Use a run": "results", "Check": "checking", "Several machines": "machines"}
    for heading, folder in folders.items():
        modules = {path.stem.replace("_", "-") for path in (ROOT / "lockstep" / "cli" / folder).glob("[!_]*.py")}
        assert set(SECTIONS[heading]) == modules
    assert all(command.name == name for name, command in Commands().items())


def test_help_lists_twenty_commands_at_most() -> None:
    assert len(Commands()) <= 20


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lockstep ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "tcp://127.0.0.1:1", "--timeout", "0.1"],
        ["status", "ipc://nobody.sock", "--timeout", "0.1"],
        ["worker", "ipc://nobody.sock", "--timeout", "0.1"],
    ],
)
def test_nobody_there_is_told_in_time(place: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(arguments) == 1
    # Also that of a worker's process, which is this one's child.
    assert f"error: no server answered at {arguments[1]} within 0.1 s" in capfd.readouterr().err


def test_what_the_system_refuses_is_named_with_what_to_do() -> None:
    assert system_error_text(OSError(errno.EIO, "The disk is lost", "runs/a")) == "'runs/a': the disk is lost"
    text = system_error_text(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert re.fullmatch(r"too many open files: this process may have \d+; run `ulimit -n 1024`, or .*", text)


def lockstep_in(folder: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "lockstep", *arguments],
        cwd=folder,
        env={**child_environment(), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_encoding_that_lacks_a_letter_costs_that_letter(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    job = ("--model", "linear", "--data", "tiny.npz", "--epochs", "1", "--global-batch", "16", "--workers", "0")
    ended = lockstep_in(tmp_path, "train", *job, "--run-dir", "l\u00e4uft", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0, ended.stderr
    assert "l\\xe4uft" in ended.stdout


def test_a_name_that_is_not_text_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--run-dir", os.fsdecode(b"l\xe4uft")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(r"error: 'l\udce4uft' is not text in utf-8, the encoding of file names here: expected ")
    assert told.endswith("set PYTHONUTF8=1, or rename it\n")


def test_a_command_may_have_no_standard_streams() -> None:
    # As `nohup` in a cron job, or a service.
    command = f"exec {shlex.quote(sys.executable)} -P -m lockstep --version <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=child_environment(), check=False).returncode == 0


def test_a_folder_that_is_gone_is_named_in_one_line(tmp_path: Path) -> None:
    program = "import os, sys; os.rmdir(os.getcwd()); from lockstep.__main__ import main; main()"
    folder = tmp_path / "gone"
    folder.mkdir()
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=folder, env=child_environment(), capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: the current folder was removed: change to another one, such as `cd ~`\n",
    )


def test_an_interrupt_in_a_callback_of_an_import_is_not_dropped() -> None:
    # What is raised while an object is removed is reported and dropped.
    program = (
        "import os, signal, sys\n"
        "class Removed:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "class Impatient:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': Removed()\n"
        "sys.meta_path.insert(0, Impatient())\n"
        "from lockstep.__main__ import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program, "--version"], env=child_environment(), capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\nerror: interrupted\n")


def test_an_interrupt_while_modules_are_loaded_is_one_line() -> None:
    # What a module raises that is loaded on the way.
    program = (
        "import sys\n"
        "class Impatient:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Impatient())\n"
        "from lockstep.__main__ import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program], env=child_environment(), capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (130, "\nerror: interrupted\n")


#: A program that gets SIGTERM while a module that a command needs is being imported.
TERMINATED = """
import os, signal, sys
from lockstep.cli.main import cli
from lockstep.launch.lifetime import interrupt_on_signals

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "lockstep.ps.server.factory":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
interrupt_on_signals()
try:
    cli.commands["server"]
except KeyboardInterrupt:
    print(hasattr(sys.modules.get("lockstep.cli.machines.server"), "server"))
"""


def test_an_interrupt_waits_until_a_command_is_imported() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", TERMINATED], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
