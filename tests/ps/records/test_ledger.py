"""The ledger's entries: they come back as they went in, damage is named, and a peer cannot make them grow for ever."""

import msgspec
import pytest

from common.aggregation.tree import Node
from common.errors import FileFormatError
from common.job.tally import pack_losses
from ps.records.ledger import (
    MOST_ENTRIES,
    Account,
    Again,
    EpochDone,
    RunBegun,
    Unlisted,
    WeightsAt,
    WorkerIn,
    read_lines,
)

AGAIN = Again(work="train", step=3, lo=0, hi=2, rank=1, why="it left: killed")
ENTRIES = [
    RunBegun(step=4, lost_steps=2, weights_sha256="2" * 64),
    WorkerIn(rank=0, host="b", pid=812),
    AGAIN,
    Unlisted(work="evaluate", step=3, count=7),
    EpochDone(epoch=1, step=3, weights_sha256="0" * 64, link="1" * 64),
    WeightsAt(step=3, weights_sha256="0" * 64),
]


def step_of(losses: list[float]) -> Account:
    account = Account(len(losses))
    account.record_accepted(Node(0, len(losses)), 0, pack_losses(losses))
    return account


def test_entries_come_back_as_they_went_in() -> None:
    # A loss of any bits, and the largest mark.
    entries = [*ENTRIES, step_of([0.1, 1e-45, 3.4e38]).step_done(9, 2**64 - 1)]
    data = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
    assert read_lines(data, "ledger") == entries


def test_a_last_line_that_was_cut_off_is_left_out() -> None:
    data = msgspec.json.encode(AGAIN) + b"\n" + msgspec.json.encode(AGAIN)[:-5]
    assert read_lines(data, "ledger") == [AGAIN]


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"kind":"begun"}', b'{"kind":"begun","step":-1}', b"\xff", b'{"kind":"x"}']
)
def test_another_line_is_named(line: bytes) -> None:
    with pytest.raises(FileFormatError, match="ledger: line 2 is not an entry of a ledger"):
        read_lines(msgspec.json.encode(AGAIN) + b"\n" + line + b"\n", "ledger")


def test_what_a_round_lists_is_bounded() -> None:
    account = Account(4)
    for _ in range(MOST_ENTRIES + 7):
        account.add(AGAIN)
    assert account.other_entries("train", 3) == [AGAIN] * MOST_ENTRIES + [Unlisted(work="train", step=3, count=7)]
