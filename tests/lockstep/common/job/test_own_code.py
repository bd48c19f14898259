"""Which values of a job name functions, and which of these updates call."""

from typing import Any

import pytest
from msgspec.structs import replace

from lockstep.common.job.job import Job
from lockstep.common.job.own_code import NAMING, OwnCode, functions_of, needs_code


@pytest.mark.parametrize("value", NAMING)
def test_each_value_may_name_a_function(value: str) -> None:
    job = replace(Job(), **{value: "mine.py:it"})
    assert functions_of(job) == {value: "mine.py:it"}
    assert needs_code(job) is (value in ("optimizer", "schedule"))


def test_other_jobs_name_none() -> None:
    assert functions_of(Job()) == {}
    assert not needs_code(Job(optimizer="adam", schedule="cosine"))


def test_a_metric_is_named_by_its_function() -> None:
    named = functions_of(Job(metrics=("f1", "mine.py:odd", "other.py:even"), loss="mine.py:loss"))
    assert named == {"loss": "mine.py:loss", "metrics.odd": "mine.py:odd", "metrics.even": "other.py:even"}


def test_each_function_is_in_its_place() -> None:
    found: dict[str, Any] = {value: object() for value in (*NAMING, "metrics.odd", "build")}
    own = OwnCode.of(found)
    assert {value: getattr(own, value) for value in NAMING} == {value: found[value] for value in NAMING}
    assert own.metrics == {"odd": found["metrics.odd"]}
    assert OwnCode.of({}) == OwnCode()
