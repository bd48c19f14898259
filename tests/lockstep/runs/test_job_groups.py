"""The values of a job as a person sees them."""

import pytest

from lockstep.runs.job_file import named, resolve, shown_values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/you/runs/net/data.npz", "data.npz"),
        ("/home/you/runs/net/model/model.py:build", "model.py:build"),
        ("runs/homes.csv", "runs/homes.csv"),
        ("mnist", "mnist"),
        (0.1, 0.1),
        (None, None),
    ],
)
def test_a_whole_path_is_told_by_its_name(value: object, expected: object) -> None:
    assert named(value) == expected


def test_what_is_shown_of_a_job_has_no_whole_path() -> None:
    job, launch = resolve({}, {"model": "/home/you/net.py:build", "data": "/home/you/runs/net/data.npz"})
    shown = {value.name: value for values in shown_values(job, launch).values() for value in values}
    assert [shown[name].value for name in ("model", "data")] == ["net.py:build", "data.npz"]
    assert shown["data"].is_unusual
