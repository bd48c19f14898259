"""The form in which a model is sent: as a name, as data, or as the text of a file that builds it on this machine."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

import msgspec
import numpy as np

from lockstep.api.source_text import LAMBDA, Definition, Gathering
from lockstep.common.errors import JobError, ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.losses import LOSSES
from lockstep.common.job.metrics import metric_name
from lockstep.common.job.own_code import NAMING, OF_METRIC
from lockstep.common.model.likeness import differences
from lockstep.common.model.source import WRITTEN_BY_FIT, default_numerics, is_torch_class, is_torch_module, torch_model
from lockstep.common.nn.description import describe, is_describable
from lockstep.common.nn.module import Module, Parameter, RunningStatistic
from lockstep.common.optim.rules import RULES

#: A model, of `lockstep.nn` or of PyTorch, what builds one, or the name of one.
Model = Any


class ModelText(msgspec.Struct, frozen=True):
    """The source of a file with a function in it that returns the model."""

    #: The name of the model on the screen.
    name: str
    function: str
    text: str


class ExportedModel(msgspec.Struct, frozen=True):
    """A model as a job can name it."""

    #: The job's value; if there is a text, a placeholder until that has a file.
    value: str | dict[str, Any]
    text: ModelText | None = None

    def values(self) -> dict[str, Any]:
        """Return the model as a value of a job, and the numerics that the job has unless it says which."""
        if self.text is None:
            return {"model": self.value}
        # Its file is not written yet: there may be another one of that name.
        return {"numerics": default_numerics([self.text.text.encode()]), "model": self.value}


def exported(model: Model) -> ExportedModel:
    """Return how a model is sent: a name as it is, the library's layers as data, and everything else as its text.

    Raises as `model_text`, and `ModelError` if a parameter of a model that is sent as data is frozen.
    """
    if isinstance(model, str):
        return ExportedModel(model)
    if is_torch_module(model):
        torch_model(model)  # raises if it cannot be trained
    if is_described(model):
        _check_trained(model)
        return ExportedModel(dict(describe(model)))
    text = model_text(model)
    return ExportedModel(f"{text.name}.py:{text.function}", text)


def _check_trained(model: Module) -> None:
    """Raise if a parameter is frozen: a description has the layers only."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ModelError(
                f"the parameter {name!r} is frozen, and the model is sent as a description of its layers, which does "
                "not say so: expected a function that builds and freezes it; write `def build(): ... return model` and "
                "pass it to `fit`"
            )


def exported_functions(values: Mapping[str, Any]) -> dict[str, ModelText]:
    """Return the text of each function that is given in place of a job's value, by that value's name.

    `ModelError` as of `model_text`; `JobError` for something else that can be called.
    """
    found = {}
    metrics = values.get("metrics")
    for metric in metrics if isinstance(metrics, list | tuple) else ():
        if isinstance(metric, FunctionType) and metric.__name__ == LAMBDA:
            raise JobError(
                "metrics has a lambda, whose figure would have no name: expected a function with one; write `def "
                "my_metric(outputs, targets): return ...` with a sum and what it is divided by"
            )
        if isinstance(metric, FunctionType):
            found[f"{OF_METRIC}{metric.__name__}"] = ModelText(metric.__name__, metric.__name__, _text_of(metric))
        elif callable(metric):
            raise JobError(f"metrics has {metric!r}: expected a name, a function of your own, or FILE.py:FUNCTION")
    for name in NAMING:
        value = values.get(name)
        kind = value if isinstance(value, type) else type(value)
        _check_not_of_a_library(name, value)
        if isinstance(value, FunctionType) or (name == "optimizer" and isinstance(value, type)):
            called = value.__name__ if value.__name__ != LAMBDA else name
            found[name] = ModelText(called, called, _text_of(value, called))
        elif name == "optimizer" and is_dataclass(value):
            kind = type(value)
            given = ", ".join(f"{one.name}={getattr(value, one.name)!r}" for one in fields(value) if one.init)
            built = f"\n\ndef build_rule():\n    return {kind.__name__}({given})\n"
            found[name] = ModelText(kind.__name__, "build_rule", _text_of(kind) + built)
        elif callable(value):
            raise JobError(
                f"{name} = {value!r}: expected a function of your own, the name of one of the library, or "
                "FILE.py:FUNCTION"
            )
    return found


