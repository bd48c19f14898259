"""Job files: TOML in, a checked `Job` and `RunOptions` out, and back again; and their values, in groups for people."""

import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from lockstep.common.data.folder import in_list
from lockstep.common.errors import JobError, ModelError, nearest
from lockstep.common.files.reading import read_regular
from lockstep.common.files.sanitize import cut, one_line
from lockstep.common.job.job import SHARE, Job, check, default_micro_batches
from lockstep.common.job.optimizer import LOCAL, hyperparameters
from lockstep.common.model.source import default_numerics, read_model_source
from lockstep.common.protocol.run_options import (
    KEPT_OPTIONS,
    OF_A_SERVER,
    RunOptions,
    check_options,
    default_options,
    kept,
)
from lockstep.common.runtime.numerics import Numerics
from lockstep.runs.removed import is_ignored

S = TypeVar("S", Job, RunOptions)

#: The validator's kinds of values in plain words.
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "null": "nothing",
    "array": "a list",
    "object": "a table",
}

#: Bytes of a job file.
MOST_BYTES = 2**16

#: Characters of a value, or a key, in an error's text.
MOST_TOLD = 200

#: Parts of a dotted key: what `tomllib` does with one is quadratic in them.
MOST_PARTS = 16
_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:{_PART}){{{MOST_PARTS}}}", re.ASCII)

#: The names of keys in Keras, Lightning and PyTorch, if that is not near to the name here.
ELSEWHERE = {"batch_size": "global_batch", "learning_rate": "lr", "num_workers": "workers"}

#: The outer optimizer of a job with local steps, by default: sgd with Nesterov's momentum. DiLoCo has a
#: momentum of 0.9, which needs hundreds of exchanges: with 60 of them, `bench local-steps` has 96.5 % with that for
#: `mlp`, and 98.1 % without any.
OUTER = {"lr": 0.7, "momentum": 0.6, "nesterov": True}

#: The root of the local batches of a step with which local steps have the rate of the plain job. Found by `bench
#: local-steps` with `mlp` and LeNet, from 4 to 64 local steps and with two to eight micro-batches.
NEAR = 4.0

#: The names of the shipped jobs, which are those of the models.
SHIPPED = ("linear", "mlp", "lenet", "cnn", "dense", "conv")


class Field(msgspec.Struct, frozen=True):
    """One value of a job, or option of its run."""

    name: str
    #: The kind of value that a flag's text becomes.
    kind: type[str] | type[int] | type[float] | type[bool]
    #: The only values allowed, empty if any of the kind is.
    choices: tuple[str, ...]
    description: str
    default: Any
    #: Whether there may be several values of the kind, in a list.
    is_list: bool = False
    #: Whether it is a share, which may be given in per cent.
    is_share: bool = False

    def kind_name(self) -> str:
        """Return the kind of value in a few words."""
        kind = "share" if self.is_share else KINDS[self.kind.__name__].removeprefix("a ")
        return f"{kind}, ..." if self.is_list else kind


def typed(field: Field, text: str) -> Any:
    """Return the value that a text on a command line is.

    A text that is none of the field's kind is returned as it is: `resolve` refuses it as it does in a job file.
    """
    if field.is_list:
        parts = text.removeprefix("[").removesuffix("]").split(",")
        return [_typed(field, part.strip()) for part in parts if part.strip()]
    return _typed(field, text)


def _typed(field: Field, text: str) -> Any:
    try:
        if field.is_share and text.endswith("%"):
            return float(text.removesuffix("%")) / 100.0
        if field.kind is bool:
            return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower(), text)
        return field.kind(text)
    except ValueError:
        return text


@cache
def fields() -> dict[str, Field]:
    """Return the values of `Job` and `RunOptions` by name; no name is in both."""
    found = {}
    for struct in (RunOptions, Job):
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            kind, description, is_share = _facts_of(hints[field.name])
            is_list = get_origin(kind) is tuple
            if is_list:
                kind, _, _ = _facts_of(get_args(kind)[0])
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            kind = str if choices else kind
            found[field.name] = Field(field.name, kind, choices, description, field.default, is_list, is_share)
    return found


