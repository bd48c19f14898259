"""A run's receipt: digests of all that decides its bits, and a chain of digests of what came out. Pure.

Each link covers the one before it, so that the last one stands for the whole run: two runs of one job that agree in it
agreed after every epoch.

On the disk it is the predicate of an in-toto statement, whose subject is the run's files. So a tool that signs such
statements, as cosign does, binds a person to the files and to how they were computed.
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from lockstep.common.errors import FileFormatError
from lockstep.common.files.reading import convert, decode
from lockstep.common.model.files import ModelFile, Place
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.ps.records.ledger import EpochDone, Line, RunBegun
from lockstep.ps.run.description import DataDescription
from lockstep.ps.run.info import RunInfo


class ReceiptLink(msgspec.Struct, frozen=True, kw_only=True):
    """The weights after an epoch, or before the first, and the link over them and all links before."""

    #: The epoch, 0 before the first.
    epoch: int
    #: The number of steps made so far.
    step: int
    #: The digest of the weights.
    weights_sha256: str
    #: The SHA-256 over the link before, the epoch, the steps and the weights; the first is over the job, the
    #: data, the layout, the model's file and the weights.
    link: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides the bits of a run, and what came out, whether it has finished or not."""

    #: The name of the run.
    run: str
    #: The digest of the job's values.
    job_sha256: str
    #: The digest of the data.
    dataset_sha256: str
    #: The digest of names, shapes and places of all parameters, and of the values of frozen ones.
    layout_sha256: str
    #: The digest of the model's own files; empty for a model of the library.
    model_source_sha256: str
    #: The digest of the source code of all that decides the bits.
    code: str
    #: Versions, BLAS kernel, processor features: what computed it.
    numerics: dict[str, Any]
    #: The number of steps that the job has.
    total_steps: int
    #: One link before the first epoch, and one after each.
    chain: list[ReceiptLink]
    #: The model's own files with their digests, the one that the job names first.
    model_files: list[ModelFile] = []
    #: The data without its samples: their form, their conversion and their preparation, by which the model can be used
    #: without the data.
    data: DataDescription | None = None

    def fingerprint(self, name: str) -> Fingerprint:
        """Return what computed the run; `FileFormatError` with the name of the receipt if it does not have it."""
        try:
            return convert(self.numerics, Fingerprint)
        except msgspec.MsgspecError as error:
            raise FileFormatError(f"{name}: has no numerics of this version: {error}") from error


class SubjectFile(msgspec.Struct, frozen=True):
    """A file of the run."""

    #: Its path in the run's folder.
    name: Place
    #: Its digests in hex by algorithm: one, `sha256`.
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `receipt.json`: an in-toto statement about a run's files."""

    #: The version of in-toto's statements.
    kind: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    #: The run's files. A run that has not finished has its job alone, because the others still change.
    subject: list[SubjectFile]
    #: The meaning of the predicate: another meaning of a field needs another name.
    predicate_type: Literal["https://pypi.org/project/lockstep-sgd/receipt/v1"] = msgspec.field(name="predicateType")
    #: The receipt.
    predicate: Receipt


def statement_of(subject: list[SubjectFile], receipt: Receipt) -> Statement:
    """Return the statement that a receipt makes about those files."""
    return Statement(
        kind="https://in-toto.io/Statement/v1",
        subject=subject,
        predicate_type="https://pypi.org/project/lockstep-sgd/receipt/v1",
        predicate=receipt,
    )


def statement_in(data: bytes) -> Statement:
    """Return the statement in a receipt's bytes; raises `msgspec.DecodeError` if they are not one.

    An earlier version wrote the receipt alone, about no file.
    """
    values = decode(data, dict[str, Any])
    return convert(values, Statement) if "_type" in values else statement_of([], convert(values, Receipt))


def receipt_of(info: RunInfo, chain: list[ReceiptLink]) -> Receipt:
    """Return the receipt of a run whose links so far are `chain`."""
    return Receipt(
        run=info.run,
        job_sha256=info.job.digest(),
        dataset_sha256=info.dataset,
        layout_sha256=info.layout,
        model_source_sha256=info.source,
        code=info.fingerprint.code,
        numerics=msgspec.to_builtins(info.fingerprint),
        total_steps=info.plan.total_steps,
        chain=chain,
        model_files=list(info.model_files),
        data=info.data,
    )


def first_link(info: RunInfo, weights_sha256: str) -> ReceiptLink:
    """Return the link before the first epoch: over the job, the data, the model and its first weights."""
    return _link(
        f"{info.job.digest()} {info.dataset} {info.layout} {info.source} {weights_sha256}", 0, 0, weights_sha256
    )


def next_link(before: ReceiptLink, *, epoch: int, step: int, weights_sha256: str) -> ReceiptLink:
    """Return the link after another epoch."""
    return _link(f"{before.link} {epoch} {step} {weights_sha256}", epoch, step, weights_sha256)


def _link(covered: str, epoch: int, step: int, weights_sha256: str) -> ReceiptLink:
    link = hashlib.sha256(covered.encode()).hexdigest()
    return ReceiptLink(epoch=epoch, step=step, weights_sha256=weights_sha256, link=link)


def read_chain(info: RunInfo, lines: Sequence[Line], name: str) -> list[ReceiptLink]:
    """Return the links as a ledger has them; `FileFormatError` if they do not follow from one another."""
    begun = next((line for line in lines if isinstance(line, RunBegun)), None)
    if begun is None:
        raise FileFormatError(f"{name}: has no beginning: expected the ledger of this run")
    chain = [first_link(info, begun.weights_sha256)]
    for line in lines:
        if isinstance(line, EpochDone):
            link = next_link(chain[-1], epoch=line.epoch, step=line.step, weights_sha256=line.weights_sha256)
            if link.link != line.link:
                raise FileFormatError(f"{name}: epoch {line.epoch} does not follow from the one before: it was changed")
            chain.append(link)
    return chain
