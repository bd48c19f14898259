"""Which values of a job name functions, and which of these updates call."""

import pytest
from msgspec.structs import replace

from lockstep.common.job.job import Job
from lockstep.common.job.own_code import NAMING, functions_of, needs_code


@pytest.mark.parametrize("value", NAMING)
def test_each_value_may_name_a_function(value: str) -> None:
    job = replace(Job(), **{value: "mine.py:it"})
    assert functions_of(job) == {value: "mine.py:it"}
    assert needs_code(job) is (value in ("optimizer", "schedule"))


def test_other_jobs_name_none() -> None:
    assert functions_of(Job()) == {}
    assert not needs_code(Job(optimizer="adam", schedule="cosine"))