#: Libraries whose losses and optimizers have names in a job.
LIBRARIES = {"lockstep": "the library", "torch": "PyTorch"}


def _check_not_of_a_library(name: str, value: object) -> None:
    """Raise `JobError` if a loss or an optimizer is a function or class of a library, and not of the user."""
    kind = value if isinstance(value, type | FunctionType) else type(value)
    library = LIBRARIES.get(kind.__module__.partition(".")[0])
    if library is None or name not in ("loss", "optimizer"):
        return
    is_loss = name == "loss"
    names = ", ".join(LOSSES if is_loss else RULES)
    why = "a run needs sums, and what they are divided by" if is_loss else "the server updates the weights"
    rest = "" if is_loss else "; its values are arguments, such as lr and weight_decay"
    raise JobError(f"{name} is {kind.__name__} of {library}: expected one of {names}, as {why}{rest}")


def with_names(values: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a job with names in place of functions: of those that `exported_functions` has found."""
    of_metrics = {value.removeprefix(OF_METRIC): name for value, name in named.items() if value.startswith(OF_METRIC)}
    others = {value: name for value, name in named.items() if not value.startswith(OF_METRIC)}
    if not of_metrics:
        return {**values, **others}
    metrics = [of_metrics.get(_metric_called(metric), metric) for metric in values["metrics"]]
    return {**values, **others, "metrics": metrics}


def names_of(functions: Mapping[str, ModelText]) -> dict[str, str]:
    """Return what a job may call functions before they have files, by the values that name them."""
    return {value: f"{value}.py:{text.function}" for value, text in functions.items()}


def placed(job: Job, paths: Mapping[str, str]) -> dict[str, Any]:
    """Return values of a job with the places of the files that were written for them."""
    found = with_names({"metrics": job.metrics or ()}, paths)
    metrics = found.pop("metrics")
    return {**found, "metrics": tuple(metrics) or job.metrics}


def _metric_called(metric: object) -> str:
    return metric.__name__ if isinstance(metric, FunctionType) else metric_name(str(metric))


def is_described(model: object) -> bool:
    """Return whether a model consists of the library's own layers, which are sent as data."""
    return isinstance(model, Module) and all(is_describable(type(part)) for part in model.modules())


def model_text(model: Any) -> ModelText:
    """Return the text that builds a model: of its class, or of the function that returns it.

    `ModelError` if the text cannot be had, uses names without a text, or would build another model than the one given.
    """
    if isinstance(model, FunctionType):
        name = model.__name__ if model.__name__ != LAMBDA else "model"
        return ModelText(name, name, _text_of(model, name))
    if isinstance(model, partial):
        return _text_of_call(model)
    kind = model if isinstance(model, type) else type(model)
    if not issubclass(kind, Module) and not is_torch_class(kind):
        raise ModelError(f"the model is {model!r}: expected a Module, its class, or a function that returns it")
    if is_torch_module(model) and (text := text_of_module(model)) is not None:
        return text
    if is_torch_class(kind) and kind.__module__.partition(".")[0] == "torch":
        raise ModelError(
            f"the {kind.__name__} is a class of PyTorch, and what it was built with is not known: expected a class of "
            "your own, or what builds the model; pass `lambda: ...` or `functools.partial(...)` to `fit`"
        )
    if not isinstance(model, type):
        _check_own(model)
        check_rebuilt(model)
    function = "build" if kind.__name__ != "build" else "build_model"
    return ModelText(kind.__name__, function, _text_of(kind) + f"\n\ndef {function}():\n    return {kind.__name__}()\n")


def _text_of(definition: Definition, name: str = "") -> str:
    gathering = Gathering()
    gathering.add(definition, name)
    return WRITTEN_BY_FIT + gathering.text()


def _text_of_call(model: "partial[Any]") -> ModelText:
    """Return the text of a function that calls another one, or a class, with some arguments."""
    gathering = Gathering(is_whole=False)
    called = gathering.value(model.func, "the partial")
    given = [gathering.value(each, called) for each in model.args]
    given += [f"{key}={gathering.value(each, called)}" for key, each in model.keywords.items()]
    function = "build" if called != "build" else "build_model"
    text = f"{gathering.text()}\n\ndef {function}():\n    return {called}({', '.join(given)})\n"
    return ModelText(called, function, WRITTEN_BY_FIT + text)


def text_of_module(model: Any) -> ModelText | None:
    """Return the text that builds a module of PyTorch with the arguments that its layers show; None if they do not.

    The model that it builds was compared with the module.
    """
    # Here, where the model itself has imported PyTorch already.
    from lockstep.common.model.pytorch.comparison import constructed

    gathering = Gathering()
    built = constructed(model, gathering.value)
    if built is None:
        return None
    lines = [f"return {built.call}"]
    if built.requires_grad:
        lines = [
            f"model = {built.call}",
            *(f"model.get_parameter({name!r}).requires_grad = {value}" for name, value in built.requires_grad.items()),
            "return model",
        ]
    body = "\n".join(f"    {line}" for line in lines)
    text = f"{WRITTEN_BY_FIT}{gathering.text()}\n\ndef build():\n{body}\n"
    return ModelText(type(model).__name__, "build", text)


def _check_own(model: Any) -> None:
    """Raise if the model is a container of ours around a class of theirs, whose arguments are unknown."""
    if isinstance(model, Module) and is_describable(type(model)):
        own = next(type(module).__name__ for module in model.modules() if not is_describable(type(module)))
        raise ModelError(
            f"the {type(model).__name__} holds a {own} of your own, and what that was built with is not known: "
            f"expected a function that builds the whole; write `def build(): return ...` and pass it to `fit`"
        )


#: Attributes of every module that do not show how it was built.
PASSING = ("training", "_source", "_observers", "_is_drawn")


def check_rebuilt(model: Any) -> None:
    """Raise `ModelError` with the first thing in which the model differs from what its class alone builds."""
    name = type(model).__name__
    advice = f"expected a model that {name}() builds; give `fit` a function instead: `lambda: {name}(...)`"
    if not isinstance(model, Module):
        # Here, where the model itself has imported PyTorch already.
        from lockstep.common.model.pytorch.comparison import first_difference, unkept_arguments

        if unkept := unkept_arguments(model):
            kept = "; ".join(f"self.{each} = {each}" for each in unkept)
            advice = (
                f"expected a model that {name}() builds, or one that keeps its arguments: add `{kept}` to "
                f"{name}.__init__, or give `fit` a function instead: `lambda: {name}(...)`"
            )
    try:
        other = type(model)()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"{name}() raised {text}: {advice}") from error
    if isinstance(model, Module):
        odd = next(differences(dict(_attributes(model)), dict(_attributes(other)), _judged, _told), None)
    else:
        odd = first_difference(model, other)
    if odd is not None:
        raise ModelError(f"{odd}: {advice}")


def _attributes(model: Module) -> Iterator[tuple[str, object]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if name not in PASSING:
                yield f"{prefix}.{name}" if prefix else name, value


def _judged(here: Any, there: Any) -> bool | None:
    """Return whether two attributes of a kind that is ours are alike."""
    if isinstance(here, Parameter):
        return bool(here.shape == there.shape and here.requires_grad == there.requires_grad)
    if isinstance(here, RunningStatistic):
        return bool(here.value.shape == there.value.shape)
    return True if isinstance(here, Module) else None  # its own attributes are looked at


def _told(value: object) -> str:
    if isinstance(value, Parameter):
        return f"of shape {value.shape}{'' if value.requires_grad else ', frozen,'}"
    return f"a {type(value).__name__}" if isinstance(value, Module | np.ndarray) else repr(value)
