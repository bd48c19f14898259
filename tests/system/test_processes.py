"""What waits for a line of a process does not wait for ever: the text may have been reworded."""

import os

import pytest

from tests.system.processes import line_with


def test_a_line_is_found_behind_others_and_the_next_one_stays() -> None:
    read, write = os.pipe()
    with open(read) as stream, open(write, "w") as end:
        end.write("one\ntwo words\nthree\n")
        end.flush()
        assert line_with("two", stream, 60.0) == "two words"
        assert line_with("", stream, 60.0) == "three"


def test_a_line_that_does_not_come_is_an_error_with_what_came() -> None:
    read, write = os.pipe()
    with open(read) as stream, open(write, "w") as end:
        end.write("reworded\n")
        end.flush()
        with pytest.raises(AssertionError, match=r"no line with 'the old words' in 0\.2 s: \['reworded'\]"):
            line_with("the old words", stream, 0.2)
        end.close()  # the thread that reads ends with it


def test_an_end_without_the_line_is_an_error_with_what_came() -> None:
    read, write = os.pipe()
    with open(read) as stream:
        with open(write, "w") as end:
            end.write("reworded\n")
        with pytest.raises(AssertionError, match=r"ended without 'the old words': \['reworded'\]"):
            line_with("the old words", stream, 60.0)
