"""`--trust-model`: the flag of each command that may run the code of a run's model."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from lockstep.cli.options.job import JobRequest
from lockstep.runs.run_dir import JOB, trust

F = TypeVar("F", bound=Callable[..., Any])


def takes_trust(command: F) -> F:
    """Add `--trust-model` to a command: before it runs, the models of the runs that it is given become trusted."""

    @functools.wraps(command)
    def with_trust(*arguments: Any, trust_model: bool, **values: Any) -> Any:
        for folder in _runs_in(values) if trust_model else ():
            trust(folder)
        return command(*arguments, **values)

    return click.option(
        "--trust-model",
        is_flag=True,
        help="run the code of the run's model from now on, although you have not trained it on this machine",
    )(with_trust)  # type: ignore[return-value]  # the same function, with one more parameter


def _runs_in(values: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folders of runs that a command was given, by whatever parameter."""
    job = values.get("job")
    if isinstance(job, JobRequest) and job.file is not None:
        yield job.file.parent
    yield from values.get("runs", ())
    yield from (values[name] for name in ("run", "resume", "run_dir") if values.get(name) is not None)
    if "what" in values:
        watched = Path(values["what"])
        yield from (watched, *(path.parent for path in sorted(watched.glob(f"*/{JOB}"))))
