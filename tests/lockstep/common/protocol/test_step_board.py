"""Where workers show how far they are: in the head of a file, without touching anything else in it."""

import numpy as np

from lockstep.common.protocol.step_board import ENTERED, ENTRIES, MADE, MOST_LOSSES, SUMMED, StepBoard
from lockstep.common.transport.shared_memory.segment import HEAD_AT, NONCE_BYTES, PAGE_BYTES


def test_marks_and_entries_have_room_in_the_head_of_a_file() -> None:
    head = np.zeros(PAGE_BYTES - HEAD_AT, np.uint8)
    board = StepBoard.of(head)
    assert NONCE_BYTES <= HEAD_AT
    board.mark(SUMMED, 2**62)
    board.mark(MADE, -1)
    board.mark(ENTERED, 3)
    assert not np.any(board.entries.view(np.uint8))
    last = board.entries[ENTRIES - 1]
    last["losses"][:] = np.arange(MOST_LOSSES)
    last["checksum"] = 2**64 - 1
    seen = StepBoard.of(head.copy())
    assert (seen.count(SUMMED), seen.count(MADE), seen.count(ENTERED)) == (2**62, -1, 3)
    assert seen.entries[ENTRIES - 1]["losses"].tolist() == list(range(MOST_LOSSES))
    assert int(seen.entries[ENTRIES - 1]["checksum"]) == 2**64 - 1


def test_a_step_is_there_once_its_mark_is() -> None:
    board = StepBoard.of(np.zeros(PAGE_BYTES - HEAD_AT, np.uint8))
    assert not board.has(MADE, 1)
    board.mark(MADE, 1)
    assert board.has(MADE, 1)
    assert not board.has(MADE, 2)
