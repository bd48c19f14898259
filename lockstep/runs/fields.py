"""What a job and its launch consist of, read from their classes: names, kinds, choices, descriptions."""

import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from common.job.job import Job
from lockstep.runs.launch import Launch


@dataclass(frozen=True)
class Field:
    """One value of a job or of its launch."""

    name: str
    #: What a flag's text is turned into.
    kind: type[str] | type[int] | type[float] | type[bool]
    #: The only values allowed, empty where any of the kind is.
    choices: tuple[str, ...]
    description: str
    default: Any


@cache
def fields() -> dict[str, Field]:
    """Return the values of `Job` and `Launch` by name; no name is in both."""
    found = {}
    for struct in (Launch, Job):
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            kind, description = _kind_and_description(hints[field.name])
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            found[field.name] = Field(field.name, str if choices else kind, choices, description, field.default)
    return found


def _kind_and_description(hint: Any) -> tuple[Any, str]:
    """Return the plain type of a field and its description."""
    description = ""
    while True:
        if get_origin(hint) is Annotated:
            described = [meta.description for meta in hint.__metadata__ if getattr(meta, "description", None)]
            description = description or (described[0] if described else "")
            hint = get_args(hint)[0]
        elif get_origin(hint) in (typing.Union, types.UnionType):
            # The first member is what a flag can say: `str` of a model, the value of what may be left out.
            hint = get_args(hint)[0]
        else:
            return hint, description
