"""What is read of this machine."""

from common.environment import BLAS_THREAD_VARIABLES, child_environment, cores, use_one_blas_thread


def test_there_is_a_core_to_run_on() -> None:
    assert cores() >= 1


def test_children_inherit_one_blas_thread_and_write_at_once() -> None:
    use_one_blas_thread()
    environment = child_environment()
    assert all(environment[name] == "1" for name in BLAS_THREAD_VARIABLES)
    assert environment["PYTHONUNBUFFERED"] == "1"
