"""Job files and descriptions of models, damaged or made up: a job or a model comes of them, or a typed error."""

import contextlib
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from lockstep.common import nn
from lockstep.common.errors import ModelError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.model.source import read_model_source
from lockstep.common.nn.description import build, describe
from lockstep.common.protocol.run_options import RunOptions
from lockstep.runs.job_file import read_values, resolve, to_toml
from tests.fuzz.bar import amounts, bear, examine
from tests.fuzz.mutation import damaged, tokens_of
from tests.fuzz.tape import Tape
from tests.fuzz.wire import ODD

TOMLS = [
    to_toml(Job(), RunOptions()),
    to_toml(Job(model={"class": "Linear", "args": [2, 3]}, clip_norm=0.5, steps=7), RunOptions(workers=3)),
    'model = "mlp"\nlr = 0.1\nepochs = 2 # a comment\n[table]\nx = 1979-05-27T07:32:00Z\n',
]

#: Values of TOML that belong nowhere, or almost nowhere.
ODD_TOML = (
    "inf",
    "-nan",
    "1e999",
    "-0.0",
    "0x" + "f" * 40,
    "9" * 25,
    "9" * 5000,
    "2" * 400,
    "true",
    '""',
    '"\\u0000\\u001b[2J"',
    '"' + "x" * 3000 + '"',
    "'''\n'''",
    "[]",
    "[[],[[]]]",
    "{}",
    '{ class = "Linear", args = [1099511627776, 1099511627776] }',
    "1979-05-27",
    "[" * 2000,
    "{a=" * 2000,
)


def odd_toml(tape: Tape) -> bytes:
    text = tape.choose(TOMLS)
    if tape.happens(3):
        return damaged(tape, text.encode(), [other.encode() for other in TOMLS])
    lines = text.split("\n")
    for _ in range(1 + tape.below(3)):
        at = tape.below(len(lines))
        key, equals, value = lines[at].partition("=")
        match tape.below(5):
            case 0:
                lines[at] = f"{tape.choose(lines).partition('=')[0]}={value}"
            case 1:
                tokens = tokens_of(key or "x")
                tokens[tape.below(len(tokens))] = tape.choose(("", ".", '"\\u0000"', "__class__", "x" * 3000, "é"))
                lines[at] = "".join(tokens) + equals + value
            case _:
                lines[at] = f"{key or 'more'} = {tape.choose(ODD_TOML)}"
    return "\n".join(lines).encode()


def read_job_file(path: Path) -> Sequence[NDArray[Any]]:
    """Read a job file; a job that comes of it has to be written as a file of the same job."""
    job, launch = resolve(read_values(path), {})
    assert resolve(tomllib.loads(to_toml(job, launch)), {}) == (job, launch)
    return ()


JOB_BOMBS = {
    "lists in lists": b"model = " + b"[" * 30_000,
    "tables in tables": b"model = " + b"{a=" * 15_000,
    "keys in keys": b"a." * 15_000 + b"b = 1",
    "a number of very many digits": b"seed = " + b"9" * 60_000,
    "no text": b"\xff\xfe",
    "a file of a megabyte": b"# " + b"x" * 2**20,
    "a text of very many quotes": b'model = """' + b'""' * 30_000,
}


# Descriptions

NETS: list[nn.Sequential | nn.ModuleList] = [
    nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 3)),
    nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.MaxPool2d(2), nn.LayerNorm((2, 2, 2))),
    nn.ModuleList([nn.Embedding(5, 2), nn.GELU(), nn.AvgPool2d((2, 2))]),
]
DESCRIPTIONS = [dict(describe(net)) for net in NETS]
WORDS = ("Linear", "Conv2d", "Sequential", "Embedding", "LayerNorm", "Dropout", "Parameter", "eval", "", "__class__")


def odd_description(tape: Tape) -> Any:
    """Return a description in which some values are others."""

    def copied(value: Any, depth: int = 0) -> Any:
        if tape.happens(9):
            return tape.choose(
                (*ODD, *WORDS, 2**40, 10**8, math.nan, -1, {"class": tape.choose(WORDS), "args": [3, 3]})
            )
        if isinstance(value, dict):
            pairs = {key: copied(inner, depth + 1) for key, inner in value.items()}
            if tape.happens(12):
                pairs[tape.choose(("rng", "class", "more", "in_features", "p"))] = tape.choose(ODD)
            return pairs
        if isinstance(value, list):
            items = [copied(inner, depth + 1) for inner in value]
            return items * tape.choose((1, 1, 1, 2, 40)) if tape.happens(12) else items
        return value

    return copied(tape.choose(DESCRIPTIONS))


@amounts("descriptions")
def test_descriptions(cases: int) -> None:
    def check(description: Any) -> None:
        with contextlib.suppress(ModelError):
            build(description, most_values=2**16)

    examine(cases, odd_description, check)


def nested(depth: int) -> dict[str, Any]:
    description: dict[str, Any] = {"class": "Flatten", "args": []}
    for _ in range(depth):
        description = {"class": "Sequential", "args": [description]}
    return description


DESCRIPTION_BOMBS: dict[str, Any] = {
    "very many weights": {"class": "Linear", "args": [2**20, 2**20]},
    "very many weights in very many layers": {
        "class": "Sequential",
        "args": [{"class": "Linear", "args": [2**13, 2**13]}] * 64,
    },
    "a kernel without an end": {"class": "Conv2d", "args": [1, 1, [2**20, 2**20]]},
    "a table without an end": {"class": "Embedding", "args": [2**31, 2**10]},
    "a norm over all there is": {"class": "LayerNorm", "args": [[2**20, 2**20]]},
    "modules in modules": nested(1000),
    "a name without an end": {"class": "x" * 100_000, "args": []},
    "an argument without an end": {"class": "Linear", "args": ["x" * 100_000]},
    "very many arguments, and none by name": {
        "class": "Sequential",
        "args": [{"class": "Linear", "args": ["x" * 30_000]}] * 80,
        "kwargs": None,
    },
    "a module as a number": {"class": "Linear", "args": [{"class": "Linear", "args": [1, 1]}, 3]},
    "code": {"class": "Linear", "args": ["__import__('os').system('ls')", 3]},
    "another class of ours": {"class": "ModelFile", "args": ["/etc/passwd", "f", ""]},
}


@pytest.mark.parametrize("description", DESCRIPTION_BOMBS.values(), ids=list(DESCRIPTION_BOMBS))
def test_a_description_that_asks_for_too_much_is_refused(description: Any) -> None:
    def explode() -> None:
        with pytest.raises(ModelError) as caught:
            build(description)
        assert len(str(caught.value)) < 2500

    bear(explode)


@pytest.mark.parametrize(
    "name", ["/dev/zero:build", "/dev/stdin:build", "/:build", "/etc/\0:f", "x" * 5000 + ":f", ":f"]
)
def test_a_models_file_is_a_file(name: str) -> None:
    with pytest.raises(UsageError):
        read_model_source(name)