def _facts_of(hint: Any) -> tuple[Any, str, bool]:
    """Return the plain type of a field, its description, and whether it is a share."""
    description, is_share = "", False
    while True:
        if get_origin(hint) is Annotated:
            described = [meta.description for meta in hint.__metadata__ if getattr(meta, "description", None)]
            description = description or (described[0] if described else "")
            is_share = is_share or SHARE in hint.__metadata__
            hint = get_args(hint)[0]
        elif get_origin(hint) in (typing.Union, types.UnionType):
            # The first member is what a flag can say: `str` of a model, the value of what may be left out.
            hint = get_args(hint)[0]
        else:
            return hint, description, is_share


def read_values(path: Path) -> dict[str, Any]:
    """Return the values of a job file; `JobError` if it cannot be read or is not valid TOML."""
    try:
        text = read_regular(path, MOST_BYTES).decode()
        if _DEEP_KEY.search(text):
            raise ValueError(f"a key of more than {MOST_PARTS} parts")
        return tomllib.loads(text)
    except OSError as error:
        meant = f" (did you mean --model {path}?)" if str(path) in SHIPPED else ""
        raise JobError(f"cannot read the job file {str(path)!r}: {error.strerror}{meant}: expected a .toml") from error
    except (ValueError, RecursionError) as error:
        # TOML's error is a ValueError; so are Python's for bytes that are not text, and for very long numbers.
        raise JobError(f"the job file {str(path)!r} is not valid TOML: {one_line(str(error))}") from error


