"""The ledger's entries: they come back as they went in, damage is named, and a peer cannot make them grow for ever."""

import msgspec
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FileFormatError
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol.messages import Result
from lockstep.ps.records.ledger import (
    CAUSES,
    MOST_ENTRIES,
    Account,
    EpochDone,
    LedgerShare,
    OmittedEntries,
    RunBegun,
    StepDone,
    UnusedCause,
    UnusedWork,
    WeightsAt,
    WorkerIn,
    read_lines,
)

AGAIN = UnusedWork(work="train", step=3, lo=0, hi=2, rank=1, why="it left: killed")
ENTRIES = [
    RunBegun(step=4, lost_steps=2, weights_sha256="2" * 64),
    WorkerIn(rank=0, host="b", pid=812),
    WorkerIn(rank=1, host="c", pid=813, processes=8),
    AGAIN,
    OmittedEntries(work="evaluate", step=3, count=7),
    EpochDone(epoch=1, step=3, weights_sha256="0" * 64, link="1" * 64),
    WeightsAt(step=3, weights_sha256="0" * 64),
]


def step_of(losses: list[float]) -> Account:
    account = Account(len(losses))
    account.record_accepted(Node(0, len(losses)), 0, pack_losses(losses))
    return account


def a_result(lo: int, hi: int) -> Result:
    return Result(work="train", step=3, lo=lo, hi=hi, loss_sum=0.0, count=1, compute_s=0.0)


def test_entries_come_back_as_they_went_in() -> None:
    # A loss of any bits, and the largest mark.
    entries = [*ENTRIES, step_of([0.1, 1e-45, 3.4e38]).step_done(9, 2**64 - 1)]
    data = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
    assert read_lines(data, "ledger") == entries


def test_who_of_a_team_computed_what_is_there_if_it_is_known_and_else_takes_no_room() -> None:
    account = Account(4)
    for node, process in ((Node(0, 2), 5), (Node(2, 4), 0)):
        account.record_accepted(node, 1, pack_losses([1.0, 2.0]), 0.0, 1.0, process)
    done = account.step_done(3, 7)
    assert done.processes == [5, 0]
    assert read_lines(msgspec.json.encode(done) + b"\n", "ledger") == [done]
    assert b"processes" not in msgspec.json.encode(step_of([1.0]).step_done(3, 7))


def test_people_count_the_processes_of_a_team() -> None:
    assert [entry.named() for entry in ENTRIES if isinstance(entry, WorkerIn)] == [
        "worker 0 (host b, pid 812)",
        "team 1 (host c, pid 813, 8 workers)",
    ]


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
    assert account.other_entries("train", 3) == [AGAIN] * MOST_ENTRIES + [OmittedEntries(work="train", step=3, count=7)]


def test_a_share_has_at_least_one_micro_batch() -> None:
    assert LedgerShare(1, 2, 0).hi == 2
    for lo, hi in ((1, 1), (2, 1)):
        with pytest.raises(ValueError, match="expected at least one"):
            LedgerShare(lo, hi, 0)


def test_a_checksum_has_64_bits_at_most_and_losses_four_bytes_each() -> None:
    assert StepDone(step=0, shares=[], losses=b"1234", checksum=2**64 - 1).loss_sums().size == 1
    with pytest.raises(ValueError, match="a checksum of 65 bits"):
        StepDone(step=0, shares=[], losses=b"", checksum=2**64)
    with pytest.raises(ValueError, match="losses of 5 bytes"):
        StepDone(step=0, shares=[], losses=b"12345", checksum=0)


def test_losses_stand_at_their_micro_batches_and_those_of_another_length_nowhere() -> None:
    account = Account(4)
    account.record_accepted(Node(2, 4), 1, pack_losses([3.0, 4.0]))
    account.record_accepted(Node(0, 2), 0, pack_losses([1.0]))
    done = account.step_done(0, 7)
    assert done.loss_sums().tolist() == [0.0, 0.0, 3.0, 4.0]
    assert done.shares == [LedgerShare(2, 4, 1), LedgerShare(0, 2, 0)]
    assert type(done.losses) is bytes


