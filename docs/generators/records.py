"""The files of a run's folder: the schemas of their lines and objects, and the figures for Prometheus."""

import ast
import inspect
from typing import Any, get_args

from docs.generators.tables import code, fields_table, first_sentence, table
from lockstep.common.model.files import ModelFile
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.checkpoint.checkpoint import CheckpointIdentity, RunProgress
from lockstep.ps.records.ledger import LedgerShare, Line
from lockstep.ps.records.metrics import Record
from lockstep.ps.records.receipt import Receipt, ReceiptLink
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.run.timing import Split
from lockstep.ps.run.traffic import Moved
from lockstep.ps.standby.terms import LedTerm, TermHistory
from lockstep.results.watch import exposition


def metrics_lines() -> str:
    """Return the schema of metrics.jsonl."""
    return _kinds(Record)


def ledger_lines() -> str:
    """Return the schema of ledger.jsonl."""
    return "\n".join([_kinds(Line), _record("A share, as a list of its values", LedgerShare)])


def _kinds(lines: Any) -> str:
    return "\n".join(_record(f'`"kind": "{kind.__struct_config__.tag}"`', kind) for kind in get_args(lines))


def terms_file() -> str:
    """Return the schema of terms.json."""
    return "\n".join([fields_table(TermHistory), _record("`LedTerm`", LedTerm)])


def result_file() -> str:
    """Return the schema of result.json."""
    return "\n".join(
        [fields_table(RunResult), *(_record(f"`{kind.__name__}`", kind) for kind in (EpochRecord, Split, Moved))]
    )


def receipt_file() -> str:
    """Return the schema of receipt.json."""
    parts = (_record(f"`{kind.__name__}`", kind) for kind in (ReceiptLink, ModelFile))
    return "\n".join([fields_table(Receipt), *parts])


def checkpoint_file() -> str:
    """Return the schema of what a checkpoint has next to its arrays."""
    return "\n".join(_record(f"`{kind.__name__}`", kind) for kind in (RunProgress, CheckpointIdentity))


def _record(title: str, kind: Any) -> str:
    return f"**{title}.** {first_sentence(kind.__doc__)}\n\n{fields_table(kind)}"


def prometheus_metrics() -> str:
    """Return the metrics of `/metrics`, from the calls that make them."""
    rows = []
    for node in ast.walk(ast.parse(inspect.getsource(exposition))):
        match node:
            case ast.Call(func=ast.Name(id=function), args=[ast.Constant(value=name), ast.Constant(value=text), *_]):
                if function.endswith("MetricFamily"):
                    rows.append(_metric(node.lineno, function, str(name), str(text), node))
            case ast.Tuple(elts=[ast.Constant(value=str(name)), ast.Constant(value=str(text)), _]):
                if name.startswith("lockstep_"):
                    rows.append(_metric(node.lineno, "GaugeMetricFamily", name, text, node))
    return table(("metric", "type", "labels", "what it is"), [row for _, row in sorted(rows)])


def _metric(line: int, function: str, name: str, text: str, node: ast.Call | ast.Tuple) -> tuple[int, list[str]]:
    kind = function.removesuffix("MetricFamily").lower()
    suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
    keywords = node.keywords if isinstance(node, ast.Call) else []
    labels = [ast.literal_eval(each.value) for each in keywords if each.arg == "labels"]
    if isinstance(node, ast.Call) and kind == "info":
        match node.args[2]:
            case ast.Dict(keys=keys):
                labels = [[key.value for key in keys if isinstance(key, ast.Constant)]]
    shown = ", ".join(code(label) for each in labels for label in each)
    return line, [code(name + suffix), kind, shown, text]


#: For the check that each field is explained.
RECORDS = (
    *get_args(Record),
    *get_args(Line),
    LedgerShare,
    RunResult,
    Split,
    Moved,
    Receipt,
    ReceiptLink,
    RunProgress,
    CheckpointIdentity,
)
