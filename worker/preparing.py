"""From a welcome to a model with its data, checked to be the server's; reads the disk, opens no socket."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.data.dataset import TrainTest
from common.data.split import with_validation
from common.errors import DataError, ModelError, SharingError
from common.layout import layout_of
from common.messages import Welcome
from common.model import build_model, model_source
from common.slices import frames_of
from worker.compute import Compute
from worker.sharing import attach

#: How a dataset is loaded from its name; an argument so that workers in one process can share one.
Loader = Callable[[str], TrainTest]


@dataclass(frozen=True)
class Workplace:
    """What computes, and whether in memory that the server sees."""

    compute: Compute
    #: What was read in that memory, empty where none is shared.
    nonce: str = ""
    #: Why none is shared although it was offered.
    obstacle: str = ""


def prepare(welcome: Welcome, load: Loader, root: Path | None = None) -> Workplace:
    """Return what computes this run's pieces; `ModelError` or `DataError` where it is not the server's.

    `root` is the folder in which shared memory is looked for, None where there is none.
    """
    job = welcome.job
    source = model_source(job.model)
    if source != welcome.source:
        raise ModelError(
            f"the file of model {job.model!r} is not the server's (SHA-256 {source[:12]}… here, "
            f"{welcome.source[:12]}… there): copy the server's file to this machine"
        )
    data = load(job.data)
    if data.digest != welcome.dataset:
        raise DataError(
            f"the dataset {job.data!r} is not the server's (SHA-256 {data.digest[:12]}… here, "
            f"{welcome.dataset[:12]}… there): copy the server's data to this machine"
        )
    data = with_validation(data, job.validation_split, job.seed)
    model = build_model(job.model)
    layout = layout_of(model)
    if layout.digest() != welcome.layout:
        raise ModelError(
            f"model {job.model_name()!r} has other parameters here than at the server: "
            "install the same version of lockstep on both"
        )
    frames = frames_of(layout.size, 1 + len(welcome.shards))
    if not welcome.memory or root is None:
        return Workplace(Compute(job, model, data, frames=frames))
    try:
        shared = attach(root, welcome, layout.size)
    except SharingError as error:
        return Workplace(Compute(job, model, data, frames=frames), obstacle=str(error))
    return Workplace(Compute(job, model, data, shared.slots, shared.sums), nonce=shared.nonce)
