"""What is shown of updates is there before its mark, and is read after it."""

from dataclasses import dataclass

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.protocol.team_memory import UpdateMarks


@dataclass
class Shown:
    """Marks of three slices, with what others see of them at each barrier."""

    marks: UpdateMarks
    seen: list[list[int]]

    def look(self) -> None:
        self.seen.append([*self.marks.head[:3].tolist(), *self.marks.made[:3].tolist()])


@pytest.fixture
def shown() -> Shown:
    marks = UpdateMarks(np.array([4, 7, 3]), np.array([9, 8, 9, 0]), np.zeros(0, np.void))
    found = Shown(marks, [])
    found.marks = replace(marks, keep_order=found.look)
    return found


def test_a_lease_may_be_made_once_all_is_there_that_its_updates_begin_with(shown: Shown) -> None:
    shown.marks.end()
    shown.marks.begin(5, 20, 2)
    assert shown.seen == [[0, 7, 3, 9, 8, 9], [0, 20, 2, 20, 20, 20]]
    assert (shown.marks.number, shown.marks.read, shown.marks.slices) == (5, 20, 2)


def test_only_slices_that_there_are_count_and_what_was_made_is_read_after_that(shown: Shown) -> None:
    def make_more() -> None:
        shown.marks.made.fill(30)

    marks = replace(shown.marks, keep_order=make_more)
    assert (marks.least(), marks.least()) == (8, 30)
