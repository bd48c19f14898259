"""From a welcome to a model with its data, checked to be the server's; reads the disk, opens no socket."""

from collections.abc import Callable

from common.data.dataset import TrainTest
from common.errors import DataError, ModelError
from common.messages import Welcome
from common.model import build_model, model_source
from worker.compute import Compute

#: How a dataset is loaded from its name; an argument so that workers in one process can share one.
Loader = Callable[[str], TrainTest]


def prepare(welcome: Welcome, load: Loader) -> Compute:
    """Return what computes this run's pieces; `ModelError` or `DataError` where it is not the server's."""
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
    compute = Compute(job, build_model(job.model), data)
    if compute.layout.digest() != welcome.layout:
        raise ModelError(
            f"model {job.model_name()!r} has other parameters here than at the server: "
            "install the same version of lockstep on both"
        )
    return compute
