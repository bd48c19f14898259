"""A chain covers all that decides a run's bits, link after link, and a ledger that was changed does not follow it."""

import json

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.errors import FileFormatError
from lockstep.ps.records.ledger import EpochDone, Line, RunBegun
from lockstep.ps.records.receipt import (
    ReceiptLink,
    SubjectFile,
    first_link,
    next_link,
    read_chain,
    receipt_of,
    statement_in,
    statement_of,
)
from lockstep.ps.records.run_folder import json_text
from lockstep.ps.run.info import RunInfo
from tests.lockstep.ps.runs import facts_of

INFO = facts_of()


def test_the_first_link_covers_the_job_the_data_the_model_and_its_weights() -> None:
    other_job = msgspec.structs.replace(INFO.job, seed=INFO.job.seed + 1)
    infos: list[RunInfo] = [
        INFO,
        replace(INFO, job=other_job),
        replace(INFO, dataset="1" * 64),
        replace(INFO, layout="2" * 64),
        replace(INFO, source="3" * 64),
    ]
    links = [first_link(info, "a" * 64).link for info in infos] + [first_link(INFO, "b" * 64).link]
    assert len(set(links)) == len(links)
    assert first_link(INFO, "a" * 64) == ReceiptLink(epoch=0, step=0, weights_sha256="a" * 64, link=links[0])


def test_each_link_covers_the_one_before_and_its_own_place_and_weights() -> None:
    first = first_link(INFO, "a" * 64)
    link = next_link(first, epoch=1, step=3, weights_sha256="b" * 64)
    assert (link.epoch, link.step, link.weights_sha256) == (1, 3, "b" * 64)
    others = [
        next_link(first_link(INFO, "c" * 64), epoch=1, step=3, weights_sha256="b" * 64),
        next_link(first, epoch=2, step=3, weights_sha256="b" * 64),
        next_link(first, epoch=1, step=4, weights_sha256="b" * 64),
        next_link(first, epoch=1, step=3, weights_sha256="d" * 64),
    ]
    assert len({link.link, *(other.link for other in others)}) == 5


def chain_of(epochs: int) -> tuple[list[Line], list[ReceiptLink]]:
    """Return an honest ledger, and the chain that it has."""
    chain, lines = [first_link(INFO, "a" * 64)], list[Line]([RunBegun(step=0, weights_sha256="a" * 64)])
    for epoch in range(1, 1 + epochs):
        chain.append(next_link(chain[-1], epoch=epoch, step=3 * epoch, weights_sha256=f"{epoch}" * 64))
        link = chain[-1]
        lines.append(EpochDone(epoch=epoch, step=link.step, weights_sha256=link.weights_sha256, link=link.link))
    return lines, chain


@pytest.mark.parametrize("epochs", range(4))
def test_the_chain_of_an_honest_ledger_is_read(epochs: int) -> None:
    lines, chain = chain_of(epochs)
    assert read_chain(INFO, lines, "ledger.jsonl") == chain
    # Where it was resumed changes nothing: the chain begins with the first weights.
    assert read_chain(INFO, [*lines, RunBegun(step=9, weights_sha256="e" * 64)], "ledger.jsonl") == chain


@pytest.mark.parametrize(
    "change",
    [{"epoch": 7}, {"step": 5}, {"weights_sha256": "f" * 64}, {"link": "0" * 64}],
    ids=lambda change: str(change),
)
def test_an_epoch_that_was_changed_does_not_follow(change: dict[str, int | str]) -> None:
    lines, _ = chain_of(3)
    lines[2] = msgspec.structs.replace(lines[2], **change)
    number = change.get("epoch", 2)
    with pytest.raises(FileFormatError, match=f"^ledger.jsonl: epoch {number} does not follow from the one before"):
        read_chain(INFO, lines, "ledger.jsonl")


def test_an_epoch_that_was_left_out_or_exchanged_is_noticed() -> None:
    lines, _ = chain_of(3)
    for changed, number in (([*lines[:2], lines[3]], 3), ([lines[0], lines[2], lines[1]], 2)):
        with pytest.raises(FileFormatError, match=f"epoch {number} does not follow"):
            read_chain(INFO, changed, "ledger.jsonl")


def test_a_ledger_without_a_beginning_is_not_one() -> None:
    with pytest.raises(FileFormatError, match=r"^ledger.jsonl: has no beginning: expected the ledger of this run"):
        read_chain(INFO, chain_of(2)[0][1:], "ledger.jsonl")


def test_a_receipt_says_what_decides_the_bits() -> None:
    info = replace(INFO, dataset="1" * 64, layout="2" * 64, source="3" * 64)
    _, chain = chain_of(2)
    receipt = receipt_of(info, chain)
    assert (receipt.run, receipt.job_sha256, receipt.total_steps) == (
        info.run,
        info.job.digest(),
        info.plan.total_steps,
    )
    assert (receipt.dataset_sha256, receipt.layout_sha256) == ("1" * 64, "2" * 64)
    assert (receipt.model_source_sha256, receipt.code) == ("3" * 64, info.fingerprint.code)
    assert (receipt.numerics, receipt.chain) == (msgspec.to_builtins(info.fingerprint), chain)


def test_the_receipt_is_an_in_toto_statement() -> None:
    receipt = receipt_of(INFO, chain_of(2)[1])
    written = json_text(statement_of([SubjectFile("weights.safetensors", {"sha256": "a" * 64})], receipt))
    values = json.loads(written)
    assert list(values) == ["_type", "subject", "predicateType", "predicate"]
    assert values["_type"] == "https://in-toto.io/Statement/v1"
    assert values["subject"] == [{"name": "weights.safetensors", "digest": {"sha256": "a" * 64}}]
    assert values["predicateType"] == "https://pypi.org/project/lockstep-sgd/receipt/v1"
    assert values["predicate"] == msgspec.to_builtins(receipt)
    assert statement_in(written).predicate == receipt
    # A reader of statements ignores fields that it does not know.
    assert statement_in(json.dumps({**values, "later": 1}).encode()) == statement_in(written)


def test_a_receipt_of_the_version_before_is_about_no_file() -> None:
    receipt = receipt_of(INFO, chain_of(2)[1])
    assert statement_in(msgspec.json.encode(receipt)) == statement_of([], receipt)


@pytest.mark.parametrize(
    "change",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"subject": [{"name": "../weights", "digest": {}}]},
        {"predicate": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_statement_is_not_a_receipt(change: dict[str, object]) -> None:
    values = msgspec.to_builtins(statement_of([], receipt_of(INFO, chain_of(0)[1])))
    with pytest.raises(msgspec.DecodeError):
        statement_in(json.dumps({**values, **change}).encode())
