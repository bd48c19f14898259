"""Training from Python: one call, in a script or a notebook cell, on any number of workers."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from lockstep.api.callbacks import Callback, CallbackRunner, EarlyStopping, Training, check_form
from lockstep.api.exported_model import Model, exported, exported_functions, is_described, names_of, with_names
from lockstep.api.job_inputs import (
    Arrays,
    Frame,
    completed,
    folder_name,
    job_inputs,
    shown_cache,
    taken_options,
    takes_data_in_one,
    with_data,
)
from lockstep.api.run import Run, load_run
from lockstep.common.errors import JobError
from lockstep.common.job.job import Job
from lockstep.common.model.source import is_torch_module, torch_model
from lockstep.common.nn.module import Module
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.notice import notice
from lockstep.launch.cluster import train_here
from lockstep.launch.placement import chosen_processes
from lockstep.ps.records.run_folder import EPOCH_WEIGHTS, RESULT
from lockstep.results.display import Display, NotebookPage, cell_output, display_for
from lockstep.results.summary import on_length
from lockstep.runs.job_data import draft_of, length_reason, scale_note
from lockstep.runs.job_file import resolve
from lockstep.runs.run_dir import claimed_run_dir, has_begun, trust, trust_own
from lockstep.runs.session import Destination


@takes_data_in_one
def fit(
    model: Model = None,
    data: str | Path | Arrays | Frame = "mnist",
    *,
    run_dir: str | Path | None = None,
    warm_start: bool = False,
    verbose: bool = True,
    callbacks: Sequence[Callback] = (),
    **values: Any,
) -> Run:
    """Train a model and return the run; `model` itself stays as it is, the trained one is `run.model`.

    **Model.** `model` is a Module, the name of a shipped model, or `FILE.py:FUNCTION`. One made of the library's layers
    is sent to the workers as data. A class of your own, from a notebook's cell or a script, is sent as its source text,
    with the definitions that it uses; so its constructor must take no arguments, or you pass what builds the model: a
    function, a lambda, or a `functools.partial`. The same is true of a `torch.nn.Module`, whose layers may also show
    their arguments, as those of an `nn.Sequential` do; then `run.model` is one too. That text is kept in the run's
    folder, and is built by processes of this machine only.

    **Data.** `data` is "mnist", a folder of IDX files, an .npz, or arrays as `((x_train, y_train), (x_test, y_test))`:
    images uint8 or float (n, h, w) or (n, channels, h, w), or features (n, k), and integer labels (n,) from 0; for
    `loss="mse"` floats (n,) or (n, outputs). x and y may be dictionaries or tuples of arrays, and `(x, y, w)` has
    weights of samples; a pair of datasets of PyTorch is read once. It may also be a .csv or .parquet, a folder of
    pictures, a data frame of pandas or Polars, or a dataset of Hugging Face's `datasets`: then `target="price"` names
    the target, and `columns`, `drop`, `task`, `categories`, `one_hot`, `numbers`, `missing`, `na`,
    `standardize`, `delimiter`, `encoding`, `decimal`, `size`, `grayscale` and `test_split` are those of `lockstep
    pack`; a pair of frames is one to train and one to test with.

    Data alone needs no model, as in `lockstep train`: `fit(frame, target="price")` and `fit((x, y))` of vectors train
    `dense`, `fit("pictures")` and other pictures `conv`, with a loss that follows from the targets, and a batch and
    epochs that follow from the samples; pictures as large and as many as MNIST's, in ten classes, train `lenet`.

    **Values.** `values` are those of a job file: `workers=4, epochs=3, lr=0.1, seed=7, optimizer="adam"`, and so on.
    Without `epochs` and `steps`, a model of your own makes about 1,500 steps, in 3 to 100 epochs. `workers=0` trains in
    this process, and so does a call without an option of processes if workers would not be done sooner. The
    bits are the same on every processor, unless PyTorch computes the model or `numerics="native"` is given.
    The first weights are drawn from `seed`, but for those that the function which builds the model has set, so that the
    same call gives the same bits. With `warm_start=True` they are those of the model, and with `initial="weights.pt"`
    those of a file. `loss`, `optimizer`, `schedule` and `transform` may be functions or classes of your own, and
    `metrics` may have functions in it; they are sent as their source text like the model.

    **Results** go to `run_dir`, a new folder, by default one below `runs`. An interrupt ends all processes of the run,
    and leaves a checkpoint: `resume(run_dir)` continues from there. With `verbose=False` it prints
    nothing, and a `UserWarning` reports weights of the model that are not used.

    Raises `UsageError` if the call cannot be carried out, mostly one of its kinds `JobError`, `ModelError` or
    `DataError`; `CallbackError` if a callback raises, and `RunError` if the run fails.

    >>> x = np.random.default_rng(0).normal(size=(64, 3))
    >>> y = (x.sum(axis=1) > 0).astype(int)
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> run = fit(model, ((x, y), (x, y)), epochs=5, global_batch=16, lr=0.1, workers=0, verbose=False)
    >>> run.test_accuracy > 0.8
    True
    """
    options, values = taken_options(values)
    known, functions = exported(model), exported_functions(values)
    values = {**known.values(), **_with_values_of(callbacks, values)}
    given = with_names(values, names_of(functions))
    job, launch = resolve({}, draft_of(given, given))
    job, arrays = with_data(job, data, options, given.get("loss"), verbose=verbose)
    weights = _weights(model) if warm_start else None
    wanted = None if run_dir is None else Path(run_dir)
    with (
        claimed_run_dir(wanted, folder_name(job, given, arrays) if known.text is None else known.text.name) as folder,
        job_inputs(folder, weights, arrays, known.text, functions) as paths,
    ):
        job = completed(job, values, paths)
        trust_own(job)
        launch, why = chosen_processes(job, launch, given, SystemClock())
        unused = "" if warm_start or job.initial is not None else _unused_weights(model, job)
        if unused and not verbose:
            warnings.warn(unused, stacklevel=3)
        notes = [
            unused,
            length_reason(job, given),
            scale_note(job, given),
            why and f"in this process alone: {why} (workers=2 starts some)",
        ]
        return _carry_out(job, Destination(folder=folder, options=launch), callbacks, verbose=verbose, notes=notes)


def resume(
    folder: str | Path,
    *,
    verbose: bool = True,
    callbacks: Sequence[Callback] = (),
    trust_model: bool = False,
    **values: Any,
) -> Run:
    """Resume a run that was interrupted or killed, from its last checkpoint, and return it with the same bits.

    `values` may change how it is carried out (`workers=2`), and not the job; `data` is where its data is now, if it was
    moved. Callbacks have to be given again; they are called for the epochs that follow. A finished run is returned as
    it is. `trust_model` is that of `load_run`.

    Raises `JobError` if there is no run in the folder, or a value would change the job; `DataError` if `data` is other
    data; `UsageError` if the folder is in use; otherwise what `fit` raises.
    """
    path = Path(folder)
    if trust_model:
        trust(path)
    job, launch = shown_cache(verbose=verbose).resumed(path, _with_values_of(callbacks, values))
    if (path / RESULT).exists():
        return load_run(path)
    destination = Destination(folder=path, options=launch, is_resumed=True)
    return _carry_out(job, destination, callbacks, verbose=verbose)


def _with_values_of(callbacks: Sequence[Callback], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job's values, with those that callbacks stand for; `JobError` if two say different things."""
    check_form(callbacks)
    given = dict(values)
    for callback in callbacks:
        for name, value in (callback.values() if isinstance(callback, EarlyStopping) else {}).items():
            if given.setdefault(name, value) != value:
                raise JobError(
                    f"EarlyStopping has {name} = {value!r}, and {given[name]!r} is given as well: remove one of them"
                )
    return given


