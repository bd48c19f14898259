"""Compare the records of runs, value by value: job, data, model, versions, results.

Nothing is computed, and neither the data nor the model is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from lockstep.common.data.folder import Origin, flag
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.fingerprint import DECIDING_FIELDS, Fingerprint
from lockstep.packing.options import PackOptions
from lockstep.ps.records.ledger import EpochDone, Line
from lockstep.ps.records.receipt import Receipt, next_link
from lockstep.ps.records.run_folder import LEDGER, RECEIPT, RESULT, RunResult, read_ledger, read_receipt
from lockstep.runs.job_file import NONE, named, value_text
from lockstep.runs.run_dir import finished, has_begun, recorded

#: The sources of a job's bits besides its numerics, by the names of a receipt's fields.
SUBJECTS = {
    "job_sha256": "job",
    "dataset_sha256": "dataset",
    "model_source_sha256": "source of the model",
    "layout_sha256": "model",
}


class ComparedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The records of one run, as far as it has them."""

    #: The folder, or the file of the receipt.
    path: Path
    receipt: Receipt
    #: The values of the job by name; empty for a receipt alone.
    job: dict[str, Any] = {}
    #: None for a run that has not finished.
    result: RunResult | None = None


class ComparedValue(msgspec.Struct, frozen=True, kw_only=True):
    """One value of several runs, as text, in the order of the runs."""

    name: str
    values: list[str]
    #: Whether the weights depend on it.
    decides_bits: bool = True


def read_compared(path: Path) -> ComparedRun:
    """Return the records in a run's folder, or next to its receipt; `FileFormatError` if one is damaged."""
    receipt, folder = read_receipt(path), path if path.is_dir() else path.parent
    is_of_folder = path.is_dir() or path.name == RECEIPT
    # The receipt of a finished run is whole: its ledger, which may be long, need not be read.
    if is_of_folder and not (folder / RESULT).exists() and (folder / LEDGER).is_file():
        receipt = _continued(receipt, read_ledger(folder))
    if is_of_folder and has_begun(folder):
        job, _ = recorded(folder)
        # The file of another run proves nothing.
        if job.digest() == receipt.job_sha256:
            values: dict[str, Any] = msgspec.to_builtins(job.without_folders())
            return ComparedRun(path=path, receipt=receipt, job=values, result=finished(folder))
    return ComparedRun(path=path, receipt=receipt)


def _continued(receipt: Receipt, lines: Sequence[Line]) -> Receipt:
    """Return a receipt with the epochs that followed it: of a killed run, it is as old as the last checkpoint."""
    chain = list(receipt.chain)
    for line in lines:
        if isinstance(line, EpochDone) and line.epoch == chain[-1].epoch + 1:
            link = next_link(chain[-1], epoch=line.epoch, step=line.step, weights_sha256=line.weights_sha256)
            # A ledger of another run continues no chain.
            chain += [link] if link.link == line.link else []
    return replace(receipt, chain=chain)


def differences(runs: Sequence[ComparedRun]) -> list[ComparedValue]:
    """Return each value that is not the same in all runs: first those that the weights depend on."""
    found = [value for value in (*_versions(runs), *_subjects(runs), *_values(runs)) if len(set(value.values)) > 1]
    return sorted(found, key=lambda value: not value.decides_bits)


def _versions(runs: Sequence[ComparedRun]) -> Iterator[ComparedValue]:
    prints = [run.receipt.fingerprint(run.receipt.run) for run in runs]
    deciding = {name for each in prints for name in DECIDING_FIELDS[each.mode]}
    # With another mode, no other field matters.
    for name in sorted(Fingerprint.__struct_fields__, key=lambda name: name != "mode"):
        values = [str(getattr(each, name)) for each in prints]
        if name == "features":
            values = _without_common(values)
        yield ComparedValue(name=name, values=[value or NONE for value in values], decides_bits=name in deciding)


def _without_common(values: Sequence[str]) -> list[str]:
    """Return the words of each text that not all texts have."""
    words = [value.split() for value in values]
    common = set(words[0]).intersection(*words)
    return [" ".join(word for word in each if word not in common) for each in words]


def _subjects(runs: Sequence[ComparedRun]) -> Iterator[ComparedValue]:
    for name, what in SUBJECTS.items():
        if name == "job_sha256" and all(run.job for run in runs):
            continue  # its values are compared
        if name == "model_source_sha256" and all(run.receipt.model_files for run in runs):
            files = [{file.place: file.sha256 for file in run.receipt.model_files} for run in runs]
            for place in dict.fromkeys(place for each in files for place in each):
                yield _digests(f"{place!r}", [each.get(place, "") for each in files])
            continue
        yield _digests(what, [getattr(run.receipt, name) for run in runs])


