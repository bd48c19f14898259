"""From a job's values to how a shard updates."""

import numpy as np

from lockstep.common import nn
from lockstep.common.job.job import Job
from lockstep.common.job.optimizer import spans_of
from lockstep.common.model.autograd import AutogradModel
from lockstep.ps.run.plan import plan_of
from lockstep.ps.shard.update_policy import policy_of


def test_the_policy_knows_where_statistics_begin() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.25))
    job = Job(clip_norm=2.0)
    of = AutogradModel(model)
    policy = policy_of(job, plan_of(job, 1280, 10), spans_of(job, of.layout), of.momenta())
    assert (policy.parameter_size, policy.clip_norm) == (21, 2.0)
    np.testing.assert_array_equal(policy.momenta, np.full(6, 0.25, np.float32))