def _carry_out(
    job: Job, destination: Destination, callbacks: Sequence[Callback], *, verbose: bool, notes: Sequence[str] = ()
) -> Run:
    """Train to the end, calling the callbacks that are code; the others are values of the job."""
    folder = destination.folder
    called = [callback for callback in callbacks if not isinstance(callback, EarlyStopping)]
    runner = CallbackRunner(called, Training(folder, job))
    with _display(verbose) as display:
        try:
            for note in filter(None, notes):
                display.say(notice(note))
            runner.begin()
            result = train_here(job, destination, display, is_to_stop=runner.is_to_stop if called else None)
            runner.end(result.history)
            if note := on_length(result):
                display.say(notice(note))
        except KeyboardInterrupt:
            if has_begun(folder):
                display.say(f"interrupted: the run is kept; resume it with lockstep.resume({str(folder)!r})")
            raise
        finally:
            (folder / EPOCH_WEIGHTS).unlink(missing_ok=True)
    return Run(result, folder, job)


def _unused_weights(model: Model, job: Job) -> str:
    """Return a line if weights were set or trained in a model since it was built; otherwise nothing."""
    if not isinstance(model, Module):
        return ""
    # Values that a class of the user's own sets are built again with it, and used.
    built = {} if is_described(model) else {n: each.digest() for n, each in type(model)().own_initial_values()}
    if all(built.get(name) == each.digest() for name, each in model.own_initial_values()):
        return ""
    return (
        f"the weights of the model are not used, and are drawn from seed = {job.seed}: to begin with them, add "
        "warm_start=True"
    )


def _weights(model: Model) -> dict[str, NDArray[Any]]:
    if is_torch_module(model):
        own = torch_model(model)
        return own.layout.read(own.first_weights(0))
    if not isinstance(model, Module):
        raise JobError(f"warm_start needs a model with weights, and {model!r} has none: pass the Module itself")
    return model.state_dict()


def _display(verbose: bool) -> Display:
    if verbose and (show := cell_output()) is not None:
        return Display(NotebookPage(show), SystemClock())
    return display_for(Console(highlight=False, quiet=not verbose), SystemClock())