def _digests(what: str, digests: Sequence[str]) -> ComparedValue:
    return ComparedValue(name=f"{what} SHA-256", values=[f"{digest[:12]}…" if digest else NONE for digest in digests])


def _values(runs: Sequence[ComparedRun]) -> Iterator[ComparedValue]:
    if not all(run.job for run in runs):
        return
    flat = [_recorded(run) for run in runs]
    if any("model" in each for each in flat):
        # One that is described layer by layer has nothing in common with one that is named but its name.
        others = [{name: each[name] for name in each if not name.startswith("model.")} for each in flat]
        flat = [{"model": each.get("model.class"), **rest} for each, rest in zip(flat, others, strict=True)]
    for name in dict.fromkeys(name for each in flat for name in each):
        yield ComparedValue(name=name, values=_texts([each.get(name) for each in flat]))


def _recorded(run: ComparedRun) -> dict[str, Any]:
    """Return the values of a run's job by name, and the options with which its data was packed, as flags."""
    origin = Origin(source="") if run.receipt.data is None else run.receipt.data.origin
    packing = {**msgspec.to_builtins(PackOptions()), **origin.options}
    if packing["one_hot"] is None and run.receipt.data is not None:  # then the columns decide
        packing["one_hot"] = [column.name for column in run.receipt.data.columns if column.one_hot]
    # Data that was packed on the way is in the cache, by a name that no person gave.
    source = {"data": origin.source} if origin.source else {}
    return {**dict(_flat("", run.job)), **source, **{one_line(flag(name)): value for name, value in packing.items()}}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values below a value, as of a model that is given as data, by their places."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _flat(f"{name}.{key}" if name else key, below)
    elif isinstance(value, list | tuple) and any(isinstance(below, Mapping) for below in value):
        for place, below in enumerate(value):
            yield from _flat(f"{name}.{place}", below)
    else:
        yield name, value


def _texts(values: Sequence[Any]) -> list[str]:
    """Return values as text; a file by its name alone if that tells as many apart as its path."""
    short, whole = [value_text(named(value)) for value in values], [value_text(value) for value in values]
    return short if len(set(short)) == len(set(whole)) else whole


def figures(run: ComparedRun) -> dict[str, Any]:
    """Return the results of a run by name; one that has not finished has its epochs, and the weights after them."""
    chain, result = run.receipt.chain, run.result
    found: dict[str, Any] = {"epochs": len(chain) - 1, "steps": chain[-1].step}
    if result is None:
        return {**found, "weights sha256": chain[-1].weights_sha256}
    score = {"test accuracy": result.test_accuracy, "test R²": result.test_r2}
    return {
        **found,
        "train loss": result.train_loss,
        "test loss": result.test_loss,
        **{name: value for name, value in score.items() if value is not None},
        **{f"test {name}": value for name, value in result.test_metrics.items()},
        "workers": result.workers,
        "seconds": result.wall_s,
        "samples/s": result.images_per_s,
        "weights sha256": result.weights_sha256,
    }


def parting(ours: Receipt, theirs: Receipt) -> str:
    """Return where the weights of two runs are first different, empty if they never are."""
    for here, there in zip(ours.chain, theirs.chain, strict=False):
        if here.weights_sha256 != there.weights_sha256:
            when = f"after epoch {here.epoch}" if here.epoch else "before the first step"
            return f"weights {here.weights_sha256[:12]}… here and {there.weights_sha256[:12]}… there {when}"
    if len(ours.chain) != len(theirs.chain):
        return f"{len(ours.chain) - 1} epochs here and {len(theirs.chain) - 1} there, the same as far as both go"
    return ""


def comparison(ours: ComparedRun, theirs: ComparedRun) -> str:
    """Return in one line how two runs differ, empty if they computed the same weights after each epoch."""
    where = parting(ours.receipt, theirs.receipt)
    if not where:
        return ""
    found = differences([ours, theirs])
    causes = [value for value in found if value.decides_bits]
    chains = zip(ours.receipt.chain, theirs.receipt.chain, strict=False)
    if not causes and all(here.weights_sha256 == there.weights_sha256 for here, there in chains):
        return f"{where}: the shorter run ended before its last epoch, and `lockstep train --resume` continues it"
    why = "; ".join(f"{value.name}: {value.values[0]} here, {value.values[1]} there" for value in causes or found)
    return f"{where}; what differs: {why or 'nothing that a receipt records: `lockstep verify` finds the first step'}"
