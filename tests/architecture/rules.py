"""All rules over one tree: a pure function from sources to violations."""

import ast
from collections.abc import Callable, Iterator, Mapping

from tests.architecture.code_from_data import check_code_from_data
from tests.architecture.confinement import (
    check_addresses,
    check_imports,
    check_length,
    check_purity,
    check_uses,
)
from tests.architecture.direction import check_cycles, check_directions, check_form
from tests.architecture.leaves import check_leaves
from tests.architecture.naming import check_class_names, check_words
from tests.architecture.source import Source, Violation, sources_of

Rule = Callable[[Mapping[str, Source]], Iterator[Violation]]


def check_defaults(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find `dataclasses.field` in classes that are not dataclasses: a msgspec.Struct takes it as the default value."""
    for source in sources.values():
        for node in source.nodes:
            if not isinstance(node, ast.ClassDef) or any(map(source.is_dataclass, node.decorator_list)):
                continue
            for each in node.body:
                value = each.value if isinstance(each, ast.AnnAssign) else None
                if isinstance(value, ast.Call) and source.dotted(value.func) == "dataclasses.field":
                    text = f"{node.name} is not a dataclass, and has dataclasses.field: use msgspec.field"
                    yield Violation(source.module, each.lineno, text)


RULES: tuple[Rule, ...] = (
    check_directions,
    check_cycles,
    check_form,
    check_imports,
    check_uses,
    check_addresses,
    check_leaves,
    check_code_from_data,
    check_purity,
    check_length,
    check_class_names,
    check_words,
    check_defaults,
)


def violations(texts: Mapping[str, str]) -> list[Violation]:
    """Return what is wrong in a tree of module name -> source, sorted by place."""
    sources = sources_of(texts)
    return sorted({violation for rule in RULES for violation in rule(sources)})
