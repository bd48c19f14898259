"""Compare the receipts of two runs: what decides their bits first, then where their weights part. Computes nothing."""

from lockstep.common.model.files import differing
from lockstep.common.protocol.fingerprint import DECIDING_FIELDS
from lockstep.ps.records.receipt import Receipt

#: What a job's bits follow from besides its numerics, by the names of a receipt's fields.
SUBJECTS = {
    "job_sha256": "job",
    "dataset_sha256": "dataset",
    "model_source_sha256": "source of the model",
    "layout_sha256": "model",
}


def causes(ours: Receipt, theirs: Receipt) -> list[str]:
    """Return why the bits of two runs may differ, the likeliest cause first."""
    here, there = ours.fingerprint(ours.run), theirs.fingerprint(theirs.run)
    named = [f"{name} {a!r} here, {b!r} there" for name, a, b in here.differences(there)]
    # With other numerics, nothing else matters.
    found = sorted(named, key=lambda text: not text.startswith("mode "))
    found += [
        f"the {what} differs: {_differing(ours, theirs, name)}"
        for name, what in SUBJECTS.items()
        if getattr(ours, name) != getattr(theirs, name)
    ]
    rest = [name for name in here.__struct_fields__ if name not in DECIDING_FIELDS[here.mode]]
    other = [name for name in rest if getattr(here, name) != getattr(there, name)]
    if not found and other:
        found = [f"{name} {getattr(here, name)!r} here, {getattr(there, name)!r} there" for name in other]
    return found


def _differing(ours: Receipt, theirs: Receipt, name: str) -> str:
    """Return both digests of a subject; of the model's source, those of each file that differs, if both list them."""
    if name == "model_source_sha256" and ours.model_files and theirs.model_files:
        return differing(ours.model_files, theirs.model_files)
    here, there = getattr(ours, name), getattr(theirs, name)
    return f"SHA-256 {here[:12] or 'none'}… here, {there[:12] or 'none'}… there"


def parting(ours: Receipt, theirs: Receipt) -> str:
    """Return where the weights of two runs are first different, empty if they never are."""
    for here, there in zip(ours.chain, theirs.chain, strict=False):
        if here.weights_sha256 != there.weights_sha256:
            when = f"after epoch {here.epoch}" if here.epoch else "before the first step"
            return f"weights {here.weights_sha256[:12]}… here and {there.weights_sha256[:12]}… there {when}"
    if len(ours.chain) != len(theirs.chain):
        return f"{len(ours.chain) - 1} epochs here and {len(theirs.chain) - 1} there, the same as far as both go"
    return ""


def comparison(ours: Receipt, theirs: Receipt) -> str:
    """Return in one line how two runs differ, empty if they computed the same weights after each epoch."""
    where = parting(ours, theirs)
    if not where:
        return ""
    why = "; ".join(causes(ours, theirs)) or "nothing that a receipt records: `lockstep verify` finds the first step"
    return f"{where}; what differs: {why}"