def shipped_values(model: str) -> dict[str, Any]:
    """Return the values of the shipped job of a model, none for another model."""
    if model not in SHIPPED:
        return {}
    text = resources.files("lockstep").joinpath("jobs", f"{model}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def local_defaults(shipped: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a job with local steps has for what `given` does not say.

    A shipped job's optimizer is that of the local steps then, for batches as large as before; the outer one is of
    DiLoCo's kind (arXiv 2311.08105).
    """
    values = {f"local_{name}" if name in LOCAL else name: value for name, value in shipped.items()}
    micro_batches = given.get("micro_batches", shipped.get("micro_batches", Job().micro_batches))
    # Other numbers are not valid, and are refused when the job is made.
    if "lr" in shipped and isinstance(micro_batches, int) and 0 < micro_batches * given["local_steps"] < 2**53:
        values["local_lr"] = local_rate(shipped["lr"], given["local_steps"], micro_batches)
    if "global_batch" in values:
        values["global_batch"] *= given["local_steps"]
    if given.get("optimizer", "sgd") != "sgd":
        return values
    return {**OUTER, "nesterov": bool(given.get("momentum", OUTER["momentum"])), **values}


def local_rate(lr: float, local_steps: int, micro_batches: int) -> float:
    """Return the rate of local steps, from that of a job whose steps are all micro-batches' local steps together.

    A local batch has one M-th of the samples, so its gradient deviates √M times as much (Krizhevsky, arXiv 1404.5997).
    From H steps, deviations lead √H times as far. The rate keeps replicas equally near to each other, whatever M and H
    are, and is never above that of the job.
    """
    return float(f"{lr * min(1.0, NEAR / math.sqrt(micro_batches * local_steps)):.2g}")


def resolve(file_values: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[Job, RunOptions]:
    """Return the checked job and options: the file's values, or the model's shipped job, overridden by the flags.

    A job with local steps has defaults of its own: see `local_defaults`; the numerics are those that its model and this
    machine can have. `JobError` names the value, the expected kind of value and, for an unknown key, the nearest
    right one.
    """
    _check_length(flags)
    given = {**file_values, **flags}
    shipped = {} if file_values else shipped_values(str(given.get("model", "lenet")))
    base: Mapping[str, Any] = file_values or shipped
    local_steps = given.get("local_steps")
    if isinstance(local_steps, int) and local_steps > 1:
        base = {**local_defaults(shipped, given), **file_values}
    values = {**base, **flags}
    for key in values:
        if not (key in flags and key in OF_A_SERVER) and not is_ignored(key, values[key]):
            check_key(key)
    if "local_steps" not in given:
        _check_no_local(given)
    options = msgspec.to_builtins(default_options()) | {
        key: value for key, value in values.items() if key in RunOptions.__struct_fields__
    }
    job_values = {key: value for key, value in values.items() if key in Job.__struct_fields__}
    batch = job_values.get("global_batch")
    if "micro_batches" not in job_values and isinstance(batch, int):
        job_values["micro_batches"] = default_micro_batches(batch)
    job = check(_convert(job_values, Job))
    if "numerics" not in job_values:
        job = msgspec.structs.replace(job, numerics=_default_numerics(job))
    return job, check_options(_convert(options, RunOptions))


def check_key(key: str) -> None:
    """Raise `JobError` if no job file has that key, with the nearest right one."""
    known = (*Job.__struct_fields__, *KEPT_OPTIONS)
    if key not in known:
        # The whole list only if nothing is near: it is long.
        near = f" (did you mean {ELSEWHERE[key]!r}?)" if key in ELSEWHERE else nearest(key[:MOST_TOLD], known)
        advice = near or f": expected one of {', '.join(known)}"
        raise JobError(f"the job has no key {cut(key, MOST_TOLD)!r}{advice}")


def _default_numerics(job: Job) -> Numerics:
    texts = list[bytes]()
    with suppress(ModelError):  # it is raised again where the model is needed
        for files in read_model_source(job.model).files.values():
            texts += files.texts.values()
    return default_numerics(texts)


def _check_length(given: Mapping[str, Any]) -> None:
    """Raise `JobError` if flags have two lengths of a run: a job file may have epochs besides, which steps replace."""
    epochs, steps = given.get("epochs"), given.get("steps")
    if epochs is not None and steps is not None:
        lengths = f"epochs = {cut(repr(epochs), MOST_TOLD)} and steps = {cut(repr(steps), MOST_TOLD)}"
        raise JobError(f"{lengths}: expected one of the two, which says how long the run is")


def _check_no_local(given: Mapping[str, Any]) -> None:
    """Raise `JobError` if a job has a value of local steps, and does not say how many there are."""
    for name in LOCAL:
        if (local := f"local_{name}") in given:
            raise JobError(
                f"{local} = {cut(repr(given[local]), MOST_TOLD)} without local_steps: expected local_steps too, as "
                f"--set local_steps=16, or {name} in place of {local}"
            )


def _convert(values: dict[str, Any], to: type[S]) -> S:
    """Return `values` as a struct; `JobError` names the first that does not fit, and the expected kind of value."""
    try:
        return msgspec.convert(values, to)
    except msgspec.ValidationError as error:
        fact, _, place = str(error).partition(" - at `$.")
        # Of a value in a list, the place has its index too.
        key = place.rstrip("`").partition("[")[0]
        raise JobError(f"{key} = {one_line(repr(values[key]), MOST_TOLD)}: {_told(fact, fields()[key])}") from error


def _told(fact: str, field: Field) -> str:
    """Return the validator's fact in plain words: `expected a whole number >= 1`."""
    if field.choices and fact.startswith("Invalid enum value"):
        return f"expected one of {', '.join(field.choices)}"
    words = re.sub(r"`([^`]+)`", lambda kinds: _kinds(kinds[1]), fact)
    return words[:1].lower() + words[1:]


def _kinds(text: str) -> str:
    return " or ".join(KINDS.get(kind, kind) for kind in text.split(" | "))


def to_toml(job: Job, options: RunOptions) -> str:
    """Return a job file that resolves to the same job and options, every value written out."""
    values = {**msgspec.to_builtins(job), **kept(options)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    """Return a value as TOML on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
        case int():
            return str(value)
        case str():
            # A JSON string is a TOML basic string, but for DEL, which JSON leaves bare.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(_toml_value, value))}]"
        case dict():
            return "{" + ", ".join(f"{_toml_value(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
        case _:
            raise JobError(f"{value!r} cannot be written to a job file: expected text, a number, a list or a table")


#: The groups in their order; the help has values in no group before them, the page after them.
GROUPS: dict[str, tuple[str, ...]] = {
    "Model and data": (
        *(
            "model",
            "hidden",
            "data",
            "initial",
            "initial_partial",
            "normalize",
            "max_shift",
            "transform",
            "seed",
            "numerics",
        ),
    ),
    "Length and micro-batches": ("epochs", "steps", "global_batch", "micro_batches"),
    "Fewer bytes": ("wire", "wire_weights"),
    "Optimizer": (
        *("optimizer", "lr", *hyperparameters()),
        *("no_decay", "lr_factors", "clip_norm", "clip_value", "ema_decay"),
    ),
    "Loss and metrics": ("loss", "target_scale", "class_weights", "ignore_index", "label_smoothing", "metrics"),
    "Learning rate schedule": (*("schedule", "warmup_steps", "decay_every", "decay_factor", "decay_power", "min_lr"),),
    "Local steps": ("local_steps", *(f"local_{name}" for name in LOCAL)),
    "Early stopping and the best epoch": (
        "validation_split",
        "monitor",
        "monitor_mode",
        "patience",
        "min_delta",
        "keep_best",
    ),
    "Processes": (
        *("workers", "min_workers", "servers", "transport", "max_restarts"),
        *("audit", "audit_ends", "ship_data"),
    ),
    "Checkpoints": ("checkpoint_keep", "checkpoint_every_steps", "checkpoint_every_seconds", "with_examples"),
}

#: Values that follow from the machine: none of them is unusual; and those of a run, of which none is usual.
OF_THE_MACHINE, OF_THE_RUN = ("workers", "min_workers"), ("model", "data")


class ShownValue(msgspec.Struct, frozen=True, kw_only=True):
    """A value of a job as a person sees it."""

    name: str
    #: With the value that a job of this model has by default, if it has another one.
    text: str
    is_unusual: bool


def shown_values(job: Job, options: RunOptions) -> dict[str, list[ShownValue]]:
    """Return the values of a job and the options of its run by their groups."""
    is_shipped = job.model_name() in SHIPPED
    model = {"model": job.model_name() if is_shipped else job.model}
    usual_job, usual_options = resolve({}, model)
    values = msgspec.to_builtins(job) | kept(options) | model
    # A model of the user's own is unusual: the page shows it first. The number of its epochs follows from its data.
    usual = (
        msgspec.to_builtins(usual_job)
        | kept(usual_options)
        | ({} if is_shipped else {"model": Job().model, "epochs": job.epochs})
    )
    grouped = {name for names in GROUPS.values() for name in names}
    left = tuple(name for name in values if name not in grouped)
    return {
        group: [_shown(name, values[name], usual[name]) for name in names]
        for group, names in ((GROUPS | {"Others": left}) if left else GROUPS).items()
    }


def named(value: Any) -> Any:
    """Return the name of a file or a folder that is given by its whole path, and any other value as it is.

    The author of `data = "homes.csv"` reads it so; files that we put somewhere, as the arrays of `fit` and packed
    tables, have paths that no person wrote. The job has all of it.
    """
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


#: The text for a value that there is not.
NONE = "none"


def value_text(value: Any) -> str:
    """Return a value of a job as a person reads it."""
    match value:
        case None | [] | ():
            return NONE
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ",".join(in_list(value_text(each)) for each in value)
        case _:
            return one_line(str(value))


def _shown(name: str, value: Any, usual: Any) -> ShownValue:
    is_unusual = value != usual and name not in OF_THE_MACHINE
    compared = f"  (usually {value_text(usual)})" if is_unusual and name not in OF_THE_RUN else ""
    return ShownValue(name=name, text=f"{value_text(named(value))}{compared}", is_unusual=is_unusual)
