"""The values of a job and the options of its run, from the definitions that also make the flags and check job files."""

import msgspec
from msgspec import inspect as types

from docs.generators.tables import code, table, words
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import OF_A_SERVER, RunOptions
from lockstep.runs.job_file import GROUPS, SHIPPED, Field, fields, shipped_values


def job_values() -> str:
    """Return a table for each group of flags."""
    known, ranges = {name: one for name, one in fields().items() if name not in OF_A_SERVER}, _ranges()
    grouped = {name for names in GROUPS.values() for name in names}
    left = tuple(name for name in known if name not in grouped)
    groups = {**GROUPS, **({"Others": left} if left else {})}
    return "\n".join(f"## {title}\n\n{_group(names, known, ranges)}" for title, names in groups.items())


def _group(names: tuple[str, ...], known: dict[str, Field], ranges: dict[str, str]) -> str:
    rows = [
        [code(name), ranges[name], _default(known[name]), known[name].description.split("  [")[0]] for name in names
    ]
    harmless = [name for name in names if name not in Job.__struct_fields__]
    which = "These values do" if len(harmless) == len(names) else f"{', '.join(map(code, harmless))}: this does"
    note = f"{which} not change the bits.\n\n" if harmless else ""
    return note + table(("value", "type and range", "default", "what it does"), rows)


def _ranges() -> dict[str, str]:
    found: dict[str, str] = {}
    for struct in (RunOptions, Job):
        info = types.type_info(struct)
        assert isinstance(info, types.StructType)
        found |= {field.name: words(field.type).removesuffix(" or nothing") for field in info.fields}
    return found


def _default(field: Field) -> str:
    _, bracket, shown = field.description.partition("  [")
    if bracket:
        return shown.rstrip("]")
    if field.default in (None, msgspec.NODEFAULT):
        return "none"
    return code(str(field.default).lower() if isinstance(field.default, bool) else field.default)


def shipped_jobs() -> str:
    """Return what the shipped jobs set."""
    jobs = {model: shipped_values(model) for model in SHIPPED}
    names = [name for name in fields() if any(name in values for values in jobs.values()) and name != "model"]
    rows = [[code(name), *(code(values[name]) if name in values else "" for values in jobs.values())] for name in names]
    return table(("value", *jobs), rows)
