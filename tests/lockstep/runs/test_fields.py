"""The fields of a job as flags need them: each with a kind, a description and its choices."""

from common.job.job import Job
from lockstep.runs.fields import fields
from lockstep.runs.launch import Launch


def test_every_value_of_job_and_launch_is_there_once() -> None:
    assert sorted(fields()) == sorted((*Job.__struct_fields__, *Launch.__struct_fields__))


def test_every_field_is_described() -> None:
    assert [field.name for field in fields().values() if not field.description] == []


def test_kinds_are_what_a_flag_can_say() -> None:
    kinds = {name: field.kind for name, field in fields().items()}
    assert {kinds["model"], kinds["initial"], kinds["schedule"]} == {str}
    assert (kinds["steps"], kinds["clip_norm"], kinds["nesterov"]) == (int, float, bool)


def test_choices_are_those_of_the_type() -> None:
    assert fields()["transport"].choices == ("auto", "shm", "ipc", "tcp")
    assert fields()["lr"].choices == ()
