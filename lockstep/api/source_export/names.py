"""Which names a piece of source takes from elsewhere, by Python's own symbol tables: nothing is run."""

import builtins
import symtable
from collections.abc import Iterator


def borrowed_names(text: str) -> list[str]:
    """Return the names that a definition uses and neither defines nor has from Python itself, in order."""
    table = symtable.symtable(text, "<definition>", "exec")
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    own |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_namespace()}
    return sorted(set(_global_names(table, is_top=True)) - own - set(dir(builtins)))


def _global_names(table: symtable.SymbolTable, *, is_top: bool = False) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (is_top or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _global_names(inner)