def test_the_entries_of_the_round_before_are_added_within_the_limit() -> None:
    before, account = Account(4), Account(4)
    for _ in range(MOST_ENTRIES + 2):
        before.add(AGAIN)
    other = WorkerIn(rank=0, host="b", pid=812)
    account.add(other)
    account.omitted = 4
    account.merge(before)
    # One of those that the round before lists has no room any more.
    assert account.entries == [other, *[AGAIN] * (MOST_ENTRIES - 1)]
    assert account.omitted == 4 + 2 + 1
    assert len(before.entries) == MOST_ENTRIES


def test_a_round_with_room_for_all_lists_nothing_more() -> None:
    account = Account(4)
    account.add(AGAIN)
    assert account.other_entries("train", 3) == [AGAIN]


@pytest.mark.parametrize(("lo", "hi", "count"), [(0, 2, 1), (2, 2, 0), (3, 2, 0)])
def test_a_result_that_nobody_needs_is_listed_if_it_is_of_any_micro_batch(lo: int, hi: int, count: int) -> None:
    account = Account(4)
    account.record_unused(a_result(lo, hi), 1)
    why, cause = CAUSES[UnusedCause.FASTER], UnusedCause.FASTER
    entry = UnusedWork(work="train", step=3, lo=lo, hi=hi, rank=1, why=why, cause=cause)
    assert account.entries == [entry] * count


def test_each_node_that_is_computed_again_has_an_entry() -> None:
    account = Account(8)
    account.record_recomputed("train", 3, [Node(0, 2), Node(4, 5)], 1, "it left: killed")
    expected = [AGAIN, UnusedWork(work="train", step=3, lo=4, hi=5, rank=1, why="it left: killed")]
    assert account.entries == expected
    assert AGAIN.node() == Node(0, 2)


def test_times_are_whole_microseconds_from_the_begin_of_the_round() -> None:
    account, result = Account(4), a_result(lo=1, hi=2)
    account.record_accepted(Node(0, 1), 0, pack_losses([1.0]), 0.0000014, 0.0123456)
    # A clock that was set back must not leave a line that cannot be read.
    account.record_accepted(Node(1, 2), 1, pack_losses([1.0]), -1e-9, 0.002)
    assert account.shares == [LedgerShare(0, 1, 0, 1e-6, 0.012346), LedgerShare(1, 2, 1, 0.0, 0.002)]
    account.record_recomputed("train", 3, [Node(0, 2), Node(2, 4)], 1, "it left", [0.001, None], 0.0050001)
    account.record_unused(result, 2, 0.002, 0.006)
    times = [(entry.began_s, entry.ended_s) for entry in account.entries if isinstance(entry, UnusedWork)]
    assert times == [(0.001, 0.005), (None, 0.005), (0.002, 0.006)]
    lines = [account.step_done(3, 7), *account.entries]
    assert read_lines(b"".join(msgspec.json.encode(line) + b"\n" for line in lines), "ledger") == lines


def test_lines_without_times_are_read() -> None:
    step = b'{"kind":"step","step":0,"shares":[[0,2,0],[2,4,1]],"losses":"AAAAAAAAAAAAAAAAAAAAAA==","mark":1}\n'
    again = b'{"kind":"again","work":"train","step":3,"lo":0,"hi":2,"rank":1,"why":"it left: killed"}\n'
    done, entry = read_lines(step + again, "ledger")
    assert isinstance(done, StepDone)
    assert done.shares == [LedgerShare(0, 2, 0), LedgerShare(2, 4, 1)]
    assert entry == AGAIN
    assert msgspec.json.encode(entry) + b"\n" == again


def test_an_entry_whose_time_is_impossible_is_named() -> None:
    step = b'{"kind":"step","step":0,"shares":[[0,2,0,0.0,-1.0]],"losses":"","mark":1}\n'
    with pytest.raises(FileFormatError, match="line 1 is not an entry of a ledger"):
        read_lines(step, "ledger")
