"""The public names of the library as directives of Sphinx, and how each differs from PyTorch."""

import inspect
import re
from types import ModuleType

from lockstep import F, nn, optim
from lockstep.common.nn.module import LAYERS, Module

#: The beginning of the paragraph of a docstring that lists the differences from PyTorch.
DIFFERS = "Differs from PyTorch:"

#: Defines functions that `lockstep.F` has too.
WINDOWED = "lockstep.common.autograd.windowed"

#: Methods that a layer overrides, and that nobody calls on it: its class describes what it computes.
OF_ANY_LAYER = ("forward", "extra_repr", "count_values", "reset_parameters")


def functions_of(module: ModuleType) -> list[str]:
    """Return the public functions that a module defines, their second names, and methods that it has as functions."""
    return [
        name
        for name, member in vars(module).items()
        if inspect.isfunction(member)
        and (member.__module__ in (module.__name__, WINDOWED) or "." in member.__qualname__)
        and not name.startswith("_")
        and name != "apply"
    ]


def members_of(kind: type) -> list[str]:
    """Return the public methods and properties that a class, or a base without a public name, defines itself."""
    kinds = [each for each in reversed(kind.__mro__) if each is kind or _is_private(each)]
    skipped = OF_ANY_LAYER if issubclass(kind, Module) and kind is not Module else ()
    return [
        name
        for each in kinds
        for name, member in vars(each).items()
        if not name.startswith("_") and name not in skipped and _is_described(member)
    ]


def _is_private(kind: type) -> bool:
    return kind.__name__.startswith("_") and kind.__module__.startswith("lockstep.")


def _is_described(member: object) -> bool:
    return (
        isinstance(member, property | classmethod | staticmethod)
        or inspect.isfunction(member)
        or hasattr(member, "func")
    )


def difference(docstring: str | None) -> str:
    """Return how a docstring differs from PyTorch, empty if it names no difference."""
    for paragraph in inspect.cleandoc(docstring or "").split("\n\n"):
        if paragraph.startswith(DIFFERS):
            text = " ".join(paragraph.removeprefix(DIFFERS).split())
            return f"{text[:1].upper()}{text[1:]}"
    return ""


def api_functional() -> str:
    """Return the directives for `lockstep.F`."""
    return "\n".join(_function(f"lockstep.F.{name}") for name in functions_of(F))


def api_layers() -> str:
    """Return the directives for the layers, with a heading for each of their modules."""
    found: dict[str, list[str]] = {}
    for name, kind in LAYERS.items():
        found.setdefault(kind.__module__.rpartition(".")[2], []).append(name)
    return "\n".join(
        f"## {module.capitalize()}\n\n" + "\n".join(_class(f"lockstep.nn.{name}", LAYERS[name]) for name in names)
        for module, names in found.items()
    )


def api_module() -> str:
    """Return the directives for what a model of your own is made of."""
    kinds = {"Module": nn.Module, "Parameter": nn.Parameter, "Stochastic": nn.Stochastic}
    return "\n".join(
        [*(_class(f"lockstep.nn.{name}", kind) for name, kind in kinds.items()), _function("lockstep.nn.manual_seed")]
    )


def api_init() -> str:
    """Return the directives for `lockstep.nn.init`."""
    return "\n".join(_function(f"lockstep.nn.init.{name}") for name in functions_of(nn.init))


def api_models() -> str:
    """Return the directives for the shipped models, descriptions and inspection."""
    return "\n".join(
        _function(f"lockstep.nn.{module}.{name}")
        for module in ("models", "description", "inspection")
        for name in functions_of(getattr(nn, module))
    )


def api_optim() -> str:
    """Return the directives for `lockstep.optim`."""
    return "\n".join(_class(f"lockstep.optim.{name}", getattr(optim, name)) for name in optim.__all__)


def api(names: str) -> str:
    """Return the directives for some names of `lockstep`, separated by blanks, or of a module below it."""
    parts = []
    for name in names.split():
        member = _named(name)
        parts.append(_class(f"lockstep.{name}", member) if inspect.isclass(member) else _function(f"lockstep.{name}"))
    return "\n".join(parts)


def _named(name: str) -> object:
    import lockstep

    if name.startswith("sklearn."):
        import lockstep.sklearn

        return getattr(lockstep.sklearn, name.removeprefix("sklearn."))
    return getattr(lockstep, name)


def _function(name: str) -> str:
    return _rst(f".. autofunction:: {name}\n")


def _class(name: str, kind: type) -> str:
    members = members_of(kind)
    options = f"   :members: {', '.join(members)}\n   :member-order: bysource\n" if members else ""
    return _rst(f".. autoclass:: {name}\n{options}")


def _rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}```\n"


#: A type with its arguments in brackets, which may nest.
_TYPE = (
    r"~?[\w.]*\b(?:_SupportsArray|_NestedSequence|complex|bytes|str)(?:\[(?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*\])?"
)

#: What NumPy's ArrayLike stands for, which nobody wants to read.
_ARRAY_LIKE = re.compile(rf"~?[\w.]*\b_Buffer(?: \| {_TYPE})*")


def short_signature(signature: str) -> str:
    """Return a signature without `Any`, and with `ArrayLike` for the types that this is an alias of."""
    return re.sub(r": ~?(?:typing\.)?Any(?=[,)=]| =)", "", _ARRAY_LIKE.sub("ArrayLike", signature))
