"""The files of a run's folder: the schemas of their lines and objects, and the figures for Prometheus."""

from typing import Any, get_args

from docs.generators.tables import code, fields_table, first_sentence, table
from lockstep.common.model.files import ModelFile
from lockstep.ps.records.ledger import LedgerShare, Line
from lockstep.ps.records.metrics import Record
from lockstep.ps.records.receipt import Receipt, ReceiptLink, Statement, SubjectFile
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.run.progress import Moved, Split
from lockstep.results.watch import figures


def metrics_lines() -> str:
    """Return the schema of metrics.jsonl."""
    return _kinds(Record)


def ledger_lines() -> str:
    """Return the schema of ledger.jsonl."""
    return "\n".join([_kinds(Line), _record("A share, as a list of its values", LedgerShare)])


def _kinds(lines: Any) -> str:
    return "\n".join(_record(f'`"kind": "{kind.__struct_config__.tag}"`', kind) for kind in get_args(lines))


def result_file() -> str:
    """Return the schema of result.json."""
    return "\n".join([fields_table(RunResult), *(_record(f"`{kind.__name__}`", kind) for kind in (Split, Moved))])


def receipt_file() -> str:
    """Return the schema of receipt.json."""
    parts = (_record(f"`{kind.__name__}`", kind) for kind in (SubjectFile, Receipt, ReceiptLink, ModelFile))
    return "\n".join([fields_table(Statement), *parts])


def _record(title: str, kind: Any) -> str:
    return f"**{title}.** {first_sentence(kind.__doc__)}\n\n{fields_table(kind)}"


def prometheus_metrics() -> str:
    """Return the metrics of `/metrics`."""
    rows = [[code("lockstep_run_info"), "info", ", ".join(map(code, figures.RUN_LABELS)), figures.RUN_TEXT]]
    for metric in figures.METRICS:
        if not metric.name:
            continue
        name = f"lockstep_{metric.name}{'_total' if metric.kind == 'counter' else ''}"
        rows.append([code(name), metric.kind, code(metric.label) if metric.label else "", metric.text])
    return table(("metric", "type", "labels", "what it is"), rows)


#: For the check that each field is explained.
RECORDS = (
    *get_args(Record),
    *get_args(Line),
    LedgerShare,
    RunResult,
    Split,
    Moved,
    Statement,
    SubjectFile,
    Receipt,
    ReceiptLink,
)
