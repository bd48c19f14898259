"""From a welcome to a model with its data, checked to be the server's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.manifest import Manifest
from lockstep.common.data.source import with_validation
from lockstep.common.errors import DataError, FileFormatError, ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.model.initial import kept_next_to, micro_batch_to_try, read_initial
from lockstep.common.model.port import Model
from lockstep.common.model.source import source_from_welcome
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.messages import Welcome
from lockstep.worker.compute import Compute, Slots
from lockstep.worker.samples import SampleStore

#: How a dataset is loaded from its name; an argument so that workers in one process can share one.
Loader = Callable[[str], TrainTest]


class LoadedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The job, model and data of a run, checked to be the server's."""

    job: Job
    model: Model
    data: TrainTest
    #: The store of samples that the server sends; None if the data is here.
    store: SampleStore | None
    #: Functions of the user.
    own: OwnCode = NO_CODE

    def compute(self, slots: Slots, sums: tuple[Vector, ...], frames: Sequence[Slice] = ()) -> Compute:
        """Return what computes leases in that memory; by default in memory of its own."""
        return Compute(self.job, self.model, self.data, slots, sums, frames=frames, own=self.own)


def gather(welcome: Welcome, load: Loader, cache: Path | None = None) -> LoadedRun:
    """Take the numerics of a run, build its model and load its data.

    `NumericsError` if this machine cannot have them; `ModelError` or `DataError` if something is not the server's.
    `cache` is where samples are stored that a server sends, None if there is no such folder.
    """
    job = welcome.job
    take_numerics(job.numerics)
    source = source_from_welcome(job, welcome.source, welcome.model_files, welcome.model_folder)
    data, store = _data_of(welcome, load, cache)
    own = source.own_code()
    model = source.build(job.seed)
    _take_frozen(welcome, model)
    _check_evidence(welcome, model, data, own)
    return LoadedRun(job=job, model=model, data=data, store=store, own=own)


def _take_frozen(welcome: Welcome, model: Model) -> None:
    """Give frozen parameters the server's values, which come from the model's files or from the job's initial weights.

    `ModelError` if they, or the parameters, are not the server's. Trained parameters come from the server.
    """
    job, unread = welcome.job, ""
    if model.layout.digest() == welcome.layout:
        return
    if model.layout.frozen and job.initial is not None:
        try:
            initial = read_initial(job, model, kept_next_to(welcome.model_folder))
        except (FileFormatError, ModelError) as error:
            unread = str(error)
        else:
            assert initial is not None
            model.adopt(initial.taken)
            if model.layout.digest() == welcome.layout:
                return
        raise ModelError(
            f"model {job.model_name()!r} has other frozen values here than at the server, which has them from "
            f"{job.initial!r}{f' ({unread})' if unread else ''}: copy the server's file to this machine"
        )
    if model.layout.frozen:
        raise ModelError(
            f"model {job.model_name()!r} has other parameters here than at the server, or other values of frozen ones: "
            "expected the same; copy the files that the model reads from the server to this machine, and install the "
            "same versions on both"
        )
    raise ModelError(
        f"model {job.model_name()!r} has other parameters here than at the server: "
        "install the same version of lockstep on both"
    )


def _check_evidence(welcome: Welcome, model: Model, data: TrainTest, own: OwnCode) -> None:
    """Raise `ModelError` if the model computes something else here than at the server, or cannot be repeated."""
    job, is_here = welcome.job, welcome.manifest is None
    found = model.evidence(Objective(job, own), *micro_batch_to_try(job, data, is_here=is_here))
    if welcome.engine and found.engine != welcome.engine:
        raise ModelError(
            f"model {job.model_name()!r} is computed by {found.engine} here, and by {welcome.engine} at the server: "
            "use equal machines and versions, or start the server with --allow-mixed-numerics and give up equal bits"
        )
    if welcome.evidence and found.digest != welcome.evidence:
        raise ModelError(
            f"model {job.model_name()!r} computes something else here than at the server, of the first micro-batch "
            f"(SHA-256 {found.digest} here, {welcome.evidence} there): what it is built from may differ, such as a "
            "package or a number that it draws itself; or use equal machines, or start the server with "
            "--allow-mixed-numerics and give up equal bits"
        )


def _data_of(welcome: Welcome, load: Loader, cache: Path | None) -> tuple[TrainTest, SampleStore | None]:
    """Return the server's data: as it is here, or the samples that were sent, with their store."""
    job, manifest = welcome.job, welcome.manifest
    try:
        data = load(job.data)
    except DataError:
        if manifest is None or cache is None:
            raise
        return _shipped(welcome, manifest, cache)
    if data.digest == welcome.dataset:
        data = with_validation(data, job.validation_split, job.seed)
        return data if welcome.moments is None else data.with_moments(welcome.moments), None
    if manifest is not None and cache is not None:
        return _shipped(welcome, manifest, cache)
    raise DataError(
        f"the dataset {job.data!r} is not the server's (SHA-256 {data.digest[:12]}… here, "
        f"{welcome.dataset[:12]}… there): copy the server's data to this machine, or start the server "
        "with --set ship_data=true"
    )


def _shipped(welcome: Welcome, manifest: Manifest, cache: Path) -> tuple[TrainTest, SampleStore]:
    job = welcome.job
    store = SampleStore.open(cache / manifest.key(welcome.dataset, job.validation_split, job.seed), manifest)
    return store.data(job.data), store
