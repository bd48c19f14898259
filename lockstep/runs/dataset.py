"""The data of a job as it is trained on: without what is kept out to choose by."""

from common.data.dataset import TrainTest
from common.data.source import load, with_validation
from common.job.job import Job


def dataset_of(job: Job) -> TrainTest:
    """Return a job's data with its validation set taken from the training set; `DataError` if it cannot be had."""
    return with_validation(load(job.data), job.validation_split, job.seed)
