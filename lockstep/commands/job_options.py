"""One command-line flag for each value of a job and of its launch, made from their fields."""

import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import click
import msgspec

from common.job import Job
from lockstep.launch import Launch

F = TypeVar("F", bound=Callable[..., Any])


def job_options(command: F) -> F:
    """Add the flags of all values of `Job` and `Launch`; those that are given arrive by their field's name."""
    for struct in (Launch, Job):
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in reversed(msgspec.structs.fields(struct)):
            command = _option(field.name, hints[field.name])(command)
    return command


def _option(name: str, hint: Any) -> Callable[[F], F]:
    kind, description = _kind_and_description(hint)
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=description)
    if get_origin(kind) is Literal:
        choice = click.Choice(list(get_args(kind)))
        return click.option(flag, name, type=choice, default=None, help=description)
    return click.option(flag, name, type=kind, default=None, help=description)


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
