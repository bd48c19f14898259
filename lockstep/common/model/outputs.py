"""Inputs and outputs of a model that are more than one array: for every library that computes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: The output that is taken of those with names, if there is one of that name.
LOGITS = "logits"

#: An output that is never taken: models of transformers return it first if they are given labels.
LOSS = "loss"


class MainOutput(NamedTuple):
    """The output that named losses and evaluations take."""

    #: Which of several it is, in words; empty if it is the only one.
    which: str
    value: Any


def main_output(outputs: Any) -> MainOutput:
    """Return the output that counts of several: "logits" of a dictionary, or else the first of several.

    Dictionaries may be of any kind, as the `ModelOutput` of transformers. A part of a tuple may be a tuple again.
    """
    if isinstance(outputs, Mapping):
        names = [name for name in outputs if name != LOSS]
        if not names:
            return MainOutput("", outputs)
        name = LOGITS if LOGITS in names else names[0]
        return MainOutput(f"{name!r} of {', '.join(map(repr, outputs))}", main_output(outputs[name]).value)
    if isinstance(outputs, Sequence) and outputs:
        which = f"the first of {len(outputs)}" if len(outputs) > 1 else ""
        return MainOutput(which, main_output(outputs[0]).value)
    return MainOutput("", outputs)


def is_numbered(names: Sequence[str]) -> bool:
    """Tell whether arrays have places and no names: then a model is given them in order."""
    return list(names) == [str(place) for place in range(len(names))]
